"""The package as it is installed: wheel, sdist and pretrained models."""

import os
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from helpers.runs import ROOT, call

from diffusion_distillation import from_checkpoint
from diffusion_distillation.data import load_source
from diffusion_distillation.evaluation.classifier import train_classifier
from diffusion_distillation.pretrained import PRETRAINED, pretrained_folder

FILES = ("setup.py", "README.md", "diffusion_distillation")

SMOKE = """
import jax
import diffusion_distillation
assert diffusion_distillation.__file__.startswith({folder!r}), diffusion_distillation.__file__
images = diffusion_distillation.from_checkpoint("digits").sample(jax.random.key(0), 20, guidance=1.0)
assert images.shape == (20, 8, 8, 1) and images.std() > 50
"""


@pytest.mark.slow
def test_the_wheel_samples_and_prints_its_overview(tmp_path):
    """The wheel is unpacked into an empty folder, and the sdist has the same files."""
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["cp", "-r", *(ROOT / name for name in FILES), source], check=True)
    build = [sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, "bdist_wheel", "-d", tmp_path]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    [wheel], [sdist] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.stat().st_size < 2**20 and sdist.stat().st_size < 2**20
    folder = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(folder)
    names = subprocess.run(["tar", "tzf", sdist], check=True, capture_output=True, text=True).stdout
    for name in ("pretrained/digits/model.safetensors", "pretrained/digits/config.json", "py.typed"):
        assert (folder / "diffusion_distillation" / name).exists() and f"diffusion_distillation/{name}" in names
    env = os.environ | {"PYTHONPATH": str(folder)}
    for command in (["-c", SMOKE.format(folder=str(folder))], ["-m", "diffusion_distillation"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert 'from_checkpoint("digits")' in done.stdout and "JAX" in done.stdout


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_model_samples_its_classes(name, tmp_path):
    pipeline = from_checkpoint(name)
    assert sum(path.stat().st_size for path in pretrained_folder(name).iterdir()) < 2**20
    assert (pipeline.num_steps, pipeline.distilled_for) == (4, 4)
    classify, _ = train_classifier(load_source("digits", class_conditional=True))
    for guidance in (0.0, 4.0):
        _, logits = classify(pipeline.sample(jax.random.key(0), 200, guidance=guidance))
        assert np.mean(np.argmax(logits, axis=1) == np.arange(200) % 10) > 0.95
    call("sample", f"--checkpoint={name}", "--num_samples=4", f"--out={tmp_path}/s.png")


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_folder_with_the_name_of_a_pretrained_model_comes_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=r"no checkpoint|no model|nothing"):
        from_checkpoint(name)
