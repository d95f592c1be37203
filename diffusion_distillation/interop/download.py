"""Copy the file or folder at a URL into the user's cache, once.

The same code downloads from the Hugging Face Hub, from buckets and from web servers, by fsspec.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from ..errors import InputError
from ..pretrained import is_pretrained, pretrained_folder
from ..runtime.files import UNFINISHED, as_path, downloads_folder, file_lock
from ..runtime.hashing import sha256
from .model_files import SUFFIXES, needed

# The library that reads each scheme.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "https": "aiohttp", "http": "aiohttp", "hf": "huggingface_hub"}
CHUNK = 2**24  # bytes
# File attributes that change with the content, of HTTP, S3, Google Cloud Storage and the Hub. The first one counts.
VERSION_ATTRIBUTES = (
    "ETag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "generation", "blob_id", "created",
)  # fmt: skip


def is_url(path: epath.PathLike) -> bool:
    """Whether a path is a URL of one of SCHEMES.

    >>> is_url("hf://user/name"), is_url("runs/base")
    (True, False)
    """
    scheme, colon, _ = os.fspath(path).partition("://")
    return bool(colon) and scheme in SCHEMES


def local_folder(path: epath.PathLike) -> epath.Path:
    """The path where a file or folder can be read: here, in the package, or where a URL is copied to."""
    name = os.fspath(path)
    if is_pretrained(name):
        return as_path(pretrained_folder(name))
    return as_path(local_copy(name) if is_url(name) else path)


def local_copy(url: str) -> Path:
    """Copy the file or folder at a URL into the cache, unless it is there already.

    An interrupted download resumes if the server confirms that the files did not change, and starts again if not. The
    copy appears in the cache once all its files are complete. After that, the server is not contacted again.

    Args:
      url: the URL of a file or a folder. Of a folder, the files that a model is read from are copied; see
        `model_files.needed`.

    Returns:
      The path of the copy.

    Raises:
      InputError: if there is nothing at the URL, it cannot be read, or it changes during the download.
    """
    url = url.rstrip("/")
    entry = downloads_folder() / sha256([url], digits=16)
    target = entry / (re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "root")
    complete = entry / "complete"
    entry.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a file system without locks
            stack.enter_context(file_lock(entry / ".lock", on_wait=lambda holder: None))
        if not complete.exists():
            with _as_input_errors(url):
                _download(url, entry, target)
            complete.touch()
    return target


def _download(url: str, entry: Path, target: Path) -> None:
    """Copy all files of a URL into a folder named after their version, and move it to `target` when complete."""
    files, root = fsspec.core.url_to_fs(url)
    listing = _list(files, root, url)
    version = _version_of(listing)
    unfinished = entry / f".{version}{UNFINISHED}"
    _remove_other_versions(entry, keep=None if version is None else unfinished)
    copy = unfinished / "copy"
    for path, attributes in listing.items():
        _copy_file(files, path, attributes["size"], copy if path == root else _inside(copy, path, root, url))
    if _list(files, root, url) != listing:
        raise OSError("it changed during the download")
    copy.replace(target)
    unfinished.rmdir()


@contextlib.contextmanager
def _as_input_errors(url: str) -> Iterator[None]:
    """Turn whatever the libraries raise into an InputError that names the URL."""
    scheme = url.partition("://")[0]
    try:
        yield
    except ImportError:
        raise InputError(
            f"{url}: {scheme}:// URLs need {SCHEMES[scheme]}. Run: pip install {SCHEMES[scheme]}."
        ) from None
    except FileNotFoundError:
        raise InputError(f"{url}: there is nothing at this URL.") from None
    except InputError:
        raise
    except Exception as error:  # from the library for this scheme, or from the libraries below it
        raise InputError(
            f"{url} cannot be downloaded: {type(error).__name__}: {str(error)[:200]}. Try again."
        ) from None


def _list(files: Any, root: str, url: str) -> dict[str, dict[str, Any]]:
    """List the file at a path, or the folder's files to copy, each with its size and an attribute of its version."""
    files.invalidate_cache()
    if url.startswith(("http://", "https://")) or not files.isdir(root):
        found = {root: files.info(root)}
    else:
        present = files.find(root, detail=True)
        paths = {os.path.relpath(path, root): path for path in present}
        found = {paths[name]: present[paths[name]] for name in needed(paths, url)}
    if not found:
        raise InputError(f"{url}: the folder has no file that ends in {', '.join(SUFFIXES)}.")
    return {path: {"size": info.get("size"), **_version_attribute(info)} for path, info in sorted(found.items())}


def _version_attribute(info: dict[str, Any]) -> dict[str, str]:
    name = next((name for name in VERSION_ATTRIBUTES if name in info), None)
    return {} if name is None else {name: str(info[name])}


def _version_of(listing: dict[str, dict[str, Any]]) -> str | None:
    """A hash of the files' versions, so that two versions are never mixed; None if the server does not report them."""
    if not all(attributes["size"] is not None and len(attributes) > 1 for attributes in listing.values()):
        return None
    return sha256([str(listing)], digits=8)


def _remove_other_versions(entry: Path, keep: Path | None) -> None:
    for path in entry.iterdir():
        if path.name == ".lock" or path == keep:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _inside(folder: Path, path: str, root: str, url: str) -> Path:
    """The local path of a folder's file. Raises an InputError if the file's path leads out of the folder."""
    name = os.path.relpath(path, root)
    local = (folder / name).resolve()
    if not local.is_relative_to(folder.resolve()):
        raise InputError(f"{url}: {name!r} leads out of the folder. Nothing was copied.")
    return local


def _copy_file(files: Any, source: str, size: int | None, target: Path) -> None:
    """Copy a file. If a part of it is already here, resume after that part."""
    if target.exists():
        return
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.exists() else 0
    with part.open("r+b" if start else "wb") as out:
        out.seek(start)
        if size is None:  # the server does not report it
            out.write(files.cat_file(source))
        else:
            for begin in range(start, size, CHUNK):
                chunk = files.cat_file(source, begin, min(begin + CHUNK, size))
                if len(chunk) != min(CHUNK, size - begin):
                    raise OSError(f"got {len(chunk):,} bytes from byte {begin:,} on, of {size:,}")
                out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    part.replace(target)
