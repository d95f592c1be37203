"""What the scripts share."""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, logging

from .errors import InputError
from .pipeline import Pipeline
from .report.grids import save_grid
from .shapes import Params
from .training.checkpoints import Metadata

NUM_SAMPLES_SHOWN = 64


def run(main: Callable[[], None]) -> None:
    """Runs a script's main function after parsing its flags; a bad input is one line on stderr and exit status 2."""

    def checked(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument {argv[1]!r}; flags are given as --name=value.")
        logging.set_verbosity(logging.WARNING)  # orbax tells much of itself
        try:
            main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(checked)


def draw_samples(params: Params, metadata: Metadata, workdir: Path) -> None:
    """Writes a grid of samples, from the same noise every time, to `samples/step_<step>.png` in the workdir."""
    images = Pipeline(params, metadata).sample(jax.random.key(0), NUM_SAMPLES_SHOWN)
    save_grid(images, workdir / "samples" / f"step_{metadata.step:07d}.png")
