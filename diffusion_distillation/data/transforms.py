"""From encoded images to the uint8 arrays that models are trained on: decode, crop, resize."""

import dataclasses
import functools
import io
import re

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from ..errors import InputError, is_transient

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")  # Pillow's gray modes


class BrokenImageError(ValueError):
    """Bytes that are not a usable image. The message is the reason."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """A function from encoded images to squares of one size.

    Attributes:
      size: height and width in pixels, at least 1.
      crop: whether to take the central square first; otherwise the whole image is squeezed into a square.
      resize: 'area', the exact mean over each pixel's area, or 'bilinear', Pillow's antialiased filter, a triangle as
        wide as the scale.
      channels: 3, or 1 for gray.
      upright: whether to apply the EXIF orientation.

    >>> file = io.BytesIO()
    >>> Image.new("RGB", (60, 40)).save(file, "PNG")
    >>> Transform(size=32)(file.getvalue()).shape
    (32, 32, 3)
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
        """Decode and transform an image; raises a BrokenImageError if it cannot be decoded."""
        image = decode(encoded, gray=self.channels == 1, upright=self.upright)
        if self.crop:
            image = center_crop(image)
        if self.resize == "area":
            return resize_area(np.asarray(image).reshape(image.height, image.width, -1), self.size)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.image_shape)


def decode(encoded: bytes, *, gray: bool = False, upright: bool = True) -> Image.Image:
    """Decode a PNG, JPEG, WebP, BMP, GIF or TIFF file to an RGB image, or a gray one.

    Palettes, gray, CMYK and 16 bits are converted; transparency is laid over white. Of animations and multi-page
    files, only the first image is decoded.

    Args:
      encoded: the bytes of the file.
      gray: whether to convert the image to gray.
      upright: whether to apply the EXIF orientation.

    Raises:
      BrokenImageError: for bytes of another format or cut off, for pixels of 32 bits, or for more than Pillow's limit
        of 179 million pixels.
      MemoryError: if there is not enough memory to decode the file.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
        image = _in_8_bits(image, encoded)
        if upright:
            image = ImageOps.exif_transpose(image)
        return _over_white(image).convert("L" if gray else "RGB")
    except BrokenImageError:
        raise
    except Image.UnidentifiedImageError:
        what = "it is empty" if not encoded else "it is not a PNG, JPEG, WebP, BMP, GIF or TIFF file"
        raise BrokenImageError(what) from None
    except Exception as error:  # Pillow's decoders raise almost anything at damaged data
        if is_transient(error):
            raise
        if re.search(r"out of memory|error -9$", str(error)):  # Pillow's codecs report this as an OSError
            raise MemoryError(str(error)) from error
        raise BrokenImageError(str(error) or type(error).__name__) from error


def has_color(encoded: bytes) -> bool:
    """Return whether an image has a pixel that is not gray. Files whose format allows no color are not decoded.

    Raises:
      BrokenImageError: see `decode`.
    """
    try:
        if Image.open(io.BytesIO(encoded), formats=FORMATS).mode in GRAY_MODES:
            return False
    except Exception as error:
        if is_transient(error):
            raise  # `decode` raises any other error again, with a message
    image = np.asarray(decode(encoded))
    return bool((image != image[..., :1]).any())


def center_crop(image: Image.Image) -> Image.Image:
    """Crop the largest central square, at the offsets of the paper's code.

    >>> center_crop(Image.new("L", (60, 40))).size
    (40, 40)
    """
    side = min(image.size)
    left, top = (length // 2 - side // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))


def resize_area(
    image: UInt8[np.ndarray, "height width channels"], size: int
) -> UInt8[np.ndarray, "size size channels"]:
    """Resize an image to a square. Every pixel is the mean of the area it covers, fractions of pixels included.

    Args:
      image: uint8, `[height, width, channels]`.
      size: height and width of the result, at least 1.

    >>> resize_area(np.array([[[0], [100]], [[100], [200]]], np.uint8), 1)
    array([[[100]]], dtype=uint8)
    """
    height, width, channels = image.shape
    rows = area_weights(height, size) @ image.reshape(height, -1).astype(np.float32)
    resized = area_weights(width, size) @ rows.reshape(size, width, channels)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def area_weights(length: int, size: int) -> Float32[np.ndarray, "size length"]:
    """Return the weights that average `length` pixels in a row to `size` pixels.

    >>> area_weights(3, 2).round(2)
    array([[0.67, 0.33, 0.  ],
           [0.  , 0.33, 0.67]], dtype=float32)
    """
    edges = np.arange(size + 1) * length / size
    pixel = np.arange(length)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(shared, 0) * size / length).astype(np.float32)


def _in_8_bits(image: Image.Image, encoded: bytes) -> Image.Image:
    """Convert a loaded image, and the transparency that its file declares, to 8 bits."""
    transparent = image.info.get("transparency")
    if image.format == "TIFF" and image.mode in ("I", "F"):
        raise BrokenImageError("its pixels have 32 bits, whose range is unknown; save it in 8 or 16 bits")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits per pixel, gray
        values = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif image.format == "PNG" and transparent is not None:  # Pillow keeps its bit depth
        bits = encoded[24]
        if image.mode == "L":
            image.info["transparency"] = transparent * 255 // (2**bits - 1)
        elif image.mode == "RGB":
            image.info["transparency"] = tuple(value >> bits - 8 for value in transparent)
    elif image.format == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
        image.putalpha(255)  # the fourth byte is padding: many programs leave it at 0
    return image


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
