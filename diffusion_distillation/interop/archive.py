"""The archive of a model: a folder with its parameters as safetensors and all else as JSON."""

import json

import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError

from ..checkpoints import Metadata, abstract_params
from ..errors import InputError
from ..runtime.files import read_json, write_atomic
from ..shapes import Params
from .published import fit

FORMAT = "diffusion_distillation"
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write(folder: epath.Path, params: Params, metadata: Metadata, dtype: str = "float32") -> None:
    """Writes a model to a folder.

    Args:
      folder: made if it is missing.
      params: of the model.
      metadata: of the model.
      dtype: that the parameters are stored in: 'float32', or 'float16' for half the size.
    """
    values = {"format": FORMAT, "step": metadata.step, **metadata.to_share().to_json()}
    write_weights(folder, params, dtype)
    write_atomic(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def write_weights(folder: epath.Path, params: Params, dtype: str = "float32") -> None:
    """Writes the parameters alone."""
    write_atomic(folder / WEIGHTS, safetensors.numpy.save(flat_arrays(params, dtype), {"format": FORMAT}))


def flat_arrays(params: Params, dtype: str) -> dict[str, np.ndarray]:
    """The parameters by their names in a file, 'down_0.block_0/conv1/kernel'."""
    return {"/".join(path): np.asarray(leaf, dtype) for path, leaf in flatten_dict(params).items()}


def is_archive(folder: epath.Path) -> bool:
    """Whether a folder is an archive of ours, as its config.json says."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == FORMAT


def read(folder: epath.Path) -> tuple[Params, Metadata]:
    """The parameters, in float32, and the metadata of an archive.

    Raises:
      InputError: if it is damaged, or its parameters are not those of its config's network.
    """
    metadata = read_metadata(folder / CONFIG)
    given = {tuple(name.split("/")): array for name, array in read_safetensors(folder / WEIGHTS).items()}
    return fit(given, abstract_params(metadata), str(folder / WEIGHTS)), metadata


def read_metadata(path: epath.Path) -> Metadata:
    """Read the metadata in an archive's JSON file. Raises an InputError if the file is not as we wrote it."""
    values = read_json(path)
    try:
        return Metadata.from_json(values, int(values["step"]), path)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not what we wrote ({error!r}).") from None


def read_safetensors(path: epath.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; raises an InputError if it is missing or none, before its arrays are read."""
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise InputError(f"There is no {str(path)!r}.") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r} is no safetensors file that can be read ({error}).") from None
