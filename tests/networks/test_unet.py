import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import numpy_unet, oracle

from diffusion_distillation.diffusion import make_denoiser, q_sample
from diffusion_distillation.losses import data_target, training_loss
from diffusion_distillation.networks import unet
from diffusion_distillation.networks.embedding import embedded_time
from diffusion_distillation.networks.model import init_params
from diffusion_distillation.networks.unet import UNet, dropout, dropout_seeds
from diffusion_distillation.schedules import Discrete, get_logsnr_schedule

SMALL = dict(
    num_classes=1,
    ch=32,
    emb_ch=64,
    out_ch=3,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    num_heads=2,
    dropout=0.0,
    logsnr_input_type="inv_cos",
)
TINY = SMALL | dict(ch_mult=(1,), num_res_blocks=0, attn_resolutions=())
X = np.random.default_rng(0).standard_normal((4, 8, 8, 3)).astype(np.float32)
LOGSNR = np.array([-9.0, -1.0, 2.0, 8.0], np.float32)


@functools.partial(jax.jit, static_argnames=("network", "train"))
def apply(network, params, x=X, logsnr=LOGSNR, y=None, *, guidance=None, index=None, rngs=None, train=False):
    return network.apply({"params": params}, x, logsnr, y, guidance=guidance, train=train, index=index, rngs=rngs)


def random_params(network, x=X, y=None, guidance=None):
    """Random parameters. No layer is zero, as some are after initialization."""
    init = functools.partial(network.init, guidance=guidance)
    params = jax.eval_shape(init, jax.random.key(0), x, LOGSNR[: len(x)], y)["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves])


def test_outputs_match_the_published_networks(golden, golden_unet):
    network, student, teacher = golden_unet
    for name, params in (("unet_uncond", student), ("unet_uncond_teacher", teacher)):
        d = golden(name)
        out = apply(network, params, d["x"], d["logsnr"])
        assert np.linalg.norm(out - d["out"]) < 1e-5 * np.linalg.norm(d["out"])


def test_the_numpy_oracle_matches_the_published_networks(golden, golden_unet):
    """The oracle checks the options that no golden file has."""
    network, student, teacher = golden_unet
    for name, params in (("unet_uncond", student), ("unet_uncond_teacher", teacher)):
        d = golden(name)
        out = numpy_unet.unet(params, vars(network), d["x"], d["logsnr"])
        assert np.linalg.norm(out - d["out"]) < 1e-5 * np.linalg.norm(d["out"])


@pytest.mark.parametrize(
    "change",
    [
        dict(num_classes=5, attn_resolutions=(8, 4), num_heads=None, head_dim=32),
        dict(logsnr_input_type="linear", logsnr_scale_range=(-12.0, 9.0), ch_mult=(1, 2, 1), resblock_resample=True),
        dict(logsnr_input_type="sigmoid", out_ch=6, ch_mult=(2, 1, 1), num_res_blocks=2, attn_resolutions=(2, 8)),
        dict(
            logsnr_input_type="step",
            schedule=Discrete(num_steps=100, beta_end=0.2),
            freq_shift=0,
            scale_shift=False,
            norm_groups=8,
            norm_eps=1e-2,
            mid_attn_groups=16,
            pad_both_sides=True,
            attn_stages=("down_0", "mid"),
        ),
        dict(
            logsnr_input_type="c_noise",
            time_scale=1.0,
            mid_attn_groups=0,
            ch_mult=(1, 1, 1),
            attn_stages=("up_1", "mid"),
            resample_stages=("down_1", "up_1"),
        ),
        dict(logsnr_input_type="flow_time", attn_stages=(), pad_both_sides=True, scale_shift=False),
        dict(logsnr_input_type="data_time", time_scale=500.0, num_classes=5, guidance_range=(1.0, 4.0), ch_mult=(1,)),
    ],
    ids=[
        "classes, head_dim, convolutions",
        "linear, three levels",
        "sigmoid, both, two blocks, convolutions",
        "diffusers'",
        "c_noise, by stages",
        "flow_time, no attention",
        "data_time, guidance",
    ],
)
def test_every_option_matches_the_numpy_oracle(change):
    """In float64, except for the softmax of the attention."""
    options = SMALL | change
    network = UNet(**options)
    y = np.array([0, 3, 4, 1], np.int32) if network.num_classes > 1 else None
    guidance = None if network.guidance_range is None else np.array([1.0, 1.3, 2.0, 4.0])
    params = random_params(network, y=y, guidance=None if guidance is None else guidance.astype(np.float32))
    logsnr = np.array([-21.0, -3.0, 0.5, 19.0])
    if network.schedule is not None:
        logsnr = np.array([-3.7, -3.0, 0.5, 2.0])  # between the first and the last time of the schedule
    expected = numpy_unet.unet(params, options, X, logsnr, y, guidance)
    with jax.enable_x64(True):
        out = np.asarray(apply(network, params, X.astype(np.float64), logsnr, y, guidance=guidance))
    assert out.shape == (4, 8, 8, network.out_ch)
    assert np.linalg.norm(out - expected) < 1e-7 * np.linalg.norm(expected)


def test_both_heads_match_the_numpy_oracle():
    """With mean_type 'both', the first half of the channels is x and the second is eps."""
    options = SMALL | dict(out_ch=6)
    network = UNet(**options)
    params = random_params(network)
    denoise = make_denoiser(functools.partial(apply, network, params), "both")
    x_head, eps_head = np.split(numpy_unet.unet(params, options, X, LOGSNR), 2, axis=-1)
    alpha, sigma = oracle.alpha_sigma(np.arctan(np.exp(-0.5 * LOGSNR.astype(np.float64)))[:, None, None, None])
    expected = sigma**2 * x_head + alpha**2 * (X - sigma * eps_head) / alpha
    np.testing.assert_allclose(denoise(X, LOGSNR).x, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("t", [1.0, 0.5, 0.001])
def test_numbers_for_the_noise_level_are_exact(t):
    """From noise to data, the inputs of published networks: 1000 t, t, and 250 log(sigma)."""
    logsnr = get_logsnr_schedule("flow")(np.float32(t))

    t = np.float64(np.float32(t))
    np.testing.assert_allclose(embedded_time(logsnr, "flow_time"), 1000 * t, rtol=5e-7)
    np.testing.assert_allclose(embedded_time(logsnr, "data_time", scale=1.0), 1 - t, rtol=5e-7, atol=3e-9)
    if t < 1:  # sigma = t / (1 - t) is infinite at t = 1
        np.testing.assert_allclose(embedded_time(logsnr, "c_noise"), 250 * np.log(t / (1 - t)), rtol=5e-7, atol=1e-4)


def test_labels_outside_the_classes_are_refused():
    network = UNet(**(TINY | dict(num_classes=5)))
    for labels in ([0, 1, 5, 2], [0, -2, 1, 2]):
        with pytest.raises(ValueError, match="labels must be integers from 0 to 4, or -1 for none; got"):
            network.apply({}, X, LOGSNR, np.array(labels))


def test_the_parameter_tree_is_the_published_one(golden_unet):
    network, params, _ = golden_unet
    initial = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)), jnp.zeros(1))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, initial)
    assert sum(leaf.size for leaf in jax.tree.leaves(initial)) == 747_491


