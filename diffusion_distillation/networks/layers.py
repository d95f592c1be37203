"""Layers of the U-Net, with the parameters of Flax's and its results to rounding, written to be fast."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float

from ..shapes import Array, at_least_float32

EPSILON = 1e-6

_for_cpu: contextvars.ContextVar[bool | None] = contextvars.ContextVar("for_cpu", default=None)


def for_cpu() -> bool:
    """Whether what is traced here will run on CPUs, for which some layers are written in another way."""
    said = _for_cpu.get()
    return jax.default_backend() == "cpu" if said is None else said


@contextlib.contextmanager
def traced_for_cpu(value: bool) -> Iterator[None]:
    """Says what `for_cpu` returns: programs may be written on a machine for another one.

    JAX does not know of it: what is jitted inside must not have been traced under the other value.
    """
    token = _for_cpu.set(value)
    try:
        yield
    finally:
        _for_cpu.reset(token)


def _on_nvidia() -> bool:
    """Whether what is traced here will run on NVIDIA's GPUs, of those that cuDNN has attention for."""
    if _for_cpu.get() is not None or jax.default_backend() != "gpu":
        return False
    major, *_ = getattr(jax.devices()[0], "compute_capability", "").split(".")  # '9.0'; those of AMD have names
    return major.isdigit() and int(major) >= 8


def computed_once(tree: Any) -> Any:
    """The arrays of a tree, and in the backward pass their gradients, written to memory.

    On CPU, XLA may compute an array once for each use of it, or in another order.
    """
    return jax.lax.optimization_barrier(tree) if for_cpu() else tree


def _is_plain(window_strides: Any, padding: Any, rhs_dilation: Any = None, **_: Any) -> bool:
    return padding == "SAME" and all(step == 1 for step in (*window_strides, *(rhs_dilation or ())))


