"""From an encoded image to the uint8 array that a model sees: decode, crop, resize."""

import dataclasses
import functools
import io

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from ..errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


class BrokenImageError(ValueError):
    """Bytes that are not an image we can use; the message says why."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """What is done to every image of a dataset; it makes squares.

    Attributes:
      size: height and width, in pixels.
      crop: take the central square first; or else the whole image is squeezed into a square.
      resize: 'area', the exact mean over each pixel's area; or 'bilinear', Pillow's, which is antialiased: a triangle
        as wide as the scale.
      channels: 3, or 1 for grey.
      upright: turn images as their EXIF orientation says.
    """

    size: int
    crop: bool = True
    resize: str = "bilinear"
    channels: int = 3
    upright: bool = False

    def __post_init__(self):
        if type(self.size) is not int or self.size < 1:
            raise InputError(f"image_size={self.size!r} must be an integer of at least 1.")
        if self.resize not in ("area", "bilinear"):
            raise InputError(f"resize={self.resize!r} must be 'area' or 'bilinear'.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the result."""
        return self.size, self.size, self.channels

    def __call__(self, encoded: bytes) -> UInt8[np.ndarray, "height width channels"]:
        """Decodes an image and transforms it; raises a BrokenImageError if it cannot be decoded."""
        image = decode(encoded, grey=self.channels == 1, upright=self.upright)
        if self.crop:
            image = central_square(image)
        if self.resize == "area":
            return resize_area(np.asarray(image).reshape(image.height, image.width, -1), self.size)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.image_shape)


def decode(encoded: bytes, *, grey: bool = False, upright: bool = True) -> Image.Image:
    """Decodes a PNG, JPEG, WebP or BMP file to an RGB image, or a grey one.

    Palettes, grey, CMYK and 16 bits are converted; transparency is laid over white.

    Raises:
      BrokenImageError: if the bytes are no such file, are cut off, hold an animation, or ask for more memory than
        Pillow's limit of 179 million pixels.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's JPEG with a second picture
            raise BrokenImageError(f"it is an animation of {image.n_frames} frames")
        image.load()
        if upright:
            image = ImageOps.exif_transpose(image)
        return _convert(image, "L" if grey else "RGB")
    except BrokenImageError:
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImageError("it is empty" if not encoded else "it is not a PNG, JPEG, WebP or BMP file") from None
    except Exception as error:  # Pillow's decoders raise almost anything at damaged data
        raise BrokenImageError(str(error) or type(error).__name__) from error


def central_square(image: Image.Image) -> Image.Image:
    """The largest square in the middle, at the offsets of the published code."""
    side = min(image.size)
    left, top = (length // 2 - side // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def resize_area(
    image: UInt8[np.ndarray, "height width channels"], size: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Resizes to a square in which every pixel is the mean of the area it covers, with fractions of pixels counted."""
    height, width, channels = image.shape
    rows = area_weights(height, size) @ image.reshape(height, -1).astype(np.float32)
    resized = area_weights(width, size) @ rows.reshape(size, width, channels)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def area_weights(length: int, size: int) -> Float32[np.ndarray, "size length"]:
    """What each of `length` pixels in a row gives to each of `size`: its share of their extent."""
    edges = np.arange(size + 1) * length / size
    pixel = np.arange(length)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(shared, 0) * size / length).astype(np.float32)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits a pixel, grey
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
