"""Guidance of base models that are trained with label dropout, and of students that take the weight as an input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import oracle
from helpers.models import KEY, SHAPE, make_model, noise
from helpers.steps import WAYS, make_config, model_of, run
from jax.sharding import Mesh

from diffusion_distillation import config as cfg
from diffusion_distillation import pipeline as module
from diffusion_distillation import sampling
from diffusion_distillation.data import load_source
from diffusion_distillation.methods import make_method
from diffusion_distillation.networks.model import Model, init_params, make_network, matching
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.training.step import Teacher, init_state, make_train_step

LABELLED = load_source("digits", class_conditional=True)
WEIGHTS = np.array([-1.0, 0.0, 1.0, 3.0], np.float32)


class Conditioned(nn.Module):
    """A network that scales z and adds the label and the guidance weight."""

    guidance_range: tuple[float, float] | None = None

    @nn.compact
    def __call__(self, z, logsnr, y=None, *, guidance=None, train=False, index=None):
        out = z * self.param("scale", nn.initializers.ones, ()) + 0.3 * jnp.asarray(y)[:, None, None, None]
        return out if guidance is None else out + 0.1 * guidance[:, None, None, None]


@pytest.fixture(scope="module")
def guidable():
    """A base model that was trained with label dropout."""
    return make_model(label_dropout=0.1, unet=True)


def raw_outputs(params, metadata, z, logsnr, y):
    network = make_network(metadata.config.model, SHAPE, 3)
    return np.asarray(jax.jit(network.apply)({"params": params}, z, logsnr, y), np.float64)


@pytest.mark.parametrize("mean_type", ["x", "eps", "v"])
@pytest.mark.parametrize("clip", [True, False])
def test_the_guided_denoiser_matches_float64(guidable, mean_type, clip):
    """(1 + w) x(class) - w x(no class), and likewise for eps and v. Clipping applies to the guided x."""
    params, metadata = guidable
    network, z, logsnr = make_network(metadata.config.model, SHAPE, 3), noise(KEY, 4), np.float32(0.5)
    condition = {"y": np.array([2, 0, 1, 2]), "guidance": WEIGHTS}
    found = Model(network=network, mean_type=mean_type).denoiser(params, condition, clip_x=clip)(z, logsnr)

    alpha, sigma = np.sqrt(1 / (1 + np.exp(-0.5))), np.sqrt(1 / (1 + np.exp(0.5)))

    def completed(kind, value):
        if kind == "v":
            return alpha * z - sigma * value, sigma * z + alpha * value, value
        x = value if kind == "x" else (z - sigma * value) / alpha
        eps = (z - alpha * x) / sigma
        return x, eps, alpha * eps - sigma * x

    conditional = completed(mean_type, raw_outputs(params, metadata, z, logsnr, condition["y"]))
    unconditional = completed(mean_type, raw_outputs(params, metadata, z, logsnr, np.full(4, -1)))
    w = WEIGHTS.astype(np.float64).reshape(-1, 1, 1, 1)
    expected = [(1 + w) * a - w * b for a, b in zip(conditional, unconditional, strict=True)]
    if clip:
        expected = completed("x", np.clip(expected[0], -1, 1))
    for got, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)  # rounding grows with the weight
    assert np.any(np.abs(expected[0] - conditional[0])[2:] > 1e-3)  # guidance has an effect


def test_the_embedding_of_no_class_is_the_bias_alone(guidable):
    params, metadata = guidable
    z = noise(KEY, 2)
    without = {**params, "class_emb": {**params["class_emb"], "kernel": np.zeros_like(params["class_emb"]["kernel"])}}
    one, other = (
        raw_outputs(params, metadata, z, 0.0, np.full(2, -1)),
        raw_outputs(without, metadata, z, 0.0, np.arange(2)),
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(("weights", "rows"), [(None, 8), ((0.0, 4.0), 4)])
def test_a_guided_step_is_one_network_call(weights, rows, cosine):
    """Its batch is twice as large. A student that takes the weight as an input needs only the batch itself."""
    calls = []

    class Counted(Conditioned):
        @nn.compact
        def __call__(self, z, logsnr, y=None, *, guidance=None):
            calls.append(len(z))
            return Conditioned.__call__(self, z, logsnr, y, guidance=guidance)

    condition = {"y": np.arange(4), "guidance": np.full(4, 2.0, np.float32)}
    denoise = Model(network=Counted(weights), mean_type="v").denoiser({"scale": 1.0}, condition)
    jax.eval_shape(lambda z: sampling.ddim(denoise, z, cosine, 8), noise(KEY, 4))
    assert calls == [rows]  # the loop over steps is traced once


def assert_same_pictures(one, other):
    """Check that images are equal up to rounding, which depends on the number of images per program."""
    apart = np.abs(one.astype(int) - other)
    assert apart.max() <= 1 and np.mean(apart) < 0.01


@pytest.mark.parametrize(("of", "parallel"), [("base", "jit"), ("student", "pmap")])
def test_guided_samples_depend_on_their_key_number_class_and_weight_alone(of, parallel, guidable, monkeypatch):
    """Each sample may have its own weight."""
    options = dict(label_dropout=0.1) if of == "base" else dict(guidance_range=(0.0, 4.0), num_steps=4)
    model = make_model(parallel=parallel, **options, unet=of == "base")
    pipeline, z = Pipeline(*model), noise(KEY, 10)
    assert pipeline.can_be_guided
    weights = np.arange(10, dtype=np.float32) % 4
    images = pipeline.sample(KEY, 10, guidance=weights)
    some = list(pipeline.stream(KEY, np.array([7, 2, 9]), guidance=weights[[7, 2, 9]], batch_size=2))
    assert_same_pictures(images[[7, 2, 9]], to_uint8(np.concatenate(some)))
    assert_same_pictures(images, to_uint8(pipeline.from_noise(z, guidance=weights)))
    assert_same_pictures(images, pipeline.trajectory(KEY, 10, guidance=weights)[-1])
    threes = pipeline.sample(KEY, 10, guidance=3.0)
    assert_same_pictures(threes[3::4], images[3::4])
    assert np.any(threes != images)
    zeros = pipeline.sample(KEY, 10, guidance=0.0)
    assert_same_pictures(zeros, pipeline.sample(KEY, 10))
    if of == "base":  # bit for bit the conditional model
        np.testing.assert_array_equal(zeros, Pipeline(*make_model(parallel=parallel, unet=True)).sample(KEY, 10))
    monkeypatch.setattr(module, "data_mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
    assert_same_pictures(images, Pipeline(*model).sample(KEY, 10, guidance=weights))


def test_the_configs_weight_is_the_default(guidable):
    params, metadata = make_model(label_dropout=0.1, eval_guidance=2.0, unet=True)
    pipeline, plain, z = Pipeline(params, metadata), Pipeline(*guidable), noise(KEY, 3)
    np.testing.assert_array_equal(pipeline.sample(KEY, 3), plain.sample(KEY, 3, guidance=2.0))
    np.testing.assert_array_equal(pipeline.sample(KEY, 3, guidance=0.0), plain.sample(KEY, 3))
    labels = np.array([1, 1, 2])
    one, other = pipeline.denoiser(labels)(z, 0.5), plain.denoiser(labels, guidance=2.0)(z, 0.5)
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_allclose(plain.denoiser(guidance=2.0)(z, 0.5).x, pipeline.denoiser(np.arange(3))(z, 0.5).x)
    each = plain.denoiser(labels, guidance=WEIGHTS[1:])(z, 0.5).x
    np.testing.assert_allclose(each[0], plain.denoiser(labels)(z, 0.5).x[0], atol=1e-5)
    assert np.abs(each - plain.denoiser(labels)(z, 0.5).x)[1:].max() > 1e-3


def test_a_student_starts_as_its_teacher_whatever_the_weight():
    params, metadata = make_model(unet=True)
    config = make_model(guidance_range=(0.0, 4.0), unet=True)[1].config
    network = make_network(config.model, SHAPE, 3)
    initial = matching(params, init_params(network, jax.random.key(7), SHAPE, 3))
    assert set(initial) - set(params) == {"guidance0", "guidance1"}
    z, y = noise(KEY, 4), np.array([0, 1, 2, 0])
    out = network.apply({"params": initial}, z, 0.5, y, guidance=jnp.asarray(np.abs(WEIGHTS)))
    teacher = make_network(metadata.config.model, SHAPE, 3)
    np.testing.assert_array_equal(out, teacher.apply({"params": params}, z, 0.5, y))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, initial)
    one, other = (network.apply({"params": moved}, z, 0.5, y, guidance=jnp.full(4, w)) for w in (0.0, 3.0))
    assert np.abs(one - other).max() > 1e-3  # after training, the weight has an effect


def guided_config(method, train=None, **distillation):
    config = make_config(**(train or {})).copy_and_resolve_references()
    with config.unlocked():
        config.model.args.guidance_range, config.model.eval_guidance = (1.0, 3.0), 1.0
        config.train.update(optimizer="momentum", optimizer_beta=0.0, grad_clip=0.0, learning_rate=1.0)
        config.distillation = dict(teacher_checkpoint_path="-", method=method, **distillation)
    return cfg.resolve(config)


BATCH = {"image": np.stack([LABELLED[np.array([i])]["image"][0] for i in range(64)]), "label": np.arange(64) % 10}


@pytest.mark.parametrize(
    ("method", "teacher_takes_it"), [("guidance", False), ("progressive", False), ("progressive", True)]
)
def test_teacher_and_student_get_the_same_weight_and_only_the_student_learns(method, teacher_takes_it, cosine):
    """The loss and the gradient of a training step match float64."""
    config = guided_config(method, **(dict(start_num_steps=8) if method == "progressive" else dict(end_num_steps=4)))
    rung = make_method(config).rungs[0]
    step = jax.jit(make_train_step(config, make_method(config), model_of(config, Conditioned((1.0, 3.0)))))
    of_teacher = None if teacher_takes_it else model_of(config, Conditioned())
    teacher = Teacher({"scale": jnp.float32(-0.4)}, rung, of_teacher)
    state = init_state(config, make_method(config), {"scale": jnp.float32(0.7)})
    new, metrics = step(state, jax.random.key(0), teacher, BATCH)

    data_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 4))(jnp.arange(64))
    w = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32, 1.0, 3.0))(keys[:, 3])
    assert 1 <= w.min() < 1.2 and 2.8 < w.max() <= 3
    x = np.asarray(BATCH["image"] / np.float32(127.5) - 1, np.float64)
    eps = np.asarray(jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys[:, 1]), np.float64)
    times = make_method(config).times(keys[:, 2], 0, rung)
    t = np.asarray(times.t, np.float64)
    phi = oracle.cosine_angle(t)[:, None, None, None]
    z = np.cos(phi) * x + np.sin(phi) * eps
    w, y = (np.asarray(part, np.float64).reshape(-1, 1, 1, 1) for part in (w, BATCH["label"]))

    def teach(z):
        if teacher_takes_it:
            return -0.4 * z + 0.3 * y + 0.1 * w
        return (1 + w) * (-0.4 * z + 0.3 * y) - w * (-0.4 * z - 0.3)

    if method == "guidance":
        x_target = np.cos(phi) * z - np.sin(phi) * teach(z)
    else:
        turn = phi - oracle.cosine_angle(t - 1 / 8)[:, None, None, None]
        z_mid = np.cos(turn) * z - np.sin(turn) * teach(z)
        x_target = oracle.two_step_target_x(z, teach(z), teach(z_mid), t, 4, oracle.cosine_angle)

    def loss(scale):
        v = scale * z + 0.3 * y + 0.1 * w
        error = np.cos(phi) * z - np.sin(phi) * v - x_target
        weight = np.maximum(1 / np.tan(phi) ** 2, 1)
        return np.mean(weight * error**2)

    gradient = (loss(0.7 + 1e-5) - loss(0.7 - 1e-5)) / 2e-5
    np.testing.assert_allclose(metrics["loss"], loss(0.7), rtol=1e-5)
    np.testing.assert_allclose(new.params["scale"], 0.7 - gradient, rtol=1e-4)


INTERVAL = (-1.0, 1.0)
LOGSNRS = np.array([-2.0, -1.0, 0.0, 1.0, 1.5], np.float32)


@pytest.mark.parametrize("taken", [None, (0.0, 4.0)])
def test_guidance_acts_in_its_interval_alone(taken):
    """Whether the network takes the weight or is asked twice. Both ends are in the interval."""
    model = Model(network=Conditioned(taken), mean_type="v")
    params, z, y = {"scale": np.float32(0.7)}, noise(KEY, 5), np.array([2, 0, 1, 2, 1])

    def v(weight, **interval):
        condition = {"y": y, "guidance": np.full(5, weight, np.float32)}
        return model.denoiser(params, condition, **interval)(z, LOGSNRS).v

    found = v(2.0, guidance_interval=INTERVAL)
    inside = np.array([False, True, True, True, False])
    np.testing.assert_array_equal(found[inside], v(2.0)[inside])
    np.testing.assert_array_equal(found[~inside], v(0.0)[~inside])
    assert np.all(np.abs(v(2.0) - v(0.0)) > 0.1)


@pytest.mark.parametrize("outputs", [1, 2])
def test_guidance_acts_on_the_first_channels_alone(outputs):
    """Of an image with three channels; of x and of eps alike if the network outputs both."""

    class Stacked(Conditioned):
        @nn.compact
        def __call__(self, z, logsnr, y=None):
            return Conditioned.__call__(self, jnp.concatenate([z] * outputs, axis=-1), logsnr, y)

    mean_type = {1: "v", 2: "both"}[outputs]
    models = [Model(network=Stacked(), mean_type=mean_type, guidance_channels=number) for number in (2, None)]
    z = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
    condition = {"y": np.arange(4), "guidance": WEIGHTS}
    some, every = (model.denoiser({"scale": np.float32(0.7)}, condition)(z, 0.5).v for model in models)
    plain = models[0].denoiser({"scale": np.float32(0.7)}, {"y": np.arange(4)})(z, 0.5).v
    np.testing.assert_array_equal(some[..., :2], every[..., :2])
    np.testing.assert_allclose(some[..., 2], plain[..., 2], rtol=1e-6)
    assert np.abs(every - plain)[2:, ..., 2].min() > 0.1


class Combined(nn.Module):
    """`Conditioned`, guided at the weight 2 between two log-SNRs, as a network."""

    @nn.compact
    def __call__(self, z, logsnr, y=None, *, train=False, index=None):
        network = Conditioned()
        weight = jnp.where((logsnr >= INTERVAL[0]) & (logsnr <= INTERVAL[1]), 2.0, 0.0)[:, None, None, None]
        return (1 + weight) * network(z, logsnr, y) - weight * network(z, logsnr, jnp.full_like(y, -1))


METHODS = {
    "progressive": dict(start_num_steps=8),
    "tract": dict(method="tract", rungs=(8, 2, 1), start_num_steps=None),
    "consistency": dict(method="consistency", start_num_steps=8, end_num_steps=1, args=dict(first_grid=8)),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_student_without_a_weight_learns_from_a_teacher_guided_at_one(method):
    """The target is that of a teacher whose network is the combination."""
    guidance = dict(teacher_guidance=2.0, teacher_guidance_interval=INTERVAL)
    config = make_config(distillation=METHODS[method] | guidance)
    [rung, *_] = make_method(config).rungs
    scale = np.float32(-0.4)
    teachers = [
        Teacher({"scale": scale}, rung, guidance=2.0, guidance_interval=INTERVAL),
        Teacher({"Conditioned_0": {"scale": scale}}, rung, model_of(config, Combined())),
        Teacher({"scale": scale}, rung, guidance=2.0),
    ]
    guided, combined, everywhere = (
        run(config, 2, network=Conditioned(), params={"scale": np.float32(0.7)}, teacher=teacher, source=LABELLED)[1]
        for teacher in teachers
    )
    np.testing.assert_allclose(guided, combined, rtol=1e-5)
    assert guided != pytest.approx(everywhere, rel=1e-3)


def test_a_guided_teacher_counts_as_two_evaluations_for_the_first_student_alone():
    """Its students are not guided: they learned it."""
    for method, calls in {"progressive": (4, 2), "tract": (3, 2), "consistency": (3,)}.items():
        config = make_config(distillation=METHODS[method] | dict(teacher_guidance=2.0))
        found = make_method(config)
        assert tuple(found.target_calls(rung) for rung in found.rungs)[: len(calls)] == calls


@pytest.mark.parametrize("way", ["8 devices", "pmap, 2 devices", "accumulation, 4 devices", "fully sharded", "scan"])
def test_a_guided_student_trains_alike_on_any_devices(way):
    """The teacher's network differs from the student's."""
    found = []
    for how in ({}, WAYS[way]):
        how = dict(how)
        placed = {field: how.pop(field) for field in ("devices", "scan") if field in how}
        config = guided_config("guidance", how, end_num_steps=4)
        teacher = Teacher({"scale": np.float32(-0.4)}, make_method(config).rungs[0], model_of(config, Conditioned()))
        network, params = Conditioned((1.0, 3.0)), {"scale": np.float32(0.7)}
        states, losses = run(config, 3, network=network, params=params, teacher=teacher, source=LABELLED, **placed)
        found.append((states[-1].params["scale"], losses))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


def test_label_dropout_drops_a_share_of_the_labels_and_changes_nothing_else():
    """Which labels are dropped depends on the example and the step only. Images, noise and times stay the same."""
    seen, dropped = {}, 0.25

    class Recording(Conditioned):
        @nn.compact
        def __call__(self, z, logsnr, y=None, *, train=False, index=None):
            jax.debug.callback(
                lambda i, y, z: seen.update(zip(i.tolist(), zip(y, z, strict=True), strict=True)), index, y, z
            )
            return Conditioned.__call__(self, z, logsnr, y)

    def labels_of(step, batch_rows=512, **train):
        config = make_config(batch_size=batch_rows, label_dropout=dropped, **train)
        rows = np.arange(batch_rows) % 64
        batch = {name: value[rows] for name, value in BATCH.items()}
        state = init_state(config, make_method(config), {"scale": jnp.float32(0.7)})._replace(step=jnp.int32(step))
        jax.block_until_ready(
            jax.jit(make_train_step(config, make_method(config), model_of(config, Recording())))(
                state, jax.random.key(0), None, batch
            )
        )
        jax.effects_barrier()
        y, z = (np.stack([seen[i][part] for i in range(batch_rows)]) for part in (0, 1))
        np.testing.assert_array_equal(y[y >= 0], batch["label"][y >= 0])
        return y, z

    (first, z), (second, _), (in_parts, _) = labels_of(3), labels_of(4), labels_of(3, microbatch_size=128)
    np.testing.assert_array_equal(first, in_parts)
    assert np.mean(first < 0) == pytest.approx(dropped, abs=0.07)
    assert np.any(first != second)
    dropped = 0.0
    np.testing.assert_array_equal(labels_of(3)[1], z)


def test_a_pipeline_guides_in_the_interval_of_its_config_or_of_a_call(guidable):
    params, metadata = make_model(label_dropout=0.1, eval_guidance=2.0, eval_guidance_interval=INTERVAL, unet=True)
    limited, plain, z = Pipeline(params, metadata), Pipeline(*guidable), noise(KEY, 3)
    for logsnr, weight in ((0.0, 2.0), (2.0, 0.0)):
        np.testing.assert_allclose(
            limited.denoiser()(z, logsnr).x, plain.denoiser(guidance=weight)(z, logsnr).x, atol=1e-5
        )
    images = limited.from_noise(z)
    np.testing.assert_array_equal(images, plain.from_noise(z, guidance=2.0, guidance_interval=INTERVAL))
    everywhere = plain.from_noise(z, guidance=2.0)
    assert np.abs(images - everywhere).max() > 1e-3
    np.testing.assert_allclose(limited.from_noise(z, guidance_interval=(-np.inf, np.inf)), everywhere, atol=1e-5)
    fn, weights = limited.pure_sampler()
    x = fn(weights, z, num_steps=4, labels=np.arange(3), guidance=np.full(3, 2.0, np.float32))
    np.testing.assert_allclose(x, images, atol=1e-5)


def test_guidance_weights_out_of_range_are_refused(guidable):
    base, z = Pipeline(*guidable), noise(KEY, 3)
    student = Pipeline(*make_model(guidance_range=(0.0, 4.0), num_steps=4))
    remedy = "Train a class-conditional model with config.train.label_dropout=0.1"
    for draw, message in {
        lambda: Pipeline(*make_model()).sample(KEY, 2, guidance=1.0): "guidance=1.0 needs .* " + remedy,
        lambda: Pipeline(*make_model(num_classes=1)).sample(KEY, 2, guidance=1.0): "guidance=1.0 needs .* " + remedy,
        lambda: base.sample(KEY, 2, guidance=-2.0): r"guidance=-2.0 must be at least -1\. In the convention",
        lambda: base.sample(KEY, 2, guidance=float("nan")): "guidance=nan must be at least -1",
        lambda: student.sample(KEY, 2, guidance=5.0): "guidance=5.0 must be from 0.0 to 4.0, the range of this student",
        lambda: student.sample(KEY, 2, guidance=np.array([1.0, 4.5])): "guidance from 1.0 to 4.5 must be from 0.0 to",
        lambda: base.from_noise(z, guidance=np.ones(2)): r"one weight or .*3.*; got an array of shape \(2,\)",
        lambda: base.denoiser(guidance=np.ones(2)): r"got an array of shape \(2,\)",
        lambda: base.sample(KEY, 2, guidance_interval=(3.0, -4.0)): r"guidance_interval=\(3.0, -4.0\) must be the sm",
        lambda: Pipeline(*make_model(guidance_channels=2)): r"guidance_channels=2 must be from 1 to the 1 channels",
    }.items():
        with pytest.raises(ValueError, match=message):
            draw()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(end_num_steps=4, start_num_steps=8), "as many steps as its teacher"),
        (dict(end_num_steps=4, rungs=(4, 2)), "unset .* rungs"),
        (dict(end_num_steps=0), "at least 1"),
    ],
)
def test_the_steps_of_the_guidance_method_are_those_of_its_teacher(options, message):
    with pytest.raises(ValueError, match=message):
        guided_config("guidance", **options)


def test_the_guidance_method_needs_a_guidance_range():
    with pytest.raises(ValueError, match=r"set model.args.guidance_range=\(0.0, 4.0\)"):
        make_config(distillation=dict(method="guidance", start_num_steps=None, end_num_steps=4))


def test_label_dropout_of_all_labels_is_refused():
    with pytest.raises(ValueError, match=r"label_dropout=1.0 must be below 1"):
        make_config(label_dropout=1.0)


def test_a_base_model_takes_no_guidance_range():
    config = make_config().copy_and_resolve_references()
    with config.unlocked():
        config.model.args.guidance_range = (0.0, 4.0)
    with pytest.raises(ValueError, match="is for students of a ladder, which learn guidance from a teacher"):
        cfg.resolve(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            dict(eval_guidance=1.0),
            "set config.train.label_dropout=0.1 for a base model, or config.model.args.guidance_range",
        ),
        (
            dict(eval_guidance=1.0, guidance_range=(2.0, 3.0)),
            r"eval_guidance=1.0 must be within config.model.args.guidance_range=\(2.0, 3.0\)",
        ),
        (dict(guidance_range=(0.0, 0.0)), "the smallest weight"),
        (dict(guidance_range=(-1.0, 1.0)), "at least 0"),
        (dict(guidance_range=(0.0, 4.0), num_classes=1), "for networks with classes"),
    ],
)
def test_a_model_that_its_config_cannot_guide_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        make_model(**model, unet=True)