def test_optional_layers_have_the_published_names():
    """Convolutions that resample, class embeddings and attention in the middle."""
    network = UNet(**(SMALL | dict(num_classes=10)))
    params = random_params(network, y=np.zeros(4, np.int32))
    assert params["class_emb"]["kernel"].shape == (10, 64)
    assert params["down_0.downsample"]["kernel"].shape == (3, 3, 32, 32)
    assert params["up_1.upsample"]["kernel"].shape == (3, 3, 64, 64)
    assert params["mid.attn_1"]["q"]["kernel"].shape == (64, 2, 32)
    assert params["mid.attn_1"]["proj_out"]["kernel"].shape == (2, 32, 64)


@pytest.mark.parametrize(("backend", "has_cpu"), [("cpu", True), ("gpu", True), ("gpu", False)])
def test_initial_parameters_equal_those_of_flax_bit_for_bit(optimized, monkeypatch, backend, has_cpu):
    """They are computed on the CPU with fewer optimizations, or within another program."""

    def local_devices(backend):
        if not has_cpu:
            raise RuntimeError(f"Unknown backend {backend}")
        return jax.devices()

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_devices", local_devices)
    network = UNet(**TINY)
    expected = jax.jit(network.init)(jax.random.key(1), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))["params"]
    drawn = functools.partial(init_params, network, image_shape=(8, 8, 3), num_classes=1)
    for found in (drawn(key=jax.random.key(1)), jax.jit(lambda key: drawn(key=key))(jax.random.key(1))):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_new_network_outputs_zero():
    network = UNet(**TINY)
    params = jax.jit(network.init)(jax.random.key(0), X, LOGSNR)["params"]
    assert not np.any(apply(network, params))


