"""Whether two sources hold the same data."""

import hashlib

import numpy as np

from .batches import read_examples
from .source import Source, combine, hash_of

MOST_EXAMPLES = 100  # of a source without a fingerprint of its own


def fingerprint(source: Source) -> str:
    """A hash of the content of a dataset: its images, labels and class names, and their order.

    It does not depend on the dataset's path, nor on times of files: a copy has the same fingerprint. It is cheap: what
    takes long is computed once and cached with the decoded images.

    What it notices depends on the source:

    - An `ArraySource`, such as 'digits', 'MNIST' and 'letters': every pixel, and the labels if they are used.
    - A folder of images: every byte of every image that can be used, its class, and how images are transformed. Names
      of files matter only as far as they determine the order.
    - A dataset that TFDS has prepared: the same, if it takes up to 4 GiB decoded. Of a larger one: its name, version
      and split, the lengths of its files, and 256 evenly spaced examples. Other changes go unnoticed.
    - Your own source: its attribute `fingerprint`, a string, if it has one. If not: its length, `image_shape`,
      `num_classes`, `class_names`, and 100 evenly spaced examples. Other changes go unnoticed. The examples are read
      twice, and left out if they differ, as in a source that augments them at random.

    Args:
      source: the dataset.

    Returns:
      16 hexadecimal digits.
    """
    own = getattr(source, "fingerprint", None)
    if own is not None:
        return hashlib.sha256(str(own).encode()).hexdigest()[:16]
    first, second = _read(source), _read(source)
    return combine(source, first if first == second else "")


def _read(source: Source) -> str:
    """A hash of some examples."""
    examples = read_examples(source, evenly_spaced(len(source), MOST_EXAMPLES))
    used = ("image", "label") if source.num_classes > 1 else ("image",)
    return hash_of(*(np.asarray(batch[name]) for batch in examples for name in used))


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Up to `most` of the indices 0 to count - 1, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
