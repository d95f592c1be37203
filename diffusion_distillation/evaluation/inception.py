"""The Inception network of 2015-12-05 as FID uses it (Szegedy et al. 2015; Heusel et al. 2017), and its weights.

Published FIDs, KIDs and Inception Scores are computed with this network, from TensorFlow's archive. It differs from
textbook Inception v3: average pools exclude padding from the mean, the last block pools by the maximum, images are
resized as in TensorFlow 1, and there are 1008 logits.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Float, Shaped, UInt8
from safetensors import SafetensorError

from ..errors import InputError, did_you_mean
from ..runtime.devices import AXIS, map_rows, replicate
from ..runtime.files import as_path, cache_folder
from ..runtime.hashing import sha256
from ..shapes import Array, Params
from .extractor import Activations

SIDE = 299  # height and width that images are resized to
NUM_FEATURES = 2048
NUM_LOGITS = 1008
EPSILON = 1e-3  # of batch normalization
VARIABLE = "DIFFUSION_DISTILLATION_INCEPTION"
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
PUBLISHED_AT = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{PUBLISHED}"
PUBLISHED_BYTES = 95_628_359
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Weights(nn.Module):
    """A convolution's kernel, `[height, width, in, out]`, and bias. The caller names the module."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        """Return kernel and bias."""
        kernel = self.param("kernel", nn.initializers.he_normal(), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


def conv(x: Array, name: str, features: int, size: tuple[int, int], stride: int = 1, padding: str = "SAME") -> Array:
    """Apply a convolution with bias, as a part of the module that calls this, and ReLU."""
    kernel, bias = Weights((*size, x.shape[-1], features), name=name)()
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout, precision="highest"
    )
    return nn.relu(y + bias)


def pointwise(x: Array, **features: int) -> list[Array]:
    """Apply several 1x1 convolutions to one input, as a single matrix product, without ReLU.

    Args:
      x: the input.
      **features: the width of each convolution, by name.
    """
    weights = [Weights((1, 1, x.shape[-1], width), name=name)() for name, width in features.items()]
    kernel, bias = (jnp.concatenate(parts, axis=-1) for parts in zip(*weights, strict=True))
    y = jnp.einsum("nhwi,io->nhwo", x, kernel[0, 0], precision="highest") + bias
    return jnp.split(y, np.cumsum([*features.values()])[:-1], axis=-1)


def max_pool(x: Array) -> Array:
    """Max-pool 3x3 pixels with stride 2. Two one-dimensional pools take XLA a fifth of the time on CPU."""
    return nn.max_pool(nn.max_pool(x, (3, 1), (2, 1)), (1, 3), (1, 2))


def average(x: Array) -> Array:
    """Average 3x3 pixels with stride 1, without padding in the means."""
    _, height, width, _ = x.shape
    rows, columns = (
        np.minimum(np.arange(side) + 2, side) - np.maximum(np.arange(side) - 1, 0) for side in (height, width)
    )
    for axis, side in ((1, height), (2, width)):
        padded = jnp.pad(x, [(int(a == axis),) * 2 for a in range(4)])
        x = sum(jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in range(3))
    return x / np.outer(rows, columns)[..., None].astype(np.float32)


def join(*branches: Array) -> Array:
    """Concatenate channels."""
    return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
    """The blocks of 35x35 pixels.

    In all blocks, the 1x1 convolution of the pool branch comes before the average, which then has fewer channels. The
    result is the same.
    """

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the activations after this block."""
        one, five, three, pool = pointwise(
            x, branch1x1=64, branch5x5_1=48, branch3x3dbl_1=64, branch_pool=self.pool_features
        )
        five = conv(nn.relu(five), "branch5x5_2", 64, (5, 5))
        three = conv(nn.relu(three), "branch3x3dbl_2", 96, (3, 3))
        three = conv(three, "branch3x3dbl_3", 96, (3, 3))
        return join(nn.relu(one), five, three, nn.relu(average(pool)))


class BlockB(nn.Module):
    """The block from 35x35 to 17x17 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the activations after this block."""
        three = conv(x, "branch3x3", 384, (3, 3), 2, "VALID")
        [double] = pointwise(x, branch3x3dbl_1=64)
        double = conv(nn.relu(double), "branch3x3dbl_2", 96, (3, 3))
        double = conv(double, "branch3x3dbl_3", 96, (3, 3), 2, "VALID")
        return join(three, double, max_pool(x))


class BlockC(nn.Module):
    """The blocks of 17x17 pixels, with 7x7 convolutions in two factors."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the activations after this block."""
        width = self.width
        one, seven, double, pool = pointwise(x, branch1x1=192, branch7x7_1=width, branch7x7dbl_1=width, branch_pool=192)
        seven = conv(nn.relu(seven), "branch7x7_2", width, (1, 7))
        seven = conv(seven, "branch7x7_3", 192, (7, 1))
        double = conv(nn.relu(double), "branch7x7dbl_2", width, (7, 1))
        double = conv(double, "branch7x7dbl_3", width, (1, 7))
        double = conv(double, "branch7x7dbl_4", width, (7, 1))
        double = conv(double, "branch7x7dbl_5", 192, (1, 7))
        return join(nn.relu(one), seven, double, nn.relu(average(pool)))


