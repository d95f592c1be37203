"""The pretrained models in this package. Each is an archive; see `interop.archive`."""

from pathlib import Path

# One line per model, by name.
PRETRAINED = {
    "digits": "Handwritten digits, 8x8, in 4 steps; takes a class and a guidance weight from 0 to 4",
}


def pretrained_folder(name: str) -> Path:
    """The folder of a pretrained model.

    >>> pretrained_folder("digits").name
    'digits'
    """
    return Path(__file__).parent / name
