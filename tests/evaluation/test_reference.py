"""Folders of images as references and samples."""

import errno

import numpy as np
import pytest
from PIL import Image

from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.evaluation.sources import FolderSource
from diffusion_distillation.runtime import files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "WAITS", (0,))
    return tmp_path / "images"


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def colors(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def everything(source):
    return source[np.arange(len(source))]["image"]


def test_training_and_evaluation_find_the_same_images(folder, tmp_path, caplog):
    """Links are followed, hidden folders skipped, and GIF and TIFF files read."""
    for number, name in enumerate(["a.png", "b.bmp", "c.gif", "d.tiff", "sub/e.tif", ".hidden/f.png", "sub/.g.png"]):
        save(folder / name, colors(number))
    save(tmp_path / "elsewhere" / "h.png", colors(7))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    (folder / "photo.heic").touch()
    trained_on = everything(load_source("ImageFolder", path=str(folder), image_size=8))
    caplog.clear()
    np.testing.assert_array_equal(everything(FolderSource(folder)), trained_on)
    assert len(trained_on) == 6
    assert "skipped images in formats that cannot be read: 1 .heic" in caplog.text


def test_a_folder_is_gray_only_if_all_its_images_are(folder):
    """Whichever image comes first."""
    save(folder / "0.png", colors(0)[..., :1].repeat(3, axis=-1))
    save(folder / "1.png", colors(1)[..., 0])
    assert FolderSource(folder).image_shape == (8, 8, 1)
    save(folder / "2.png", colors(2))
    found = FolderSource(folder)
    assert found.image_shape == (8, 8, 3)
    np.testing.assert_array_equal(everything(found)[2], colors(2))


def test_transient_errors_are_retried(folder, monkeypatch):
    save(folder / "0.png", colors(0))
    left = [OSError(errno.EIO, "Input/output error")]
    content = (folder / "0.png").read_bytes()

    def read_bytes(_):
        if left:
            raise left.pop()
        return content

    monkeypatch.setattr("pathlib.Path.read_bytes", read_bytes)
    assert len(FolderSource(folder)) == 1
    left += 2 * [OSError(errno.EIO, "Input/output error")]
    with pytest.raises(RunError, match="the machine or its storage failed 2 times"):
        FolderSource(folder)
    left[:] = [PermissionError(errno.EACCES, "Permission denied")]
    with pytest.raises(InputError, match=r"0\.png' cannot be read as an image"):
        FolderSource(folder)