@pytest.mark.parametrize("resblock_resample", [False, True])
def test_an_example_alone_gives_its_row_of_the_batch(resblock_resample):
    """With a scalar logsnr too."""
    network = UNet(**(SMALL | dict(resblock_resample=resblock_resample)))
    params = random_params(network)
    whole = apply(network, params)
    assert whole.shape == X.shape
    np.testing.assert_allclose(apply(network, params, X[2:3], 2.0), whole[2:3], atol=1e-4 * np.abs(whole).max())


def test_outputs_differ_between_classes():
    network = UNet(**(SMALL | dict(num_classes=10)))
    params = random_params(network, y=np.zeros(4, np.int32))
    out = apply(network, params, X[[0, 0]], LOGSNR[[0, 0]], np.array([3, 7], np.int32))
    assert np.abs(out[0] - out[1]).max() > 1e-3


def test_a_network_with_classes_needs_labels():
    network = UNet(**(TINY | dict(num_classes=10)))
    with pytest.raises(ValueError, match="10 classes needs labels y"):
        jax.eval_shape(network.init, jax.random.key(0), X, LOGSNR)


def test_num_heads_and_head_dim_describe_the_same_network():
    """Both give two heads of 32 channels."""
    by_number, by_width = UNet(**SMALL), UNet(**(SMALL | dict(num_heads=None, head_dim=32)))
    params = random_params(by_number)
    np.testing.assert_array_equal(apply(by_number, params), apply(by_width, params))


def test_bfloat16_activations_keep_float32_parameters_and_outputs():
    exact, mixed = UNet(**TINY), UNet(**TINY, dtype=jnp.bfloat16)
    initial = jax.eval_shape(mixed.init, jax.random.key(0), X, LOGSNR)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    params = random_params(exact)
    expected, got = apply(exact, params), apply(mixed, params)
    assert got.dtype == jnp.float32
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 0.03


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_perfect_network_has_no_loss(dtype):
    """The bias of the last layer is the image, one color per channel. In bfloat16, it would cost a loss of 2e-4.

    The remaining loss, 4e-14, is the float32 rounding of eps = (z - alpha x) / sigma.
    """
    rng = np.random.default_rng(0)
    network = UNet(**(TINY | dict(out_ch=64)), dtype=dtype)
    logsnr = get_logsnr_schedule("cosine")(rng.integers(1, 1025, 256) / np.float32(1024))
    color = rng.uniform(-1, 1, 64).astype(np.float32)
    x, eps = np.broadcast_to(color, (256, 4, 4, 64)), rng.standard_normal((256, 4, 4, 64)).astype(np.float32)
    z = q_sample(x, eps, logsnr)
    params = jax.tree.map(lambda leaf: 0 * leaf, random_params(network, z[:4]))
    params["conv_out"]["bias"] = color
    denoise = make_denoiser(functools.partial(apply, network, params), "x")
    loss = training_loss(denoise(z, logsnr), data_target(x, eps, logsnr), "snr_trunc")
    assert loss.mean() < 1e-12


def test_float64_inputs_give_float64_outputs():
    with jax.enable_x64(True):
        network = UNet(**TINY)
        params = random_params(network)
        expected = apply(network, params)
        got = apply(network, params, X.astype(np.float64), LOGSNR.astype(np.float64))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(expected, got, atol=1e-4 * np.abs(got).max())
        dropping = UNet(**(TINY | dict(dropout=0.5)))
        rngs = {"dropout": jax.random.key(0)}
        dropped = apply(dropping, params, X.astype(np.float64), LOGSNR.astype(np.float64), rngs=rngs, train=True)
        assert dropped.dtype == jnp.float64 and np.abs(dropped - got).max() > 0.01


def test_rematerialization_applies_the_same_dropout():
    plain, remat = (UNet(**(TINY | dict(dropout=0.5, remat=remat))) for remat in (False, True))
    params, rngs = random_params(plain), {"dropout": jax.random.key(0)}

    @functools.partial(jax.jit, static_argnames="network")
    def gradients(network, params):
        def loss(params):
            return jnp.mean(network.apply({"params": params}, X, LOGSNR, train=True, rngs=rngs) ** 2)

        return jax.grad(loss)(params)

    a, b = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients(of, params))]) for of in (plain, remat))
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_dropout_depends_on_the_position_and_not_on_the_split():
    network = UNet(**(TINY | dict(dropout=0.5)))
    params = random_params(network)

    def dropped(rows, seed=0):
        rngs = {"dropout": jax.random.key(seed)}
        return apply(network, params, X[rows], LOGSNR[rows], index=jnp.arange(4)[rows], rngs=rngs, train=True)

    whole = dropped(slice(0, 4))
    np.testing.assert_allclose(dropped(slice(2, 4)), whole[2:], atol=1e-4 * np.abs(whole).max())
    assert np.abs(whole - dropped(slice(0, 4), seed=1)).max() > 0.01
    np.testing.assert_array_equal(apply(network, params, train=False), apply(UNet(**TINY), params))


