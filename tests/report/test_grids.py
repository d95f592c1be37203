import numpy as np
from PIL import Image

from diffusion_distillation.report.grids import GAP, image_grid, save_grid


def test_images_fill_the_grid_row_by_row(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 1), dtype=np.uint8)
    grid = image_grid(images, columns=3)
    scale, tile = 8, 64 + GAP  # 8 pixels enlarged to 64
    assert grid.shape == (2 * tile - GAP, 3 * tile - GAP, 3)
    for j, image in enumerate(images):
        row, column = divmod(j, 3)
        shown = grid[row * tile :, column * tile :][: 8 * scale : scale, : 8 * scale : scale]
        np.testing.assert_array_equal(shown, np.broadcast_to(image, (8, 8, 3)))
    assert np.all(grid[tile:, 2 * tile :] == 255)  # no sixth image
    save_grid(images, tmp_path / "new" / "grid.png", columns=3)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "grid.png")), grid)


def test_color_images_of_64_pixels_keep_their_size():
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    grid = image_grid(images)
    np.testing.assert_array_equal(grid[64 + GAP :, :64], images[2])
