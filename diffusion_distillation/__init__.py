"""Progressive distillation of diffusion models (Salimans & Ho, ICLR 2022) in JAX and Flax.

The pure functions are in `schedules`, `diffusion`, `sampling`, `losses` and `distillation`, networks in `unet` and
`autoencoder`. They import JAX, Flax, NumPy and jaxtyping alone. Data, training, evaluation and reports are in
subpackages that import more.
"""

from typing import TYPE_CHECKING

from . import diffusion, distillation, losses, sampling, schedules
from .networks import autoencoder, model, unet
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .pipeline import Pipeline

__all__ = [
    "autoencoder",
    "diffusion",
    "distillation",
    "from_checkpoint",
    "losses",
    "model",
    "sampling",
    "save_grid",
    "schedules",
    "unet",
]


def from_checkpoint(path, num_steps: int | None = None, config=None) -> "Pipeline":
    """Load a model as a pipeline: `from_checkpoint(path).sample(jax.random.key(0), 64)` generates 64 images.

    See `interop.from_checkpoint`, which the first call imports, together with orbax.
    """
    from .interop import from_checkpoint

    return from_checkpoint(path, num_steps, config)


def _load_autoencoder(path, *, dtype: str | None = None):
    """See `interop.load_autoencoder`, which the first call imports, together with orbax."""
    from .interop import load_autoencoder

    return load_autoencoder(path, dtype=dtype)


def save_grid(images, path, columns: int | None = None) -> None:
    """Save uint8 images `[n, height, width, channels]` as one PNG file, in a grid.

    See `report.grids.save_grid`, which the first call imports, together with Pillow.
    """
    from .report.grids import save_grid

    save_grid(images, path, columns)


autoencoder.load = _load_autoencoder  # here, since no room imports from a floor above
