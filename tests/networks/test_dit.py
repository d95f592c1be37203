import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_dit

from diffusion_distillation.networks.dit import DiT
from diffusion_distillation.schedules import Discrete

SMALL = dict(num_classes=5, out_ch=3, patch_size=2, hidden_size=32, depth=2, num_heads=4)
X = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
LOGSNR = np.array([-9.0, -1.0, 2.0, 8.0], np.float32)
Y = np.array([0, 3, -1, 4], np.int32)


@functools.partial(jax.jit, static_argnames="network")
def apply(network, params, x=X, logsnr=LOGSNR, y=Y, *, guidance=None):
    return network.apply({"params": params}, x, logsnr, y, guidance=guidance)


def shapes_of(network, guidance=None):
    return jax.eval_shape(functools.partial(network.init, guidance=guidance), jax.random.key(0), X, LOGSNR, Y)["params"]


def random_params(network, guidance=None):
    """Parameters without zero-initialized layers."""
    leaves, tree = jax.tree.flatten(shapes_of(network, guidance))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize(
    "change",
    [
        dict(),
        dict(num_classes=1, patch_size=1, depth=1, mlp_ratio=2.5, logsnr_input_type="flow_time"),
        dict(patch_size=4, num_heads=1, freq_shift=1, mlp_norm_eps=1e-2, logsnr_input_type="data_time", time_scale=1.0),
        dict(out_ch=6, logsnr_input_type="step", schedule=Discrete()),
        dict(guidance_range=(1.0, 4.0)),
    ],
    ids=["classes", "unconditional, patches of 1", "diffusers' options", "both, step", "guidance"],
)
def test_every_option_matches_the_numpy_oracle(change):
    """In float64, except for the softmax of attention."""
    options = SMALL | change
    network = DiT(**options)
    guidance = None if network.guidance_range is None else np.array([1.0, 1.3, 2.0, 4.0])
    params = random_params(network, None if guidance is None else guidance.astype(np.float32))
    expected = numpy_dit.dit(params, options, X, LOGSNR, Y, guidance)
    with jax.enable_x64(True):
        out = np.asarray(apply(network, params, X.astype(np.float64), LOGSNR.astype(np.float64), guidance=guidance))
    assert out.shape == (4, 8, 8, network.out_ch) and out.dtype == np.float64
    assert np.linalg.norm(out - expected) < 1e-7 * np.linalg.norm(expected)


def test_a_scalar_logsnr_applies_to_all_images():
    network = DiT(**SMALL)
    params = random_params(network)
    expected = apply(network, params, logsnr=np.full(4, 2.0, np.float32))
    np.testing.assert_array_equal(apply(network, params, logsnr=2.0), expected)


def test_labels_of_no_class_take_the_last_row_of_the_table():
    network = DiT(**SMALL)
    params = random_params(network)
    expected = apply(network, params, y=np.array([-1, -1, 2, -1], np.int32))
    params["class_emb"]["embedding"][[0, 1, 3, 4]] = np.nan
    np.testing.assert_array_equal(apply(network, params, y=np.array([-1, -1, 2, -1], np.int32)), expected)
    params["class_emb"]["embedding"][5] = np.nan
    assert np.isnan(apply(network, params, y=np.array([-1, -1, 2, -1], np.int32))).any(axis=(1, 2, 3)).tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_initial_parameters_follow_the_paper():
    """Linear layers are Xavier-uniform, embeddings normal, and the layers of adaLN-Zero and the head zero."""
    network = DiT(**(SMALL | dict(hidden_size=128, num_classes=400)))
    params = jax.jit(network.init)(jax.random.key(0), X, LOGSNR, Y)["params"]
    for name, fan in {"qkv": 128 + 3 * 128, "attn_out": 256, "mlp0": 128 + 512, "mlp1": 128 + 512}.items():
        kernel = params["block_1"][name]["kernel"]
        assert np.abs(kernel).max() == pytest.approx((6 / fan) ** 0.5, rel=0.01)
        assert kernel.std() == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert np.abs(params["patch_in"]["kernel"]).max() == pytest.approx((6 / (12 + 128)) ** 0.5, rel=0.01)
    for name, leaf in {"dense0": "kernel", "dense1": "kernel", "class_emb": "embedding"}.items():
        assert params[name][leaf].std() == pytest.approx(0.02, rel=0.02)
    for layer in (params["block_0"]["adaln"], params["adaln_out"], params["proj_out"]):
        assert not np.any(layer["kernel"]) and not np.any(layer["bias"])
    assert not np.any(apply(network, params))


