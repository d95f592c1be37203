"""Fingerprints, which tell whether two sources hold the same data."""

import numpy as np

from ..runtime.hashing import sha256
from .batches import read_examples
from .source import Source, hash_arrays, source_fingerprint

MOST_EXAMPLES = 100  # hashed from a source without a fingerprint of its own


def fingerprint(source: Source) -> str:
    """A hash of the content of a dataset: its images, labels and class names, and their order.

    The hash does not depend on the dataset's path or on file times, so a copy has the same fingerprint. Computing it is
    cheap: slow parts are computed once and cached with the decoded images.

    Which changes it detects depends on the source:

    - An `ArraySource`, such as 'digits', 'MNIST' and 'letters': every pixel, and the labels if they are used.
    - A folder of images: every byte of every image that can be used, its class, and how images are transformed. File
      names matter only as far as they determine the order.
    - A dataset that TFDS has prepared: as for a folder, if it takes up to 4 GiB decoded. If it is larger: its name,
      version and split, the lengths of its files, and 256 evenly spaced examples. Other changes go unnoticed.
    - Your own source: its attribute `fingerprint`, a string, if it has one. If it has none: its length, `image_shape`,
      `num_classes`, `class_names`, and 100 evenly spaced examples. Other changes go unnoticed. The examples are read
      twice and ignored if they differ, as in a source that augments them at random.

    Args:
      source: the dataset.

    Returns:
      16 hexadecimal digits.
    """
    own = getattr(source, "fingerprint", None)
    if own is not None:
        return sha256([str(own)], 16)
    first, second = _read(source), _read(source)
    return source_fingerprint(source, first if first == second else "")


def _read(source: Source) -> str:
    """Hash some examples."""
    examples = read_examples(source, evenly_spaced(len(source), MOST_EXAMPLES))
    used = ("image", "label") if source.num_classes > 1 else ("image",)
    return hash_arrays(*(np.asarray(batch[name]) for batch in examples for name in used))


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Up to `most` of the indices 0 to count - 1, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))
