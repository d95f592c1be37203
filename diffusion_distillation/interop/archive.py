"""The archive of a model: a folder with its parameters as safetensors and all else as JSON."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError

from ..checkpoints import Metadata, abstract_params
from ..errors import InputError
from ..files import write_whole
from ..shapes import Params
from .published import fit

FORMAT = "diffusion_distillation"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
MOST_BYTES = 2**20  # of a config


def write(folder: epath.Path, params: Params, metadata: Metadata, dtype: str = "float32") -> None:
    """Writes a model to a folder.

    Args:
      folder: made if it is missing.
      params: of the model.
      metadata: of the model.
      dtype: that the parameters are stored in: 'float32', or 'float16' for half the size.
    """
    values = {"format": FORMAT, "step": metadata.step, **metadata.to_json()}
    write_weights(folder, params, dtype)
    write_whole(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def write_weights(folder: epath.Path, params: Params, dtype: str = "float32") -> None:
    """Writes the parameters alone."""
    write_whole(folder / WEIGHTS, safetensors.numpy.save(by_names(params, dtype), {"format": FORMAT}))


def by_names(params: Params, dtype: str) -> dict[str, np.ndarray]:
    """The parameters by their names in a file, 'down_0.block_0/conv1/kernel'."""
    return {"/".join(path): np.asarray(leaf, dtype) for path, leaf in flatten_dict(params).items()}


def is_archive(folder: epath.Path) -> bool:
    """Whether a folder is an archive of ours, as its config.json says."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == FORMAT


def read(folder: epath.Path, *, trusted: bool = True) -> tuple[Params, Metadata]:
    """The parameters, in float32, and the metadata of an archive.

    Args:
      folder: of the archive.
      trusted: whether its config may name code, 'package.module:function', which is then imported and called.

    Raises:
      InputError: if it is damaged, or its parameters are not those of its config's network.
    """
    values = read_json(folder / CONFIG)
    if not trusted and ":" in json.dumps([*_strings(values.get("config"))]):
        raise InputError(
            f"{str(folder / CONFIG)!r} was downloaded and names code to run, 'package.module:function'. Look at it "
            "and, if you trust it, give the path of a copy."
        )
    try:
        metadata = Metadata.from_json(values, int(values["step"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(folder / CONFIG)!r} is not what we wrote ({error!r}).") from None
    given = {tuple(name.split("/")): array for name, array in read_safetensors(folder / WEIGHTS).items()}
    return fit(given, abstract_params(metadata), str(folder / WEIGHTS)), metadata


def _strings(values: Any) -> Iterator[str]:
    """All strings in a config but paths of datasets."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            if name not in ("args", "teacher_checkpoint_path", "init_from"):
                yield from _strings(value)


def read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; raises an InputError if it is missing or none, before its arrays are read."""
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise InputError(f"There is no {str(path)!r}.") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no safetensors file that can be read ({error}).") from None


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; raises an InputError if it is too large, or none."""
    size = path.stat().length
    if size > MOST_BYTES:
        raise InputError(f"{str(path)!r} has {size:,} bytes; configs have {MOST_BYTES:,} at most.")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is no JSON that can be read ({str(error)[:100]}).") from None
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} has no object, but {type(values).__name__}.")
    return values
