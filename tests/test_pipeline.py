"""From parameters to images, with a very small network and random parameters."""

import types

import jax
import jaxtyping
import numpy as np
import pytest
from helpers.models import KEY, SHAPE, WAYS, make_model, noise
from jax.sharding import Mesh

from diffusion_distillation import pipeline as module
from diffusion_distillation import sampling
from diffusion_distillation.diffusion import make_denoiser
from diffusion_distillation.networks import model as networks
from diffusion_distillation.networks.model import condition_of, eval_schedule, make_network
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.runtime.devices import data_mesh, is_divided, put, shares


@pytest.fixture(scope="module")
def base():
    """The pipeline of a class-conditional base model."""
    return Pipeline(*make_model())


@pytest.mark.parametrize(("way", "unet"), [*((way, False) for way in WAYS), ("ddim", True), ("eta", True)])
def test_a_sample_depends_on_its_key_and_number_alone(monkeypatch, way, unet):
    way, base = WAYS[way], Pipeline(*make_model(unet=unet))
    images = base.sample(KEY, 10, **way)
    assert images.dtype == np.uint8 and images.shape == (10, *SHAPE)
    assert np.abs(np.diff(images.astype(int), axis=0)).mean() > 10  # images differ
    same = {
        "in batches": base.sample(KEY, 10, batch_size=4, **way),
        "followed step by step": base.trajectory(KEY, 10, **way)[-1],
        "by pmap": Pipeline(*make_model(parallel="pmap", unet=unet)).sample(KEY, 10, **way),
    }
    monkeypatch.setattr(module, "data_mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))
    same["on one device"] = Pipeline(*make_model(unet=unet)).sample(KEY, 10, **way)
    for how, drawn in same.items():
        np.testing.assert_array_equal(images, drawn, how)
    np.testing.assert_array_equal(images[:3], base.sample(KEY, 3, **way))
    some = list(base.stream(KEY, np.array([7, 2, 9]), batch_size=2, **way))
    assert [len(batch) for batch in some] == [2, 1]
    np.testing.assert_array_equal(images[[7, 2, 9]], to_uint8(np.concatenate(some)))
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(images[:3], base.sample(raw, 3, **way))
    assert np.any(images != base.sample(jax.random.key(4), 10, **way))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_noise_of_the_callers_gives_the_samples_of_its_key(base, way):
    z = noise(KEY, 10)
    x = base.from_noise(z, key=KEY, **way)
    assert x.dtype == np.float32 and np.all(np.abs(x) < 1 + 1e-6)
    np.testing.assert_array_equal(to_uint8(x), base.sample(KEY, 10, **way))
    labels = np.array([2, 2, 0])
    x = base.from_noise(z[:3], labels, key=KEY, num_steps=2, batch_size=2, clip=False, **way)
    assert np.any(np.abs(x) > 1)
    drawn = base.sample(KEY, 3, labels, num_steps=2, clip=False, **way)
    np.testing.assert_array_equal(to_uint8(x), drawn)
    assert np.any(drawn != base.sample(KEY, 3, num_steps=2, clip=False, **way))


def test_from_noise_samples_with_the_pipelines_denoiser(base):
    z, labels = noise(KEY, 4), np.array([1, 0, 2, 1])
    schedule = eval_schedule(make_model()[1].config.model)
    for clip in (True, False):
        expected = sampling.ddim(base.denoiser(labels, clip=clip), z, schedule, 3)
        np.testing.assert_allclose(base.from_noise(z, labels, num_steps=3, clip=clip), expected, atol=1e-5)


def test_eta_one_is_ancestral_with_small_variance(base):
    z = noise(KEY, 4)
    small = Pipeline(*make_model(logvar_type="fixed_small"))
    np.testing.assert_allclose(
        base.from_noise(z, eta=1.0, key=KEY), small.from_noise(z, sampler="ancestral", key=KEY), atol=1e-4
    )


def test_a_trajectory_has_the_predicted_image_of_each_step(base):
    steps = base.trajectory(KEY, 5, num_steps=3)
    assert steps.shape == (3, 5, *SHAPE)
    np.testing.assert_array_equal(steps, Pipeline(*make_model(parallel="pmap")).trajectory(KEY, 5, num_steps=3))
    logsnr = eval_schedule(make_model()[1].config.model)(1.0)
    first = base.denoiser()(noise(KEY, 5), logsnr).x
    np.testing.assert_allclose(steps[0].astype(int), to_uint8(np.asarray(first)), atol=1)


@pytest.fixture(scope="module", params=["jit", "pmap"])
def model(request):
    """Parameters and metadata of a class-conditional model that was trained by jit or pmap."""
    return make_model(parallel=request.param, unet=request.param == "jit")


def assert_near(prediction, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), prediction, expected)


