"""Datasets of encoded images, in files or records.

Datasets up to 4 GiB are decoded once and cached. Larger ones are decoded on the fly by background threads.
"""

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

MAX_CACHED_BYTES = 4 << 30  # of decoded images
FINGERPRINT_EXAMPLES = 256  # of a dataset that is decoded on the fly
MAX_NAMES = 50  # of broken images in a message; the rest are counted


@runtime_checkable
class EncodedImages(Protocol):
    """Encoded images with their labels.

    Attributes:
      title: the dataset's name in messages.
      num_classes: 1 if labels are not used.
      class_names: one name per class; None if the classes have no names.
      key: JSON that changes when an image or label does, judged by the names, sizes and times of files.
      listing: JSON that identifies the content without reading it, independent of paths and times.
      trusted: whether all images can be assumed to be intact before they are read.
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
        """Return an image's name in messages."""

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an image's bytes and its label; raises an OSError if it cannot be read."""


def open_encoded_images(encoded: EncodedImages, transform: Transform, *, on_error: str = "raise") -> Source:
    """Open encoded images as a source.

    Up to 4 GiB of decoded images are decoded now, and cached on disk as uint8. More than that are decoded on the fly;
    unless they are trusted, all are decoded once now, to find the broken ones.

    Args:
      encoded: the images.
      transform: applied to each image.
      on_error: 'skip' broken images, with a warning that names them, or 'raise' an error.

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
    decoded = cached_arrays(re.sub(r"\W+", "-", encoded.title), key, lambda: _decode_all(encoded, transform, keep=keep))
    _report_broken(encoded, decoded, on_error)
    if keep:
        content = _content(str(decoded["digest"]), transform)
        return ArraySource(decoded["images"], decoded["labels"], encoded.num_classes, encoded.class_names, content)
    return DecodingSource(encoded, transform, decoded["sound"], str(decoded["digest"]))


class DecodingSource:
    """A source that decodes images on the fly.

    Args:
      encoded: the images.
      transform: applied to each image.
      sound: indices of the images to use.
      digest: a hash of all these images; by default computed from some of them.
    """

    def __init__(self, encoded: EncodedImages, transform: Transform, sound: np.ndarray, digest: str | None = None):
        self._encoded = encoded
        self._transform = transform
        self._sound = sound
        self._digest = digest
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


Decoded = tuple[np.ndarray, int, bytes]  # an image, its label, and its encoded bytes or their hash


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
      `sound`, the indices of the sound images; `digest`, a hash of them; `broken`, the names of the broken images with
      the reasons. With `keep`, also `images` and `labels`.
    """
    count = len(encoded)
    images = np.empty((count if keep else 0, *transform.image_shape), np.uint8)
    labels = np.empty(count if keep else 0, np.int32)
    sound = []
    broken = []
    digest = hashlib.sha256()
    # tqdm shows nothing yet, and nothing at all unless stderr is a terminal. `cached_arrays` lets one process in.
    print(f"{encoded.title}: decoding {count:,} images", file=sys.stderr, flush=True)
    for index, decoded in enumerate(tqdm(_attempts(encoded, transform), encoded.title, count, disable=None)):
        if isinstance(decoded, BrokenImageError):
            broken.append(f"{encoded.name(index)}: {decoded}")
            continue
        image, label, image_digest = decoded
        digest.update(image_digest)
        if keep:
            images[len(sound)] = image
            labels[len(sound)] = label
        sound.append(index)
    arrays = {
        "sound": np.array(sound, np.int64),
        "broken": np.array(broken, np.str_),
        "digest": np.array(digest.hexdigest()),
    }
    if keep:
        arrays["images"] = images[: len(sound)]
        arrays["labels"] = labels[: len(sound)]
    return arrays


def _attempts(encoded: EncodedImages, transform: Transform) -> Iterator[Decoded | BrokenImageError]:
    """Yield each image with its label and hash, or the error that explains why it is broken."""

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
    """Hash the listing and some of the images."""
    some = sound[evenly_spaced(len(sound), FINGERPRINT_EXAMPLES)].tolist()
    digest = hashlib.sha256(json.dumps(encoded.listing).encode())

    def digest_of(number: int) -> bytes:
        index = some[number]
        return _digest(*retry(lambda: encoded.read(index), encoded.name(index)))

    for image_digest in prefetch(digest_of, range(len(some))):
        digest.update(image_digest)
    return digest.hexdigest()


def _content(digest: str, transform: Transform) -> str:
    """Identify transformed images. Default fields of `Transform` are omitted, so that new fields change nothing."""
    fields = dataclasses.asdict(transform).items()
    return json.dumps([digest, {name: value for name, value in fields if value != getattr(Transform, name, None)}])


def _report_broken(encoded: EncodedImages, decoded: Arrays, on_error: str) -> None:
    broken = decoded["broken"].tolist()
    num_sound = len(decoded["sound"])
    if not broken:
        return
    lines = [f"{len(broken):,} of {len(broken) + num_sound:,} images cannot be used:", *broken[:MAX_NAMES]]
    if len(broken) > MAX_NAMES:
        lines.append(f"and {len(broken) - MAX_NAMES:,} more")
    names = "\n  ".join(lines)
    if not num_sound:
        raise InputError(f"{encoded.title}: no image can be used; {names}")
    if on_error == "raise":
        raise InputError(
            f"{encoded.title}: {names}\nRepair or remove them, or set config.dataset.args.on_error='skip'."
        )
    logging.warning("%s: %s\nThey are skipped.", encoded.title, names)
