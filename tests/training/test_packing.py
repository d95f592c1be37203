import jax
import numpy as np
import pytest
from helpers.steps import AFFINE, make_config, model_of, run

from diffusion_distillation.methods import make_method
from diffusion_distillation.runtime.devices import data_mesh
from diffusion_distillation.training.loop import make_runner
from diffusion_distillation.training.packing import is_packed, pack_state, unpack
from diffusion_distillation.training.step import init_state

MIXED = AFFINE | {"dense0": AFFINE["dense0"].astype(jax.numpy.bfloat16)}


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


MOMENTUM = dict(optimizer="momentum", ema_decay=None, avg_type="ema", avg_steps=1)  # without an average


@pytest.mark.parametrize(("train", "vectors"), [(dict(), 4), (MOMENTUM, 2)], ids=["adam", "momentum"])
def test_unpacking_returns_the_state_that_was_packed(train, vectors):
    params = {
        "matrix": np.float32([[1, 2, 3], [4, 5, 6]]),
        "layer": {"number": np.float32(7), "empty": np.ones((0, 2))},
    }
    config = make_config(**train)
    state = init_state(config, make_method(config), jax.tree.map(np.float32, params))
    packed = pack_state(state)
    np.testing.assert_array_equal(packed.params.vector, [7, 1, 2, 3, 4, 5, 6])
    leaves = jax.tree.leaves(packed, is_leaf=is_packed)
    assert sum(map(is_packed, leaves)) == vectors
    assert all(np.shape(leaf) == () for leaf in leaves if not is_packed(leaf))
    assert_same(unpack(packed), state)


def test_a_state_of_several_dtypes_is_not_packed():
    """Custom networks may have parameters of several dtypes, and still train."""
    state = init_state(make_config(), make_method(make_config()), MIXED)
    assert_same(pack_state(state), state)
    [one, two], losses = run(make_config(), 2, params=MIXED)
    assert two.params["dense0"].dtype == jax.numpy.bfloat16 and np.isfinite(losses).all()
    assert not np.array_equal(one.params["bias"], two.params["bias"])


@pytest.mark.parametrize(
    ("how", "scan", "packed", "backend"),
    [
        (dict(), False, True, "cpu"),
        (dict(parallel="pmap"), False, True, "cpu"),
        (dict(), True, False, "tpu"),
        (dict(), True, True, "gpu"),
        (dict(parallel="pmap"), True, True, "gpu"),
        (dict(shard="state"), False, False, "cpu"),
        (dict(distillation=dict(only_finetune_temb=True)), False, False, "cpu"),
    ],
)
def test_states_are_packed_where_it_pays_and_saved_unpacked(monkeypatch, how, scan, packed, backend):
    """No device ever holds both forms."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = make_config(**how)
    runner = make_runner(config, make_method(config), model_of(config), data_mesh(), scan=scan)
    state = init_state(config, make_method(config), AFFINE)
    before = jax.device_get(state)
    moved = packed or config.train.parallel == "pmap"
    put, gone = jax.device_put, []

    def device_put(leaf, *args, **kwargs):
        gone.append(all(leaf.is_deleted() for leaf in jax.tree.leaves(state)))
        return put(leaf, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_put", device_put)
        placed, _ = runner.place(state, None)
    assert all(gone) if moved else not any(gone)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state)) == moved
    assert is_packed(placed.params) == is_packed(placed.ema_params) == packed
    collected = runner.collect(placed)
    assert_same(collected, before)
    assert {isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(collected)} == {moved}
