"""Arrays that take long to make, kept on disk under a key of everything that shaped them."""

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
    """The arrays that `make` returns: from disk, where they were made before with the same key, mapped into memory.

    Of several processes that ask for them at once, of one host or of several that share the folder, one makes them and
    the others wait for it; if it dies, another one takes over. Each makes its own where the file system has no locks.
    An entry is written whole or not at all. Where it cannot be written, the arrays are made again the next time; a
    warning says so.

    Args:
      name: for people who look into the folder.
      key: anything that JSON can hold.
      make: makes the arrays.
    """
    text = json.dumps(key, indent=2, sort_keys=True)
    path = cache_folder() / f"{name}-{sha256([text], 16)}"
    if (found := _read(path)) is not None:
        return found
    with _alone(path):
        if (found := _read(path)) is not None:  # made by the process that this one waited for
            return found
        shutil.rmtree(path, ignore_errors=True)
        arrays = make()
        try:
            _write(path, text, arrays)
        except OSError as error:
            logging.warning(
                "%s cannot be kept in %s (%s): it will be decoded again next time.", name, path.parent, error
            )
        return arrays


def cached_source(
    name: str, key: dict[str, Any], make: Callable[[], Arrays], class_names: Sequence[str] | None
) -> ArraySource:
    """A source of the `images` and `labels` that `make` returns, or of their cached copies.

    Args:
      name: see `cached_arrays`.
      key: see `cached_arrays`.
      make: see `cached_arrays`.
      class_names: one name per class; None if the labels are not used.
    """

    def make_and_hash() -> Arrays:
        arrays = make()
        return {**arrays, "content": np.array(hash_arrays(arrays["images"], arrays["labels"]))}

    kept = cached_arrays(name, key, make_and_hash)
    names = None if class_names is None else tuple(class_names)
    return ArraySource(kept["images"], kept["labels"], len(names or [""]), names, str(kept["content"]))


def _read(path: Path) -> Arrays | None:
    """An entry; None if there is none, or one that is cut off, as after a power failure."""
    if not (path / "key.json").is_file():
        return None
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in path.glob("*.npy")}
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits while another process makes this entry; the system lifts its lock when it ends, however it does."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no locks here, or nothing can be written: each on its own
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f".{path.name}.lock")
            stack.enter_context(
                file_lock(lock, lambda maker: logging.warning("Waiting for %s, which makes %s.", maker, path.name))
            )
        yield


def _write(path: Path, key: str, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-", ignore_cleanup_errors=True) as made:
        folder = Path(made) / path.name
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        (folder / "key.json").write_text(key)
        try:
            folder.rename(path)
        except OSError:
            if not path.exists():  # it does where another process was faster
                raise
