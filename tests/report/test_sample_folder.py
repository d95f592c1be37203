import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffusion_distillation.report.sample_folder import create, missing_indices, save_images

SETTINGS = {"seed": 0, "eta": 0.5, "labels": [3, 7]}


def random_images(n, channels):
    return np.random.default_rng(0).integers(0, 255, (n, 8, 8, channels), dtype=np.uint8)


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_incomplete_folder_gets_its_missing_samples(tmp_path, channels):
    folder, images = tmp_path / "new" / "samples", random_images(12, channels)
    np.testing.assert_array_equal(missing_indices(folder, SETTINGS, 3), [0, 1, 2])
    assert not folder.exists()  # it is only read
    create(folder, {"checkpoint": "runs/a", **SETTINGS})
    save_images(folder, np.array([0, 2]), images[[0, 2]])
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00002.png", "settings.json"]
    index = missing_indices(folder, SETTINGS, 12)
    np.testing.assert_array_equal(index, [1, *range(3, 12)])
    create(folder, {"checkpoint": "runs/moved", **SETTINGS})
    save_images(folder, index, images[index])
    assert len(missing_indices(folder, SETTINGS, 12)) == 0
    for j, image in enumerate(images):
        read = np.asarray(Image.open(folder / f"{j:05d}.png"))
        np.testing.assert_array_equal(read, image.squeeze())
    assert json.loads((folder / "settings.json").read_text()) == {"checkpoint": "runs/a", **SETTINGS}


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A file that a killed process left unfinished neither counts nor prevents the next attempt."""

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            create(tmp_path, SETTINGS)
    assert len(missing_indices(tmp_path, SETTINGS, 2)) == 2
    create(tmp_path, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            save_images(tmp_path, np.array([1]), random_images(1, 3))
    assert len(missing_indices(tmp_path, SETTINGS, 2)) == 2
    assert not list(tmp_path.glob("*.png"))  # the files that tools read
    save_images(tmp_path, np.arange(2), random_images(2, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png", "settings.json"]


def test_a_folder_with_other_settings_is_refused(tmp_path):
    create(tmp_path, SETTINGS)
    with pytest.raises(
        ValueError, match=r"has samples with other settings: seed is 0 in the folder and 1 now; eta is 0.5"
    ):
        missing_indices(tmp_path, SETTINGS | {"seed": 1, "eta": 0.0}, 2)
    with pytest.raises(ValueError, match=r"has samples with other settings: clip is None in the folder and True now"):
        missing_indices(tmp_path, SETTINGS | {"clip": True}, 2)


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_folder_with_damaged_settings_is_refused(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings.json' cannot be read as the settings of samples"):
        missing_indices(tmp_path, SETTINGS, 2)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"has 1 file, such as 'a.txt', but no settings.json"):
        missing_indices(tmp_path, SETTINGS, 2)
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(ValueError, match=r"has 2 files, such as 'a.txt', but no settings.json"):
        missing_indices(tmp_path, SETTINGS, 2)


def test_a_file_is_refused_as_a_folder(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a.txt' is a file. Set --out or --keep to a folder"):
        missing_indices(tmp_path / "a.txt", SETTINGS, 2)
