"""What is at a URL, copied into the user's cache once."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from ..errors import InputError
from ..runtime.files import UNFINISHED, downloads_folder, lock
from ..runtime.hashing import sha256

SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "https": "aiohttp", "http": "aiohttp", "hf": "huggingface_hub"}
WANTED = (".json", ".safetensors", ".msgpack")  # files of a folder that are copied
PIECE = 2**24  # bytes
# File attributes that change with the content, of HTTP, S3, Google Cloud Storage and the Hub. The first one counts.
TELLING = ("ETag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "generation", "blob_id", "created")


def is_url(path: epath.PathLike) -> bool:
    """Whether a path is a URL of one of SCHEMES."""
    scheme, colon, _ = os.fspath(path).partition("://")
    return bool(colon) and scheme in SCHEMES


def local_copy(url: str) -> Path:
    """A copy of the file or folder at a URL, in the cache; of a folder, its JSON, safetensors and msgpack files.

    An interrupted download resumes if the server says that the files did not change, and starts again if not. The copy
    appears in the cache once all its files are complete, and is not checked again.

    Raises:
      InputError: if there is nothing at the URL, it cannot be reached or read, or it changes during the download.
    """
    scheme = url.partition("://")[0]
    url = url.rstrip("/")
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "root"
    place = downloads_folder() / sha256([url], 16)
    target, done = place / name, place / "complete"
    place.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            lock(stack.enter_context((place / ".lock").open("a+")), lambda holder: None)
        if done.exists():
            return target
        try:
            files, path = fsspec.core.url_to_fs(url)
            found = _look(files, path, url)
            version = _version_of(found)
            unfinished = place / f".{version}{UNFINISHED}"
            for other in place.iterdir():
                if other.name != ".lock" and (other != unfinished or version is None):
                    shutil.rmtree(other) if other.is_dir() else other.unlink()
            for file, about in found.items():
                part = unfinished / "copy" if file == path else _within(unfinished / "copy", file, path, url)
                _copy(files, file, about["size"], part)
            if _look(files, path, url) != found:
                raise OSError("it changed during the download")
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
        (unfinished / "copy").replace(target)
        unfinished.rmdir()
        done.touch()
    return target


def _look(files: Any, path: str, url: str) -> dict[str, dict[str, Any]]:
    """List what is at a path now: the file, or the folder's files to copy, each with its size and attributes."""
    files.invalidate_cache()
    if url.startswith(("http://", "https://")) or not files.isdir(path):
        found = {path: files.info(path)}
    else:
        found = {file: about for file, about in files.find(path, detail=True).items() if file.endswith(WANTED)}
    if not found:
        raise InputError(f"{url}: the folder has no file that ends in {', '.join(WANTED)}.")
    return {
        file: {"size": about.get("size"), **dict([(name, str(about[name])) for name in TELLING if name in about][:1])}
        for file, about in sorted(found.items())
    }


def _version_of(found: dict[str, dict[str, Any]]) -> str | None:
    """A hash of the files' version, so that two versions are never mixed; None if the server does not tell versions."""
    if not all(about["size"] is not None and len(about) > 1 for about in found.values()):
        return None
    return sha256([str(found)], 8)


def _within(folder: Path, file: str, path: str, url: str) -> Path:
    """The local path of a folder's file. Raises an InputError for a path that leads out of the folder."""
    name = os.path.relpath(file, path)
    place = (folder / name).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise InputError(f"{url}: {name!r} leads out of the folder; nothing of it is copied.")
    return place


def _copy(files: Any, source: str, size: int | None, target: Path) -> None:
    """Copies a file, going on with the part of it that is there."""
    if target.exists():
        return
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
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
