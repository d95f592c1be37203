"""Fast versions of Flax's layers, with the same parameters and, to rounding, the same results."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from ..shapes import Array, at_least_float32
from . import cpu_kernels
from .cpu_kernels import materialize

EPSILON = 1e-6


def conv3x3(x: Array, features: int, *, upsample: bool = False, **options: Any) -> Array:
    """Apply a 3x3 convolution with a bias, as a submodule of the calling module.

    Args:
      x: images, `[batch, height, width, channels]`.
      features: channels of the result.
      upsample: upsample x to twice its size by `nearest` before the convolution.
      **options: further arguments of `flax.linen.Conv`, such as `name`, `dtype` or `strides`.
    """
    convolve = cpu_kernels.convolution_after_nearest if upsample else cpu_kernels.convolution
    return materialize(nn.Conv(features, (3, 3), conv_general_dilated=convolve, **options)(x))


def add(x: Array, y: Array) -> Array:
    """The sum at the end of a residual block."""
    return materialize(x + y)


def average_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height//2 width//2 channels"]:
    """Downsample images to half their size: each pixel is the mean of 2x2."""
    return nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4


def flatten_pixels(x: Float[Array, "*batch_and_space channels"]) -> Float[Array, "rows channels"]:
    """Reshape to one row per pixel. With more axes, XLA on CPU transposes x for the gradient of a dense kernel."""
    return x.reshape(-1, x.shape[-1])


def attention(
    q: Float[Array, "batch length heads dim"],
    k: Float[Array, "batch length heads dim"],
    v: Float[Array, "batch length heads dim"],
) -> Float[Array, "batch length heads dim"]:
    """Softmax attention of each head, softmax(q k^T / sqrt(dim)) v (Vaswani et al. 2017).

    On NVIDIA's GPUs, long sequences in 16-bit types use cuDNN, which keeps no array of length x length and has no
    forward-mode derivatives.
    """
    *_, length, _, dim = q.shape
    branches = {"cpu": cpu_kernels.attention}
    if q.dtype.itemsize == 2 and length >= 256 and dim <= 128 and dim % 8 == 0 and _has_cudnn_attention():
        branches["cuda"] = functools.partial(_attention_of_jax, implementation="cudnn")
    return jax.lax.platform_dependent(q, k, v, **branches, default=_attention_of_jax)


def _attention_of_jax(q: Array, k: Array, v: Array, implementation: str | None = None) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # JAX's own code mixes types, which a user may have forbidden
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


def _has_cudnn_attention() -> bool:
    """Whether programs traced here may use cuDNN's attention: JAX's default device is a GPU that has it.

    JAX can trace it on such a machine only, and cannot export it.
    """
    device = jax.config.jax_default_device or jax.devices()[0]
    major, *_ = getattr(device, "compute_capability", "").split(".")  # '9.0' of NVIDIA, 'gfx90a' of AMD
    return major.isdigit() and int(major) >= 8


class GroupNorm(nn.Module):
    """Group normalization, then a scale and shift per example and channel, then an activation, in one pass over x.

    Statistics and all arithmetic are in float32 or wider. Per channel, everything before the activation is one
    multiply-add.

    Attributes:
      num_groups: a divisor of the number of channels.
      dtype: type of the result; by default that of x.
      activation: applied last; None for none.
      epsilon: added to variances.
    """

    num_groups: int
    dtype: Any = None
    activation: Callable[[Array], Array] | None = None
    epsilon: float = EPSILON

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch *space channels"],
        film: tuple[Float[Array, "batch channels"], Float[Array, "batch channels"]] | None = None,
    ) -> Float[Array, "batch *space channels"]:
        """Normalize x.

        Args:
          x: features.
          film: `(scale, shift)` (Perez et al. 2018): normalized features y become y * (1 + scale) + shift.
        """
        batch, channels = x.shape[0], x.shape[-1]  # the batch size may be symbolic, in an export
        space = tuple(range(1, x.ndim - 1))
        gamma = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        # Statistics of each channel, then of each group.
        f = x.astype(at_least_float32(x.dtype))
        channel_means = jnp.stack([f.mean(axis=space), jnp.square(f).mean(axis=space)])
        group_means = channel_means.reshape(2, batch, self.num_groups, -1).mean(axis=-1)
        mean, mean_square = jnp.repeat(group_means, channels // self.num_groups, axis=-1)

        # One scale and one shift per channel.
        scale = gamma[None] * jax.lax.rsqrt(jnp.maximum(mean_square - jnp.square(mean), 0) + self.epsilon)
        shift = beta[None] - mean * scale
        if film is not None:
            factor = 1 + film[0].astype(scale.dtype)
            scale, shift = scale * factor, shift * factor + film[1].astype(scale.dtype)

        @jax.checkpoint  # recompute cheap intermediates from x in the backward pass instead of storing them
        def apply(x, scale, shift):
            y = x.astype(scale.dtype) * jnp.expand_dims(scale, space) + jnp.expand_dims(shift, space)
            if self.activation is not None:
                y = self.activation(y)
            return y.astype(self.dtype or x.dtype)

        return apply(x, scale, shift)
