import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import oracle
from helpers.steps import AFFINE, SOURCE, WAYS, make_config, model_of, run

from diffusion_distillation import methods
from diffusion_distillation.data import read_batches
from diffusion_distillation.methods import Rung, base, make_method
from diffusion_distillation.networks.layers import GroupNorm, conv3x3
from diffusion_distillation.networks.unet import AttentionBlock, ResidualBlock, dropout_seeds
from diffusion_distillation.runtime.devices import data_mesh, first_shard
from diffusion_distillation.training.checks import check_batch_size
from diffusion_distillation.training.loop import make_runner
from diffusion_distillation.training.optimizers import learning_rate, make_optimizer
from diffusion_distillation.training.runner import begin
from diffusion_distillation.training.step import Teacher, init_state, make_train_step, preprocess


class Block(nn.Module):
    """One of the U-Net's residual blocks and its attention, with dropout: they compile in half the time of a U-Net."""

    remat: bool = False

    @nn.compact
    def __call__(self, z, logsnr, y=None, *, train=False, index=None):
        residual, attention = ((nn.remat(block) if self.remat else block) for block in (ResidualBlock, AttentionBlock))
        norm = functools.partial(GroupNorm, num_groups=32, dtype=z.dtype)
        emb = nn.swish(nn.Dense(32)(jnp.broadcast_to(logsnr, len(z))[:, None]))
        h = conv3x3(z, 32, dtype=z.dtype, name="conv_in")
        seeds = dropout_seeds(self.make_rng("dropout"), index) if train else None
        h = residual(32, 0.3, None, True, norm, z.dtype, name="block")(h, emb, seeds)
        h = attention(1, None, norm, z.dtype, name="attn")(h)
        return conv3x3(h, 1, dtype=z.dtype, name="conv_out")


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol)


@functools.cache
def params_of_block(seed):
    return jax.jit(Block().init)(jax.random.key(seed), jnp.zeros((1, *SOURCE.image_shape)), jnp.zeros(1))["params"]


