"""Small models with random parameters, for pipelines and checkpoints."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import Checkpoints, Metadata
from diffusion_distillation.networks.model import init_params, make_network

SHAPE = (8, 8, 1)
KEY = jax.random.key(3)
WAYS = {
    "ddim": dict(),
    "ancestral": dict(sampler="ancestral"),
    "eta": dict(eta=0.5),
    "addim": dict(sampler="addim"),
    "heun": dict(sampler="heun"),
    "dpmpp_2m": dict(sampler="dpmpp_2m"),
    "renoise": dict(sampler="renoise"),
}


def make_model(num_classes=3, num_steps=0, parallel="jit", label_dropout=0.0, guidance_range=None, unet=False, **model):
    """Random parameters and metadata of a U-Net, or of a network that compiles in no time."""
    config = cfg.defaults()
    config.dataset.name = "digits"
    if unet:
        config.model.args.update(ch=32, emb_ch=32, ch_mult=(1,), num_res_blocks=0, attn_resolutions=(), num_heads=1)
    else:
        config.model.name, config.model.args = "helpers.own_parts:affine", dict(width=32)
    if guidance_range is not None:
        config.model.args.guidance_range = guidance_range
        config.distillation = dict(teacher_checkpoint_path="-", start_num_steps=8)
    config.model.update(dict(mean_type="v", eval_sampling_num_steps=4) | model)
    config.train.update(batch_size=16, learning_rate=1e-3, parallel=parallel, label_dropout=label_dropout)
    config = cfg.resolve(config)
    params = random_params(make_network(config.model, SHAPE, num_classes), num_classes)
    return params, Metadata(config=config, image_shape=SHAPE, num_classes=num_classes, num_steps=num_steps)


@functools.cache
def random_params(network, num_classes, shape=SHAPE):
    """Random parameters. No layer is zero, as some are after initialization."""
    params, rng = init_params(network, jax.random.key(0), shape, num_classes), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)


class State(NamedTuple):
    """The fields that a checkpoint needs."""

    step: np.ndarray
    params: Any


def save_model(folder, **kwargs):
    """Save a checkpoint of `make_model` at step 7."""
    params, metadata = make_model(**kwargs)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(State(np.asarray(7, np.int32), params), metadata)


def noise(key, n):
    """The noise from which samples 0 to n - 1 of a key start."""
    keys = [jax.random.split(jax.random.fold_in(key, j))[0] for j in range(n)]
    return np.stack([jax.random.normal(key, SHAPE) for key in keys])


def make_run(**train):
    config = cfg.defaults()
    config.dataset.name = "digits"
    config.model.name, config.model.args = "helpers.own_parts:affine", dict(width=4096)
    config.train.update(dict(batch_size=16, learning_rate=1e-3) | train)
    config = cfg.resolve(config)
    network = make_network(config.model, SHAPE, 1)
    metadata = Metadata(config=config, image_shape=SHAPE, num_classes=1, num_steps=4)
    return metadata, init_params(network, jax.random.key(0), SHAPE, 1)


def at_step(state, step):
    return jax.tree.map(lambda leaf: leaf + step, state)._replace(step=jnp.asarray(step, jnp.int32))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
