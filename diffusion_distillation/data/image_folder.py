"""Folders of images."""

import json
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, is_transient
from ..runtime.files import retry
from ..runtime.hashing import sha256
from .decoding import open_encoded_images
from .source import Source
from .transforms import Transform

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Images in formats that cannot be read. They are listed, so that a message can name them.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".psd", ".svg", ".ico")
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}


def image_folder(
    path: str,
    image_size: int,
    class_conditional: bool = False,
    crop: bool = True,
    resize: str = "bilinear",
    on_error: str = "skip",
) -> Source:
    """Open all images in a folder and its subfolders, in the order of their paths; see `find_images`.

    Images are converted to RGB with 8 bits: transparency is laid over white, and the EXIF orientation is applied. Of
    animations and multi-page files, only the first image is read.

    Args:
      path: the folder.
      image_size: height and width that images are resized to.
      class_conditional: whether the folders inside it are classes, in alphabetical order.
      crop: whether to take the central square of each image; otherwise images are squeezed into squares.
      resize: 'bilinear' (antialiased) or 'area'.
      on_error: 'skip' broken images, with a warning that names them, or 'raise' an error.

    Raises:
      InputError: if the folder does not exist, has no image, or, if class_conditional, has images outside of its
        subfolders.
    """
    root = _existing(path)
    files = ImageFiles(root, find_images(root), class_conditional=class_conditional)
    if files.class_names and SPLITS.issuperset(map(str.lower, files.class_names)):
        names = ", ".join(map(repr, files.class_names))
        logging.warning(
            "The classes of %s are its folders %s, which are usually splits of a dataset. If so, train on one of them: "
            "config.dataset.args.path=%s.",
            *(root, names, root / files.class_names[0]),
        )
    return open_encoded_images(files, Transform(image_size, crop, resize, upright=True), on_error=on_error)


def cars_folder(path: str, transform: Transform, on_error: str) -> Source:
    """Open Stanford Cars as Kaggle and torchvision lay it out: the images in cars_train and cars_test.

    Args:
      path: a folder that contains both, at any depth.
      transform: applied to each image.
      on_error: see `image_folder`.

    Raises:
      InputError: if one of the two folders is missing or has no image.
    """
    root = _existing(path)
    files = [*_find_below(root, "cars_train"), *_find_below(root, "cars_test")]
    return open_encoded_images(ImageFiles(root, files), transform, on_error=on_error)


class ImageFiles:
    """Image files as `decoding.EncodedImages`.

    Args:
      root: a folder that contains all files, at any depth.
      files: the paths.
      class_conditional: whether the folders in root are the classes.
    """

    trusted = False

    def __init__(self, root: Path, files: Sequence[Path], *, class_conditional: bool = False):
        if not any(file.suffix.lower() in SUFFIXES for file in files):
            others = Counter(file.suffix.lower() for file in files)
            found = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common()) or "none"
            raise InputError(
                f"No image in {str(root)!r}: it must have PNG, JPEG, WebP, BMP, GIF or TIFF files in it or in its "
                f"subfolders (other images found: {found})."
            )
        self._root, self._files = root, files
        self.title = root.name or "images"
        classes = sorted({self._class(file) for file in files}) if class_conditional else []
        self.num_classes = max(1, len(classes))
        # A folder's name may hold bytes that are not text and cannot be stored.
        self.class_names = tuple(os.fsencode(name).decode(errors="replace") for name in classes) or None
        self._numbers = {name: number for number, name in enumerate(classes)}
        identities = [self._identity(file) for file in files]
        self.key = {"files": _hash(identities), "classes": classes}
        self.listing = {"files": _hash([identity[:2] for identity in identities]), "classes": classes}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self._files[index])

    def read(self, index: int) -> tuple[bytes, int]:
        """Read the file's bytes, and return them with the number of its class."""
        file = self._files[index]
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(file)  # raises the reason if the folder could not be searched
            raise OSError("it is a directory")
        if not stat.S_ISREG(mode):  # a pipe or a device might never end
            raise OSError("it is not a regular file")
        return file.read_bytes(), self._numbers[self._class(file)] if self._numbers else 0

    def _class(self, file: Path) -> str:
        parts = file.relative_to(self._root).parts
        if len(parts) < 2:
            if file.is_dir():
                raise InputError(f"{str(file)!r} cannot be searched. Make it readable, or move it to another folder.")
            raise InputError(
                f"{str(file)!r} has no class: with config.dataset.args.class_conditional=True every image must be in a "
                f"subfolder of {str(self._root)!r}, which is its class."
            )
        return parts[0]

    def _identity(self, file: Path) -> list[Any]:
        try:
            status = retry(file.stat, file)
        except OSError:
            return [str(file.relative_to(self._root))]
        times = status.st_mtime_ns, status.st_ctime_ns  # copies may keep the first; no program can set the second
        return [str(file.relative_to(self._root)), status.st_size, *times, stat.S_IMODE(status.st_mode)]


def _hash(values: Any) -> str:
    return sha256([json.dumps(values)])


def _existing(path: str | None) -> Path:
    if not path:
        raise InputError("config.dataset.args.path is missing. Set it to the folder of your images.")
    root = Path(path).expanduser()
    try:
        if stat.S_ISDIR(retry(root.stat, root).st_mode):
            return root
    except OSError:
        pass
    raise InputError(f"config.dataset.args.path={str(path)!r} is not a folder.")


def find_images(root: Path) -> list[Path]:
    """List the files in a folder and its subfolders that have an image's suffix, in the order of their paths.

    See `find_files`. Files with one of `OTHER_SUFFIXES`, which cannot be read, are listed too.
    """
    return find_files(root, SUFFIXES + OTHER_SUFFIXES)


def find_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files in a folder and its subfolders whose names end in one of these, in the order of their paths.

    Links to files and folders are followed. A folder that is reached twice, as by a circular link, is searched once.
    Hidden files and folders, whose names start with a dot, are skipped. Folders that have such a name or cannot be
    searched are listed too: reading them raises an error with the reason.

    Raises:
      RunError: if the machine or its storage keeps failing.
    """

    def find() -> list[Path]:
        found: list[Path] = []
        for _, entries in _walk(root, found.append):
            found += [Path(entry.path) for entry in entries if entry.name.lower().endswith(suffixes)]
        return sorted(found)

    return retry(find, root)


def _walk(root: Path, unsearchable: Callable[[Path], Any]) -> Iterator[tuple[Path, list[os.DirEntry]]]:
    """Yield the root and every folder below it, each with its entries. Transient errors are raised."""
    seen, folders = set(), [root]
    while folders:
        folder = folders.pop()
        try:
            status = folder.stat()
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            if is_transient(error):
                raise
            unsearchable(folder)
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            entries.sort(key=lambda entry: entry.name)
            folders += [Path(entry.path) for entry in reversed(entries) if _is_folder(entry)]
            yield folder, entries


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:  # such as a link to itself
        if is_transient(error):
            raise
        return False


def _find_below(root: Path, name: str) -> list[Path]:
    """List the images in the outermost folder with this name."""
    folders = retry(lambda: [folder for folder, _ in _walk(root, lambda _: None) if folder.name == name], root)
    found = find_images(min(folders, key=lambda folder: len(folder.parts))) if folders else []
    if not found:
        raise InputError(
            f"No images in a folder {name!r} in {str(root)!r}: Stanford Cars has cars_train and cars_test."
        )
    return found
