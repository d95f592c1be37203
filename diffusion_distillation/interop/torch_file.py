"""Read the tensors of a file that `torch.save` wrote, without PyTorch.

Such a file is a pickle, and unpickling can run any code. This reader accepts only ordered dictionaries and plain
tensors, which it turns into descriptions of tensors, and refuses every other name. It knows both formats: the zip
archive of PyTorch 1.6 and later, and the older sequence of pickles and raw arrays.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..errors import InputError

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
}
MAGIC = 0x1950A86A20F9469CFC6C  # the start of a file in the older format
PROTOCOL = 1001


class Storage(NamedTuple):
    """The description of a flat array in the file. It may be wrong."""

    key: str
    dtype: np.dtype
    size: int


class Tensor(NamedTuple):
    """The description of a view of a storage, counted in elements. It may be wrong."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensors(content: bytes, origin: str) -> dict[str, np.ndarray]:
    """Read a saved dictionary of tensors, such as a `state_dict`.

    Args:
      content: the whole file.
      origin: the file's name, for error messages.

    Returns:
      The arrays by their names.

    Raises:
      InputError: if the file is damaged, was not written by torch.save, or holds other things than tensors of float32,
        float16, bfloat16 and int64.
    """
    try:
        read = _read_zip if content.startswith(b"PK") else _read_legacy
        tensors, find = read(content)
        if not isinstance(tensors, dict):
            raise _RefusedError(f"holds a {type(tensors).__name__} instead of a dictionary of tensors")
        return {_checked_name(name): _array(tensor, find) for name, tensor in tensors.items()}
    except _RefusedError as error:
        raise InputError(f"{origin}: {error}. No code in it was run.") from None
    except Exception as error:  # a damaged pickle can raise any error
        reason = str(error) or type(error).__name__
        raise InputError(f"{origin}: cannot be read as a file of torch.save ({reason}). Is it complete?") from None


class _RefusedError(Exception):
    """Why a file is refused, as the end of a sentence about it."""


class _Unpickler(pickle._Unpickler):  # in Python: the one in C allocates as much memory as a damaged file declares
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # Return a new function each time, as a pickle may set attributes of it.
            return lambda storage, offset, shape, strides, *_: Tensor(storage, offset, shape, strides)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in STORAGES:
            return name
        raise _RefusedError(
            f"asks for {module}.{name}, which is not part of tensors of float32, float16, bfloat16 or int64"
        )

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise _RefusedError("refers to something other than a plain array")
        return Storage(key, STORAGES[dtype], size)


def _read_zip(content: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    archive = zipfile.ZipFile(io.BytesIO(content))
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):  # torch does not compress
        raise _RefusedError("is a compressed archive, which torch.save does not write")
    [pickled] = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    root = pickled.removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise _RefusedError("is from a big-endian machine")
    tensors = _Unpickler(io.BytesIO(archive.read(pickled))).load()
    return tensors, lambda storage: archive.read(f"{root}data/{storage.key}")


def _read_legacy(content: bytes) -> tuple[Any, Callable[[Storage], bytes]]:
    file = io.BytesIO(content)
    if (_Unpickler(file).load(), _Unpickler(file).load()) != (MAGIC, PROTOCOL):
        raise _RefusedError("does not start like a file of torch.save")
    if not _Unpickler(file).load()["little_endian"]:
        raise _RefusedError("is from a big-endian machine")
    tensors = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    sizes = {tensor.storage.key: tensor.storage for tensor in tensors.values() if isinstance(tensor, Tensor)}
    arrays = {}
    for key in keys:
        [size] = struct.unpack("<q", file.read(8))
        if key not in sizes or size != sizes[key].size:
            raise _RefusedError(f"has an array {key!r} that fits no tensor")
        arrays[key] = file.read(size * sizes[key].dtype.itemsize)
    return tensors, lambda storage: arrays[storage.key]


def _array(tensor: Any, find: Callable[[Storage], bytes]) -> np.ndarray:
    """The described array. The description may be wrong, so check the bounds first."""
    if not isinstance(tensor, Tensor) or not isinstance(tensor.storage, Storage):
        raise _RefusedError(f"holds a {type(tensor).__name__} instead of a tensor")
    storage, offset, shape, strides = tensor
    data = find(storage)
    numbers = (storage.size, offset, *shape, *strides)
    if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(strides):
        raise _RefusedError("describes a tensor with invalid sizes")
    if len(data) != storage.size * storage.dtype.itemsize:
        raise _RefusedError(f"ends within the array {storage.key!r}, or gives a wrong size for it")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise _RefusedError(f"describes a tensor {list(shape)} beyond the end of its array")
    if not count:
        return np.zeros(shape, storage.dtype)
    flat = np.frombuffer(data, storage.dtype)[offset:]
    in_bytes = [stride * storage.dtype.itemsize for stride in strides]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, in_bytes, writeable=False))


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise _RefusedError(f"has a tensor with a name of type {type(name).__name__}")
    return name
