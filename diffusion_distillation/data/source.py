"""The interface of datasets: a source is any object with the members of `Source`."""

import functools
import json
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..runtime.hashing import sha256

HASH_CHUNK_BYTES = 64 << 20


@runtime_checkable
class Source(Protocol):
    """Images with random access.

    A source may have two more attributes: `class_names`, a tuple of `num_classes` strings or None, and `fingerprint`,
    a string that changes when the content does; see `data.fingerprint`.

    Attributes:
      image_shape: (height, width, channels), with 3 channels, or 1 for gray images.
      num_classes: 1 if labels are not used.
    """

    image_shape: tuple[int, int, int]
    num_classes: int

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at these indices; several threads call it at a time.

        Returns:
          uint8 `image`, `[n, height, width, channels]`, and int32 `label`, `[n]`.
        """


def source_problem(source: Any) -> str | None:
    """Return why an object is not a `Source`, judged by its first and last example; None if nothing is wrong.

    >>> source_problem([1, 2])
    'this list has no image_shape, num_classes'
    """
    kind = type(source).__name__
    if missing := [name for name in (*Source.__annotations__, "__len__", "__getitem__") if not hasattr(source, name)]:
        return f"this {kind} has no {', '.join(missing)}"
    shape = source.image_shape
    num_classes = source.num_classes
    if not (isinstance(shape, tuple) and len(shape) == 3 and all(_is_count(size) for size in shape)):
        return f"image_shape={shape!r} is not a tuple of integers (height, width, channels)"
    if shape[2] not in (1, 3):
        return f"image_shape={shape!r} has {shape[2]} channels; it must have 3, or 1 for gray images"
    if not _is_count(num_classes):
        return f"num_classes={num_classes!r} is not an integer of at least 1 (1 if labels are not used)"
    if len(source) < 1:
        return f"this {kind} has no images"
    indices = np.array([0, len(source) - 1])
    try:
        examples = source[indices]
        image = np.asarray(examples["image"])
        label = np.asarray(examples["label"])
    except Exception as error:  # the user's code may raise anything
        return (
            f"source[indices]['image'] and ['label'], with indices=np.array({indices.tolist()}), raised "
            f"{type(error).__name__}: {error}"
        )
    if image.dtype != np.uint8 or image.shape != (2, *shape):
        return f"two images are {image.dtype} of shape {image.shape}, not uint8 of shape {(2, *shape)}"
    if not np.issubdtype(label.dtype, np.integer) or label.shape != (2,):
        return f"two labels are {label.dtype} of shape {label.shape}, not integers of shape (2,)"
    if num_classes > 1 and not all(0 <= number < num_classes for number in label):
        return f"labels {label.tolist()} are not all among 0 to {num_classes - 1}, as num_classes={num_classes} says"
    names = getattr(source, "class_names", None)
    if names is not None and not (
        isinstance(names, tuple) and len(names) == num_classes and all(isinstance(name, str) for name in names)
    ):
        return f"class_names={names!r} must be None or a tuple with one string per class, {num_classes} in all"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and value >= 1


class ArraySource:
    """A source held in memory.

    Args:
      images: uint8, `[n, height, width, channels]`; may be mapped from a file.
      labels: integers, `[n]`.
      num_classes: 1 if labels are not used.
      class_names: one name per class; None if the classes have no names.
      content: a hash of images and labels; by default computed when needed.

    >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), num_classes=2)
    >>> len(source), source[np.array([1])]["label"]
    (2, array([1], dtype=int32))
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_classes: int,
        class_names: tuple[str, ...] | None = None,
        content: str | None = None,
    ):
        self._images = np.asarray(images)  # indexing is slower on np.memmap itself
        self._labels = np.asarray(labels, np.int32)
        self.image_shape = images.shape[1:]
        self.num_classes = num_classes
        self.class_names = class_names
        self._content = content

    @functools.cached_property
    def fingerprint(self) -> str:
        """See `data.fingerprint`."""
        labels = self._labels if self.num_classes > 1 else self._labels[:0]
        return source_fingerprint(self, self._content or hash_arrays(self._images, labels))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self._images[indices], "label": self._labels[indices]}


def hash_arrays(*arrays: np.ndarray) -> str:
    """Hash arrays, their types and their shapes. Large arrays are read in chunks.

    >>> hash_arrays(np.zeros(3, np.uint8))[:16]
    '7907ce3705ab2545'
    """

    def parts() -> Iterator[str | np.ndarray]:
        for array in arrays:
            yield f"{array.dtype.str} {array.shape}"
            rows = max(1, HASH_CHUNK_BYTES // max(1, array[:1].nbytes))
            for start in range(0, len(array), rows):
                yield np.ascontiguousarray(array[start : start + rows])

    return sha256(parts())


def source_fingerprint(source: Source, content: str) -> str:
    """Return the fingerprint of a source whose images and labels have this hash."""
    names = getattr(source, "class_names", None)
    about = [content, len(source), list(map(int, source.image_shape)), int(source.num_classes), names]
    return sha256([json.dumps(about)], 16)
