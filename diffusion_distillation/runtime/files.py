"""Files and folders here and in a bucket (`gs://`), files that are written whole or not at all, JSON, and locks."""

import errno
import importlib.util
import io
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from etils import epath

from ..errors import InputError, RunError, is_transient
from .hashing import sha256

UNFINISHED = ".unfinished"  # the last suffix of a file that is being written
WAITS = (0.1, 1.0, 5.0)  # seconds between attempts to read
MOST_BYTES = 2**20  # of a JSON file
MOST_LEVELS = 64  # of nested objects and lists


def as_path(path: epath.PathLike) -> epath.Path:
    """The path of a file or folder that a user names: a local one, or one in a bucket, 'gs://bucket/folder'.

    A leading '~' is the user's home folder; shells do not expand it after `--workdir=`.

    Raises:
      InputError: for any other file system, or if what reads buckets is not installed.
    """
    text = os.fspath(path)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/+", text)  # pathlib.Path makes one slash of two
    if scheme is None:
        return epath.Path(os.path.expanduser(text))
    if scheme[1] != "gs":
        raise InputError(
            f"{text!r}: runs are kept in local folders and in buckets of Google Cloud Storage (gs://bucket/folder); "
            f"{scheme[1]}:// is neither. Mount it as a folder, or give one of these."
        )
    if not any(importlib.util.find_spec(reader) for reader in ("gcsfs", "tensorflow")):
        raise InputError(f"{text!r}: a bucket is read and written with gcsfs: pip install gcsfs.")
    return epath.Path(f"gs://{text[scheme.end() :]}")


def is_remote(path: epath.Path) -> bool:
    """Whether the path is in a bucket: there are no locks there, and nothing can be appended to a file."""
    return "://" in os.fspath(path)


def is_foreign(path: epath.Path) -> bool:
    """Whether others may have written a file: it is in a bucket, or was downloaded."""
    return is_remote(path) or Path(path).resolve().is_relative_to(downloads_folder().resolve())


def absolute(path: epath.Path) -> epath.Path:
    """The path from the root."""
    return path if is_remote(path) else path.absolute()


def cache_folder() -> Path:
    """$DIFFUSION_DISTILLATION_CACHE, or diffusion_distillation in the user's cache. It may be deleted at any time."""
    own = os.environ.get("DIFFUSION_DISTILLATION_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(own) if own else Path(shared) / "diffusion_distillation").expanduser()


def paths_below(folder: epath.Path, *prefixes: str) -> list[epath.Path]:
    """List the paths below a folder whose names start with these prefixes, one prefix per level.

    `epath`'s glob would read the folder's own name as a pattern too, such as 'runs/a[1]'.
    """
    paths = [folder]
    for prefix in prefixes:
        inside = (child for path in paths if path.is_dir() for child in path.iterdir())
        paths = [child for child in inside if child.name.startswith(prefix)]
    return sorted(paths)


def downloads_folder() -> Path:
    """The folder where copies of URLs' files are kept."""
    return cache_folder() / "downloads"


def read_json(path: epath.Path) -> dict[str, Any]:
    """Read the object in a JSON file. Every JSON file at a path that a user gives is read here.

    Raises:
      InputError: if the file is too large, cannot be read as JSON, or does not hold an object.
    """
    size = path.stat().length
    if size > MOST_BYTES:
        raise InputError(f"{str(path)!r} has {size:,} bytes; JSON files have at most {MOST_BYTES:,}.")
    try:
        return parse_json(path.read_text())
    except ValueError as error:
        raise InputError(f"{str(path)!r} cannot be read as JSON ({str(error)[:100]}).") from None


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Read the objects of a file with one JSON object per line. Returns none if there is no such file.

    Raises:
      InputError: for a line that cannot be read as a JSON object.
    """
    found = []
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # a process that is killed while it writes leaves a part of a line
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            found.append(parse_json(line))
        except ValueError as error:
            raise InputError(f"Line {number} of {str(path)!r} cannot be read as JSON ({str(error)[:100]}).") from None
    return found


def parse_json(text: str) -> dict[str, Any]:
    """Parse a JSON object; raises a ValueError for anything else, and for one that is nested too deeply."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"it is of type {type(values).__name__}, not an object")
    level: list[Any] = [values]
    for _ in range(MOST_LEVELS):
        inner = [child for child in level if isinstance(child, dict | list)]
        level = [child for each in inner for child in (each.values() if isinstance(each, dict) else each)]
    if level:
        raise ValueError("it is nested too deeply")
    return values


def stat_hash(files: Iterable[epath.PathLike]) -> str:
    """A name for files of these names, sizes and times, as far as can be told without reading them."""

    def line(file: epath.PathLike) -> str:
        if is_remote(epath.Path(file)):
            stat = epath.Path(file).stat()
            return f"{os.fspath(file)} {stat.length} {stat.mtime}"
        stat = os.stat(file)
        return f"{os.fspath(file)} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"  # copies may keep the mtime

    return sha256(["\n".join(map(line, files))], 16)


def retry(read: Callable[[], Any], what: object) -> Any:
    """Call `read` and return its result. Call it again, after a wait, if the machine or its storage fails.

    Args:
      read: reads a file or a folder.
      what: what it reads, for the message.

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
                    f"{what} cannot be read now ({reason}): the machine or its storage failed {len(WAITS) + 1} times "
                    "in a row. The file may be sound. Run the same command again when they work."
                ) from error
        time.sleep(wait)


def write_atomic(path: epath.Path, content: str | bytes, *, sync: bool = True) -> None:
    """Writes a file so that at every moment there is all of it or what was there before; makes its folder.

    Only one process may do so at a time. Text is UTF-8. With `sync` this holds through a power failure too; it takes
    some milliseconds, which one of many files that are easily made again need not cost.
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
            os.fsync(file.fileno())  # or else a power failure may leave the new name with nothing in it
    unfinished.replace(path)


def save_atomic(path: epath.Path, save: Callable[[BinaryIO], Any], *, sync: bool = True) -> None:
    """`write_atomic` of what `save(file)` writes, for libraries that write to a file."""
    content = io.BytesIO()
    save(content)
    write_atomic(path, content.getvalue(), sync=sync)


def lock(file: TextIO, busy: Callable[[str], Any]) -> None:
    """Locks a file, opened with 'a+', and writes into it whose it is. The system lifts the lock when the process ends.

    Args:
      file: the system unlocks it, too, when it is closed.
      busy: if another process has it, called with that one's name; unless this raises an error, it is waited for.

    Raises:
      OSError: if the file system or the operating system has no file locks.
    """
    try:
        import fcntl
    except ImportError:  # on Windows
        raise OSError(errno.ENOSYS, "no file locks") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        busy(file.read().strip() or "another process")
        fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
