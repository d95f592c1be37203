"""What a dataset is to the rest of the package. A source is anything with `Source`'s members."""

from typing import Protocol, runtime_checkable

import numpy as np


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
        """The examples at these indices: uint8 `image`, `[n, height, width, channels]`, and int32 `label`, `[n]`.

        Called by several threads at a time.
        """


class ArraySource:
    """A source held in memory.

    Args:
      images: uint8, `[n, height, width, channels]`; may be mapped from a file.
      labels: `[n]` integers.
      num_classes: 1 if the labels are not to be used.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int):
        self._images = np.asarray(images)  # indexing is slower on np.memmap itself
        self._labels = np.asarray(labels, np.int32)
        self.image_shape = images.shape[1:]
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": self._images[indices], "label": self._labels[indices]}
