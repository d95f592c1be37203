"""Sources of images that are measured, and never trained on."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Source, read_examples
from ..data.batches import prefetch
from ..data.image_folder import SUFFIXES, find_images
from ..data.transforms import BrokenImageError, decode, has_color
from ..errors import InputError
from ..runtime.files import retry


class FolderSource:
    """A `data.Source` of the images in a folder and its subfolders, at their own size, in the order of their paths.

    Images are decoded by `data.transforms.decode`: 8 bits, upright, without transparency. If all images are gray, they
    have one channel.

    Args:
      folder: searched by `data.image_folder.find_images`.

    Raises:
      InputError: if the folder has no images or a broken one. Reading an image of another size than the first one
        raises it too.
      RunError: if the machine or its storage keeps failing.
    """

    num_classes = 1

    def __init__(self, folder: Path):
        found = find_images(folder)
        self.files = [file for file in found if file.suffix.lower() in SUFFIXES]
        if not self.files:
            raise InputError(f"{str(folder)!r} has no images: files that end in {', '.join(SUFFIXES)}.")
        for path in found:
            if path.is_dir():
                raise InputError(f"{str(path)!r} is a folder that cannot be searched, or is named as images are.")
        if others := Counter(file.suffix for file in found if file.suffix.lower() not in SUFFIXES):
            counts = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common())
            logging.warning("%s: skipped images in formats that cannot be read: %s", folder, counts)
        in_color = prefetch(lambda number: self._read(number, has_color), range(len(self.files)))
        self.image_shape = (*self._read(0, _pixels).shape[:2], 3 if any(in_color) else 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = [self._read(index, _pixels) for index in indices.tolist()]
        height, width, channels = self.image_shape
        for index, image in zip(indices, images, strict=True):
            if image.shape[:2] != (height, width):
                raise InputError(
                    f"{str(self.files[index])!r} has {image.shape[0]}x{image.shape[1]} pixels, and "
                    f"{str(self.files[0])!r} has {height}x{width}: give images of one size."
                )
        return {"image": np.stack(images)[..., :channels], "label": np.zeros(len(images), np.int32)}

    def _read(self, index: int, read: Callable[[bytes], Any]) -> Any:
        file = self.files[index]
        try:
            return retry(lambda: read(file.read_bytes()), file)
        except (OSError, BrokenImageError) as error:
            raise InputError(f"{str(file)!r} cannot be read as an image ({error}).") from None


class GraySource:
    """A `data.Source` of gray images with 1 or 3 equal channels.

    Args:
      source: gray images, with 1 channel or 3 equal ones.
      channels: of the result, 1 or 3.
    """

    num_classes = 1

    def __init__(self, source: Source, channels: int):
        self._source = source
        self.image_shape = (*source.image_shape[:2], channels)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        examples = self._source[indices]
        return {**examples, "image": np.repeat(examples["image"][..., :1], self.image_shape[2], axis=-1)}


def source_has_color(source: Source) -> bool:
    """Return whether an image of a source has a pixel that is not gray."""
    if isinstance(source, FolderSource):  # it has 3 channels only if one of its images has color
        return source.image_shape[2] == 3
    batches = (examples["image"] for examples in read_examples(source, np.arange(len(source))))
    return any((images != images[..., :1]).any() for images in batches)


def _pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(decode(encoded))