def convolution(x: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """`jax.lax.conv_general_dilated` of `[batch, height, width, channels]`.

    On CPU in bfloat16 it has a gradient of its own, without forward-mode derivatives: oneDNN passes over convolutions
    whose kernel is a `reverse`, as that of the input's gradient usually is. In float32, where it pays, a 3x3 kernel is
    applied to four rows at a time with half of the products.
    """
    apply = functools.partial(jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    if not for_cpu() or not _is_plain(window_strides, padding, **options):
        return apply(x, kernel)
    if x.dtype == jnp.bfloat16 and all(size % 2 for size in kernel.shape[:-2]):
        return _convolution(apply, x, kernel)
    if x.dtype == jnp.float32 and _rows_pay(x.shape, kernel.shape):
        return _by_four_rows(apply, computed_once(x), kernel)
    return apply(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolution(apply: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    return apply(x, kernel)


def _forward(apply, x, kernel):
    return apply(x, kernel), (x, kernel)


def _backward(apply, saved, gradient):
    x, kernel = saved
    turned = jax.lax.optimization_barrier(jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2))
    [of_kernel] = jax.linear_transpose(lambda kernel: apply(x, kernel), kernel)(gradient)
    return apply(gradient, turned), of_kernel


_convolution.defvjp(_forward, _backward)


def _rows_pay(shape: tuple[int, ...], of_kernel: tuple[int, ...]) -> bool:
    (height, channels), (*size, inputs, outputs) = (shape[1], shape[-1]), of_kernel  # batch may be symbolic
    large = height >= 16 and min(inputs, outputs) >= 32
    return large and size == [3, 3] and inputs == channels and height % 4 == 0


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _by_four_rows(apply: Callable[[Array, Array], Array], x: Array, kernel: Array) -> Array:
    """Winograd's F(4, 3) along columns of pixels (Lavin & Gray 2016), with the points 0, 1, -1, 2, -2 and infinity.

    Four rows of the result come from six of x, by six convolutions of 1x3 where there would be twelve.
    """
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    a, b, c, d, e, f = (padded[:, first : first + height - 3 : 4] for first in range(6))
    above, middle, below = jnp.split(kernel, 3)

    def at(even, odd, of_even, of_odd):  # a point and its negative: the sum and the difference there
        plus, minus = apply(even + odd, of_even + of_odd), apply(even - odd, of_even - of_odd)
        return plus + minus, plus - minus

    zero = apply(4 * a - 5 * c + e, above / 4)
    sum1, difference1 = at(e - 4 * c, d - 4 * b, (above + below) / -6, middle / -6)
    sum2, difference2 = at(e - c, 2 * (d - b), (above + 4 * below) / 24, middle / 12)
    infinity = apply(4 * b - 5 * d + f, below)
    rows = zero + sum1 + sum2, difference1 + 2 * difference2, sum1 + 4 * sum2, difference1 + 8 * difference2 + infinity
    return jnp.stack(rows, axis=2).reshape(batch, height, width, kernel.shape[-1])


@_by_four_rows.defjvp
def _derivative(apply, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    return _by_four_rows(apply, x, kernel), apply(dx, kernel) + apply(x, dkernel)


def convolution_of_nearest(x: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
    """`convolution(nearest(x), kernel)` with a 3x3 kernel.

    Of the three rows that a pixel is made from, two are the same row of x, and so with columns. On CPU four
    convolutions of x, by kernels of 2x2 in which those rows and columns are summed, give each pixel's 2x2, with four
    products for every nine. Not in types of 16 bits: there the rounding of the sums would weigh more than the time.
    """
    apply = functools.partial(convolution, window_strides=window_strides, **options)
    if not for_cpu() or x.dtype.itemsize < 4 or not _is_plain(window_strides, padding, **options):
        return apply(nearest(x), kernel, padding=padding)
    batch, height, width, _ = x.shape

    def summed(kernel, axis):  # for the first of each two pixels along an axis, and for the second
        first, middle, last = jnp.split(kernel, 3, axis)
        return (jnp.concatenate(two, axis) for two in ((first, middle + last), (first + middle, last)))

    rows = []
    for i, of_row in enumerate(summed(kernel, 0)):
        columns = [apply(x, part, padding=((1 - i, i), (1 - j, j))) for j, part in enumerate(summed(of_row, 1))]
        rows.append(jnp.stack(columns, axis=3))
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


def conv3x3(x: Array, features: int, *, of_nearest: bool = False, **options: Any) -> Array:
    """A convolution with a bias, in the module that is being called; options are those of `nn.Conv`.

    With of_nearest it is one of `nearest(x)`, of twice the size of x.
    """
    apply = convolution_of_nearest if of_nearest else convolution
    return computed_once(nn.Conv(features, (3, 3), conv_general_dilated=apply, **options)(x))


def average_pool(x: Array) -> Array:
    """Means of 2x2 pixels, half the size."""
    return nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4


def nearest(x: Array) -> Array:
    """Each pixel four times, twice the size."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def pixels(x: Float[Array, "*batch_and_space channels"]) -> Float[Array, "rows channels"]:
    """A row for each pixel. With more axes, XLA on CPU transposes x for the gradient of a dense layer's kernel."""
    return x.reshape(-1, x.shape[-1])


def attention(
    q: Float[Array, "batch length heads dim"],
    k: Float[Array, "batch length heads dim"],
    v: Float[Array, "batch length heads dim"],
) -> Float[Array, "batch length heads dim"]:
    """`jax.nn.dot_product_attention`: softmax(q k^T / sqrt(dim)) v of each head.

    On CPU the weights are divided by their sum after the product with v: there are fewer numbers to divide, and the
    backward pass has fewer arrays of length x length. On NVIDIA's GPUs, in types of 16 bits and where it pays, it is
    cuDNN's, which keeps no such array and has no forward-mode derivatives.
    """
    if not for_cpu():
        *_, length, _, dim = q.shape
        fits = q.dtype.itemsize == 2 and length >= 256 and dim <= 128 and dim % 8 == 0
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if fits and _on_nvidia() else None)

    @jax.checkpoint  # the backward pass computes again what is of length x length
    def attend(q, k, v):
        q *= jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        wide = at_least_float32(q.dtype)
        logits = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=wide)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]
        out = jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v)
        return (out.astype(total.dtype) / total).astype(v.dtype)

    return attend(q, k, v)


class GroupNorm(nn.Module):
    """Group normalization, a scale and a shift of each example's channels, and an activation, in one pass over x.

    Statistics and all arithmetic are in float32 at least. Per channel the whole is one multiply-add.

    Attributes:
      num_groups: a divisor of the channels.
      dtype: of the result; by default that of x.
      activation: what comes last.
      epsilon: what is added to variances.
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
        """Normalizes x; then, with `film = scale, shift` (Perez et al. 2018), y becomes y * (1 + scale) + shift."""
        batch, channels = x.shape[0], x.shape[-1]  # batch may be symbolic, as in an export
        gamma = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        beta = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        f = x.astype(at_least_float32(x.dtype))
        space = tuple(range(1, x.ndim - 1))

        of_channels = jnp.stack([f.mean(axis=space), jnp.square(f).mean(axis=space)])
        of_groups = of_channels.reshape(2, batch, self.num_groups, -1).mean(axis=-1)
        mean, mean_square = jnp.repeat(of_groups, channels // self.num_groups, axis=-1)
        scale = gamma[None] * jax.lax.rsqrt(jnp.maximum(mean_square - jnp.square(mean), 0) + self.epsilon)
        shift = beta[None] - mean * scale
        if film is not None:
            factor, offset = (part.astype(scale.dtype) for part in (1 + film[0], film[1]))
            scale, shift = scale * factor, shift * factor + offset

        @jax.checkpoint  # the backward pass computes from x again what is quickly computed
        def apply(x, scale, shift):
            y = x.astype(scale.dtype) * jnp.expand_dims(scale, space) + jnp.expand_dims(shift, space)
            if self.activation is not None:
                y = self.activation(y)
            return y.astype(self.dtype or x.dtype)

        return apply(x, scale, shift)
