"""Samples as a folder of PNG files, one an image, as tools that compute FIDs read them.

Sample j is `<j>.png`, in five digits or more. `settings.json` says what the samples are of, so that a folder that was
left unfinished, or is to get more samples, goes on with those that it lacks and with no others. Files are written whole
or not at all.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from .. import multihost
from ..errors import InputError

SETTINGS = "settings.json"
UNFINISHED = ".unfinished"  # the last suffix of a file that is being written


def missing(folder: Path, settings: Mapping[str, Any], num_samples: int) -> Int[np.ndarray, "n"]:
    """Which of the samples 0 to num_samples - 1 are not in a folder; all of them if there is none.

    Every process must call it; the first looks, and the others get to know.

    Args:
      folder: of the samples.
      settings: what shapes them, of JSON's types.
      num_samples: how many are wanted.

    Raises:
      InputError: if the folder holds samples of other settings, or something else.
    """
    problem, is_missing = None, [False] * num_samples
    if multihost.is_main():
        problem = _problem(folder, settings)
        is_missing = [not _path(folder, j).exists() for j in range(num_samples)]
    if multihost.largest([problem is not None])[0]:
        raise InputError(problem or f"{str(folder)!r} does not fit; process 0 says why.")
    return np.flatnonzero(multihost.largest(is_missing))


def start(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder, unless it is there, with its settings; they may hold more than `missing` is to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SETTINGS).exists():
        _write(folder / SETTINGS, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))


def write(folder: Path, index: Int[np.ndarray, "n"], images: UInt8[np.ndarray, "n height width channels"]) -> None:
    """Writes the samples of these numbers."""
    for j, image in zip(index.tolist(), images, strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        _write(_path(folder, j), lambda path, picture=picture: picture.save(path, format="PNG"))


def _path(folder: Path, j: int) -> Path:
    return folder / f"{j:05d}.png"


def _write(path: Path, save: Callable[[Path], Any]) -> None:
    unfinished = path.with_name(path.name + UNFINISHED)
    save(unfinished)
    os.replace(unfinished, path)


def _problem(folder: Path, settings: Mapping[str, Any]) -> str | None:
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
        there = dict(json.loads((folder / SETTINGS).read_text()))
    except (TypeError, ValueError):
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
