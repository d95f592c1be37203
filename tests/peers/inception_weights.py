"""Weights of Inception's shapes that only NumPy is needed for, and images: the same here and where PyTorch is."""

import math
import zlib

import numpy as np


def seeded_weights(shapes, seed=0):
    """Float32 arrays of these shapes, {name: shape} as in the weight file, which keep activations alive."""
    return {name: _array(name, tuple(shape), seed) for name, shape in shapes.items() if not name.endswith("tracked")}


def _array(name, shape, seed):
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # whatever the order of the names
    if len(shape) > 1:
        array = rng.standard_normal(shape, np.float32) * math.sqrt(2 / math.prod(shape[1:]))
        array -= array.mean(axis=tuple(range(1, len(shape))), keepdims=True)  # or images would all come to look alike
    elif name.endswith("running_var"):
        array = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("bn.weight"):
        array = rng.uniform(0.8, 1.6, shape)
    else:  # means and biases
        array = rng.normal(0, 0.3, shape)
    return array.astype(np.float32)


def seeded_images(kind, side, count=4, seed=0):
    """uint8 images: 'noise', or 'smooth' waves of colour, or 'grey' ones, three equal channels."""
    rng = np.random.default_rng([seed, side])
    if kind == "noise":
        return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    y, x = np.mgrid[:side, :side] / side
    waves = rng.uniform(-9, 9, (2, count, 1, 1, 3)), rng.uniform(0, 6, (count, 1, 1, 3))
    phase = waves[0][0] * y[None, :, :, None] + waves[0][1] * x[None, :, :, None] + waves[1]
    images = np.round(127.5 + 127 * np.sin(phase)).astype(np.uint8)
    return np.repeat(images[..., :1], 3, axis=-1) if kind == "grey" else images
