"""Samples as a folder of PNG files, one an image, as tools that compute FIDs read them.

Sample j is `<j>.png`, in five digits or more. `settings.json` says what the samples are of, so that a folder that was
left unfinished, or is to get more samples, goes on with those that it lacks and with no others. Files are written whole
or not at all.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image

from ..errors import InputError
from ..runtime import multihost
from ..runtime.files import UNFINISHED, read_json, save_atomic, write_atomic

SETTINGS = "settings.json"


def missing(folder: epath.Path, settings: Mapping[str, Any], num_samples: int) -> Int[np.ndarray, "n"]:
    """Which of the samples 0 to num_samples - 1 are not in a folder; all of them if there is none.

    Every process must call it; the first looks, and the others get to know.

    Args:
      folder: of the samples.
      settings: what shapes them, of JSON's types.
      num_samples: how many are wanted.

    Raises:
      InputError: if the folder holds samples of other settings, or something else.
    """
    return np.array(multihost.on_main(lambda: _missing(folder, settings, num_samples)), np.int64)


def _missing(folder: epath.Path, settings: Mapping[str, Any], num_samples: int) -> list[int]:
    problem = _problem(folder, settings)
    if problem is not None:
        raise InputError(problem)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return [j for j in range(num_samples) if _name(j) not in there]


def start(folder: epath.Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder, unless it is there, with its settings; they may hold more than `missing` is to look at."""
    if not (folder / SETTINGS).exists():
        write_atomic(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def write(
    folder: epath.Path, index: Int[np.ndarray, "n"], images: UInt8[np.ndarray, "n height width channels"]
) -> None:
    """Writes the samples of these numbers."""
    for j, image in zip(index.tolist(), images, strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        save_atomic(folder / _name(j), functools.partial(picture.save, format="PNG"), sync=False)


def _name(j: int) -> str:
    return f"{j:05d}.png"


def _problem(folder: epath.Path, settings: Mapping[str, Any]) -> str | None:
    """Why samples of these settings cannot go into the folder; None if they can."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return f"{str(folder)!r} is a file; give a folder."
    if not (folder / SETTINGS).exists():
        others = [path.name for path in folder.iterdir() if path.suffix != UNFINISHED]
        if not others:
            return None
        return (
            f"{str(folder)!r} holds {len(others)} files, such as {min(others)!r}, and no {SETTINGS} that says what of. "
            "Give an empty folder or a new one."
        )
    try:
        there = read_json(folder / SETTINGS)
    except InputError:
        return f"{str(folder / SETTINGS)!r} is not what we wrote. Give a new folder."
    differences = [
        f"{name} is {there.get(name)!r} there and {value!r} here"
        for name, value in settings.items()
        if there.get(name) != value
    ]
    if not differences:
        return None
    return (
        f"{str(folder)!r} holds samples of other settings: {'; '.join(differences)}. Give a new folder, or delete this "
        "one."
    )