@functools.cache
def train_in_one_way(*, distilled, devices=1, scan=False, remat=False, **train):
    """Parameters and losses after 4 steps, with dropout and flips."""
    config = make_config(distillation={} if distilled else None, randflip=True, **train)
    network, params = Block(remat), params_of_block(0)
    teacher = Teacher(params_of_block(1), Rung(8, 4)) if distilled else None
    states, losses = run(config, 4, network=network, params=params, teacher=teacher, devices=devices, scan=scan)
    assert states[-1].step == 4 and states[-1].skipped == 0
    return states[-1].params, states[-1].ema_params, losses


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_gives_the_same(way):
    distilled = way in ("8 devices", "pmap, 2 devices", "accumulation, 4 devices", "fully sharded", "all at once")
    *params, losses = train_in_one_way(distilled=distilled)
    *others, of_others = train_in_one_way(distilled=distilled, **WAYS[way])
    assert_close(params, others, atol=1e-5)
    np.testing.assert_allclose(losses, of_others, rtol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("how", [dict(), dict(shard="all"), dict(parallel="pmap")], ids=["jit", "sharded", "pmap"])
def test_a_state_stays_where_it_was_placed(how, scan):
    """Otherwise, the second call would be compiled again."""
    config = make_config(**how)
    runner = make_runner(config, make_method(config), model_of(config), data_mesh(), scan=scan)
    placed, _ = runner.place(init_state(config, make_method(config), AFFINE), None)
    before = jax.tree.map(lambda leaf: leaf.sharding, placed)
    after, _ = runner.steps(placed, jax.random.key(0), None, list(read_batches(SOURCE, 0, range(2), 16)))
    moved = jax.tree.map(lambda leaf, sharding: not leaf.sharding.is_equivalent_to(sharding, leaf.ndim), after, before)
    assert not any(jax.tree.leaves(moved)), moved


@pytest.mark.parametrize("given", ["arrays", "shapes"])
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "how",
    [dict(), dict(shard="all"), dict(parallel="pmap"), dict(distillation={})],
    ids=["jit", "sharded", "pmap", "student"],
)
def test_a_step_is_compiled_once(how, scan, given):
    """`steps` runs what `compile` has compiled, also for a shorter last call."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **about: compiled.append(event))
    config, key = make_config(**how, substeps=3), jax.random.key(0)
    student_of = Teacher(AFFINE, Rung(8, 4)) if "distillation" in how else None
    batches = list(read_batches(SOURCE, 0, range(3), 16))

    def compilations():
        return sum("backend_compile" in event for event in compiled)

    for _ in range(2):  # the first iteration compiles small programs too
        runner = make_runner(config, make_method(config), model_of(config), data_mesh(), scan=scan)
        start = init_state(config, make_method(config), AFFINE)
        like = jax.tree.map(np.array, start) if given == "arrays" else jax.eval_shape(lambda start=start: start)
        state, teacher = runner.place(start, student_of)
        before = compilations()
        runner.compile(like, key, student_of, batches)
        there = compilations()
        state, _ = runner.steps(state, key, teacher, batches)
        state, metrics = runner.steps(state, key, teacher, batches[:2])
        now = compilations()
    assert before < there == now
    assert (
        int(first_shard(state.step) if config.train.parallel == "pmap" else state.step) == 5
        and len(metrics["loss"]) == 2
    )


def test_a_sharded_state_is_made_on_its_devices():
    """No device ever holds more than its share."""
    held, put, size = [0], jax.device_put, 512 * 512 * 4

    def bytes_here():
        arrays = [part.data for array in jax.live_arrays() for part in array.addressable_shards]
        return sum(part.nbytes for part in arrays if part.devices() == {jax.devices()[0]})

    def device_put(*args, **kwargs):
        held.append(bytes_here() - before)
        return put(*args, **kwargs)

    before = bytes_here()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_put", device_put)
        config = make_config(shard="all")
        state = begin(config, make_method(config), {"table": np.zeros((512, 512), np.float32)}, data_mesh())
    held.append(bytes_here() - before)
    assert state.params["table"].shape == (512, 512)
    assert max(held) < 0.7 * size  # an eighth of the parameters twice, the moments and the average


@pytest.mark.parametrize("shard", ["state", "all"])
def test_a_sharded_state_takes_less_on_each_device(shard):
    config = make_config(shard=shard)
    runner = make_runner(config, make_method(config), model_of(config), data_mesh())
    state, _ = runner.place(init_state(config, make_method(config), AFFINE), None)
    state, _ = runner.steps(state, jax.random.key(0), None, list(read_batches(SOURCE, 0, range(2), 16)))

    def share(leaf):
        return leaf.addressable_shards[0].data.size / leaf.size

    assert share(state.params["dense0"]) == (1 / 8 if shard == "all" else 1)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == (8, 8, 1)]
    assert len(moments) == 2
    assert {share(leaf) for leaf in [*moments, state.ema_params["dense0"]]} == {1 / 8}


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("num_steps", [1, 4, 64])
def test_the_distillation_loss_matches_float64(num_steps):
    """The oracle is algorithm 2, with the times and the noise of the step's keys."""
    config = make_config(distillation=dict(start_num_steps=128))
    teacher = jax.tree.map(lambda leaf: leaf - 0.5, AFFINE)
    _, [loss] = run(config, 1, teacher=Teacher(teacher, Rung(2 * num_steps, num_steps)))

    data_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0))
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 3))(np.arange(16))
    image = next(read_batches(SOURCE, 0, range(1), 16))["image"]
    x = image.astype(np.float64) / 127.5 - 1
    eps = np.float64(jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys[:, 1]))
    i = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(keys[:, 2]))
    t = (i + 1) / num_steps
    alpha, sigma = (part[:, None, None, None] for part in oracle.alpha_sigma(oracle.cosine_angle(t)))
    z = alpha * x + sigma * eps

    def v(params, z):
        return z * params["dense0"].astype(np.float64) + params["bias"]

    half_way = oracle.cosine_angle(t - 0.5 / num_steps)[:, None, None, None]
    v1 = v(teacher, z)
    d = oracle.cosine_angle(t)[:, None, None, None] - half_way
    v2 = v(teacher, np.cos(d) * z - np.sin(d) * v1)
    target = oracle.two_step_target_x(z, v1, v2, t, num_steps, oracle.cosine_angle)
    x_mse = np.mean((alpha * z - sigma * v(AFFINE, z) - target) ** 2, axis=(1, 2, 3))
    snr = np.exp(oracle.logsnr(oracle.cosine_angle(t)))
    np.testing.assert_allclose(loss, np.mean(x_mse * np.maximum(snr, 1)), rtol=1e-5)