def test_the_number_of_parameters_is_the_published_one():
    """DiT-XL/2 has 674,834,720 parameters, of which 18,448 predict variances, which this network does not."""
    network = DiT(num_classes=1000, out_ch=4, patch_size=2, hidden_size=1152, depth=28, num_heads=16)
    x, logsnr, y = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    params = jax.eval_shape(network.init, jax.random.key(0), x, logsnr, y)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 674_834_720 - 18_448


def test_bfloat16_activations_keep_float32_parameters_and_outputs():
    exact, mixed = DiT(**SMALL), DiT(**SMALL, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(mixed))} == {jnp.dtype("float32")}
    params = random_params(exact)
    expected, got = apply(exact, params), apply(mixed, params)
    assert got.dtype == jnp.float32
    assert 1e-5 < np.linalg.norm(got - expected) / np.linalg.norm(expected) < 0.03


def test_the_head_computes_in_float32():
    """A bias of the head that bfloat16 cannot represent is exact in the output."""
    network = DiT(**SMALL, dtype=jnp.bfloat16)
    params = jax.tree.map(np.zeros_like, random_params(network))
    params["proj_out"]["bias"] = np.tile(np.float32([0.1, 0.2, 0.3]), 4)
    np.testing.assert_array_equal(apply(network, params), np.broadcast_to(np.float32([0.1, 0.2, 0.3]), X.shape))


def test_rematerialization_keeps_the_gradients():
    def gradients(network, params):
        return jax.grad(lambda params: jnp.mean(network.apply({"params": params}, X, LOGSNR, Y) ** 2))(params)

    params = random_params(DiT(**SMALL))
    plain, remat = (jax.jit(gradients, static_argnums=0)(DiT(**SMALL, remat=remat), params) for remat in (False, True))
    a, b = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (plain, remat))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


@pytest.mark.parametrize(
    ("change", "side", "message"),
    [
        (dict(patch_size=3), 8, "images are 8x8; with patch_size=3 they must be square, with a side that 3 divides"),
        (dict(patch_size=0), 8, "patch_size=0 must be at least 1"),
        (dict(hidden_size=30), 8, "hidden_size=30 must be a multiple of num_heads=4, and of 4"),
        (dict(num_heads=5), 8, "hidden_size=32 must be a multiple of num_heads=5"),
        (dict(hidden_size=6, num_heads=3), 8, "hidden_size=6 must be .* of 4 for the position embedding"),
        (dict(depth=0), 8, "depth=0 must be at least 1"),
        (dict(depth=257), 8, "depth=257 must be 256 at most"),
        (dict(mlp_ratio=0.0), 8, "mlp_ratio times hidden_size=0.0 must be from 1 to 1,048,576"),
        (dict(num_classes=10**9), 8, "num_classes=1000000000 must be from 1 to 1,048,576"),
        (dict(mlp_norm_eps=0.0), 8, "mlp_norm_eps=0.0 must be more than 0"),
        (dict(time_scale=0.0), 8, "time_scale=0.0 must be more than 0"),
        (dict(freq_shift=2), 8, "freq_shift=2 must be 0 or 1"),
        (dict(logsnr_input_type="step"), 8, "needs the 'discrete' schedule"),
        (dict(guidance_range=(4.0, 0.0)), 8, r"guidance_range=\(4.0, 0.0\) must be the smallest weight"),
        (
            dict(num_classes=1, guidance_range=(0.0, 4.0)),
            8,
            "guidance_range=.* is for networks with classes",
        ),
    ],
)
def test_impossible_options_are_refused(change, side, message):
    network = DiT(**(SMALL | change))
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros(1), jnp.zeros(1, jnp.int32))


def test_labels_and_guidance_weights_that_do_not_fit_are_refused():
    network = DiT(**SMALL)
    for labels in ([0, 1, 5, 2], [0, -2, 1, 2]):
        with pytest.raises(ValueError, match="labels must be integers from 0 to 4, or -1 for none; got"):
            network.apply({}, X, LOGSNR, np.array(labels))
    with pytest.raises(ValueError, match="5 classes needs labels y"):
        network.apply({}, X, LOGSNR)
    with pytest.raises(ValueError, match="does not fit a network with guidance_range=None"):
        network.apply({}, X, LOGSNR, Y, guidance=LOGSNR)
