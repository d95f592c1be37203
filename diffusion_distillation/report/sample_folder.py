"""A folder of samples: one PNG file per image, as tools that compute FIDs read them.

Sample j is `<j>.png`, with five digits or more. `settings.json` records what the samples depend on. A folder that is
incomplete gets its missing samples and keeps the others; a folder with other settings is refused. Files are written
whole or not at all.
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
from ..sampling import SAMPLER_ALIASES

SETTINGS = "settings.json"
OPTIONAL = ("guidance", "guidance_interval")  # settings that samples without guidance do not have


def missing_indices(folder: epath.Path, settings: Mapping[str, Any], num_samples: int) -> Int[np.ndarray, "n"]:
    """Find out which samples a folder lacks. Every process must call it; the main process reads the folder.

    Args:
      folder: of the samples; it need not exist.
      settings: what the samples depend on, in JSON's types.
      num_samples: samples that the folder should have.

    Returns:
      The indices of the missing samples, of 0 to num_samples - 1, in order.

    Raises:
      InputError: if the folder has samples with other settings, or other files.
    """
    return np.array(multihost.on_main(lambda: _missing_indices(folder, settings, num_samples)), np.int64)


def create(folder: epath.Path, settings: Mapping[str, Any]) -> None:
    """Create a sample folder with its settings.json, unless it has one.

    Args:
      folder: of the samples.
      settings: those of `missing_indices`, and possibly more, which it does not compare.
    """
    if not (folder / SETTINGS).exists():
        write_atomic(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def save_images(
    folder: epath.Path, indices: Int[np.ndarray, "n"], images: UInt8[np.ndarray, "n height width channels"]
) -> None:
    """Save images as the samples with these indices."""
    for j, image in zip(indices.tolist(), images, strict=True):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        save_atomic(folder / _file_name(j), functools.partial(picture.save, format="PNG"), sync=False)


def _missing_indices(folder: epath.Path, settings: Mapping[str, Any], num_samples: int) -> list[int]:
    problem = _problem(folder, settings)
    if problem is not None:
        raise InputError(problem)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return [j for j in range(num_samples) if _file_name(j) not in names]


def _file_name(j: int) -> str:
    return f"{j:05d}.png"


def _problem(folder: epath.Path, settings: Mapping[str, Any]) -> str | None:
    """Why samples with these settings cannot be saved in the folder; None if they can."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        return f"{str(folder)!r} is a file. Set --out or --keep to a folder."
    if not (folder / SETTINGS).exists():
        names = [path.name for path in folder.iterdir() if path.suffix != UNFINISHED]
        if not names:
            return None
        count = "1 file" if len(names) == 1 else f"{len(names):,} files"
        return (
            f"{str(folder)!r} has {count}, such as {min(names)!r}, but no {SETTINGS}, so it is no folder of samples. "
            "Use an empty folder or a new one."
        )
    try:
        stored = read_json(folder / SETTINGS)
    except InputError:
        return f"{str(folder / SETTINGS)!r} cannot be read as the settings of samples. Use a new folder."
    if isinstance(stored, dict) and "sampler" in stored:
        stored["sampler"] = SAMPLER_ALIASES.get(stored["sampler"], stored["sampler"])
    differences = [
        f"{name} is {stored.get(name)!r} in the folder and {settings.get(name)!r} now"
        for name in dict.fromkeys([*settings, *OPTIONAL])
        if stored.get(name) != settings.get(name)
    ]
    if not differences:
        return None
    return (
        f"{str(folder)!r} has samples with other settings: {'; '.join(differences)}. Use a new folder, or delete this "
        "one."
    )
