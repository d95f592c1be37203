"""A cache on disk for arrays that take long to make."""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.files import cache_folder, file_lock
from ..runtime.hashing import sha256
from .source import ArraySource, hash_arrays

Arrays = dict[str, np.ndarray]


def cached_arrays(name: str, key: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """Load arrays from the cache, mapped into memory, or make and cache them.

    If several processes or hosts that share the folder ask for the same arrays, one of them makes the arrays while the
    other ones wait; if it dies, another one takes over. On file systems without locks, each process makes the arrays
    itself. If an entry cannot be written, a warning is logged.

    Args:
      name: the beginning of the entry's name, for people who look into the folder.
      key: everything that shaped the arrays, of JSON's types.
      make: makes the arrays.
    """
    text = json.dumps(key, indent=2, sort_keys=True)
    path = cache_folder() / f"{name}-{sha256([text], 16)}"
    arrays = _read_entry(path)
    if arrays is not None:
        return arrays
    with _locked(path):
        arrays = _read_entry(path)  # made by the process that this one waited for
        if arrays is not None:
            return arrays
        shutil.rmtree(path, ignore_errors=True)
        arrays = make()
        try:
            _write_entry(path, text, arrays)
        except OSError as error:
            logging.warning("%s cannot be cached in %s (%s). It is made again next time.", name, path.parent, error)
        return arrays


def cached_source(
    name: str, key: dict[str, Any], make: Callable[[], Arrays], class_names: Sequence[str] | None
) -> ArraySource:
    """Load a source from the cache, or make and cache it.

    Args:
      name: the beginning of the entry's name.
      key: everything that shaped the images and labels, of JSON's types.
      make: makes `images` and `labels`, see `ArraySource`.
      class_names: one name per class; None for a source without classes.
    """

    def make_and_hash() -> Arrays:
        arrays = make()
        return {**arrays, "content": np.array(hash_arrays(arrays["images"], arrays["labels"]))}

    arrays = cached_arrays(name, key, make_and_hash)
    names = None if class_names is None else tuple(class_names)
    num_classes = 1 if names is None else len(names)
    return ArraySource(arrays["images"], arrays["labels"], num_classes, names, str(arrays["content"]))


def _read_entry(path: Path) -> Arrays | None:
    """Read an entry. Returns None if there is none, or if it is cut off, as after a power failure."""
    if not (path / "key.json").is_file():
        return None
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in path.glob("*.npy")}
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait while another process makes this entry. The operating system releases the lock of a process that ends."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without locks, or in a read-only folder, each process makes the arrays
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock")
            stack.enter_context(
                file_lock(lock, lambda maker: logging.warning("Waiting for %s, which makes %s.", maker, path.name))
            )
        yield


def _write_entry(path: Path, key: str, arrays: Arrays) -> None:
    """Write an entry whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "key.json").write_text(key)
        try:
            folder.rename(path)
        except OSError:
            if not path.exists():  # otherwise another process was faster
                raise
