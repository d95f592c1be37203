"""Paths here and in buckets (`gs://`), files written whole or not at all, JSON, retries, and locks."""

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from etils import epath

from ..errors import InputError, RunError, is_transient
from .hashing import sha256

UNFINISHED = ".unfinished"  # the suffix of a file that is being written
WAITS = (0.1, 1.0, 5.0)  # seconds between attempts to read
MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 64  # of nested objects and lists


def as_path(path: epath.PathLike) -> epath.Path:
    """The path of a file or folder that a user names: a local path, or one in a bucket, 'gs://bucket/folder'.

    A leading '~' is the user's home folder; shells do not expand it after `--workdir=`.

    Raises:
      InputError: for any other file system, or if gcsfs is needed and not installed.

    >>> as_path("runs/base").name
    'base'
    """
    text = os.fspath(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/+", text)  # pathlib.Path turns two slashes into one
    if scheme is None:
        return epath.Path(os.path.expanduser(text))
    if scheme[1] != "gs":
        raise InputError(
            f"{text!r} has the scheme {scheme[1]}://. Use a local folder or a Google Cloud Storage bucket "
            "(gs://bucket/folder), or mount the storage as a folder."
        )
    if not any(importlib.util.find_spec(reader) for reader in ("gcsfs", "tensorflow")):
        raise InputError(f"{text!r} is in a bucket, which needs gcsfs. Run: pip install gcsfs.")
    return epath.Path(f"gs://{text[scheme.end() :]}")


def is_remote(path: epath.Path) -> bool:
    """Whether a path is in a bucket, where files cannot be locked or appended to.

    >>> is_remote(epath.Path("gs://bucket/run")), is_remote(epath.Path("runs/base"))
    (True, False)
    """
    return "://" in os.fspath(path)


def is_foreign(path: epath.Path) -> bool:
    """Whether other people may have written a file, because it is in a bucket or was downloaded."""
    return is_remote(path) or Path(path).resolve().is_relative_to(downloads_folder().resolve())


def absolute(path: epath.Path) -> epath.Path:
    """The absolute path. Paths in buckets are absolute already."""
    return path if is_remote(path) else path.absolute()


def shipped_folder(name: str) -> Path:
    """The folder 'configs' or 'scripts': inside an installed package, beside the package in its repository.

    >>> (shipped_folder("configs") / "digits_base.py").exists()
    True
    """
    package = Path(__file__).parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def cache_folder() -> Path:
    """$DIFFUSION_DISTILLATION_CACHE, or `diffusion_distillation` in the user's cache. It may be deleted at any time.

    Raises:
      InputError: if the user has no home folder, and the environment names no cache.
    """
    chosen = os.environ.get("DIFFUSION_DISTILLATION_CACHE")
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return (Path(chosen) if chosen else Path(user_cache) / "diffusion_distillation").expanduser()
    except RuntimeError:
        raise InputError(
            "This user has no home folder to cache files in. Set DIFFUSION_DISTILLATION_CACHE to a folder."
        ) from None


def downloads_folder() -> Path:
    """The folder of downloaded models, in the cache."""
    return cache_folder() / "downloads"


def paths_below(folder: epath.Path, *prefixes: str) -> list[epath.Path]:
    """List the paths below a folder whose names start with these prefixes, one prefix per level.

    `epath`'s glob would read the folder's own name as a pattern too, such as 'runs/a[1]'.

    Args:
      folder: where to look. It need not exist.
      prefixes: such as `"steps_", "checkpoints"` for the checkpoints of all students in a ladder.
    """
    paths = [folder]
    for prefix in prefixes:
        children = (child for path in paths if path.is_dir() for child in path.iterdir())
        paths = [child for child in children if child.name.startswith(prefix)]
    return sorted(paths)


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read a JSON object from a file that may come from anywhere.

    Raises:
      InputError: if the file has more than 1 MiB, or cannot be read as a JSON object.
    """
    size = path.stat().length
    if size > MAX_JSON_BYTES:
        raise InputError(f"{str(path)!r} has {size:,} bytes; a JSON file may have at most {MAX_JSON_BYTES:,}.")
    try:
        return parse_json(path.read_text())
    except ValueError as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON ({str(error)[:100]}).") from None


def tuples_for_lists(value: Any) -> Any:
    """Replace lists, which JSON has in place of tuples, by tuples, in sections too.

    >>> tuples_for_lists({"ch_mult": [1, 2]})
    {'ch_mult': (1, 2)}
    """
    if isinstance(value, dict):
        return {name: tuples_for_lists(part) for name, part in value.items()}
    return tuple(map(tuples_for_lists, value)) if isinstance(value, list | tuple) else value


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line.

    A last line without a line break is ignored: a killed process may have left a part of a line.

    Returns:
      The objects; none if there is no such file.

    Raises:
      InputError: if a line cannot be read as a JSON object.
    """
    values = []
    text = path.read_text() if path.exists() else ""
    complete = text[: text.rfind("\n") + 1]
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            values.append(parse_json(line))
        except ValueError as error:
            raise InputError(f"Line {number} of {str(path)!r} cannot be read as JSON ({str(error)[:100]}).") from None
    return values


def parse_json(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
      ValueError: for anything else, and for an object with more than 64 levels.

    >>> parse_json('{"step": 7}')
    {'step': 7}
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is of type {type(values).__name__}, not an object")
    level: list[Any] = [values]
    for _ in range(MAX_JSON_DEPTH):
        containers = [child for child in level if isinstance(child, dict | list)]
        level = [
            child
            for container in containers
            for child in (container.values() if isinstance(container, dict) else container)
        ]
    if level:
        raise ValueError("it is nested too deeply")
    return values


def stat_hash(files: Iterable[epath.PathLike]) -> str:
    """Hash the names, sizes and times of files, without reading them: 16 hexadecimal digits."""

    def line(file: epath.PathLike) -> str:
        if is_remote(epath.Path(file)):
            stat = epath.Path(file).stat()
            return f"{os.fspath(file)} {stat.length} {stat.mtime}"
        stat = os.stat(file)
        return f"{os.fspath(file)} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"  # copying may keep the mtime

    return sha256(["\n".join(map(line, files))], digits=16)


def retry(read: Callable[[], Any], subject: object) -> Any:
    """Call `read` and return its result. Call it again, after a wait, if the machine or its storage fails.

    Args:
      read: reads a file or a folder.
      subject: what it reads, for the message.

    Raises:
      RunError: if the machine or its storage fails every time. Any other error of `read` is raised at once.
    """
    waits = iter(WAITS)
    while True:
        try:
            return read()
        except (OSError, MemoryError) as error:
            if not is_transient(error):
                raise
            if (wait := next(waits, None)) is None:
                reason = "out of memory" if isinstance(error, MemoryError) else error.strerror or error
                raise RunError(
                    f"{subject} cannot be read now ({reason}): the machine or its storage failed {len(WAITS) + 1} "
                    "times in a row. The file may be intact. Run the same command again later."
                ) from error
        time.sleep(wait)


def write_atomic(path: epath.Path, content: str | bytes, *, sync: bool = True) -> None:
    """Write a file so that at any moment it holds either all of the new content or the previous one.

    Only one process may write a file at a time.

    Args:
      path: its folder is created if it is missing.
      content: text is encoded as UTF-8.
      sync: also survive a power failure. This takes some milliseconds; skip it for many files that are easily remade.
    """
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):  # an object appears in a bucket once it is complete
        path.write_bytes(content)
        return
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    with open(unfinished, "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())  # or a power failure may leave an empty file under the new name
    unfinished.replace(path)


def save_atomic(path: epath.Path, save: Callable[[BinaryIO], Any], *, sync: bool = True) -> None:
    """Write what `save(file)` writes, for libraries that write to a file; see `write_atomic`."""
    content = io.BytesIO()
    save(content)
    write_atomic(path, content.getvalue(), sync=sync)


@contextlib.contextmanager
def file_lock(path: epath.PathLike, on_wait: Callable[[str], Any]) -> Iterator[None]:
    """Hold a lock on a file within the context. The file names the holder.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
      path: the file. It is created if it is missing, and stays there.
      on_wait: called with a description of the holder if another process has the lock. Unless it raises an error, this
        process then waits for the lock.

    Raises:
      OSError: if the file system or the operating system does not support file locks.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        raise OSError(errno.ENOSYS, "no file locks") from None
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            on_wait(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
