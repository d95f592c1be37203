"""Samples and training do not depend on JAX's settings: 64-bit types and the default kind of keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import KEY, SHAPE, WAYS, make_model
from helpers.steps import AFFINE, METHODS, SOURCE, make_config, model_of

from diffusion_distillation.config import rung_config
from diffusion_distillation.data import read_batches
from diffusion_distillation.diffusion import make_denoiser
from diffusion_distillation.keys import MAX_SEED, seed_key, threefry
from diffusion_distillation.methods import Denoisers, Rung, make_method
from diffusion_distillation.networks.embedding import LOGSNR_INPUT_TYPES
from diffusion_distillation.networks.model import init_params
from diffusion_distillation.networks.unet import UNet, dropout_seeds
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.schedules import Discrete
from diffusion_distillation.training.step import Teacher, init_state, make_train_step


def assert_equal(one, other):
    """Check that values and types are equal."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def initial():
    """Parameters of a U-Net with all kinds of layers."""
    unet = dict(ch=32, emb_ch=32, out_ch=1, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_heads=1)
    unet |= dict(dropout=0.0, logsnr_input_type="inv_cos", guidance_range=(0.0, 4.0))
    return init_params(UNet(num_classes=3, **unet), seed_key(0), SHAPE, 3)


TRAINED = {name: dict(distillation=changes) for name, changes in METHODS.items()} | {
    "base": dict(),
    "discrete base": dict(train_num_steps=8, learning_rate_warmup_steps=2, learning_rate_anneal_type="linear"),
    "arithmetic mean": dict(ema_decay=None, avg_type="aa", avg_steps=2, optimizer="nesterov"),
    "mean": dict(ema_decay=None, avg_type="ema", avg_steps=5, microbatch_size=8),
}


@pytest.mark.parametrize("name", TRAINED)
def test_64_bit_types_leave_training_as_it_is(name):
    def train():
        config = make_config(randflip=True, **TRAINED[name])
        teacher = None
        if "distillation" in TRAINED[name]:
            teacher = Teacher(jax.tree.map(lambda leaf: leaf + 0.1, AFFINE), make_method(config).rungs[0])
        method, losses = make_method(config), []
        step, state = jax.jit(make_train_step(config, method, model_of(config))), init_state(config, method, AFFINE)
        for batch in read_batches(SOURCE, 0, range(2), 16):
            state, metrics = step(state, seed_key(0), teacher, batch)
            losses.append(metrics)
        return jax.device_get((state, losses))

    expected = train()
    with jax.enable_x64(True):
        assert_equal(train(), expected)


def test_64_bit_types_leave_parameters_and_samples_as_they_are():
    def draw():
        pipeline = Pipeline(*make_model(unet=True))
        return [pipeline.sample(KEY, 3, **WAYS[way]) for way in ("eta", "addim")]

    expected, drawn = initial(), draw()
    with jax.enable_x64(True):
        assert_equal(initial(), expected)
        assert_equal(draw(), drawn)


@pytest.mark.parametrize("way", ["ddim", "ancestral"])
def test_samples_do_not_depend_on_the_kind_of_key(way):
    """They do not depend on the batch size either."""
    pipeline = Pipeline(*make_model())
    expected = pipeline.sample(jax.random.key(3), 8, **WAYS[way])
    with jax.default_prng_impl("rbg"):
        for key in (jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="unsafe_rbg")):
            np.testing.assert_array_equal(pipeline.sample(key, 8, batch_size=8, **WAYS[way]), expected)
            np.testing.assert_array_equal(pipeline.sample(key, 8, batch_size=3, **WAYS[way]), expected)


def test_dropout_of_an_example_does_not_depend_on_the_batch():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(dropout_seeds(key, jnp.arange(8))[5:6], dropout_seeds(key, jnp.arange(5, 6)))


def test_seeds_that_jax_would_wrap_are_refused():
    with jax.default_prng_impl("rbg"):
        assert_equal(*(jax.random.key_data(key) for key in (seed_key(7), threefry(jax.random.key(7)))))
    seed_key(MAX_SEED)
    for seed in (-1, 2**32, 2**63, 2**64):
        with pytest.raises(ValueError, match=f"seed {seed} must be from 0 to 4294967295"):
            seed_key(seed)


def test_the_seed_of_a_student_is_a_valid_seed():
    config = make_config(distillation={}).copy_and_resolve_references()
    with config.unlocked():
        config.seed = MAX_SEED
    assert rung_config(config, Rung(8, 4)).seed == 3


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", LOGSNR_INPUT_TYPES)
def test_a_network_neither_mixes_types_nor_adds_axes(kind, dtype):
    options = dict(ch=32, emb_ch=32, out_ch=1, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_heads=1)
    options |= dict(schedule=Discrete() if kind == "step" else None, scale_shift=kind != "step", dtype=dtype)
    options |= dict(resblock_resample=kind != "linear")
    network = UNet(num_classes=3, dropout=0.1, logsnr_input_type=kind, guidance_range=(0.0, 4.0), **options)
    x, logsnr, y = jnp.zeros((2, *SHAPE)), jnp.zeros(2), jnp.zeros(2, jnp.int32)

    def apply(key):
        variables = network.init(key, x, logsnr, y, guidance=logsnr)
        return network.apply(variables, x, logsnr, y, guidance=logsnr, train=True, rngs={"dropout": key})

    assert jax.eval_shape(apply, seed_key(0)).dtype == jnp.float32


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", METHODS)
def test_a_method_neither_mixes_types_nor_adds_axes(name):
    method, z = make_method(make_config(distillation=METHODS[name])), jnp.zeros((4, *SHAPE))
    denoiser = make_denoiser(lambda z, logsnr: z, "v")

    def loss(keys, update, rung):
        times = method.times(keys, update, rung)
        target = method.target(Denoisers(denoiser, denoiser, denoiser), z, z, z, times)
        return method.loss(denoiser(z, jnp.zeros(4)), target, times)

    rung = jax.tree.map(jnp.int32, method.rungs[0])
    assert jax.eval_shape(loss, jax.random.split(seed_key(0), 4), jnp.int32(1), rung).shape == (4,)
