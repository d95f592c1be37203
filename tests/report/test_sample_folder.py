import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from diffusion_distillation.report.sample_folder import missing, start, write

SETTINGS = {"seed": 0, "eta": 0.5, "labels": [3, 7]}


def pictures(n, channels):
    return np.random.default_rng(0).integers(0, 255, (n, 8, 8, channels), dtype=np.uint8)


@pytest.fixture
def tmp_path(tmp_path):
    return epath.Path(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_taken_up_where_it_was_left(tmp_path, channels):
    folder, images = tmp_path / "new" / "samples", pictures(12, channels)
    np.testing.assert_array_equal(missing(folder, SETTINGS, 3), [0, 1, 2])
    assert not folder.exists()  # looking makes nothing
    start(folder, {"checkpoint": "runs/a", **SETTINGS})
    write(folder, np.array([0, 2]), images[[0, 2]])
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00002.png", "settings.json"]
    index = missing(folder, SETTINGS, 12)
    np.testing.assert_array_equal(index, [1, *range(3, 12)])
    start(folder, {"checkpoint": "runs/moved", **SETTINGS})
    write(folder, index, images[index])
    assert len(missing(folder, SETTINGS, 12)) == 0
    for j, image in enumerate(images):
        read = np.asarray(Image.open(folder / f"{j:05d}.png"))
        np.testing.assert_array_equal(read, image.squeeze())
    assert json.loads((folder / "settings.json").read_text()) == {"checkpoint": "runs/a", **SETTINGS}


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    """What a process left that was killed as it wrote neither counts nor stands in the way."""

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, SETTINGS)
    assert len(missing(tmp_path, SETTINGS, 2)) == 2
    start(tmp_path, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, np.array([1]), pictures(1, 3))
    assert len(missing(tmp_path, SETTINGS, 2)) == 2
    assert not list(tmp_path.glob("*.png"))  # which tools look for
    write(tmp_path, np.arange(2), pictures(2, 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png", "settings.json"]


def test_errors(tmp_path):
    start(tmp_path / "samples", SETTINGS)
    with pytest.raises(
        ValueError, match=r"holds samples of other settings: seed is 0 there and 1 here; eta is 0.5 there"
    ):
        missing(tmp_path / "samples", SETTINGS | {"seed": 1, "eta": 0.0}, 2)
    with pytest.raises(ValueError, match=r"holds samples of other settings: clip is None there and True here"):
        missing(tmp_path / "samples", SETTINGS | {"clip": True}, 2)
    for content in ("{", "[1]", "3"):
        (tmp_path / "samples" / "settings.json").write_text(content)
        with pytest.raises(ValueError, match=r"settings.json' is not what we wrote"):
            missing(tmp_path / "samples", SETTINGS, 2)
    with pytest.raises(ValueError, match=r"holds 1 files, such as 'samples', and no settings.json"):
        missing(tmp_path, SETTINGS, 2)
    with pytest.raises(ValueError, match=r"is a file; give a folder"):
        missing(tmp_path / "samples" / "settings.json", SETTINGS, 2)
