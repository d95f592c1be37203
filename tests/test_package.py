"""The package as it is installed: wheel, sdist and pretrained models."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.runs import ROOT, TINY, call

from diffusion_distillation import __version__, from_checkpoint
from diffusion_distillation.data import load_source
from diffusion_distillation.evaluation.classifier import train_classifier
from diffusion_distillation.latents import from_uint8, latent_space
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.pretrained import AUTOENCODERS, PRETRAINED, pretrained_folder

FILES = ("setup.py", "README.md", "LICENSE", "diffusion_distillation", "configs", "scripts")
# A base model that trains in no time, in an empty folder.
TRAIN = ["train", "--config=digits_base", *TINY, "--config.train.num_train_steps=2", "--workdir=runs/base"]

SMOKE = """
import jax
import diffusion_distillation
assert diffusion_distillation.__file__.startswith({folder!r}), diffusion_distillation.__file__
images = diffusion_distillation.from_checkpoint("digits").sample(jax.random.key(0), 20, guidance=1.0)
assert images.shape == (20, 8, 8, 1) and images.std() > 50
diffusion_distillation.save_grid(images, "images.png")
from diffusion_distillation import __main__
__main__.main()
"""


@pytest.mark.slow
def test_the_wheel_samples_trains_and_prints_its_overview(tmp_path):
    """The wheel is installed into an empty folder, and the sdist has the same files."""
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["cp", "-r", *(ROOT / name for name in FILES), source], check=True)
    build = [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, "bdist_wheel", "-d", tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    [wheel], [sdist] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.stat().st_size < 5 * 2**20 and sdist.stat().st_size < 5 * 2**20
    folder = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", folder, wheel]
    subprocess.run(install, check=True)
    names = subprocess.run(["tar", "tzf", sdist], check=True, capture_output=True, text=True).stdout
    models = [f"pretrained/{model}/{name}" for model in PRETRAINED for name in ("model.safetensors", "config.json")]
    for name in (*models, "py.typed"):
        assert (folder / "diffusion_distillation" / name).exists() and f"diffusion_distillation/{name}" in names
    assert list(folder.glob("*.dist-info/licenses/LICENSE")) and "/LICENSE\n" in names
    for name in ("configs", "scripts"):  # in the repository beside the package
        shipped = {path.name for path in (folder / "diffusion_distillation" / name).glob("*.py")}
        assert shipped == {path.name for path in (ROOT / name).glob("*.py")}
        assert all(f"/{name}/{path}\n" in names for path in shipped)

    def in_empty_folder(*command):
        env = os.environ | {"PYTHONPATH": str(folder)}
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    empty = tmp_path / "empty"
    empty.mkdir()
    printed = in_empty_folder(sys.executable, "-c", SMOKE.format(folder=str(folder)))
    for line in ("  train ", "digits_base, ", 'from_checkpoint("letters")', "JAX"):
        assert line in printed
    program = folder / "bin" / "diffusion_distillation"
    assert in_empty_folder(program, "--version") == f"{__version__}\n"
    assert "Flags:" in in_empty_folder(program, "help", "sample")
    printed = in_empty_folder(program, *TRAIN)
    assert "step 2/2" in printed and "Next: diffusion_distillation sample --checkpoint=runs/base" in printed
    first = json.loads((empty / "runs" / "base" / "environment.jsonl").read_text().splitlines()[0])
    assert first["command"].startswith("diffusion_distillation train --config=digits_base") and first["commit"] is None


def test_the_pretrained_model_of_digits_samples_its_classes(tmp_path):
    pipeline = from_checkpoint("digits")
    assert sum(path.stat().st_size for path in pretrained_folder("digits").iterdir()) < 2**20
    assert (pipeline.num_steps, pipeline.distilled_for) == (4, 4)
    classify, _ = train_classifier(load_source("digits", class_conditional=True))
    for guidance in (0.0, 4.0):
        _, logits = classify(pipeline.sample(jax.random.key(0), 200, guidance=guidance))
        assert np.mean(np.argmax(logits, axis=1) == np.arange(200) % 10) > 0.95
    call("sample", "--checkpoint=digits", "--num_samples=4", f"--out={tmp_path}/s.png")


@pytest.mark.slow
def test_the_pretrained_model_of_letters_samples_its_classes(tmp_path):
    """By the class of the nearest image of the data: training the classifier of letters takes minutes."""
    pipeline, source = from_checkpoint("letters"), load_source("letters", class_conditional=True)
    assert sum(path.stat().st_size for path in pretrained_folder("letters").iterdir()) < 2**22
    assert (pipeline.num_steps, pipeline.distilled_for) == (4, 4)
    data = source[np.random.default_rng(0).permutation(len(source))[:5200]]
    known = strokes(data["image"])
    for guidance, least in ((0.0, 0.7), (4.0, 0.95)):
        samples = strokes(pipeline.sample(jax.random.key(0), 208, guidance=guidance))
        nearest = data["label"][np.abs(samples @ known.T).argmax(axis=1)]
        assert np.mean(nearest == np.arange(208) % 26) > least
    call("sample", "--checkpoint=letters", "--num_samples=4", f"--out={tmp_path}/s.png")


def strokes(images):
    """The strokes of letters of any colors, as vectors of norm 1."""
    gray = images.astype(np.float32).mean(axis=3)
    gray -= np.median(gray, axis=(1, 2), keepdims=True)
    flat = gray.reshape(len(gray), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_every_pretrained_model_is_sampled_by_a_test():
    assert list(PRETRAINED) == ["digits", "letters"]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_pretrained_autoencoder_reconstructs_images(name):
    """Its latents have about unit variance, scaled by its scaling_factor."""
    assert sum(path.stat().st_size for path in pretrained_folder(name).iterdir()) < 10**6
    encode, decode, info = autoencoder.load(name)
    images = from_uint8(load_source("letters", num_images=104)[np.arange(104)]["image"])
    mean, std = encode(images)
    errors = np.mean((decode(mean) - images) ** 2, axis=(1, 2, 3))
    assert np.mean(10 * np.log10(4 / errors)) > 20
    space = latent_space(encode, decode, info, (32, 32, 3))
    x = space.sample(mean, std, jax.random.normal(jax.random.key(0), mean.shape))
    assert x.shape == (104, 8, 8, 4) and np.std(x) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_folder_with_the_name_of_a_pretrained_model_comes_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint|no model|nothing"):
        from_checkpoint(name)
