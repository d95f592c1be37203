"""Image grids, saved as PNG files."""

import math

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from ..runtime.files import as_path, save_atomic

MIN_TILE = 64  # pixels; smaller images are enlarged by an integer factor
GAP = 6  # pixels between images


def image_grid(
    images: UInt8[np.ndarray, "n height width channels"], columns: int | None = None
) -> UInt8[np.ndarray, "grid_height grid_width 3"]:
    """Arrange images in a grid on white, row by row. Images less than 64 pixels high are enlarged.

    Args:
      images: `[n, height, width, channels]` uint8; gray images have 1 channel, color images 3.
      columns: images per row; by default the grid is as square as possible.

    Returns:
      One RGB image, `[grid_height, grid_width, 3]` uint8.

    >>> image_grid(np.zeros((5, 64, 64, 1), np.uint8), columns=3).shape  # 2 rows, 6 pixels apart
    (134, 204, 3)
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, math.ceil(MIN_TILE / height))
    images = np.broadcast_to(images, (n, height, width, 3)) if channels == 1 else images[..., :3]
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tiles = np.full((rows * columns, height * scale + GAP, width * scale + GAP, 3), 255, np.uint8)
    tiles[:n, :-GAP, :-GAP] = images
    grid = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return grid.reshape(rows * tiles.shape[1], columns * tiles.shape[2], 3)[:-GAP, :-GAP]


def save_grid(
    images: UInt8[np.ndarray, "n height width channels"], path: epath.PathLike, columns: int | None = None
) -> None:
    """Save `image_grid(images, columns)` as a PNG file. Its folder is created if it is missing."""
    save_atomic(as_path(path), lambda file: Image.fromarray(image_grid(images, columns)).save(file, "PNG"))
