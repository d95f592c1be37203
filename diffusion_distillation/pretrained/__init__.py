"""Models that come with the package, by their names; each is an archive, see `interop.archive`."""

from pathlib import Path

# What each is, in a line.
PRETRAINED = {
    "digits": "Handwritten digits, 8x8, in 4 steps; takes a class and a weight of guidance from 0 to 4",
}


def pretrained_folder(name: str) -> Path:
    """The folder of one of them."""
    return Path(__file__).parent / name
