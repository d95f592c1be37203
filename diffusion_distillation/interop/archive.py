"""Our archive of a model: a folder with the parameters in `model.safetensors` and the metadata in `config.json`."""

import json

import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict

from ..checkpoints import Metadata, abstract_params
from ..errors import InputError
from ..runtime.files import read_json, write_atomic
from ..shapes import Params
from .arrays import fit_params, read_safetensors

FORMAT = "diffusion_distillation"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def write(folder: epath.Path, params: Params, metadata: Metadata, dtype: str = "float32") -> None:
    """Write a model to a folder.

    Args:
      folder: created if it is missing.
      params: the model's parameters.
      metadata: the model's metadata.
      dtype: the dtype of the stored parameters: 'float32', or 'float16' for half the size.
    """
    write_weights(folder, params, dtype)
    values = {"format": FORMAT, "step": metadata.step, **metadata.to_share().to_json()}
    write_atomic(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def write_weights(folder: epath.Path, params: Params, dtype: str = "float32") -> None:
    """Write only the parameters of a model; see `write`."""
    write_atomic(folder / WEIGHTS, safetensors.numpy.save(flat_arrays(params, dtype), {"format": FORMAT}))


def flat_arrays(params: Params, dtype: str) -> dict[str, np.ndarray]:
    """The parameters by their names in a file.

    >>> flat_arrays({"down_0.block_0": {"conv1": {"bias": [0.5]}}}, "float16")
    {'down_0.block_0/conv1/bias': array([0.5], dtype=float16)}
    """
    return {"/".join(path): np.asarray(leaf, dtype) for path, leaf in flatten_dict(params).items()}


def is_archive(folder: epath.Path) -> bool:
    """Whether a folder is one of our archives, according to its config.json."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == FORMAT


def read(folder: epath.Path) -> tuple[Params, Metadata]:
    """Read the parameters, in float32, and the metadata of an archive.

    Raises:
      InputError: if the archive is damaged, or its parameters do not fit the network of its config.
    """
    metadata = read_metadata(folder / CONFIG)
    arrays = {tuple(name.split("/")): array for name, array in read_safetensors(folder / WEIGHTS).items()}
    return fit_params(arrays, abstract_params(metadata), str(folder / WEIGHTS)), metadata


def read_metadata(path: epath.Path) -> Metadata:
    """Read the metadata in a JSON file that `write` or `diffusers.write` made.

    Raises:
      InputError: if the file was not written by this package.
    """
    values = read_json(path)
    try:
        return Metadata.from_json(values, int(values["step"]), path)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is damaged, or was not written by this package ({error!r}).") from None
