import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_distillation.errors import InputError
from diffusion_distillation.latents import AutoencoderInfo, in_tiles, latent_space, pixels

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 8, 12, 2)).astype(np.float32)
NUMBERS = dict(name="halves", fingerprint="0123", image_channels=2, latent_channels=2, downsampling=2)
SCALES = [(0.5, 0.25), ((2.0, 0.125), (3.0, -1.0))]  # scale and shift, for all channels and for each


def encode(images):
    """Every second pixel, and a standard deviation of a quarter."""
    return images[:, ::2, ::2], jnp.full_like(images[:, ::2, ::2], 0.25)


def decode(latents):
    return jnp.repeat(jnp.repeat(latents, 2, axis=1), 2, axis=2)


def space(scale, shift):
    info = AutoencoderInfo(**NUMBERS, scale=scale, shift=shift)
    return latent_space(encode, decode, info, (8, 12, 2))


@pytest.mark.parametrize(("scale", "shift"), SCALES)
def test_latents_are_shifted_and_scaled_per_channel(scale, shift, strict):
    x = space(scale, shift).encode(IMAGES)
    expected = (IMAGES[:, ::2, ::2] - np.float32(shift)) * np.float32(scale)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), SCALES)
def test_decode_inverts_what_encode_does_to_latents(scale, shift, strict):
    blocks = np.repeat(np.repeat(IMAGES[:, ::2, ::2], 2, axis=1), 2, axis=2)
    there = space(scale, shift)
    np.testing.assert_allclose(there.decode(there.encode(blocks)), blocks, atol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), SCALES)
def test_random_latents_have_the_mean_and_deviation_of_the_encoder(scale, shift):
    there = space(scale, shift)
    mean, std = encode(IMAGES)
    noise = np.random.default_rng(1).standard_normal((2000, *mean.shape)).astype(np.float32)
    x = np.asarray(jax.vmap(lambda noise: there.sample(mean, std, noise))(noise))
    np.testing.assert_allclose(x.mean(axis=0), there.encode(IMAGES), atol=0.05)
    np.testing.assert_allclose(x.std(axis=0) / scale, 0.25, rtol=0.1)


def test_the_space_of_pixels_is_the_identity():
    there = pixels((8, 12, 2))
    np.testing.assert_array_equal(there.encode(IMAGES), IMAGES)
    np.testing.assert_array_equal(there.decode(IMAGES), IMAGES)
    mean, std = there.encode_latents(IMAGES)
    np.testing.assert_array_equal(there.sample(mean, std, IMAGES[::-1]), IMAGES)
    assert there.shape == there.image_shape == (8, 12, 2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_types_are_kept(dtype, strict):
    with jax.enable_x64(True):
        there = space(*SCALES[1])
        assert there.encode(IMAGES.astype(dtype)).dtype == dtype
        assert there.decode(IMAGES.astype(dtype)).dtype == dtype


def test_shapes_are_those_of_the_autoencoder():
    assert space(1.0, 0.0).shape == (4, 6, 2) and space(1.0, 0.0).image_shape == (8, 12, 2)
    info = AutoencoderInfo(**NUMBERS, scale=1.0, shift=0.0)
    with pytest.raises(InputError, match="images are 8x9; this autoencoder takes sides that are multiples of 2"):
        latent_space(encode, decode, info, (8, 9, 2))
    with pytest.raises(InputError, match="images have 3 channels"):
        latent_space(encode, decode, info, (8, 8, 3))


@pytest.mark.parametrize("size", [(3, 4), (4, 11), (29, 5)])
def test_tiles_of_a_decoder_that_sees_single_pixels_are_the_whole(size):
    latents = np.random.default_rng(2).standard_normal((2, *size, 3), np.float32)
    sizes = set()

    def recorded(latents):
        sizes.add(latents.shape[1:3])
        return decode(latents)

    np.testing.assert_allclose(in_tiles(recorded, latents, 2, tile=4, overlap=2), decode(latents), rtol=1e-5)
    [(height, width)] = sizes
    assert max(height, width) <= 4


def test_autoencoders_are_the_same_whatever_their_folders_are_called():
    info = AutoencoderInfo(**NUMBERS, scale=1.0, shift=0.0)
    assert info.same_latents(dataclasses.replace(info, name="vae"))
    for other in (dict(fingerprint="4567"), dict(scale=2.0), dict(shift=1.0)):
        assert not info.same_latents(dataclasses.replace(info, **other))
