"""Where images come from. A source is anything with `Source`'s five members; adding one is one class and one line."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import InputError


@runtime_checkable
class Source(Protocol):
    """Images with random access.

    Attributes:
      image_shape: (height, width, channels).
      num_classes: 1 if the labels are not to be used.
    """

    image_shape: tuple[int, int, int]
    num_classes: int

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these indices: uint8 `image`, `[n, height, width, channels]`, and int32 `label`, `[n]`."""


class ArraySource:
    """A source held in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int):
        self.images = images
        self.labels = labels.astype(np.int32)
        self.image_shape = images.shape[1:]
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self.images[indices], "label": self.labels[indices]}


def digits(class_conditional: bool = False) -> ArraySource:
    """The 1,797 handwritten digits that come with scikit-learn (UCI test set): 8x8, grey, 17 levels, 10 classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return ArraySource(images, data.target, 10 if class_conditional else 1)


SOURCES: dict[str, Callable[..., Source]] = {"digits": digits}


def load_source(name: str, **args: Any) -> Source:
    """The source that a config's `dataset` section names.

    Args:
      name: a key of `SOURCES`.
      **args: arguments of the source. `randflip` is not the source's; the training step reads it.

    Raises:
      InputError: for an unknown name or argument.
    """
    if name not in SOURCES:
        raise InputError(f"Unknown dataset config.dataset.name={name!r}; choose one of {sorted(SOURCES)}.")
    args.pop("randflip", None)
    try:
        return SOURCES[name](**args)
    except TypeError as error:
        raise InputError(f"config.dataset.args={args} do not suit dataset {name!r}: {error}.") from error
