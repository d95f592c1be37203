"""What images are compared by. A feature extractor maps uint8 images to a float64 matrix, a row an image."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, UInt8

Features = Callable[[UInt8[np.ndarray, "n height width channels"]], Float64[np.ndarray, "n features"]]


def pixels(images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "n features"]:
    """The pixels themselves, in [-1, 1]: fit for small images of one kind, such as digits."""
    return images.reshape(len(images), -1) / 127.5 - 1
