"""What is at a URL, copied into the user's cache once."""

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from ..errors import InputError
from ..files import cache_folder, lock

SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "https": "aiohttp", "http": "aiohttp", "hf": "huggingface_hub"}
WANTED = (".json", ".safetensors", ".msgpack")  # files of a folder that are copied
PIECE = 2**24  # bytes


def is_url(path: epath.PathLike) -> bool:
    """Whether a path is a URL of one of SCHEMES."""
    scheme, colon, _ = os.fspath(path).partition("://")
    return bool(colon) and scheme in SCHEMES


def local_copy(url: str) -> Path:
    """A copy of the file or folder at a URL, in the cache; of a folder, its JSON, safetensors and msgpack files.

    A download that was cut off goes on where it was; a file takes its name once all its bytes are there. What was
    copied before is not looked at again.

    Raises:
      InputError: if there is nothing there, or it cannot be reached or read.
    """
    scheme = url.partition("://")[0]
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "root"
    place = cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    target, done = place / name, place / "complete"
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            lock(stack.enter_context((place / ".lock").open("a+")), lambda holder: None)
        if done.exists():
            return target
        try:
            files, path = fsspec.core.url_to_fs(url)
            if scheme not in ("http", "https") and files.isdir(path):
                found = [file for file in files.find(path) if file.endswith(WANTED)]
                if not found:
                    raise InputError(f"{url}: the folder has no file that ends in {', '.join(WANTED)}.")
                for file in found:
                    _copy(files, file, _within(target, os.path.relpath(file, path), url))
            else:
                _copy(files, path, target)
        except ImportError:
            raise InputError(
                f"{url}: {scheme}:// is read with {SCHEMES[scheme]}: pip install {SCHEMES[scheme]}."
            ) from None
        except FileNotFoundError:
            raise InputError(f"{url}: there is nothing there.") from None
        except InputError:
            raise
        except Exception as error:  # whatever the library for this scheme raises, and those below it
            raise InputError(
                f"{url} cannot be downloaded: {type(error).__name__}: {str(error)[:200]}. Try again."
            ) from None
        done.touch()
    return target


def _version_of(files: Any, source: str) -> str:
    """A name for what a file is now, so that no parts of two versions are put together; where that can be told."""
    try:
        about = files.ukey(source)
    except Exception:  # not all file systems tell
        about = ""
    return hashlib.sha256(str(about).encode()).hexdigest()[:8]


def _within(folder: Path, name: str, url: str) -> Path:
    """The path of a file in a folder; raises an InputError for a name that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{url}: {name!r} leads out of the folder; nothing of it is copied.")
    return path


def _copy(files: Any, source: str, target: Path) -> None:
    """Copies a file, going on with the part of it that is there."""
    if target.exists():
        return
    size = files.size(source)
    part = target.with_name(f".{target.name}.{_version_of(files, source)}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    if size is None or start > size:
        start = 0
    with part.open("r+b" if start else "wb") as out:
        out.seek(start)
        if size is None:  # a server that does not tell
            out.write(files.cat_file(source))
        else:
            for begin in range(start, size, PIECE):
                piece = files.cat_file(source, begin, min(begin + PIECE, size))
                if len(piece) != min(PIECE, size - begin):
                    raise OSError(f"{len(piece):,} bytes came from byte {begin:,} on, of {size:,} in all")
                out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    part.replace(target)
