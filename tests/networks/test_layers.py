import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_distillation.networks.cpu_kernels import convolution, convolution_after_nearest, nearest
from diffusion_distillation.networks.layers import GroupNorm, attention, conv3x3, flatten_pixels
from diffusion_distillation.networks.unet import ResidualBlock

NHWC = ("NHWC", "HWIO", "NHWC")


def norm_of_flax(dtype):
    return nn.GroupNorm(8, epsilon=1e-6, dtype=dtype, use_fast_variance=False)


def film_and_swish(y, film):
    scale, shift = (part[:, None, None, :] for part in film)
    return nn.swish(y * (1 + scale) + shift)


def make_inputs(seed, mean, side=4, channels=32):
    rng = np.random.default_rng(seed)
    x = mean + rng.standard_normal((3, side, side, channels))
    weights = {"scale": 1 + 0.3 * rng.standard_normal(channels), "bias": rng.standard_normal(channels)}
    film = tuple(0.5 * rng.standard_normal((2, 3, channels)))
    return jax.tree.map(np.float32, (weights, x, film))


def value_and_gradients(apply, inputs):
    value = apply(*inputs)
    weighed = jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
    return value, jax.grad(lambda *inputs: jnp.sum(apply(*inputs) * weighed), (0, 1, 2))(*inputs)


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([0.0, 1.0, -10.0]), st.sampled_from([2, 4]))
def test_group_norm_and_its_gradients_match_float64(seed, mean, side):
    """Compared with Flax's layer in float64, followed by scale, shift and swish as in the U-Net."""
    inputs = make_inputs(seed, mean, side)
    got = jax.jit(lambda *inputs: value_and_gradients(ours(None), inputs))(*inputs)
    with jax.enable_x64():
        of_flax = norm_of_flax(jnp.float64)
        expected = value_and_gradients(
            lambda weights, x, film: film_and_swish(of_flax.apply({"params": weights}, x), film),
            jax.tree.map(np.float64, inputs),
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * (1 + mean**2) * np.abs(b).max())


def ours(dtype):
    norm = GroupNorm(8, dtype, nn.swish)
    return lambda weights, x, film: norm.apply({"params": weights}, x, film)


def test_group_norm_rounds_to_bfloat16_once():
    """The result equals the float32 result, rounded."""
    weights, x, film = make_inputs(0, 3.0)
    x = x.astype(jnp.bfloat16)
    exact = ours(jnp.float32)(weights, x, film)
    rounded = ours(None)(weights, x, film)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))


def test_group_norm_does_not_round_small_scales_to_nothing():
    """The sum 1 + scale is computed in float32, whatever the dtype of the scale."""
    weights, x, _ = make_inputs(0, 0.0)
    film = tuple(jnp.full((2, 3, 32), 2.0**-10, jnp.bfloat16))
    in_bfloat16, in_float32 = (
        ours(jnp.float32)(weights, x, jax.tree.map(cast, film)) for cast in (jnp.copy, jnp.float32)
    )
    np.testing.assert_array_equal(in_bfloat16, in_float32)


def test_group_norm_has_the_parameters_of_flax_and_equals_it():
    x = make_inputs(0, 0.0)[1]
    a, b = (norm.init(jax.random.key(0), x) for norm in (GroupNorm(8), norm_of_flax(None)))
    assert jax.tree.map(jnp.shape, a) == jax.tree.map(jnp.shape, b)
    np.testing.assert_allclose(GroupNorm(8).apply(a, x), norm_of_flax(None).apply(b, x), atol=1e-6)


of_lax = jax.lax.conv_general_dilated


def of_lax_and_nearest(x, *args, **kwargs):
    return of_lax(nearest(x), *args, **kwargs)


