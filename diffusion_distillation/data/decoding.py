"""Datasets whose images are encoded, in files or records: decoded ahead of training, or once for all."""

import dataclasses
import functools
import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL
from tqdm import tqdm

from ..errors import InputError
from ..runtime.files import retry
from .batches import prefetch
from .cache import Arrays, cached_arrays
from .fingerprint import evenly_spaced
from .source import ArraySource, Source, source_fingerprint
from .transforms import BrokenImageError, Transform

MAX_CACHED_BYTES = 4 << 30  # bytes of decoded images up to which a dataset is decoded once and kept
EXAMPLES = 256  # examples in the fingerprint of a dataset that is decoded as it is read
NAMED = 50  # broken images named in a message; the rest are counted


@runtime_checkable
class EncodedImages(Protocol):
    """Encoded images with their labels.

    Attributes:
      title: what it is called in messages.
      num_classes: 1 if the labels are not to be used.
      class_names: one name per class; None if the classes have no names.
      key: JSON that changes when an image or label changes, as far as names, sizes and times of files show.
      listing: JSON of what is known about the content without reading it, independent of paths and times.
      trusted: whether images may be taken to be sound before they are read.
    """

    title: str
    num_classes: int
    class_names: tuple[str, ...] | None
    key: dict[str, Any]
    listing: dict[str, Any]
    trusted: bool

    def __len__(self) -> int:
        """The number of images."""

    def name(self, index: int) -> str:
        """What an image is called in messages."""

    def read(self, index: int) -> tuple[bytes, int]:
        """An image's bytes and its label; raises an OSError if it cannot be read."""


def open_encoded_images(encoded: EncodedImages, transform: Transform, *, on_error: str = "raise") -> Source:
    """The source of encoded images.

    What takes up to 4 GiB once it is decoded is decoded now and kept as uint8 on disk, for the next time. More than
    that is decoded as it is read; unless the images are trusted, each is decoded once now, to find the broken ones.

    Args:
      encoded: the images.
      transform: what is done to each.
      on_error: whether broken images are left out ('skip'; they are named in a warning) or not accepted ('raise').

    Raises:
      InputError: if there are broken images and on_error is 'raise', or if no image is sound.
      RunError: if the machine or its storage keeps failing while an image is read.
    """
    if on_error not in ("skip", "raise"):
        raise InputError(f"config.dataset.args.on_error={on_error!r} must be 'skip' or 'raise'.")
    keep = len(encoded) * int(np.prod(transform.image_shape)) <= MAX_CACHED_BYTES
    if not keep and encoded.trusted:
        return DecodingSource(encoded, transform, np.arange(len(encoded)))
    key = {
        "images": encoded.key,
        "transform": dataclasses.asdict(transform) if keep else None,
        "pillow": PIL.__version__,
        "version": 2,
    }
    found = cached_arrays(re.sub(r"\W+", "-", encoded.title), key, lambda: _decode_all(encoded, transform, keep=keep))
    _report_broken(encoded, found, on_error)
    if keep:
        content = _content(str(found["digest"]), transform)
        return ArraySource(found["images"], found["labels"], encoded.num_classes, encoded.class_names, content)
    return DecodingSource(encoded, transform, found["sound"], str(found["digest"]))


class DecodingSource:
    """A source that decodes images as they are asked for.

    Args:
      encoded: the images.
      transform: what is done to each.
      sound: indices of the images to use.
      digest: the digest of all these images; None to compute one from some of them.
    """

    def __init__(self, encoded: EncodedImages, transform: Transform, sound: np.ndarray, digest: str | None = None):
        self._encoded, self._transform, self._sound, self._digest = encoded, transform, sound, digest
        self.image_shape = transform.image_shape
        self.num_classes = encoded.num_classes
        self.class_names = encoded.class_names

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `data.fingerprint`."""
        digest = self._digest or _digest_of_some(self._encoded, self._sound)
        return source_fingerprint(self, _content(digest, self._transform))

    def __len__(self) -> int:
        return len(self._sound)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        labels = np.empty(len(indices), np.int32)
        for row, index in enumerate(self._sound[indices].tolist()):
            try:
                images[row], labels[row], _ = _decode(self._encoded, index, self._transform)
            except BrokenImageError as error:
                raise InputError(f"{self._encoded.name(index)} cannot be used: {error}.") from error
        return {"image": images, "label": labels}


Decoded = tuple[np.ndarray, int, bytes]  # an image, its label, and the bytes that it was decoded from


def _decode(encoded: EncodedImages, index: int, transform: Transform) -> Decoded:
    def decode() -> Decoded:
        content, label = encoded.read(index)
        return transform(content), label, content

    try:
        return retry(decode, encoded.name(index))
    except OSError as error:
        raise BrokenImageError(error.strerror or str(error)) from error


def _decode_all(encoded: EncodedImages, transform: Transform, *, keep: bool) -> Arrays:
    """Decode every image.

    Returns:
      The indices of the sound images, their digest, and the names of the broken ones with the reasons. With `keep`,
      also the images and labels.
    """
    count = len(encoded)
    images = np.empty((count if keep else 0, *transform.image_shape), np.uint8)
    labels = np.empty(count if keep else 0, np.int32)
    sound, broken, digest = [], [], hashlib.sha256()
    # At once, and where stderr is no terminal, too; `cached_arrays` sees to it that one process of many is here.
    print(f"{encoded.title}: decoding {count:,} images", file=sys.stderr, flush=True)
    for index, decoded in enumerate(tqdm(_attempts(encoded, transform), encoded.title, count, disable=None)):
        if isinstance(decoded, BrokenImageError):
            broken.append(f"{encoded.name(index)}: {decoded}")
            continue
        image, label, digest_of_it = decoded
        digest.update(digest_of_it)
        if keep:
            images[len(sound)], labels[len(sound)] = image, label
        sound.append(index)
    found = {"sound": np.array(sound, np.int64), "broken": np.array(broken, np.str_)}
    found["digest"] = np.array(digest.hexdigest())
    return found | ({"images": images[: len(sound)], "labels": labels[: len(sound)]} if keep else {})


def _attempts(encoded: EncodedImages, transform: Transform) -> Iterator[Decoded | BrokenImageError]:
    """Yield each image with its label and digest, or the error that says why it is broken."""

    def attempt(index: int) -> Decoded | BrokenImageError:
        try:
            image, label, content = _decode(encoded, index, transform)
        except BrokenImageError as error:
            return error
        return image, label, _digest(content, label)

    return iter(prefetch(attempt, range(len(encoded))))


def _digest(content: bytes, label: int) -> bytes:
    return hashlib.sha256(f"{label} ".encode() + content).digest()


def _digest_of_some(encoded: EncodedImages, sound: np.ndarray) -> str:
    """A digest of the listing and of some of the images."""
    some = sound[evenly_spaced(len(sound), EXAMPLES)].tolist()
    digest = hashlib.sha256(json.dumps(encoded.listing).encode())

    def digest_of(number: int) -> bytes:
        index = some[number]
        return _digest(*retry(lambda: encoded.read(index), encoded.name(index)))

    for of_one in prefetch(digest_of, range(len(some))):
        digest.update(of_one)
    return digest.hexdigest()


def _content(digest: str, transform: Transform) -> str:
    """The fingerprint of transformed images. New fields of `Transform` do not change it at their defaults."""
    shaped_by = dataclasses.asdict(transform).items()
    return json.dumps([digest, {name: value for name, value in shaped_by if value != getattr(Transform, name, None)}])


def _report_broken(encoded: EncodedImages, found: Arrays, on_error: str) -> None:
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