def test_every_halving_runs_the_same_program():
    """num_steps is traced."""
    config = make_config(distillation={})
    step = jax.jit(make_train_step(config, make_method(config), model_of(config)))
    state, batch = init_state(config, make_method(config), AFFINE), next(read_batches(SOURCE, 0, range(1), 16))
    teachers = [Teacher(AFFINE, Rung(2 * num_steps, num_steps)) for num_steps in (1, 4, 1024)]
    losses = [float(step(state, jax.random.key(0), teacher, batch)[1]["loss"]) for teacher in teachers]
    # The shorter the steps, the closer one step is to two, so a student that equals its teacher has less to learn.
    assert losses[0] > 10 * losses[1] > 1e4 * losses[2]
    assert step._cache_size() == 1


def test_randomness_depends_on_the_position_in_the_batch_alone():
    """Changing one row changes the loss by the same amount whatever the other rows are."""
    config = make_config()
    method = make_method(config)
    step = jax.jit(make_train_step(config, method, model_of(config)))
    batch = next(read_batches(SOURCE, 0, range(1), 16))

    def loss(image):
        start = init_state(config, method, AFFINE)
        return float(step(start, jax.random.key(0), None, batch | {"image": image})[1]["loss"])

    other = batch["image"].copy()
    other[5] = 255 - other[5]
    both = other.copy()
    both[9] = 255 - both[9]
    one = batch["image"].copy()
    one[9] = 255 - one[9]
    assert loss(other) != loss(batch["image"])
    np.testing.assert_allclose(loss(both) - loss(other), loss(one) - loss(batch["image"]), rtol=1e-3)


def since_multiple(period):
    return lambda k: [0] * (k - k % period) + [1 / (k % period + 1)] * (k % period + 1)


def exponential(decay):
    return lambda k: [decay**k, *((1 - decay) * decay ** (k - j) for j in range(1, k + 1))]


@pytest.mark.parametrize(
    ("train", "weights"),
    [
        (dict(ema_decay=0.9), exponential(0.9)),
        (dict(ema_decay=None, avg_type="ema", avg_steps=5), exponential(0.8)),
        (
            dict(ema_decay=None, avg_type="aa", avg_steps=3),
            lambda k: [0] * (k - k % 3) + [1 / (k % 3 + 1)] * (k % 3 + 1),
        ),
    ],
)
def test_averages_weigh_the_parameters_of_earlier_steps(train, weights):
    """Weights are those of steps 0 to k. The initial parameters have none."""
    states, _ = run(make_config(**train), 5)
    for k, state in enumerate(states):
        history = [earlier.params for earlier in states[: k + 1]]
        expected = jax.tree.map(lambda *p, k=k: sum(w * leaf for w, leaf in zip(weights(k), p, strict=True)), *history)
        assert_close(state.ema_params, expected, atol=1e-6)
        assert state.sampling_params is state.ema_params


@pytest.mark.parametrize("train", [dict(ema_decay=0.0), dict(ema_decay=None, avg_type="none")])
def test_without_an_average_the_parameters_are_sampled(train):
    state = run(make_config(**train))[0][-1]
    assert state.ema_params is None and state.sampling_params is state.params


def test_only_the_embedding_is_trained():
    config = make_config(distillation=dict(only_finetune_temb=True))
    teacher = jax.tree.map(lambda leaf: leaf + 0.1, AFFINE)
    state = run(config, 1, teacher=Teacher(teacher, Rung(8, 4)))[0][-1]
    assert np.all(state.params["dense0"] != AFFINE["dense0"])
    np.testing.assert_array_equal(state.params["bias"], AFFINE["bias"])


def test_updates_that_are_not_finite_are_skipped():
    broken = {"dense0": np.full((8, 8, 1), np.inf, np.float32), "bias": np.zeros(1, np.float32)}
    state = run(make_config(), 2, params=broken)[0][-1]
    assert state.step == 2 and state.skipped == 2
    assert_close(state.params, broken, atol=0)
    assert_close(state.ema_params, broken, atol=0)
    state = run(make_config(enable_update_skip=False), 2, params=broken)[0][-1]
    assert state.skipped == 0 and not np.isfinite(state.params["bias"][0])


@pytest.mark.parametrize(
    ("train", "rule"),
    [
        (dict(optimizer="momentum"), lambda g, g1: g1 + 0.9 * g),
        (dict(optimizer="nesterov", optimizer_beta=0.5), lambda g, g1: g1 + 0.5 * (g1 + 0.5 * g)),
    ],
)
def test_momentum_clips_the_whole_gradient_and_decouples_weight_decay(train, rule):
    """Compare the second of two updates with the formulas."""
    optimizer = make_optimizer(make_config(grad_clip=0.01, weight_decay=0.1, **train).train)
    params = {"a": jnp.full(3, 2.0), "b": jnp.full(1, -5.0)}
    state = optimizer.init(params)
    for gradient in (1.0, -2.0):
        gradients = jax.tree.map(lambda leaf, g=gradient: jnp.full_like(leaf, g), params)
        updates, state = optimizer.update(gradients, state, params)
    step = rule(0.01 / 2, -0.01 / 2)  # four elements: each is its share of the clipped norm
    assert_close(updates, jax.tree.map(lambda p: -(step + 0.1 * p), params), atol=1e-5)


