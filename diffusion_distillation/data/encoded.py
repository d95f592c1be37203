"""Datasets whose images are encoded, in files or records: decoded ahead of training, or once for all."""

import dataclasses
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL
from tqdm import tqdm

from ..errors import InputError
from .batches import read_ahead
from .cache import Arrays, cached
from .images import BrokenImageError, Transform
from .source import ArraySource, Source

IN_MEMORY = 4 << 30  # bytes of decoded images up to which a dataset is decoded once and kept
NAMED = 50  # broken images named in a message; the rest are counted


@runtime_checkable
class Encoded(Protocol):
    """Encoded images with their labels.

    Attributes:
      title: what it is called in messages.
      num_classes: 1 if the labels are not to be used.
      fingerprint: JSON that changes when any image or label does.
      trusted: whether images may be taken to be sound before they are read.
    """

    title: str
    num_classes: int
    fingerprint: dict[str, Any]
    trusted: bool

    def __len__(self) -> int:
        """The number of images."""

    def name(self, index: int) -> str:
        """What an image is called in messages."""

    def read(self, index: int) -> tuple[bytes, int]:
        """An image's bytes and its label; raises an OSError if it cannot be read."""


def open_encoded(encoded: Encoded, transform: Transform, *, on_error: str = "raise") -> Source:
    """The source of encoded images.

    What takes up to 4 GiB once it is decoded is decoded now and kept as uint8 on disk, for the next time. More than
    that is decoded as it is read; unless the images are trusted, each is decoded once now, to find the broken ones.

    Args:
      encoded: the images.
      transform: what is done to each.
      on_error: whether broken images are left out ('skip'; they are named in a warning) or not accepted ('raise').

    Raises:
      InputError: if there are broken images and on_error is 'raise', or if no image is sound.
    """
    if on_error not in ("skip", "raise"):
        raise InputError(f"config.dataset.args.on_error={on_error!r} must be 'skip' or 'raise'.")
    keep = len(encoded) * int(np.prod(transform.image_shape)) <= IN_MEMORY
    if not keep and encoded.trusted:
        return DecodedSource(encoded, transform, np.arange(len(encoded)))
    key = {
        "images": encoded.fingerprint,
        "transform": dataclasses.asdict(transform) if keep else None,
        "pillow": PIL.__version__,
    }
    found = cached(re.sub(r"\W+", "-", encoded.title), key, lambda: _decode_all(encoded, transform, keep=keep))
    _report_broken(encoded, found, on_error)
    if keep:
        return ArraySource(found["images"], found["labels"], encoded.num_classes)
    return DecodedSource(encoded, transform, found["sound"])


class DecodedSource:
    """A source that decodes images as they are asked for.

    Args:
      encoded: the images.
      transform: what is done to each.
      sound: indices of the images to use.
    """

    def __init__(self, encoded: Encoded, transform: Transform, sound: np.ndarray):
        self._encoded, self._transform, self._sound = encoded, transform, sound
        self.image_shape = transform.image_shape
        self.num_classes = encoded.num_classes

    def __len__(self) -> int:
        return len(self._sound)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, index in enumerate(self._sound[indices].tolist()):
            try:
                images[row], labels[row] = _decode(self._encoded, index, self._transform)
            except BrokenImageError as error:
                raise InputError(f"{self._encoded.name(index)} cannot be used: {error}.") from error
        return {"image": images, "label": labels}


def _decode(encoded: Encoded, index: int, transform: Transform) -> tuple[np.ndarray, int]:
    try:
        image, label = encoded.read(index)
    except OSError as error:
        raise BrokenImageError(error.strerror or str(error)) from error
    return transform(image), label


def _decode_all(encoded: Encoded, transform: Transform, *, keep: bool) -> Arrays:
    """Decodes every image: which are sound, the names of the others and why, and images and labels if kept."""
    count = len(encoded)
    images = np.empty((count if keep else 0, *transform.image_shape), np.uint8)
    labels = np.empty(count if keep else 0, np.int32)
    sound, broken = [], []
    # At once, and where stderr is no terminal, too; `cached` sees to it that one process of many is here.
    print(f"{encoded.title}: decoding {count:,} images", file=sys.stderr, flush=True)
    for index, decoded in enumerate(tqdm(_attempts(encoded, transform), encoded.title, count, disable=None)):
        if isinstance(decoded, BrokenImageError):
            broken.append(f"{encoded.name(index)}: {decoded}")
            continue
        if keep:
            images[len(sound)], labels[len(sound)] = decoded
        sound.append(index)
    found = {"sound": np.array(sound, np.int64), "broken": np.array(broken, np.str_)}
    return found | ({"images": images[: len(sound)], "labels": labels[: len(sound)]} if keep else {})


def _attempts(encoded: Encoded, transform: Transform) -> Iterator[tuple[np.ndarray, int] | BrokenImageError]:
    def attempt(index: int) -> tuple[np.ndarray, int] | BrokenImageError:
        try:
            return _decode(encoded, index, transform)
        except BrokenImageError as error:
            return error

    return iter(read_ahead(attempt, range(len(encoded))))


def _report_broken(encoded: Encoded, found: Arrays, on_error: str) -> None:
    broken, sound = found["broken"].tolist(), len(found["sound"])
    if not broken:
        return
    more = [f"and {len(broken) - NAMED:,} more"] if len(broken) > NAMED else []
    names = "\n  ".join([f"{len(broken):,} of {len(broken) + sound:,} images cannot be used:", *broken[:NAMED], *more])
    if not sound:
        raise InputError(f"{encoded.title}: no image can be used; {names}")
    if on_error == "raise":
        raise InputError(f"{encoded.title}: {names}\nMend or remove them, or set config.dataset.args.on_error='skip'.")
    logging.warning("%s: %s\nThey are left out.", encoded.title, names)
