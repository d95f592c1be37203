"""Folders of images."""

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .encoded import open_encoded
from .images import Transform
from .source import Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
# Files that were meant as images, and would be missed, if they were passed over without a word.
OTHER_SUFFIXES = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".tga", ".psd", ".svg", ".ico")


def image_folder(
    path: str,
    image_size: int,
    class_conditional: bool = False,
    crop: bool = True,
    resize: str = "bilinear",
    on_error: str = "skip",
) -> Source:
    """All PNG, JPEG, WebP and BMP images in a folder and its sub-folders, in the order of their paths.

    Hidden files and folders are passed over; links are followed. Images become RGB: transparency is laid over white,
    16 bits become 8, and the orientation that a camera noted is applied.

    Args:
      path: the folder.
      image_size: height and width that images are resized to.
      class_conditional: whether the folders within it, in alphabetical order, are classes.
      crop: take the central square of each image; or else squeeze it into a square.
      resize: 'bilinear' (antialiased) or 'area'.
      on_error: 'skip' broken images, with a warning that names them, or 'raise' an error.

    Raises:
      InputError: for a folder that is not there, holds no image, or, if class_conditional, has images outside of its
        sub-folders.
    """
    root = _existing(path)
    files = ImageFiles(root, _find(root), class_conditional=class_conditional)
    return open_encoded(files, Transform(image_size, crop, resize, upright=True), on_error=on_error)


def cars_folder(path: str, transform: Transform, on_error: str) -> Source:
    """Stanford Cars as Kaggle and torchvision lay it out: what is in cars_train and cars_test, joined."""
    root = _existing(path)
    files = [*_find_below(root, "cars_train"), *_find_below(root, "cars_test")]
    return open_encoded(ImageFiles(root, files), transform, on_error=on_error)


class ImageFiles:
    """Image files; `encoded.Encoded` of them.

    Args:
      root: the folder they are in, at any depth.
      files: their paths.
      class_conditional: whether the folders in root are their classes.
    """

    trusted = False

    def __init__(self, root: Path, files: Sequence[Path], *, class_conditional: bool = False):
        if not any(file.suffix.lower() in SUFFIXES for file in files):
            others = Counter(file.suffix.lower() for file in files)
            found = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common()) or "none"
            raise InputError(
                f"No image in {str(root)!r}: it must have PNG, JPEG, WebP or BMP files in it or in its sub-folders "
                f"(other images found: {found})."
            )
        self._root, self._files = root, files
        self.title = root.name or "images"
        classes = sorted({self._class(file) for file in files}) if class_conditional else []
        self.num_classes = max(1, len(classes))
        self.class_names = tuple(classes) or None
        self._numbers = {name: number for number, name in enumerate(classes)}
        identities = [self._identity(file) for file in files]
        self.key = {"files": _hash(identities), "classes": classes}
        self.listing = {"files": _hash([identity[:2] for identity in identities]), "classes": classes}

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path."""
        return str(self._files[index])

    def read(self, index: int) -> tuple[bytes, int]:
        """The file's bytes and the number of its class."""
        file = self._files[index]
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            os.listdir(file)  # one that could not be searched says why
            raise OSError("it is a directory")
        if not stat.S_ISREG(mode):  # a pipe or a device might never end
            raise OSError("it is not a regular file")
        return file.read_bytes(), self._numbers[self._class(file)] if self._numbers else 0

    def _class(self, file: Path) -> str:
        folder, *inside = file.relative_to(self._root).parts
        if not inside:
            raise InputError(
                f"{str(file)!r} has no class: with config.dataset.args.class_conditional=True every image must be in a "
                f"sub-folder of {str(self._root)!r}, which is its class."
            )
        return folder

    def _identity(self, file: Path) -> list[Any]:
        try:
            status = file.stat()
        except OSError:
            return [str(file.relative_to(self._root))]
        times = status.st_mtime_ns, status.st_ctime_ns  # copying may set the first, and nothing sets the second
        return [str(file.relative_to(self._root)), status.st_size, *times, stat.S_IMODE(status.st_mode)]


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _existing(path: str | None) -> Path:
    if not path:
        raise InputError("config.dataset.args.path is missing: give the folder of your images.")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise InputError(f"config.dataset.args.path={str(path)!r} is not a folder.")
    return root


def _find(root: Path) -> list[Path]:
    """Everything in a folder that is called as images are, and folders that cannot be searched, in order."""
    seen, found = set(), []
    walk = os.walk(root, followlinks=True, onerror=lambda error: found.append(Path(error.filename)))
    for folder, folders, files in walk:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link in a circle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        named = [*files, *(name for name in folders if name.lower().endswith(SUFFIXES))]
        found += [
            Path(folder, name)
            for name in named
            if name.lower().endswith(SUFFIXES + OTHER_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def _find_below(root: Path, name: str) -> list[Path]:
    """What `_find` finds in the outermost folder of this name."""
    folders = [Path(folder) for folder, _, _ in os.walk(root) if Path(folder).name == name]
    found = _find(min(folders, key=lambda folder: len(folder.parts))) if folders else []
    if not found:
        raise InputError(
            f"No images in a folder {name!r} in {str(root)!r}: Stanford Cars has cars_train and cars_test."
        )
    return found
