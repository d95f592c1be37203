"""Read checkpoints of the paper's code: a msgpack file of flax with `ema_params` and `num_sample_steps`."""

from typing import Any

import flax.serialization
import msgpack
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ..checkpoints import Metadata, abstract_params
from ..config import model_of
from ..errors import InputError
from ..shapes import Params
from .arrays import fit_params

IMAGE_SIZES = {"CIFAR10": 32, "digits": 8}  # of datasets without an argument image_size
MAX_NAMES = 5  # in an error message
MAX_OBJECTS = 2**19  # in a file
MAX_ENTRIES = 2**11  # in each dict and list of a file
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    MemoryError,
    RecursionError,
    OverflowError,
    msgpack.UnpackException,
)


def read(path: epath.Path, config: ConfigDict | None) -> tuple[Params, Metadata]:
    """Read the averaged parameters of a file, for the network of a config.

    The file does not say whether it holds a base model or a student. It is read as a base model whose default number of
    sampling steps is the file's `num_sample_steps`.

    Args:
      path: the file.
      config: the config of the model, resolved or not.

    Raises:
      InputError: if the file is not such a checkpoint, there is no config, or the parameters do not fit its network.
    """
    tree = _restore(path)
    if config is None:
        raise InputError(
            f"{str(path)!r} is a published checkpoint, which does not describe its network. Pass its config too: "
            "--config=cifar_base, or from_checkpoint(path, config=...)."
        )
    arrays = flatten_dict(tree["ema_params"])
    resolved = model_of(config).copy_and_resolve_references()
    step = _step(tree)
    with resolved.unlocked():
        resolved.model.eval_sampling_num_steps = int(tree["num_sample_steps"])
        resolved.train.num_train_steps = max(step, 1)  # the file does not say how many were planned
    side = _image_size(resolved)
    metadata = Metadata(
        config=resolved.lock(),
        image_shape=(side, side, _num_channels(arrays, path)),
        num_classes=_num_classes(arrays),
        num_steps=0,
        step=step,
    )
    return fit_params(arrays, abstract_params(metadata), str(path)), metadata


def _restore(path: epath.Path) -> dict[str, Any]:
    try:
        _check_objects(path)
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{str(path)!r} cannot be read as a msgpack file of flax ({reason}).") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("ema_params"), dict):
        content = sorted(map(str, tree))[:MAX_NAMES] if isinstance(tree, dict) else type(tree).__name__
        raise InputError(f"{str(path)!r} has no 'ema_params', as published checkpoints have; it has {content}.")
    steps = tree.get("num_sample_steps")
    if not (isinstance(steps, int | np.integer) or (isinstance(steps, np.ndarray) and steps.shape == ())) or steps < 1:
        raise InputError(f"{str(path)!r} has num_sample_steps={steps!r}; it must be a positive integer.")
    return tree


def _check_objects(path: epath.Path) -> None:
    """Raise a ValueError if a file has more objects than models have.

    Objects can take a hundred times as much memory as their bytes in the file. This function reads the file piece by
    piece and keeps nothing.
    """
    num_objects = 0

    def count(entries: Any) -> None:
        nonlocal num_objects
        num_objects += 1 + len(entries)
        if num_objects > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS:,} objects")

    def count_inside(_: int, content: bytes) -> None:
        msgpack.unpackb(content, **options)

    limits = dict(max_array_len=MAX_ENTRIES, max_map_len=MAX_ENTRIES)
    options = dict(object_hook=count, list_hook=count, strict_map_key=False, raw=True, **limits)
    size = path.stat().length
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, ext_hook=count_inside, max_buffer_size=size, **options)
        unpacker.unpack()
        if unpacker.tell() != size:
            raise ValueError("there is more after its first object")


def _step(tree: dict[str, Any]) -> int:
    """The updates done, if the file says so. They are only printed."""
    step = tree.get("step")
    return int(step) if isinstance(step, int | np.integer) and step >= 0 else 0


def _num_classes(arrays: dict[tuple[str, ...], Any]) -> int:
    kernel = arrays.get(("class_emb", "kernel"))
    return len(kernel) if isinstance(kernel, np.ndarray) and kernel.ndim else 1


def _image_size(config: ConfigDict) -> int:
    size = config.dataset.args.get("image_size") or IMAGE_SIZES.get(config.dataset.name)
    if size is None:
        raise InputError(
            f"config.dataset.name={config.dataset.name!r} does not determine the size of the images. Set "
            "config.dataset.args.image_size."
        )
    return int(size)


def _num_channels(arrays: dict[tuple[str, ...], Any], path: epath.Path) -> int:
    kernel = arrays.get(("conv_in", "kernel"))
    if not isinstance(kernel, np.ndarray) or kernel.ndim != 4:
        raise InputError(f"{str(path)!r} holds another network: it has no conv_in/kernel with 4 dimensions.")
    return kernel.shape[2]
