"""Checkpoints in the format of the paper's code: a file of flax's msgpack, with `ema_params`, `num_sample_steps`."""

from typing import Any

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from ..checkpoints import Metadata, abstract_params
from ..config import resolve
from ..errors import InputError
from ..shapes import Params

SIDES = {"CIFAR10": 32, "digits": 8}  # of the images of datasets that have no image_size among their arguments
SHOWN = 5  # names that a message has
MOST_OBJECTS, MOST_ENTRIES = 2**19, 2**11  # in a file, and in each of its dicts and lists


def read(path: epath.Path, config: ConfigDict | None) -> tuple[Params, Metadata]:
    """The averaged parameters of a file, for the network of a config.

    The file does not say whether it is of a base model or of a student: it counts as a base model whose own number of
    sampling steps is the one that it has.

    Args:
      path: the file.
      config: of the model, resolved or not.

    Raises:
      InputError: if it is no such file, there is no config, or the parameters are not those of its network.
    """
    tree = _restore(path)
    if config is None:
        raise InputError(
            f"{str(path)!r} has the parameters of a published checkpoint, which does not say of which network: give "
            "its config too, as in --config=configs/cifar_base.py or from_checkpoint(path, config=...)."
        )
    given, num_steps = flatten_dict(tree["ema_params"]), int(tree["num_sample_steps"])
    resolved = resolve(config).copy_and_resolve_references()
    with resolved.unlocked():
        resolved.model.eval_sampling_num_steps = num_steps
    classes = given.get(("class_emb", "kernel"))
    metadata = Metadata(
        config=resolved.lock(),
        image_shape=(*2 * (_side(resolved),), _channels(given, path)),
        num_classes=len(classes) if isinstance(classes, np.ndarray) and classes.ndim else 1,
        num_steps=0,
        step=_step(tree.get("step")),
    )
    return fit(given, abstract_params(metadata), str(path)), metadata


def fit(given: dict[tuple[str, ...], Any], like: Params, origin: str) -> Params:
    """The parameters, in the tree and the shapes of `like`; attention of an older kind, without heads, is reshaped.

    Raises:
      InputError: naming parameters that are missing, unexpected or of another shape.
    """
    expected = flatten_dict(like)
    missing = [_name(path) for path in expected if path not in given]
    unexpected = [_name(path) for path in given if path not in expected]
    fitted, other = {}, []
    for path in expected.keys() & given.keys():
        array, shape = given[path], expected[path].shape
        if not isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.floating):
            other.append(f"{_name(path)} is no array of floats")
        elif array.shape != shape and not (_is_of_attention(path) and array.size == np.prod(shape)):
            other.append(f"{_name(path)} is {list(array.shape)} there and {list(shape)} here")
        else:
            fitted[path] = np.asarray(array, np.float32).reshape(shape)
    problems = [
        f"{what}: {', '.join(sorted(names)[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        if names
    ]
    if problems:
        raise InputError(f"{origin} does not hold the network of the config: {'; '.join(problems)}.")
    return unflatten_dict(fitted)


def _restore(path: epath.Path) -> dict[str, Any]:
    try:
        _check_objects(path)
        tree = flax.serialization.msgpack_restore(path.read_bytes())
    except (
        ValueError,
        TypeError,
        KeyError,
        MemoryError,
        RecursionError,
        OverflowError,
        msgpack.UnpackException,
    ) as error:
        raise InputError(f"{str(path)!r} is no file of flax's msgpack that can be read ({_line(error)}).") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("ema_params"), dict):
        found = sorted(map(str, tree))[:SHOWN] if isinstance(tree, dict) else type(tree).__name__
        raise InputError(f"{str(path)!r} has no 'ema_params', as published checkpoints have; it has {found}.")
    steps = tree.get("num_sample_steps")
    if not (isinstance(steps, int | np.integer) or (isinstance(steps, np.ndarray) and steps.shape == ())) or steps < 1:
        raise InputError(f"{str(path)!r} has num_sample_steps={steps!r}, which is no number of sampling steps.")
    return tree


def _check_objects(path: epath.Path) -> None:
    """Raises a ValueError for more objects than models have: one can take a hundred times the memory of its bytes.

    The file is read piece by piece, and what is done with is not kept.
    """
    found = 0

    def count(entries: Any) -> None:
        nonlocal found
        found += 1 + len(entries)
        if found > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS:,} objects")

    def count_inside(_: int, content: bytes) -> None:
        msgpack.unpackb(content, **options)

    limits = dict(max_array_len=MOST_ENTRIES, max_map_len=MOST_ENTRIES)
    options = dict(object_hook=count, list_hook=count, strict_map_key=False, raw=True, **limits)
    size = path.stat().length
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, ext_hook=count_inside, max_buffer_size=size, **options)
        unpacker.unpack()
        if unpacker.tell() != size:
            raise ValueError("there is more after its first object")


def _step(step: Any) -> int:
    """The updates done, where the file says so: it is told to nobody but people."""
    return int(step) if isinstance(step, int | np.integer) and step >= 0 else 0


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _side(config: ConfigDict) -> int:
    side = config.dataset.args.get("image_size") or SIDES.get(config.dataset.name)
    if side is None:
        raise InputError(
            f"config.dataset.name={config.dataset.name!r} does not say how large the images are: give "
            "config.dataset.args.image_size."
        )
    return int(side)


def _channels(given: dict[tuple[str, ...], Any], path: epath.Path) -> int:
    kernel = given.get(("conv_in", "kernel"))
    if not isinstance(kernel, np.ndarray) or kernel.ndim != 4:
        raise InputError(f"{str(path)!r} has no conv_in/kernel of four dimensions: it is of another network.")
    return kernel.shape[2]


def _is_of_attention(path: tuple[str, ...]) -> bool:
    return len(path) > 1 and path[-2] in ("q", "k", "v", "proj_out")


def _name(path: tuple[str, ...]) -> str:
    return "/".join(map(str, path))
