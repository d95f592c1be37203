import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffusion_distillation.errors import InputError
from diffusion_distillation.networks import autoencoder as module
from diffusion_distillation.networks.autoencoder import AutoencoderKL, make_functions

OPTIONS = dict(channels=(8, 16), num_res_blocks=1, norm_groups=4)
NETWORK = AutoencoderKL(**OPTIONS)
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (5, 8, 12, 3)).astype(np.float32)
LATENTS = RNG.standard_normal((5, 4, 6, 4), np.float32)


@functools.cache
def random_params(network=NETWORK):
    """Parameters without zero-initialized layers."""
    params = jax.eval_shape(network.init, jax.random.key(0), IMAGES[:1])["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves])


def test_large_batches_in_parts_give_the_same_results():
    """Parts of 2 images on one device, and of 8 on 8 devices. The last part is not full."""
    whole = make_functions(NETWORK, random_params())
    parts = make_functions(NETWORK, random_params(), max_pixels=2 * 96)
    parts_on_all = make_functions(NETWORK, random_params(), max_pixels=96)
    assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for one, some, many, x in zip(whole, parts, parts_on_all, (IMAGES, LATENTS), strict=True):
        expected = one(x)
        jax.tree.map(assert_close, some(x), expected)
        twice = many(np.concatenate([x, x]))
        jax.tree.map(lambda got, expected: assert_close(got[5:], expected), twice, expected)


def test_parts_bound_the_images_that_are_computed_at_once():
    sizes = []

    class Recorder(AutoencoderKL):
        def encode(self, images):
            sizes.append(len(images))
            return super().encode(images)

        def decode(self, latents):
            sizes.append(len(latents))
            return super().decode(latents)

    encode, decode = make_functions(Recorder(**OPTIONS), random_params(), max_pixels=2 * 96)
    assert encode(IMAGES)[0].shape == LATENTS.shape and decode(LATENTS).shape == IMAGES.shape
    assert sizes == [2, 2]  # one program each


def test_large_images_are_decoded_in_tiles(monkeypatch):
    """Far from the borders of tiles, pixels are those of the whole, but for what norms and attention see."""
    network = NETWORK.clone(attn_stages=())
    params = jax.tree.map(np.copy, random_params(network))
    latents = RNG.standard_normal((2, 12, 20, 4), np.float32)
    whole = np.asarray(make_functions(network, params)[1](latents))
    monkeypatch.setattr(module, "MAX_SIDE", 16)
    tiled = make_functions(network, params)[1](latents)
    assert tiled.shape == whole.shape == (2, 24, 40, 3)
    assert np.corrcoef(np.ravel(tiled), whole.ravel())[0, 1] > 0.9


def test_encode_and_decode_work_inside_transformations(strict):
    encode, decode = make_functions(NETWORK, random_params(), max_pixels=1)
    plain = np.asarray(decode(encode(IMAGES)[0]))
    inside = jax.jit(lambda images: decode(encode(images)[0]))(IMAGES)
    np.testing.assert_allclose(inside, plain, rtol=1e-4, atol=1e-5)
    pairs = jax.vmap(lambda images: decode(encode(images)[0]))(np.stack([IMAGES, IMAGES[::-1]]))
    np.testing.assert_allclose(pairs[1], plain[::-1], rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda images: jnp.sum(encode(images)[1]))(IMAGES)
    assert gradient.shape == IMAGES.shape and np.all(np.any(gradient != 0, axis=(1, 2, 3)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sixteen_bit_activations_give_float32_results(dtype, strict):
    params = random_params()
    wide, narrow = (make_functions(NETWORK.clone(dtype=kind), params) for kind in (None, dtype))
    for one, other, x in zip(wide, narrow, (IMAGES, LATENTS), strict=True):
        for expected, got in zip(jax.tree.leaves(one(x)), jax.tree.leaves(other(x)), strict=True):
            assert got.dtype == jnp.float32
            error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
            assert 1e-6 < error < 0.05


def test_float64_is_kept():
    with jax.enable_x64(True):
        encode, decode = make_functions(NETWORK, random_params())
        mean, std = encode(IMAGES.astype(np.float64))
        assert (mean.dtype, std.dtype, decode(mean).dtype) == ("float64", "float64", "float64")
        narrow, _ = encode(IMAGES)
    assert 0 < np.linalg.norm(np.asarray(mean) - narrow) < 1e-5 * np.linalg.norm(mean)


def test_extreme_variances_are_clipped():
    """As in diffusers, where log-variances are clipped to [-30, 20]."""
    params = jax.tree.map(np.zeros_like, random_params())
    params["encoder"]["quant_conv"]["bias"][4:] = [-100, -29, 19, 100]
    _, std = make_functions(NETWORK, params)[0](IMAGES[:1])
    np.testing.assert_allclose(std[0, 0, 0], np.exp([-15, -14.5, 9.5, 10]), rtol=1e-5)


def test_attention_is_in_the_stages_that_are_named():
    network = NETWORK.clone(attn_stages=["down_1", "up_0"])
    params = jax.eval_shape(network.init, jax.random.key(0), IMAGES[:1])["params"]
    attended = {path[:2] for path in flatten_dict(params) if ".attn_" in path[1]}
    assert attended == {("encoder", "down_1.attn_0"), ("decoder", "up_0.attn_0"), ("decoder", "up_0.attn_1")}


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 8, 9, 3), np.float32, "images are 8x9; this autoencoder takes sides that are multiples of 2"),
        ((1, 0, 8, 3), np.float32, "images are 0x8"),
        ((1, 3, 8, 8), np.float32, "images have 8 channels, in the shape .3, 8, 8.; this autoencoder takes 3"),
        ((1, 8, 8, 3), np.uint8, "images are of type uint8; pass floating-point numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, dtype, message):
    encode, _ = make_functions(NETWORK, random_params())
    with pytest.raises(InputError, match=message):
        encode(jnp.zeros(shape, dtype))


def test_latents_that_do_not_fit_are_refused():
    _, decode = make_functions(NETWORK, random_params())
    with pytest.raises(InputError, match=r"latents have 3 channels, in the shape .1, 4, 4, 3.; this autoencoder has 4"):
        decode(jnp.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(channels=()), "must have 1 to 16 levels"),
        (dict(channels=(8,) * 17), "must have 1 to 16 levels"),
        (dict(channels=(8, 10)), "multiples of norm_groups=4"),
        (dict(num_res_blocks=0), "num_res_blocks=0 must be from 1 to 32"),
        (dict(latent_channels=0), "latent_channels has 0"),
        (dict(attn_stages=("mid", "up_2")), r"attn_stages has \['up_2'\]; the stages of this network are"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        NETWORK.clone(**options).init(jax.random.key(0), IMAGES[:1])
