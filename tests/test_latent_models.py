"""Models of latents, from their noise to images of pixels."""

import dataclasses

import numpy as np
import pytest
from helpers.latent_models import IMAGE_SHAPE, SHAPE, make_model, without_autoencoder, write_autoencoder
from helpers.models import KEY

from diffusion_distillation.checkpoints import Metadata
from diffusion_distillation.errors import InputError
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.runtime.files import as_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The path of an autoencoder, and what is known of it."""
    return write_autoencoder(tmp_path_factory.mktemp("latents") / "vae")


def test_samples_are_decoded_and_everything_else_works_in_latents(saved):
    path, info = saved
    params, metadata = make_model(path, info)
    pipeline, plain = Pipeline(params, metadata), Pipeline(params, without_autoencoder(metadata))
    assert (pipeline.image_shape, pipeline.space.shape, plain.space.shape) == (IMAGE_SHAPE, SHAPE, SHAPE)
    x = np.concatenate(list(pipeline.stream(KEY, np.arange(4), batch_size=2)))
    np.testing.assert_allclose(x, np.concatenate(list(plain.stream(KEY, np.arange(4)))), atol=1e-5)

    encode, decode, _ = autoencoder.load(path)
    images = decode(x / np.float32(info.scale) + np.float32(info.shift))
    np.testing.assert_allclose(pipeline.decode(x), images, atol=1e-4)
    assert np.abs(images).max() > 1  # decode does not clip
    samples = pipeline.sample(KEY, 4)
    assert samples.shape == (4, *IMAGE_SHAPE)
    np.testing.assert_allclose(samples.astype(int), to_uint8(np.asarray(images)), atol=1)
    steps = pipeline.trajectory(KEY, 1)
    assert steps.shape == (4, 1, *IMAGE_SHAPE)
    np.testing.assert_allclose(steps[-1].astype(int), samples[:1], atol=1)

    mean, _ = encode(samples / np.float32(127.5) - 1)
    for given in (samples, samples / np.float32(127.5) - 1):
        np.testing.assert_allclose(pipeline.encode(given), (mean - info.shift) * info.scale, atol=1e-5)
    np.testing.assert_array_equal(plain.decode(x), x)


def test_clipping_is_refused(saved):
    pipeline = Pipeline(*make_model(*saved))
    with pytest.raises(InputError, match=r"clip=True clips x to \[-1, 1\], and latents .* Set clip=False"):
        pipeline.sample(KEY, 1, clip=True)


def test_the_path_of_an_autoencoder_is_absolute_beside_the_metadata_or_a_packaged_name(saved, tmp_path):
    """It is in the folder of a model to share. A packaged autoencoder is found from everywhere."""
    _, metadata = make_model(*saved)
    for path, expected in {
        "/there/vae": "/there/vae",
        "vae": str(tmp_path / "vae"),
        "hf://user/vae": "hf://user/vae",
        "letters_autoencoder": "letters_autoencoder",
    }.items():
        values = dataclasses.replace(metadata, autoencoder_path=path).to_json()
        again = Metadata.from_json(values, 0, as_path(tmp_path / "config.json"))
        assert (again.autoencoder_path, again.autoencoder) == (expected, metadata.autoencoder)


def test_a_changed_autoencoder_is_refused_when_it_is_needed(saved, tmp_path):
    path, info = saved
    changed = dataclasses.replace(info, fingerprint="0123")
    pipeline = Pipeline(*make_model(path, changed))
    x = pipeline.from_noise(np.zeros((1, *SHAPE), np.float32))
    message = rf"has the fingerprint {info.fingerprint}; the latents need 0123 \('.*vae'\). Point config.autoencoder"
    with pytest.raises(InputError, match=message):
        pipeline.decode(x)


def test_metadata_keep_what_is_known_of_the_autoencoder(saved):
    path, info = saved
    _, metadata = make_model(path, dataclasses.replace(info, scale=(1.0, 2.0, 3.0, 4.0)))
    assert metadata.shape == SHAPE
    values = metadata.to_json()
    assert values["format_version"] == 2  # earlier versions of the package refuse it
    again = Metadata.from_json(values, 0, as_path(path) / "metadata")
    assert (again.autoencoder, again.autoencoder_path) == (metadata.autoencoder, path)
    shared = Metadata.from_json(metadata.to_share().to_json(), 0, as_path("/models/student/config.json"))
    assert shared.autoencoder_path == "/models/student/vae"
    assert without_autoencoder(metadata).to_json()["format_version"] == 1
