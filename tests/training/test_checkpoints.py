import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distillation import config as cfg
from diffusion_distillation.model import init_params, make_network
from diffusion_distillation.training.checkpoints import FORMAT_VERSION, Checkpoints, Metadata, load
from diffusion_distillation.training.step import init_state

SHAPE = (8, 8, 1)


def make_run(**train):
    config = cfg.defaults()
    config.dataset.name = "digits"
    config.model.args.update(ch=32, emb_ch=32, ch_mult=(1,), num_res_blocks=0, attn_resolutions=(), num_heads=1)
    config.train.update(dict(batch_size=16, learning_rate=1e-3) | train)
    config = cfg.resolve(config)
    network = make_network(config.model, SHAPE, 1)
    return Metadata(config, SHAPE, 1, num_steps=4), init_params(network, jax.random.key(0), SHAPE)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("train", "averages"), [(dict(ema_decay=0.9), True), (dict(ema_decay=0.0), False)])
def test_what_is_saved_is_restored(tmp_path, train, averages):
    metadata, params = make_run(**train)
    state = init_state(metadata.config, params)._replace(step=jnp.asarray(7, jnp.int32))
    if averages:
        state = state._replace(ema_params=jax.tree.map(lambda leaf: leaf + 1, params))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, metadata)
        checkpoints.save(state, metadata)  # a second time does nothing
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        assert_same(checkpoints.restore(jax.eval_shape(lambda: state)), state)
    loaded, of_loaded = load(tmp_path)
    assert_same(loaded, state.sampling_params)
    assert (of_loaded.step, of_loaded.num_steps, of_loaded.image_shape) == (7, 4, SHAPE)
    assert of_loaded.config.to_json() == metadata.config.to_json()


def test_the_last_two_and_every_so_many_are_kept(tmp_path):
    metadata, params = make_run()
    state = init_state(metadata.config, params)
    with Checkpoints(tmp_path, keep_every=4) as checkpoints:
        for step in range(2, 15, 2):
            checkpoints.save(state._replace(step=jnp.asarray(step, jnp.int32)), metadata)
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 12, 14]


def test_errors(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"No finished checkpoint in .*; let the run go on"):
        load(tmp_path)
    metadata, params = make_run()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(init_state(metadata.config, params), metadata)
    path = tmp_path / "checkpoints" / "0" / "metadata" / "metadata"
    newer = json.loads(path.read_text()) | {"format_version": FORMAT_VERSION + 1}
    path.write_text(json.dumps(newer))
    with pytest.raises(ValueError, match=f"has format {FORMAT_VERSION + 1}.* reads up to {FORMAT_VERSION}"):
        load(tmp_path)
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="was not saved by diffusion_distillation"):
        load(tmp_path)