class BlockD(nn.Module):
    """The block from 17x17 to 8x8 pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the activations after this block."""
        three, seven = pointwise(x, branch3x3_1=192, branch7x7x3_1=192)
        three = conv(nn.relu(three), "branch3x3_2", 320, (3, 3), 2, "VALID")
        seven = conv(nn.relu(seven), "branch7x7x3_2", 192, (1, 7))
        seven = conv(seven, "branch7x7x3_3", 192, (7, 1))
        seven = conv(seven, "branch7x7x3_4", 192, (3, 3), 2, "VALID")
        return join(three, seven, max_pool(x))


class BlockE(nn.Module):
    """The blocks of 8x8 pixels. The last one pools by the maximum, which must come before the convolution."""

    last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the activations after this block."""
        widths = dict(branch1x1=320, branch3x3_1=384, branch3x3dbl_1=448)
        if self.last:
            one, three, double = pointwise(x, **widths)
            [pool] = pointwise(nn.max_pool(x, (3, 3), padding="SAME"), branch_pool=192)
        else:
            one, three, double, pool = pointwise(x, **widths, branch_pool=192)
            pool = average(pool)
        three = nn.relu(three)
        double = conv(nn.relu(double), "branch3x3dbl_2", 384, (3, 3))
        return join(
            nn.relu(one),
            conv(three, "branch3x3_2a", 384, (1, 3)),
            conv(three, "branch3x3_2b", 384, (3, 1)),
            conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            nn.relu(pool),
        )


class Inception(nn.Module):
    """The network. Modules are named as in the weight file; batch normalization is folded into the convolutions."""

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "n height width 3"]
    ) -> tuple[Float[Array, "n 2048"], Float[Array, "n 1008"]]:
        """Return features and logits of images of any size, computed in float32 on every backend."""
        x = (resize(images) - 128) / 128
        x = conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
        x = conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
        x = max_pool(conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
        [x] = pointwise(x, Conv2d_3b_1x1=80)
        x = max_pool(conv(nn.relu(x), "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"))
        for name, pool_features in {"5b": 32, "5c": 64, "5d": 64}.items():
            x = BlockA(pool_features, name=f"Mixed_{name}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, width in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items():
            x = BlockC(width, name=f"Mixed_{name}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(last=False, name="Mixed_7b")(x)
        x = BlockE(last=True, name="Mixed_7c")(x)
        features = x.mean(axis=(1, 2))
        return features, nn.Dense(NUM_LOGITS, use_bias=False, precision="highest", name="fc")(features)


def resize(images: Shaped[Array, "n height width channels"]) -> Float[Array, "n 299 299 channels"]:
    """Resize images to 299x299 as TensorFlow 1 did.

    Bilinear without antialiasing: each pixel at `source = destination * scale` is a mix of the two nearest pixels,
    computed in float32 in TensorFlow's order.

    Args:
      images: `[n, height, width, channels]`, of any size and type.

    >>> resize(jnp.zeros((1, 8, 8, 3), jnp.uint8)).shape
    (1, 299, 299, 3)
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        size = x.shape[axis]
        source = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
        low = source.astype(np.int32)
        high, part = np.minimum(low + 1, size - 1), source - low
        a, b = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
        x = a + (b - a) * np.expand_dims(part, (0, 3, 3 - axis))
    return x


class InceptionExtractor:
    """The network as a `FeatureExtractor`, on all devices of this process.

    The features, `[n, 2048]`, are means over the last block's activations; the logits, `[n, 1008]`, have no bias. One
    program serves all calls with images of one shape: the last batch is filled up.

    Args:
      params: of `Inception`.
      identity: a name for the network and its weights.
      batch_size: images at a time, over all devices of this process; rounded up to a multiple of their number. By
        default 16 per CPU device and 128 per accelerator.

    Raises:
      InputError: for a batch_size below 1.
    """

    has_logits = True

    def __init__(self, params: Params, identity: str, batch_size: int | None = None):
        self._mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
        if batch_size is None:
            batch_size = self._mesh.size * (16 if jax.default_backend() == "cpu" else 128)
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        self.identity = identity
        self.batch_size = batch_size + -batch_size % self._mesh.size
        self._params = replicate(params, self._mesh, "jit")
        self._apply = map_rows(_apply, self._mesh, "jit")

    def __call__(self, images: Shaped[np.ndarray, "n height width channels"]) -> Activations:
        """Compute features and logits of any number of images.

        Args:
          images: uint8, `[n, height, width, 1 or 3]`.

        Raises:
          InputError: for images of another type or shape.
        """
        if images.dtype != np.uint8 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
            raise InputError(
                "Inception needs uint8 images of shape [height, width, 3], or with 1 channel for gray ones; got "
                f"{images.dtype} {list(images.shape[1:])}."
            )
        images = np.broadcast_to(images, (*images.shape[:-1], 3))
        rows = [np.empty((0, NUM_FEATURES + NUM_LOGITS), np.float32)]
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            filled_up = batch[np.arange(self.batch_size) % len(batch)]
            rows.append(self._apply(self._params, None, filled_up)[: len(batch)])
        return Activations(*np.split(np.concatenate(rows), [NUM_FEATURES], axis=1))