@pytest.mark.parametrize(
    ("apply", "reference", "stride", "side", "bounds"),
    [
        (convolution, of_lax, 1, 8, {jnp.float32: 1e-6, jnp.bfloat16: 3e-3}),
        (convolution, of_lax, 2, 4, {jnp.float32: 1e-6, jnp.bfloat16: 3e-3}),
        (convolution_after_nearest, of_lax_and_nearest, 1, 16, {jnp.float32: 1e-6, jnp.bfloat16: 4e-3}),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convolutions_and_their_gradients_are_as_exact_as_jaxs(apply, reference, stride, side, bounds, dtype):
    """Errors are those against `jax.lax` in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 32)).astype(dtype)
    kernel = rng.standard_normal((3, 3, 32, 64)).astype(dtype)
    weighed = rng.standard_normal((2, side, side, 64)).astype(dtype)

    def gradients(convolve, *inputs):
        @jax.jit
        def act(*inputs):
            y, pull = jax.vjp(
                lambda x, kernel: convolve(x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC), *inputs[:2]
            )
            return y, *pull(inputs[2])

        return act(*inputs)

    got = gradients(apply, x, kernel, weighed)
    plain = gradients(reference, x, kernel, weighed)
    with jax.enable_x64():
        exact = gradients(reference, *map(np.float64, (x, kernel, weighed)))
        exact = [np.asarray(part) for part in exact]
    for ours, of_jax, expected in zip(got, plain, exact, strict=True):
        assert ours.dtype == dtype
        errors = [
            np.linalg.norm(np.asarray(part).astype(np.float64) - expected) / np.linalg.norm(expected)
            for part in (ours, of_jax)
        ]
        assert errors[0] < bounds[dtype] and errors[0] < 1.1 * errors[1] + 1e-7


@pytest.mark.parametrize(
    ("height", "width", "strides", "padding"),
    [(1, 1, (1, 1), "SAME"), (5, 3, (1, 1), "SAME"), (5, 3, (2, 2), "SAME"), (5, 3, (1, 1), "VALID")],
)
def test_a_convolution_after_upsampling_takes_any_shape(height, width, strides, padding):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape, np.float32) for shape in ((2, height, width, 4), (3, 3, 4, 5)))
    ours = convolution_after_nearest(x, kernel, strides, padding, dimension_numbers=NHWC)
    expected = of_lax_and_nearest(x, kernel, strides, padding, dimension_numbers=NHWC)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([16, 20, 32]), st.integers(1, 9), st.sampled_from([32, 48]))
def test_a_winograd_convolution_matches_float64_and_has_jaxs_gradients(seed, height, width, features):
    """It rounds up to four times as much as JAX's convolution, whose gradients it has bit for bit."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, height, width, 32), np.float32)
    kernel = rng.standard_normal((3, 3, 32, features), np.float32)

    weighed = rng.standard_normal((2, height, width, features), np.float32)

    def gradients(convolve):
        y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC), x, kernel)
        return y, *pull(weighed)

    ours, plain = gradients(convolution), gradients(of_lax)
    with jax.enable_x64():
        exact = np.asarray(of_lax(np.float64(x), np.float64(kernel), (1, 1), "SAME", dimension_numbers=NHWC))
    error, of_jax = (np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in (ours[0], plain[0]))
    most = 4 if jax.__version_info__ >= (0, 12) else 5  # in JAX 0.10, JAX's own convolution rounds less
    assert 0 < error < most * of_jax and error < 1e-6 and not np.array_equal(ours[0], plain[0])
    for a, b in zip(ours[1:], plain[1:], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("side", "channels", "options"),
    [
        (18, 32, {}),
        (8, 32, {}),
        (16, 16, {}),
        (16, 64, {"feature_group_count": 2}),
        (16, 32, {"rhs_dilation": (2, 2)}),
        (16, 32, {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}),
    ],
)
def test_other_convolutions_equal_jaxs_bit_for_bit(side, channels, options):
    """Heights that 4 does not divide, few pixels, few channels, groups and dilations exclude Winograd's algorithm."""
    rng = np.random.default_rng(0)
    options = {"padding": "SAME", "dimension_numbers": NHWC} | options
    x = rng.standard_normal((1, side, side, channels), np.float32)
    kernel = rng.standard_normal((3, 3, channels // options.get("feature_group_count", 1), 32), np.float32)
    ours, plain = (convolve(x, kernel, (1, 1), **options) for convolve in (convolution, of_lax))
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(("side", "channels"), [(4, 2), (16, 32)])
def test_a_float32_convolution_has_forward_derivatives(side, channels):
    x, kernel = jnp.ones((1, side, side, channels)), jnp.ones((3, 3, channels, channels))

    def apply(x):
        return convolution(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)

    value, slope = jax.jvp(apply, (x,), (x,))
    np.testing.assert_array_equal(value, slope)  # it is linear


@settings(max_examples=15)
@given(st.integers(0, 99), st.sampled_from([1, 2, 4]), st.sampled_from([0.1, 1.0, 30.0]))
def test_attention_and_its_gradients_match_float64(seed, heads, size):
    """With logits so large that only a softmax that subtracts their maximum is finite, too."""
    rng = np.random.default_rng(seed)
    q, k, v = (size * rng.standard_normal((2, 9, heads, 8 // heads)).astype(np.float32) for _ in range(3))
    got = jax.jit(lambda *inputs: value_and_gradients(attention, inputs))(q, k, v)
    with jax.enable_x64():
        expected = value_and_gradients(jax.nn.dot_product_attention, tuple(map(np.float64, (q, k, v))))
    logits = max(1, size**2)  # their size, and with it that of the softmax's relative error
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-7 * logits, atol=2e-6 * max(size, logits))


class Layers(nn.Module):
    """An upsampling convolution, a norm, attention, and a residual block of concatenated channels."""

    @nn.compact
    def __call__(self, x):
        h = GroupNorm(8, activation=nn.swish)(conv3x3(x, 32, upsample=True, dtype=x.dtype))
        q, k, v = (part.reshape(len(x), -1, 2, 16) for part in (flatten_pixels(h), jnp.sin(h), nn.swish(h)))
        h = attention(q, k, v).reshape(h.shape)
        norm = functools.partial(GroupNorm, 8, x.dtype)
        h = ResidualBlock(32, 0.0, None, True, norm, x.dtype)(
            jnp.concatenate([h, jnp.sin(h)], axis=-1), x[:, 0, 0], None
        )
        return conv3x3(h, 8, dtype=x.dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accelerators_and_cpus_compute_the_same(monkeypatch, dtype):
    """Code for one platform changes roundings only."""
    x = make_inputs(0, 0.0, side=8)[1].astype(dtype)
    params = Layers().init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)), params)

    def gradients():
        def loss(params, x):
            return jnp.mean(jnp.sin(Layers().apply(params, x).astype(jnp.float32)))

        return jax.jit(jax.grad(loss, (0, 1)))(params, x)

    on_cpu = gradients()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **branches: default(*args))
    for a, b in zip(jax.tree.leaves(on_cpu), jax.tree.leaves(gradients()), strict=True):
        a, b = (np.asarray(part).astype(np.float64) for part in (a, b))
        assert np.linalg.norm(a - b) < {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}[dtype] * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("capability", "dtype", "length", "dim", "expected"),
    [
        ("9.0", jnp.bfloat16, 256, 128, "cudnn"),
        ("8.0", jnp.float16, 1024, 64, "cudnn"),
        ("7.5", jnp.bfloat16, 256, 128, None),
        ("gfx90a", jnp.bfloat16, 256, 128, None),
        ("9.0", jnp.float32, 256, 128, None),
        ("9.0", jnp.bfloat16, 64, 128, None),
        ("9.0", jnp.bfloat16, 256, 256, None),
        ("9.0", jnp.bfloat16, 256, 36, None),
        (None, jnp.bfloat16, 256, 128, None),
    ],
)
def test_attention_uses_cudnn_on_gpus_that_have_it_where_it_pays(monkeypatch, capability, dtype, length, dim, expected):
    used = []

    def record(q, k, v, implementation=None):
        used.append(implementation)
        return q

    def lower_for_cuda(*args, default, cuda=None, **branches):
        return (cuda or default)(*args)

    device = types.SimpleNamespace(**{} if capability is None else {"compute_capability": capability})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    monkeypatch.setattr(jax.lax, "platform_dependent", lower_for_cuda)
    q = np.zeros((1, length, 2, dim), dtype)
    attention(q, q, q)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # as in an export
        attention(q, q, q)
    assert used == [expected, None]
