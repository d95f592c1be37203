"""Colored letters, generated in the typefaces of matplotlib or in your own."""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from ..runtime.files import retry
from .cache import cached_source
from .image_folder import find_files
from .source import ArraySource

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# The typefaces of matplotlib that have capitals. Licenses: Bitstream Vera and public domain (DejaVu), SIL Open Font
# License (STIX), and free to use (BaKoMa Computer Modern).
TYPEFACES = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)
MAX_ROTATION = 12.0  # degrees
SCALE_RANGE = (0.62, 0.85)  # the longer side of a letter, as a share of the image's side
MIN_CONTRAST = 0.4  # between the lightness of letter and background, from 0 to 1
OVERSAMPLING = 4


def letters(
    num_images: int = 10_400, image_size: int = 32, class_conditional: bool = False, fonts: str | None = None
) -> ArraySource:
    """Generate capital letters A to Z, each in one color on another, in 22 typefaces, scaled and rotated at random.

    The same arguments give the same images if Pillow and matplotlib render alike.

    Args:
      num_images: how many, at least 1. The letters take turns.
      image_size: height and width, 8 to 256.
      class_conditional: whether the 26 letters are classes.
      fonts: a folder of .ttf and .otf files to use instead of the 22 typefaces; see `image_folder.find_files`.

    Raises:
      InputError: for an argument out of range, or a folder without a typeface that has these letters.
    """
    if num_images < 1:
        raise InputError(f"config.dataset.args.num_images={num_images} must be at least 1.")
    if not 8 <= image_size <= 256:
        raise InputError(f"config.dataset.args.image_size={image_size} must be from 8 to 256.")
    files = _matplotlib_fonts() if fonts is None else _folder_fonts(fonts)
    key = {"version": 2, "num_images": num_images, "image_size": image_size}
    key["fonts"] = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    make = functools.partial(_render, num_images, image_size, files)
    return cached_source("letters", key, make, ALPHABET if class_conditional else None)


def _matplotlib_fonts() -> list[Path]:
    import matplotlib

    return [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf" for name in TYPEFACES]


def _folder_fonts(fonts: str) -> list[Path]:
    files = [file for file in find_files(Path(fonts).expanduser(), (".ttf", ".otf")) if _has_letters(file)]
    if not files:
        raise InputError(
            f"config.dataset.args.fonts={fonts!r} has no .ttf or .otf file with the letters A to Z; /usr/share/fonts "
            "often has some."
        )
    return files


def _has_letters(file: Path) -> bool:
    """Whether a typeface has the 26 letters: for missing ones, it shows the same box."""
    try:
        font = ImageFont.truetype(io.BytesIO(retry(file.read_bytes, file)), 16)
        masks = {bytes(font.getmask(letter, mode="L")) for letter in ALPHABET}
    except (OSError, ValueError):
        return False
    return len(masks) > len(ALPHABET) // 2


def _render(num_images: int, image_size: int, files: list[Path]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(num_images, dtype=np.int32) % len(ALPHABET)
    size = image_size * OVERSAMPLING
    fonts = [ImageFont.truetype(str(file), size) for file in files]
    images = np.empty((num_images, image_size, image_size, 3), np.uint8)
    for number, label in enumerate(labels):
        mask = _letter_mask(ALPHABET[label], fonts[rng.integers(len(fonts))], size, rng)
        mask = mask.resize((image_size, image_size), Image.Resampling.BOX)
        mask = np.asarray(mask, np.float64)[..., np.newaxis] / 255
        ink, background = _colors(rng)
        images[number] = np.round(mask * ink + (1 - mask) * background)
    return {"images": images, "labels": labels}


def _letter_mask(letter: str, font: ImageFont.FreeTypeFont, size: int, rng: np.random.Generator) -> Image.Image:
    """Return a mask with the letter in white on black: rotated, scaled, and placed near the center."""
    left, top, right, bottom = font.getbbox(letter)
    drawn = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(drawn).text((-left, -top), letter, font=font, fill=255)
    drawn = drawn.rotate(rng.uniform(-MAX_ROTATION, MAX_ROTATION), Image.Resampling.BICUBIC, expand=True)
    scale = rng.uniform(*SCALE_RANGE) * size / max(drawn.size)
    width, height = (max(1, round(side * scale)) for side in drawn.size)
    drawn = drawn.resize((width, height), Image.Resampling.LANCZOS)
    mask = Image.new("L", (size, size))
    room = np.array([size - width, size - height])
    mask.paste(drawn, tuple(int(at) for at in np.round(room * rng.uniform(0.35, 0.65, 2))))
    return mask


def _colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two RGB colors, 0 to 255, whose lightness differs enough to read one on the other."""
    while True:
        ink, background = rng.uniform(0, 255, (2, 3))
        if abs((ink - background) @ (0.299, 0.587, 0.114)) >= 255 * MIN_CONTRAST:
            return ink, background
