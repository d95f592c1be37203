"""Training on latents: what is drawn from them, what is refused, and a ladder from the data to its report's numbers."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from helpers.latent_models import IMAGE_SHAPE, SHAPE, columns, encoded_columns, make_config, write_autoencoder
from helpers.models import KEY
from helpers.small_runs import SOURCE

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import load
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import evaluate_ladder, evaluators_and_reference
from diffusion_distillation.evaluation.reference import reference_images
from diffusion_distillation.export.options import ExportOptions
from diffusion_distillation.export.sampler_file import sampler_function
from diffusion_distillation.hooks import save_sample_grid
from diffusion_distillation.interop import from_checkpoint
from diffusion_distillation.pipeline import space_of
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.checks import describe_model
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.loop import train
from diffusion_distillation.training.prepare import prepare
from diffusion_distillation.training.step import sample_latents


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return encoded_columns(tmp_path_factory.mktemp("latents"))


def base_config(**changes):
    config = make_config().copy_and_resolve_references()
    with config.unlocked():
        config.dataset.args = dict(randflip=True)
        fields = dict(batch_size=8, num_train_steps=4, substeps=2, eval_every_steps=4, label_dropout=0.1)
        config.train.update(fields)
        config.update_from_flattened_dict(changes)
    return cfg.resolve(config)


def test_x_is_drawn_from_the_image_s_or_the_mirror_image_s_latents(source):
    """Which one, and the noise, follow from the key of the example alone."""
    space = space_of(describe_model(base_config(), source, 0))
    batch = {name: rows for name, rows in source[np.zeros(400, int)].items() if name != "label"}
    keys = jax.random.split(KEY, 400)
    x = np.asarray(sample_latents(space, keys, batch, flip=True))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[5:9], sample_latents(space, keys[5:9], source[np.zeros(4, int)], flip=True))
    mean, std = (np.asarray(batch[name][0], np.float64) for name in ("mean", "std"))
    info = source.autoencoder
    away = (x[:, None] / info.scale + info.shift - mean) / std  # of both parts
    mirrored = np.asarray(jax.vmap(jax.random.bernoulli)(keys))
    for part, rows in enumerate((~mirrored, mirrored)):
        noise = away[rows, part]
        assert len(noise) > 150 and abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    first = np.asarray(sample_latents(space, keys, batch, flip=False))
    np.testing.assert_array_equal(first[~mirrored], x[~mirrored])
    assert np.all(first[mirrored] != x[mirrored])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.eval_clip_denoised": True}, r"config.model.eval_clip_denoised=True clips x .* Set .*=False"),
        ({"autoencoder.path": "/nowhere"}, "Neither '/nowhere/config.json' nor '/nowhere/vae/config.json' exists"),
    ],
)
def test_configs_that_do_not_fit_latents_are_refused(changes, message, source, tmp_path):
    with pytest.raises(InputError, match=message):
        prepare(base_config(**changes), as_path(tmp_path / "run"), source)


def test_latents_and_images_of_other_autoencoders_are_refused(source, tmp_path):
    path, other = write_autoencoder(tmp_path / "other", norm_num_groups=2)
    with pytest.raises(InputError, match=rf"has the fingerprint {other.fingerprint}; the latents need \w+ \('kl'\)"):
        prepare(base_config(**{"autoencoder.path": path}), as_path(tmp_path / "run"), source)
    with pytest.raises(InputError, match=r"has images. Encode them with encode_data --autoencoder=/vae"):
        describe_model(base_config(**{"autoencoder.path": "/vae"}), SOURCE, 0)
    once = encoded_columns(tmp_path, mirror=False)
    with pytest.raises(InputError, match="randflip=True needs the latents of mirror images too"):
        prepare(base_config(), as_path(tmp_path / "run"), once)


@pytest.mark.slow
def test_a_ladder_of_latents_from_training_to_its_numbers(source, tmp_path):
    """The samples of base model and student are decoded, measured against images, and exported with the decoder."""
    config = base_config()
    train(config, tmp_path / "base", source, on_eval=save_sample_grid)
    params, metadata = load(tmp_path / "base")
    assert (metadata.autoencoder, metadata.shape) == (source.autoencoder, SHAPE)
    assert (tmp_path / "base" / "samples" / "step_0000004.png").exists()

    ladder = cfg.distillation_of(cfg.ConfigDict(config.to_dict()))
    ladder.distillation.update(
        teacher_checkpoint_path=str(tmp_path / "base"), start_num_steps=4, end_num_steps=2, steps_per_iter=2
    )
    ladder.train.shard = "all"
    ladder.eval.update(dict(num_samples=8, batch_size=8, teacher_num_steps=(2,), ancestral_num_steps=()))
    ladder = cfg.resolve(ladder)
    changed = copy.copy(source)
    changed.autoencoder = dataclasses.replace(source.autoencoder, fingerprint="0123")
    with pytest.raises(
        InputError, match=r"the autoencoder is 'kl \(.*\)' in the teacher and 'kl \(fingerprint 0123, scale .*\)' here"
    ):
        run_ladder(ladder, tmp_path / "refused", changed)
    run_ladder(ladder, tmp_path / "ladder", source)

    evaluators, reference = evaluators_and_reference(ladder, source, 8)
    assert reference.images.image_shape == IMAGE_SHAPE
    evaluation = evaluate_ladder(
        ladder, as_path(tmp_path / "ladder"), evaluators, reference, as_path(tmp_path / "evaluation.json")
    )
    assert len(evaluation.metrics) == 2 and all(np.isfinite(value) for value in evaluation.metrics.values())

    student = tmp_path / "ladder" / "steps_0002"
    pipeline = from_checkpoint(student)
    samples = pipeline.sample(KEY, 3)
    assert samples.shape == (3, *IMAGE_SHAPE)
    params, metadata = load(student)
    inputs = dict(seed=np.uint32(3), index=np.arange(3, dtype=np.int32), labels=np.arange(3, dtype=np.int32))
    exported = jax.jit(sampler_function(params, metadata, ExportOptions(batch_size=3)))(**inputs)
    np.testing.assert_allclose(np.asarray(exported, int), samples, atol=1)


def test_a_reference_with_other_classes_cannot_measure_accuracy(source):
    digits = cfg.ConfigDict(dict(name="digits", args=dict(class_conditional=True)))
    config = base_config(**{"eval.dataset": digits, "eval.features": ("classifier",), "eval.metrics": ("accuracy",)})
    with pytest.raises(
        InputError, match=r"other classes, 0, 1, 2, 3, \.\.\., than the training data, red, green, blue"
    ):
        evaluators_and_reference(config, source, 8)
    with config.unlocked():
        config.eval.features, config.eval.metrics = ("pixels",), ("frechet",)
    assert evaluators_and_reference(config, source, 8)[1].images.num_classes == 10


def test_images_of_eval_dataset_are_the_reference():
    config = base_config(**{"eval.dataset": cfg.ConfigDict(dict(name="helpers.latent_models:columns", args={}))})
    images, name = reference_images(config)
    assert len(images) == len(columns()) and name == "helpers.latent_models:columns"
