"""The denoisers and averages that the training step passes to a method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.steps import AFFINE, SOURCE, Dropping, make_config, run

from diffusion_distillation import methods
from diffusion_distillation.data import read_batches
from diffusion_distillation.losses import data_target, training_loss
from diffusion_distillation.methods import Method, Rung, Times, make_method
from diffusion_distillation.training.step import Teacher

BATCH = next(read_batches(SOURCE, 0, range(1), 16))


def use(monkeypatch, method):
    """The config of a ladder with this method."""
    monkeypatch.setitem(methods.METHODS, "progressive", methods.Entry(lambda config, schedule: method))
    return make_config(distillation={})


def method_of(target, *, loss=None, **kwargs):
    def times(keys, update, rung):
        return Times(jnp.full(len(keys), 0.5))

    def v_mse(prediction, target, times):
        return training_loss(prediction, target, "v_mse")

    return Method(times, target, loss or v_mse, rungs=(Rung(2, 1),), **kwargs)


def loss_of(config, params, teacher=None):
    teacher = Teacher(teacher or params, Rung(2, 1))
    return run(config, 1, network=Dropping(), params=params, teacher=teacher)[1][0]


def test_a_target_from_the_student_has_the_dropout_mask_of_its_prediction(monkeypatch):
    """So a student meets a target that is its own prediction exactly."""

    def own(denoisers, x, eps, z, times):
        return denoisers.student(z, jnp.zeros(len(z)))

    def from_teacher(denoisers, x, eps, z, times):
        return denoisers.teacher(z, jnp.zeros(len(z)))

    params = {"scale": np.float32(1)}
    assert loss_of(use(monkeypatch, method_of(own)), params) == 0
    assert loss_of(use(monkeypatch, method_of(from_teacher)), params) > 1  # the teacher has no dropout


def test_no_gradient_flows_through_a_target_from_the_student(monkeypatch):
    def twice_its_own(denoisers, x, eps, z, times):
        return jax.tree.map(lambda leaf: 2 * leaf, denoisers.student(z, jnp.zeros(len(z))))

    def loss(prediction, target, times):
        return jnp.mean(target.v - prediction.v, axis=(1, 2, 3)) * jnp.sign(jnp.mean(prediction.v, axis=(1, 2, 3)))

    config = use(monkeypatch, method_of(twice_its_own, loss=loss))
    params = {"scale": np.float32(1)}
    state = run(config, 1, network=Dropping(), params=params, teacher=Teacher(params, Rung(2, 1)))[0][0]
    assert state.params["scale"] > 1  # otherwise the gradient would have the other sign


def test_a_method_may_have_its_own_average(monkeypatch):
    """It is the exponential average of the parameters so far, normalized to total weight 1."""

    def target(denoisers, x, eps, z, times):
        assert denoisers.average is not None
        return data_target(x, eps, jnp.zeros(len(x)))

    config = use(monkeypatch, method_of(target, average_decay=0.5))
    states, _ = run(config, 4, params=AFFINE, teacher=Teacher(AFFINE, Rung(2, 1)))
    for n, state in enumerate(states, 1):
        weights = 0.5 ** np.arange(n)[::-1]
        history = [earlier.params["dense0"] for earlier in states[:n]]
        expected = np.average(history, axis=0, weights=weights)
        np.testing.assert_allclose(state.average["dense0"], expected, atol=1e-6)
    assert run(make_config(), 1)[0][0].average is None


def test_a_method_is_chosen_by_its_name():
    assert make_method(make_config()).rungs == ()
    assert make_method(make_config(distillation={})).rungs == (Rung(8, 4), Rung(4, 2), Rung(2, 1))
    own = make_method(make_config(distillation=dict(method="helpers.own_parts:tract")))
    assert own.rungs == (Rung(8, 2), Rung(2, 1))
    for name, message in {
        "progresive": r"Unknown config.distillation.method='progresive'. Did you mean 'progressive'\?",
        "no_such_module:make": "'no_such_module' cannot be imported .ModuleNotFoundError.*PYTHONPATH",
        "helpers.own_parts:trakt": r"'helpers.own_parts' has no function 'trakt'. Did you mean 'tract'\?",
        "helpers.own_parts:nothing": "must be a function that returns a .*methods.Method; it returned None",
    }.items():
        with pytest.raises(ValueError, match=message):
            make_config(distillation=dict(method=name))
