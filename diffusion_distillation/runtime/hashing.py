"""SHA-256 of text and arrays, for the names of cache entries and the fingerprints of data and models."""

import hashlib
from collections.abc import Iterable

import numpy as np


def sha256(parts: Iterable[str | bytes | np.ndarray], digits: int = 64) -> str:
    """Hash parts one after another, so that large data need not be in memory at once.

    Args:
      parts: text, which is encoded as UTF-8, bytes, or C-contiguous arrays.
      digits: the length of the result, 1 to 64.

    Returns:
      The first hexadecimal digits of the hash. How the data are divided into parts does not matter.

    >>> sha256(["abc"], digits=8)
    'ba7816bf'
    >>> sha256(["a", b"bc"], digits=8)
    'ba7816bf'
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return digest.hexdigest()[:digits]
