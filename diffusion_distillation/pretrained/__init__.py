"""The pretrained models in this package: archives (`interop.archive`), and autoencoders in the format of diffusers."""

from pathlib import Path

from etils import epath

# One line per diffusion model, by name.
PRETRAINED = {
    "digits": "Handwritten digits, 8x8, in 4 steps; takes a class and a guidance weight from 0 to 4",
    "letters": "Colored letters, 32x32, in 4 steps, in latents; takes a class and a guidance weight from 0 to 4",
}
# One line per autoencoder, by name.
AUTOENCODERS = {
    "letters_autoencoder": "Colored letters, from 32x32x3 to latents of 8x8x4",
}


def is_pretrained(path: str, folder: epath.PathLike = ".") -> bool:
    """Whether a path is the name of a model of this package.

    Args:
      path: absolute or relative.
      folder: what a relative path is relative to. What lies there precedes the package's models.

    >>> is_pretrained("digits"), is_pretrained("runs/digits/base")
    (True, False)
    """
    return path in (*PRETRAINED, *AUTOENCODERS) and not (epath.Path(folder) / path).exists()


def pretrained_folder(name: str) -> Path:
    """The folder of a pretrained model.

    >>> pretrained_folder("digits").name
    'digits'
    """
    return Path(__file__).parent / name