def test_the_denoiser_is_that_of_the_network(model):
    (params, metadata), pipeline = model, Pipeline(*model)
    apply = jax.jit(make_network(metadata.config.model, SHAPE, 3).apply)
    z, labels = noise(KEY, 4), np.array([1, 0, 2, 1])

    def expected(labels, clip=True):
        fn = make_denoiser(lambda z, logsnr: apply({"params": params}, z, logsnr, labels), "v", clip_x=clip)
        return fn(z, 0.5)

    assert_near(pipeline.denoiser(labels)(z, 0.5), expected(labels))
    assert_near(pipeline.denoiser()(z, 0.5), expected(np.arange(4) % 3))
    unclipped = pipeline.denoiser(labels, clip=False)
    assert_near(unclipped(z, np.full(4, 0.5, np.float32)), expected(labels, clip=False))


def test_the_denoiser_works_under_transformations_and_on_every_device(model):
    pipeline, z, labels = Pipeline(*model), noise(KEY, 4), np.array([1, 0, 2, 1])
    denoise, unclipped = pipeline.denoiser(labels), pipeline.denoiser(labels, clip=False)
    assert_near(jax.jit(denoise)(z, 0.5), denoise(z, 0.5))
    assert_near(jax.jit(lambda denoise, z: denoise(z, 0.5))(denoise, z), denoise(z, 0.5))
    assert_near(jax.jit(lambda z: pipeline.denoiser(labels)(z, 0.5))(z), denoise(z, 0.5))
    stacked = jax.vmap(denoise, (0, None))(np.stack([z, -z]), 0.5)
    assert_near(jax.tree.map(lambda leaf: leaf[1], stacked), denoise(-z, 0.5))
    on_the_third = jax.device_put(z, jax.devices()[2])
    assert_near(denoise(on_the_third, 0.5), denoise(z, 0.5))
    gradient = jax.grad(lambda z: unclipped(z, 0.5).x.sum())(z)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@pytest.fixture(scope="module")
def unconditional():
    """The pipeline of an unconditional base model."""
    return Pipeline(*make_model(num_classes=1))


def test_an_unconditional_model_samples_without_labels(unconditional):
    z = noise(KEY, 2)
    np.testing.assert_array_equal(to_uint8(unconditional.from_noise(z)), unconditional.sample(KEY, 2))
    assert unconditional.denoiser()(z, 0.0).x.shape == z.shape


def test_an_unconditional_model_refuses_labels(unconditional):
    for draw in (
        lambda labels: unconditional.sample(KEY, 2, labels),
        lambda labels: unconditional.from_noise(noise(KEY, 2), labels),
        unconditional.denoiser,
    ):
        with pytest.raises(ValueError, match=r"not class-conditional\. Omit the labels"):
            draw(np.zeros(2, np.int32))


def test_a_pipeline_needs_parameters_and_four_attributes(base):
    """Any object with these attributes can replace the metadata."""
    params, metadata = make_model()
    fields = metadata.config
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(
            model=fields.model, sampler="ddim", train=types.SimpleNamespace(parallel="jit", label_dropout=0.0)
        ),
        image_shape=SHAPE,
        num_classes=3,
        num_steps=0,
    )
    np.testing.assert_array_equal(Pipeline(params, model).sample(KEY, 2), base.sample(KEY, 2))


def test_divided_parameters_stay_divided_and_give_the_same_images(base):
    params, metadata = make_model(unet=True)
    divided = Pipeline(put(params, shares(params, data_mesh())), metadata)
    assert is_divided(divided.params)
    np.testing.assert_array_equal(divided.sample(KEY, 4), Pipeline(params, metadata).sample(KEY, 4))
    params, metadata = make_model()
    divided = Pipeline(put(params, shares(params, data_mesh())), metadata)
    z, labels = noise(KEY, 8), np.arange(8) % 3
    assert_near(divided.denoiser(labels)(z, 0.0), base.denoiser(labels)(z, 0.0))


