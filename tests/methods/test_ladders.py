"""Every method trains its ladder to the end, and resumes with its whole state where it stopped."""

import itertools

import jax
import numpy as np
import pytest
from helpers.small_runs import SOURCE, ladder_of, make_config, stop_at
from helpers.steps import AFFINE, METHODS, WAYS, run
from helpers.steps import make_config as training_config

from diffusion_distillation.checkpoints import Checkpoints, load
from diffusion_distillation.methods import make_method
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.loop import train
from diffusion_distillation.training.step import Teacher, init_state


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base model and its config."""
    config, folder = make_config(num_steps=5), tmp_path_factory.mktemp("base")
    train(config, folder, SOURCE)
    return config, folder


def ladder(base, name):
    """The resolved config of a method's ladder, with an average to be sampled."""
    config, folder = base
    fields = {f"distillation.{field}": value for field, value in METHODS[name].items() if field != "args"}
    fields |= {f"distillation.args.{field}": value for field, value in METHODS[name].get("args", {}).items()}
    return ladder_of(config, folder, **{"train.ema_decay": 0.9, "distillation.steps_per_iter": 10, **fields})


@pytest.mark.parametrize(
    "name", [name if name in ("tract", "training") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_stopped_ladder_resumes_to_the_same_students(name, base, tmp_path):
    config = ladder(base, name)
    run_ladder(config, tmp_path / "undisturbed", SOURCE)
    with pytest.raises(SystemExit):
        run_ladder(config, tmp_path / "run", SOURCE, on_metrics=stop_at(5))
    run_ladder(config, tmp_path / "run", SOURCE)
    students = sorted(path.name for path in (tmp_path / "run").glob("steps_*"))
    assert students == sorted(path.name for path in (tmp_path / "undisturbed").glob("steps_*"))
    for student in students:
        (one, about), (other, _) = (load(tmp_path / folder / student) for folder in ("undisturbed", "run"))
        assert about.step == 10 and about.num_steps == int(student.removeprefix("steps_"))
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(one))
    state = jax.eval_shape(lambda: init_state(config, make_method(config), one))
    with Checkpoints(tmp_path / "run" / students[0], 0) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(sharded, state))
    assert (restored.average is not None) == (config.distillation.method == "tract")
    jax.tree.map(np.testing.assert_array_equal, restored.ema_params, load(tmp_path / "run" / students[0])[0])
    if restored.average is not None:
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), restored.average, restored.ema_params)
        assert max(jax.tree.leaves(apart)) > 1e-6  # the self-teacher is not the average that is sampled


def sharded(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *itertools.product(
            ("tract", "distillation"),
            ("8 devices", "pmap, 2 devices", "accumulation, 4 devices", "fully sharded", "scan"),
        ),
        ("training", "fully sharded"),
        ("tuning", "fully sharded"),
    ],
)
def test_every_way_of_training_gives_the_same_student(name, way):
    """With an own average, with a target of several steps, and without a teacher."""
    found = []
    for how in ({}, WAYS[way]):
        how = dict(how)
        placed = {field: how.pop(field) for field in ("devices", "scan") if field in how}
        config = training_config(distillation=METHODS[name], **how)
        rung = make_method(config).rungs[0]
        states, losses = run(config, 4, teacher=Teacher(jax.tree.map(lambda leaf: -leaf, AFFINE), rung), **placed)
        found.append((states[-1].params, states[-1].ema_params, states[-1].average, losses))
    one, other = map(jax.tree.leaves, found)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
