"""What images are compared by. A feature extractor maps uint8 images to a float64 matrix, a row an image."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, UInt8

from ..data.images import area_weights

Features = Callable[[UInt8[np.ndarray, "n height width channels"]], Float64[np.ndarray, "n features"]]
MOST_PIXELS = 16  # a side: a covariance of more features than some hundreds takes long, and many images


def pixels(images: UInt8[np.ndarray, "n height width channels"]) -> Float64[np.ndarray, "n features"]:
    """The pixels themselves, in [-1, 1]; of larger images, means over an even grid of 16 rows and columns.

    Fit for small images of one kind, such as digits. It sees shapes and colours, not texture: compare models of one
    dataset with it, not with published FIDs.
    """
    _, height, width, _ = images.shape
    if max(height, width) > MOST_PIXELS:
        rows, columns = (area_weights(side, min(side, MOST_PIXELS)) for side in (height, width))
        images = np.einsum("rh,nhwc,sw->nrsc", rows, images.astype(np.float32), columns, optimize=True)
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1