def test_students_warn_of_other_numbers_of_ddim_steps(base, caplog):
    params, metadata = make_model(num_steps=4)
    student, z = Pipeline(params, metadata), noise(KEY, 2)
    assert (student.num_steps, student.distilled_for) == (4, 4)
    student.sample(KEY, 2)
    student.sample(KEY, 2, num_steps=4)
    student.sample(KEY, 2, num_steps=8, sampler="stochastic")
    base.sample(KEY, 2, num_steps=3)
    assert not caplog.records
    for draw in (
        lambda: student.sample(KEY, 2, num_steps=2),
        lambda: student.from_noise(z, num_steps=2),
        lambda: Pipeline(params, metadata, num_steps=2).trajectory(KEY, 2),
    ):
        caplog.clear()
        draw()
        (record,) = caplog.records
        assert "distilled for 4 sampling steps; sampling with 2 reduces quality" in record.getMessage()
    caplog.clear()
    student.sample(KEY, 2, sampler="heun")
    (record,) = caplog.records
    assert "distilled for DDIM steps; sampling with Heun reduces quality" in record.getMessage()


def test_bad_arguments_are_refused(base):
    z = noise(KEY, 3)
    for draw, message in {
        lambda: base.sample(KEY, 0): "num_samples=0 must be at least 1",
        lambda: base.sample(KEY, 2, num_steps=0): "num_steps=0 must be an integer of at least 1",
        lambda: base.sample(KEY, 2, batch_size=0): "batch_size=0 must be at least 1",
        lambda: base.sample(KEY, 2, sampler="dim"): r"'dim'; choose one of \['ddim', 'addim', 'heun', 'dpmpp_2m', 'anc",
        lambda: base.sample(KEY, 2, eta=1.5): "eta=1.5 must be from 0",
        lambda: base.sample(KEY, 2, sampler="ancestral", eta=0.5): "The sampler 'ancestral' does not take eta=0.5",
        lambda: base.stream(
            KEY, np.arange(2), sampler="ancestral", eta=0.5
        ): "The sampler 'ancestral' does not take eta=0.5",
        lambda: base.from_noise(z, eta=0.5): "DDIM with eta=0.5 adds fresh noise at every step. Pass a key",
        lambda: base.from_noise(
            z, sampler="ancestral"
        ): "The ancestral sampler adds fresh noise at every step. Pass a key",
        lambda: base.from_noise(z[:, :4]): r"z must be noisy images of shape \[n, 8, 8, 1\].* got \[3, 4, 8, 1\]",
        lambda: base.from_noise(z[:0]): r"at least one; got \[0, 8, 8, 1\]",
        lambda: base.from_noise(z, np.arange(2)): r"labels must be 3 classes, .*; got 2: \[0, 1\]. .*np.full\(3, 0\)",
        lambda: base.denoiser()(z[0], 0.0): r"of shape \[n, 8, 8, 1\], at least one; got \[8, 8, 1\]",
        lambda: base.denoiser(np.arange(2))(z, 0.0): "made for 2 labels; got 3 images",
        lambda: base.denoiser(np.array([0, 3])): r"labels must be classes from 0 to 2; got \[0, 3\]",
        lambda: Pipeline(*make_model(), num_steps=0): "num_steps=0 must be an integer of at least 1",
        **{
            lambda labels=labels: base.sample(KEY, 3, np.array(labels)): "labels must be"
            for labels in ([1, 2], [0, 3, 1], [-1, 0, 0])
        },
    }.items():
        with pytest.raises(ValueError, match=message):
            draw()


def test_numbers_of_samples_share_compiled_programs():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **about: compiled.append(event))
    pipeline = Pipeline(*make_model())

    def programs(numbers):
        before = sum("backend_compile" in event for event in compiled)
        for num_samples in numbers:
            assert len(pipeline.sample(KEY, num_samples, batch_size=64)) == num_samples
        return sum("backend_compile" in event for event in compiled) - before

    programs([33])
    assert programs([34, 50, 64, 65, 100, 200]) == 0
    programs([16])
    assert programs([9, 12, 15]) == 0


def test_labels_of_any_integer_type_give_the_same_samples():
    """uint8 cannot represent NO_CLASS, which is -1."""
    labels, (params, metadata) = [0, 2, 1], make_model(num_classes=256, label_dropout=0.1)
    guided = Pipeline(params, metadata)
    expected = guided.sample(KEY, 3, np.int32(labels), guidance=1.0)
    np.testing.assert_array_equal(guided.sample(KEY, 3, np.uint8(labels), guidance=1.0), expected)
    model = networks.make_model(metadata.config.model, SHAPE, 256)
    conditions = [condition_of(kind(labels), np.ones(3, np.float32)) for kind in (np.int32, np.uint8)]
    found = [model.denoiser(params, condition)(noise(KEY, 3), 0.5).v for condition in conditions]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("labels", [[0.5, 1, 2], [2**32 + 1, 0, 0]])
def test_labels_that_are_no_class_are_refused(base, labels, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # for users, signatures are not checked
    with pytest.raises(ValueError, match="labels must be classes from 0 to 2"):
        base.sample(KEY, 3, np.array(labels))
