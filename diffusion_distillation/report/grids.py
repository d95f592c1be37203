"""Images side by side, as PNG files."""

import math

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from ..runtime.files import as_path, save_atomic

MIN_TILE = 64  # pixels: smaller images are enlarged, pixel by pixel
GAP = 6


def image_grid(
    images: UInt8[np.ndarray, "n height width channels"], columns: int | None = None
) -> UInt8[np.ndarray, "grid_height grid_width 3"]:
    """The images in rows on white, small ones enlarged; as square as may be unless `columns` says how wide."""
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
    """Writes `image_grid(images)` to a PNG file."""
    save_atomic(as_path(path), lambda file: Image.fromarray(image_grid(images, columns)).save(file, "PNG"))