def test_dropout_differs_between_blocks_and_between_examples(monkeypatch):
    seeds = []
    monkeypatch.setattr(unet, "dropout", lambda x, seed, rate: (seeds.extend(np.asarray(seed).tolist()), x)[1])
    network = UNet(**(TINY | dict(dropout=0.5, ch_mult=(1, 1), resblock_resample=True)))
    with jax.disable_jit():
        network.apply({"params": random_params(network)}, X, LOGSNR, train=True, rngs={"dropout": jax.random.key(0)})
    blocks = sum("conv2" in part for part in random_params(network).values())
    assert len(set(map(tuple, seeds))) == len(seeds) == blocks * len(X) > len(X)


@pytest.mark.parametrize(
    ("shape", "rate", "rounding"), [((8, 8, 4), 0.25, 1e-6), ((7, 7, 5), 0.1, 1e-5), ((1,), 0.9, 1e-4)]
)
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_dropout_keeps_the_mean(shape, rate, rounding, impl):
    """Every element is kept with the same probability, independently of its neighbors and of the other examples."""
    count = 4096
    seeds = dropout_seeds(jax.random.key(0, impl=impl), jnp.arange(count))
    kept = np.asarray(dropout(jnp.ones((count, *shape)), seeds, rate))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / (1 - rate)], rtol=rounding)
    masks = (kept > 0).reshape(count, -1)
    spread = np.sqrt(rate * (1 - rate))
    assert abs(masks.mean() - (1 - rate)) < 5 * spread / np.sqrt(masks.size)
    assert np.abs(masks.mean(axis=0) - (1 - rate)).max() < 5 * spread / np.sqrt(count)
    together = np.atleast_2d(np.cov(masks.T))
    assert np.abs(together - np.diag(np.diag(together))).max() < 7 * spread**2 / np.sqrt(count)


@pytest.mark.parametrize(
    ("change", "side", "message"),
    [
        (dict(ch=48), 8, "multiple of 32"),
        (dict(num_heads=5), 8, "num_heads=5 must divide the 64 channels"),
        (dict(num_heads=None, head_dim=48), 8, "head_dim=48 must divide the 64 channels"),
        (dict(num_heads=None), 8, "either num_heads or head_dim"),
        (dict(head_dim=32), 8, "either num_heads or head_dim"),
        (dict(), 9, "images are 9x9.*a side that 2 divides"),
        (dict(ch_mult=(1, 1, 1)), 10, "images are 10x10.*a side that 4 divides"),
        (dict(ch_mult=()), 8, r"ch_mult=\(\) must not be empty"),
        (dict(ch_mult=(1, 0)), 8, r"ch_mult=\(1, 0\) must hold integers of at least 1"),
        (dict(emb_ch=0), 8, "emb_ch=0 must be at least 1"),
        (dict(norm_groups=0), 8, "norm_groups=0 must be at least 1"),
        (dict(norm_eps=0.0), 8, "norm_eps=0.0 must be more than 0"),
        (dict(logsnr_scale_range=(1.0, 1.0)), 8, r"logsnr_scale_range=\(1.0, 1.0\) must be two numbers"),
        (dict(dropout=1.0), 8, "dropout=1.0"),
        (dict(logsnr_input_type="step"), 8, "needs the 'discrete' schedule"),
        (dict(time_scale=0.0), 8, "time_scale=0.0 must be more than 0"),
        (dict(attn_stages=("down_2",)), 8, r"attn_stages has \['down_2'\]; the stages"),
        (dict(resample_stages=("middle",)), 8, r"resample_stages has \['middle'\]"),
        (dict(mid_attn_groups=5), 8, "mid_attn_groups=5 must divide the middle's 64"),
        (dict(norm_groups=48), 8, "multiple of 48"),
        (dict(freq_shift=16), 8, "ch=32 must be even and above"),
        (dict(num_res_blocks=33), 8, "num_res_blocks=33 must be 32 at most"),
        (dict(ch_mult=(1, 2**16)), 8, "ch times ch_mult=2097152 must be 1,048,576 at most"),
        (dict(num_classes=10**9), 8, "num_classes=1000000000 must be 1,048,576 at most"),
    ],
)
def test_impossible_options_are_refused(change, side, message):
    network = UNet(**(SMALL | change))
    with pytest.raises(ValueError, match=message):
        network.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros(1))