def test_adam_decouples_weight_decay():
    optimizer = make_optimizer(make_config(grad_clip=0.0, weight_decay=0.1).train)
    params = {"a": jnp.full(3, 2.0)}
    updates, _ = optimizer.update({"a": jnp.array([1e3, -1e-2, 0.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"], -(np.array([1, -1, 0]) + 0.2), rtol=1e-3)


def test_the_learning_rate_warms_up_and_anneals():
    train = make_config(
        learning_rate=1.0, learning_rate_warmup_steps=4, learning_rate_anneal_type="linear", num_train_steps=10
    ).train
    rates = [float(learning_rate(train)(step)) for step in range(11)]
    np.testing.assert_allclose(rates[:3], [0.25 * 1.0, 0.5 * 0.9, 0.75 * 0.8], rtol=1e-6)
    np.testing.assert_allclose(rates[4:], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], atol=1e-6)
    assert float(learning_rate(make_config().train)(99)) == pytest.approx(1e-3)


def test_images_are_scaled_and_half_of_them_are_flipped():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(0), 400)
    np.testing.assert_allclose(preprocess(keys, {"image": images}, flip=False), images / 127.5 - 1, atol=1e-6)
    flipped = np.asarray(preprocess(keys, {"image": images}, flip=True))
    mirrored = np.isclose(flipped, images[:, :, ::-1] / 127.5 - 1, atol=1e-6).all(axis=(1, 2, 3))
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_allclose(flipped[~mirrored], images[~mirrored] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(preprocess(keys[:7], {"image": images[:7]}, flip=True), flipped[:7])


def test_base_training_with_one_time_is_at_t_1():
    """There, z is noise and v is -x."""
    zero = jax.tree.map(np.zeros_like, AFFINE)
    _, losses = run(make_config(train_num_steps=1), 1, params=zero)
    x = next(read_batches(SOURCE, 0, range(1), 16))["image"] / 127.5 - 1
    np.testing.assert_allclose(losses, [np.mean(x**2)], rtol=1e-3)
    assert run(make_config(train_num_steps=0), 1, params=zero)[1] != losses


def test_batches_that_do_not_fit_the_devices_are_refused():
    check_batch_size(make_config(batch_size=64, microbatch_size=16).train, data_mesh())
    with pytest.raises(ValueError, match=r"batch_size=68 must be divisible by .* devices, 8: choose 64 or 72"):
        check_batch_size(make_config(batch_size=68).train, data_mesh())
    with pytest.raises(ValueError, match=r"microbatch_size=4 must be divisible by .* devices, 8: choose 8 or"):
        check_batch_size(make_config(batch_size=64, microbatch_size=4).train, data_mesh())


def test_skipped_updates_count_for_the_learning_rate_and_leave_no_trace_in_averages(monkeypatch):
    """The first update that is not skipped is Adam's first, with the learning rate of its step."""

    def make(config, schedule):
        def times(keys, update, rung):
            return Times(jnp.full(len(keys), 0.5), update)

        def loss(prediction, target, times):
            return jnp.where(times.update < 2, jnp.nan, prediction.x.mean((1, 2, 3)))

        method = base.make(config, schedule)
        return method._replace(times=times, loss=loss, average_decay=0.9)

    monkeypatch.setitem(methods.METHODS, "progressive", methods.Entry(make))
    config = make_config(distillation={}, learning_rate_warmup_steps=8, learning_rate=8e-3, grad_clip=0.0)
    states, _ = run(config, 4, teacher=Teacher(AFFINE, Rung(2, 1)))
    assert [int(state.skipped) for state in states] == [1, 2, 2, 2]
    moved = [abs(state.params["bias"] - AFFINE["bias"]).item() for state in states]
    assert moved[:2] == [0, 0]
    assert moved[2] == pytest.approx(float(learning_rate(config.train)(2)), rel=1e-3)
    for average in (states[2].ema_params, states[2].average):
        assert_close(average, states[2].params, atol=0)


class Times(NamedTuple):
    t: Any
    update: Any