def _apply(params: Params, _: None, images: Array) -> Array:
    return jnp.concatenate(Inception().apply({"params": params}, images), axis=1)


def load_inception(path: epath.PathLike | None = None, batch_size: int | None = None) -> InceptionExtractor:
    """Load the network with the weights of a file that `scripts/convert_inception.py` wrote.

    Args:
      path: the file; by default the one that the environment variable DIFFUSION_DISTILLATION_INCEPTION names, or
        `default_path()`.
      batch_size: see `InceptionExtractor`.

    Raises:
      InputError: if the file is missing or has other content. The message explains how to make it.
    """
    path = as_path(path or os.environ.get(VARIABLE) or default_path())
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(
            f"{path}: Inception's weights are missing. Download {PUBLISHED} ({PUBLISHED_BYTES:,} bytes, sha256 "
            f"{PUBLISHED_SHA256}) from {PUBLISHED_AT}, then: diffusion_distillation "
            f"convert_inception --weights={PUBLISHED}"
            f"{'' if os.fspath(path) == os.fspath(default_path()) else f' --out={path}'}"
        ) from None
    try:
        weights = safetensors.numpy.load(content)
    except (SafetensorError, KeyError) as error:
        raise InputError(
            f"{path}: is not a safetensors file ({error}). Make it again with the command convert_inception."
        ) from None
    check_weights(weights, path)
    return InceptionExtractor(fold(weights), identity_of(weights), batch_size)


def default_path() -> Path:
    """Return the file in the cache folder that the weights are loaded from by default."""
    return cache_folder() / "inception-2015-12-05.safetensors"


def identity_of(weights: Mapping[str, np.ndarray]) -> str:
    """Return 'inception-2015-12-05-' and a hash of the weights."""
    parts = (part for name in sorted(weights) for part in (name, np.ascontiguousarray(weights[name])))
    return f"inception-2015-12-05-{sha256(parts, 16)}"


@functools.cache
def weight_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every array in the weight file, by name. Kernels are [out, in, height, width]."""
    image = jax.ShapeDtypeStruct((1, 1, 1, 3), jnp.uint8)
    params = jax.eval_shape(Inception().init, jax.random.key(0), image)["params"]
    shapes = {"fc.bias": (NUM_LOGITS,)}
    for (*module, name), leaf in flax.traverse_util.flatten_dict(params).items():
        module = ".".join(module)
        if name == "kernel":
            *size, wide_in, wide_out = leaf.shape
            shapes[f"{module}.conv.weight" if size else f"{module}.weight"] = (wide_out, wide_in, *size)
        else:
            shapes |= {f"{module}.bn.{part}": leaf.shape for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def check_weights(weights: Mapping[str, np.ndarray], origin: epath.PathLike) -> None:
    """Check that weights are complete, have the right names and shapes, and are finite.

    Args:
      weights: the arrays of a file.
      origin: the file, for messages.

    Raises:
      InputError: naming the first array that is wrong.
    """
    expected = weight_shapes()
    for name in expected:
        if name not in weights:
            raise InputError(f"{origin}: {name!r} is missing; these are not the weights of {PUBLISHED}.")
    for name, array in weights.items():
        if name not in expected:
            raise InputError(f"{origin}: {name!r} is not one of Inception's weights.{did_you_mean(name, expected)}")
        if array.shape != expected[name] or array.dtype != np.float32:
            raise InputError(
                f"{origin}: {name!r} is {array.dtype} {list(array.shape)}; Inception's is float32 "
                f"{list(expected[name])}."
            )
        if not np.isfinite(array).all():
            raise InputError(f"{origin}: {name!r} has values that are not finite; the file is damaged.")


def fold(weights: Mapping[str, np.ndarray]) -> Params:
    """Return the parameters of `Inception` for the arrays of a weight file.

    Each convolution includes the batch normalization after it, with the statistics from training.
    """
    params = {("fc", "kernel"): weights["fc.weight"].T}
    for name in weights:
        if not name.endswith(".conv.weight"):
            continue
        module = name.removesuffix(".conv.weight")
        gamma, beta, mean, variance = (
            weights[f"{module}.bn.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + EPSILON)
        kernel = weights[name].transpose(2, 3, 1, 0) * scale
        params[*module.split("."), "kernel"] = kernel.astype(np.float32)
        params[*module.split("."), "bias"] = (beta - mean * scale).astype(np.float32)
    return flax.traverse_util.unflatten_dict(params)
