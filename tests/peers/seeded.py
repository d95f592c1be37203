"""Weights, images and activations from a seed, made with NumPy alone on both sides of a comparison."""

import math
import re
import zlib

import numpy as np


def weights(shapes, seed=0):
    """Float32 arrays of these shapes, {name: shape} as in Inception's weight file, which keep activations alive."""
    return {name: _weight(name, tuple(shape), seed) for name, shape in shapes.items() if not name.endswith("tracked")}


def _weight(name, shape, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # independent of the order of the names
    if len(shape) > 1:
        array = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
        # With the whole mean, all images have similar features. Without any of it, rounding errors grow large.
        array -= 0.5 * array.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    elif name.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("bn.weight"):
        array = rng.uniform(0.8, 1.6, shape)
    else:  # means and biases
        array = rng.normal(-0.2 if name.endswith("bn.bias") else 0, 0.3, shape)
    return array.astype(np.float32)


def unet_weights(shapes, seed=0):
    """Float32 arrays of these shapes, {name: shape} as in a UNet2DModel's weight file; no layer is zero."""
    return {name: _unet_weight(name, tuple(shape), seed) for name, shape in shapes.items()}


def dit_weights(shapes, seed=0):
    """Float32 arrays of these shapes, {name: shape} as in a DiTTransformer2DModel's weight file; no layer is zero.

    The embedder of log-SNR and class, which diffusers repeats in every block, is the same in all.
    """
    return {name: _unet_weight(re.sub(r"\d+\.norm1\.emb", "0.norm1.emb", name), tuple(shape), seed)
            for name, shape in shapes.items()}  # fmt: skip


def _unet_weight(name, shape, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if len(shape) > 1:
        scale = 1 if "embedding.weight" in name or name.startswith("time_proj") else math.prod(shape[1:]) ** -0.5
        return rng.standard_normal(shape, np.float32) * np.float32(scale)
    centre = 1 if "norm" in name and name.endswith("weight") else 0
    return rng.normal(centre, 0.2, shape).astype(np.float32)


def noise(count, side, channels, seed=0):
    """Standard normal, [count, side, side, channels] float32."""
    return np.random.default_rng(seed).standard_normal((count, side, side, channels), np.float32)


def images(kind, count, height, width, seed=0):
    """uint8 images: 'noise', 'smooth' waves of color, or 'grey', such waves in a single channel."""
    rng = np.random.default_rng([seed, height, width])
    if kind == "noise":
        return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    y, x = np.arange(height)[:, None, None] * 512 // height, np.arange(width)[:, None] * 512 // width
    along_y, along_x = rng.integers(-3, 4, (2, count, 1, 1, 3))
    start = rng.integers(0, 512, (count, 1, 1, 3))
    waves = np.abs((along_y * y + along_x * x + start) % 512 - 256).clip(0, 255).astype(np.uint8)
    return waves[..., :1] if kind == "grey" else waves


def activations(count=2000, features=64, classes=1008, seed=0):
    """Two sets of float32 features, which depend on few variables like those of images, and the logits of the first."""
    rng = np.random.default_rng(seed)
    spread, first, second = (rng.standard_normal(shape) for shape in ((6, features), (count, 6), (count, 6)))
    logits = 2 * rng.standard_normal((count, classes))
    sets = (np.einsum("nk,kf->nf", z, spread) for z in (first, 0.9 * second + 0.3))
    return {
        **{f"features_{i}": np.maximum(x + 1, 0).astype(np.float32) for i, x in enumerate(sets, 1)},
        "logits_1": logits.astype(np.float32),
    }


def pixel_network(z, share, tanh=np.tanh, seed=0):
    """A small network of all pixels, whose outputs are about as large as z.

    share: of noise, from 0 to 1; a scalar or [batch, 1].
    """
    rng = np.random.default_rng(seed)
    pixels = z[0].size
    into = (rng.standard_normal((pixels, 32)) / math.sqrt(pixels)).astype(np.float32)
    of_share = rng.standard_normal((1, 32)).astype(np.float32)
    out = (rng.standard_normal((32, pixels)) / math.sqrt(32)).astype(np.float32)
    return (tanh(z.reshape(len(z), pixels) @ into + share * of_share) @ out).reshape(z.shape)
