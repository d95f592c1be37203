"""Operations rewritten to be fast in XLA's CPU backend. Programs for other platforms contain none of this code.

Every function here equals the plain one in its docstring, to rounding, and has its derivatives in forward and reverse
mode, except that bfloat16 convolutions have no forward mode on CPUs. `jax.lax.platform_dependent` chooses when a
program is lowered, so that one trace serves several platforms.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ..shapes import Array, at_least_float32

Tree = TypeVar("Tree")
Convolution = Callable[[Array, Array], Array]  # of images and a kernel


def materialize(tree: Tree) -> Tree:
    """Return the arrays of a tree; on CPU they, and in the backward pass their gradients, are written to memory.

    XLA's CPU backend may otherwise compute an array once per use.
    """
    return jax.lax.platform_dependent(tree, cpu=jax.lax.optimization_barrier, default=_identity)


def _identity(tree: Tree) -> Tree:
    return tree


def convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels_per_group features"],
    window_strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Float[Array, "batch out_height out_width features"]:
    """Convolve as `jax.lax.conv_general_dilated` does, with its options.

    On CPU, large 3x3 convolutions in float32 use Winograd's algorithm, and in bfloat16 the gradient of x is one that
    oneDNN computes.
    """
    plain = functools.partial(jax.lax.conv_general_dilated, window_strides=window_strides, padding=padding, **options)
    if not _keeps_size(window_strides, padding, **options) or kernel.shape[2] != x.shape[3]:
        return plain(x, kernel)
    if x.dtype == jnp.bfloat16 and all(size % 2 for size in kernel.shape[:2]):
        on_cpu = functools.partial(_with_onednn_gradient, plain)
        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)
    if x.dtype == jnp.float32 and _winograd_pays(x.shape, kernel.shape):
        return _winograd(plain, x, kernel)
    return plain(x, kernel)


def _keeps_size(window_strides: Sequence[int], padding: Any, rhs_dilation: Any = None, **_: Any) -> bool:
    return padding == "SAME" and all(step == 1 for step in (*window_strides, *(rhs_dilation or ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_onednn_gradient(plain: Convolution, x: Array, kernel: Array) -> Array:
    return plain(x, kernel)


def _forward(plain, x, kernel):
    return plain(x, kernel), (x, kernel)


def _backward(plain, saved, gradient):
    x, kernel = saved
    # JAX would convolve with a reversed kernel, which oneDNN skips. Reverse it behind a barrier.
    turned = jax.lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    [kernel_gradient] = jax.linear_transpose(lambda kernel: plain(x, kernel), kernel)(gradient)
    return plain(gradient, turned), kernel_gradient


_with_onednn_gradient.defvjp(_forward, _backward)


def _winograd_pays(shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
    height, channels = shape[1], shape[3]  # the batch size may be symbolic
    *size, inputs, outputs = kernel_shape
    is_large = height >= 16 and min(inputs, outputs) >= 32
    return is_large and size == [3, 3] and inputs == channels and height % 4 == 0


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _winograd(plain: Convolution, x: Array, kernel: Array) -> Array:
    four_rows = functools.partial(_four_rows_at_a_time, plain)
    return jax.lax.platform_dependent(x, kernel, cpu=four_rows, default=plain)


@_winograd.defjvp
def _winograd_jvp(plain, primals, tangents):
    x, kernel = primals
    dx, dkernel = tangents
    return _winograd(plain, x, kernel), plain(dx, kernel) + plain(x, dkernel)


def _four_rows_at_a_time(plain: Convolution, x: Array, kernel: Array) -> Array:
    """Winograd's F(4, 3) along columns of pixels (Lavin & Gray 2016), with the points 0, 1, -1, 2, -2 and infinity.

    Four rows of the result come from six of x, by six convolutions of 1x3 instead of twelve.
    """
    batch, height, width, _ = x.shape
    padded = jnp.pad(jax.lax.optimization_barrier(x), ((0, 0), (1, 1), (0, 0), (0, 0)))
    a, b, c, d, e, f = (padded[:, first : first + height - 3 : 4] for first in range(6))
    above, middle, below = jnp.split(kernel, 3)

    def at_points(even_rows, odd_rows, even_kernel, odd_kernel):
        """The sum and the difference of the values at a point and at its negative."""
        plus = plain(even_rows + odd_rows, even_kernel + odd_kernel)
        minus = plain(even_rows - odd_rows, even_kernel - odd_kernel)
        return plus + minus, plus - minus

    zero = plain(4 * a - 5 * c + e, above / 4)
    sum1, difference1 = at_points(e - 4 * c, d - 4 * b, (above + below) / -6, middle / -6)
    sum2, difference2 = at_points(e - c, 2 * (d - b), (above + 4 * below) / 24, middle / 12)
    infinity = plain(4 * b - 5 * d + f, below)
    rows = zero + sum1 + sum2, difference1 + 2 * difference2, sum1 + 4 * sum2, difference1 + 8 * difference2 + infinity
    return jnp.stack(rows, axis=2).reshape(batch, height, width, kernel.shape[-1])


def nearest(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch 2*height 2*width channels"]:
    """Upsample images to twice their size: each pixel becomes 2x2 equal pixels."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def convolution_after_nearest(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels_per_group features"],
    window_strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Float[Array, "batch out_height out_width features"]:
    """`convolution(nearest(x), kernel, ...)` with a 3x3 kernel.

    Each pixel's 3x3 window holds only 2x2 different pixels of x. On CPU, four convolutions of x by 2x2 kernels, in
    which rows and columns of `kernel` are summed, each give one pixel of every 2x2: four products instead of nine. In
    16-bit types rounding the sums would cost more than the time is worth.
    """
    apply = functools.partial(convolution, window_strides=window_strides, **options)

    def plain(x, kernel):
        return apply(nearest(x), kernel, padding=padding)

    if x.dtype.itemsize < 4 or not _keeps_size(window_strides, padding, **options):
        return plain(x, kernel)

    def summed(kernel, axis):
        """The kernels for the first and for the second pixel of each pair along an axis."""
        first, middle, last = jnp.split(kernel, 3, axis)
        return (jnp.concatenate(two, axis) for two in ((first, middle + last), (first + middle, last)))

    def by_four_kernels(x, kernel):
        batch, height, width, _ = x.shape
        rows = []
        for i, row_kernel in enumerate(summed(kernel, 0)):
            parts = enumerate(summed(row_kernel, 1))
            columns = [apply(x, part, padding=((1 - i, i), (1 - j, j))) for j, part in parts]
            rows.append(jnp.stack(columns, axis=3))
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])

    return jax.lax.platform_dependent(x, kernel, cpu=by_four_kernels, default=plain)


@jax.checkpoint  # the backward pass recomputes the arrays of length x length
def attention(
    q: Float[Array, "batch length heads dim"],
    k: Float[Array, "batch length heads dim"],
    v: Float[Array, "batch length heads dim"],
) -> Float[Array, "batch length heads dim"]:
    """`jax.nn.dot_product_attention(q, k, v)`, written for CPUs.

    The weights are divided by their sum after the product with v: there are fewer numbers to divide, and the backward
    pass has fewer arrays of length x length.
    """
    q *= jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    wide = at_least_float32(q.dtype)
    logits = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=wide)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1).swapaxes(1, 2)[..., None]
    out = jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v)
    return (out.astype(total.dtype) / total).astype(v.dtype)
