"""The space in which a diffusion model works: pixels, or the scaled latents of an autoencoder.

A diffusion model turns noise into x. A `Space` says what x is, and turns images into x and back. There are two kinds:

- `pixels(image_shape)`: x is the image.
- `latent_space(encode, decode, info, image_shape)`: x = (latents - shift) * scale, latents of about unit variance
  (Rombach et al. 2022, section D.1).

Images are float, in [-1, 1]; `from_uint8` and `to_uint8` convert pixels.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from .errors import InputError
from .shapes import Array

Shape = tuple[int, int, int]  # (height, width, channels)
PIXELS = "pixels"  # the name and the fingerprint of the space of pixels
PerChannel = float | tuple[float, ...]  # one number for all channels, or one each
Images = Float[Array, "*batch height width image_channels"]
X = Float[Array, "*batch x_height x_width x_channels"]  # what is diffused, or latents before they are scaled
Encode = Callable[[Images], tuple[X, X]]  # the mean and the standard deviation of the latents of images
Decode = Callable[[X], Images]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderInfo:
    """What users of an autoencoder need besides its functions.

    Diffusion models see x = (latents - shift) * scale.

    Attributes:
      name: of the folder that it was read from.
      fingerprint: a hash of the architecture and the parameters.
      image_channels: channels of an image.
      latent_channels: channels of a latent.
      downsampling: the side of an image, divided by the side of its latent.
      scale: multiplies latents, one number for all channels or one each.
      shift: is subtracted from latents before, one number for all channels or one each.
    """

    name: str
    fingerprint: str
    image_channels: int
    latent_channels: int
    downsampling: int
    scale: PerChannel
    shift: PerChannel

    def latent_shape(self, image_shape: Shape) -> Shape:
        """The (height, width, channels) of the latents of images.

        Args:
          image_shape: (height, width, channels).

        Raises:
          InputError: if the autoencoder does not take such images.

        >>> numbers = dict(image_channels=3, latent_channels=4, downsampling=8, scale=0.18215, shift=0.0)
        >>> AutoencoderInfo(name="vae", fingerprint="0", **numbers).latent_shape((256, 256, 3))
        (32, 32, 4)
        """
        check_image_shape(image_shape, self.image_channels, self.downsampling)
        height, width, _ = image_shape
        return height // self.downsampling, width // self.downsampling, self.latent_channels

    def same_latents(self, other: "AutoencoderInfo") -> bool:
        """Whether another autoencoder, perhaps of another name, gives images the same x."""
        return dataclasses.replace(self, name=other.name) == other

    def describe(self) -> str:
        """Name the autoencoder, and what tells it from others.

        >>> numbers = dict(image_channels=3, latent_channels=4, downsampling=8, scale=0.18215, shift=0.0)
        >>> AutoencoderInfo(name="vae", fingerprint="0", **numbers).describe()
        'vae (fingerprint 0, scale 0.18215, shift 0.0)'
        """
        return f"{self.name} (fingerprint {self.fingerprint}, scale {self.scale}, shift {self.shift})"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """What a model diffuses, x, and how images become x and x images.

    Attributes:
      name: 'pixels', or the name of the autoencoder.
      fingerprint: equal for spaces in which an image has the same latents: 'pixels', or that of the autoencoder.
      image_shape: (height, width, channels) of an image.
      shape: (height, width, channels) of x.
      scale: x = (latents - shift) * scale; one number for all channels or one each.
      shift: see scale.
      encode_latents: `encode_latents(images) -> (mean, std)`, unscaled.
      decode_latents: `decode_latents(latents) -> images`, unscaled.
      open: reads the autoencoder, if that has not been done. It raises an InputError if this is impossible.
    """

    name: str
    fingerprint: str
    image_shape: Shape
    shape: Shape
    scale: PerChannel
    shift: PerChannel
    encode_latents: Encode
    decode_latents: Decode
    open: Callable[[], Any] = lambda: None

    @property
    def is_pixels(self) -> bool:
        """Whether x is the image."""
        return self.fingerprint == PIXELS

    def encode(self, images: Images) -> X:
        """Return the x of images, `[batch, height, width, channels]`; of an autoencoder, that of the latents' mean.

        >>> pixels((8, 8, 3)).encode(jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
        """
        mean, _ = self.encode_latents(images)
        return self.from_latents(mean)

    def decode(self, x: X) -> Images:
        """Return the images of x, about in [-1, 1], not clipped.

        >>> pixels((8, 8, 3)).decode(jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
        """
        return self.decode_latents(self.to_latents(x))

    def from_latents(self, latents: X) -> X:
        """Shift and scale latents: return x."""
        return (latents - self._per_channel(self.shift, latents)) * self._per_channel(self.scale, latents)

    def to_latents(self, x: X) -> X:
        """The inverse of `from_latents`."""
        return x / self._per_channel(self.scale, x) + self._per_channel(self.shift, x)

    def sample(self, mean: X, std: X, noise: X) -> X:
        """Return a random x of images whose latents are normally distributed.

        Args:
          mean: of the latents, unscaled.
          std: of the latents, unscaled.
          noise: standard normal.
        """
        return self.from_latents(mean + std * noise)

    def _per_channel(self, number: PerChannel, x: Array) -> Array:
        array = jnp.asarray(number, x.dtype)
        return array.reshape((1,) * (x.ndim - 1) + (-1,))  # explicit, for strict rank promotion


@functools.lru_cache(maxsize=16)
def pixels(image_shape: Shape) -> Space:
    """The space of pixels: x is the image.

    Args:
      image_shape: (height, width, channels).

    >>> pixels((32, 32, 3)).shape
    (32, 32, 3)
    """
    return Space(
        name=PIXELS,
        fingerprint=PIXELS,
        image_shape=image_shape,
        shape=image_shape,
        scale=1.0,
        shift=0.0,
        encode_latents=lambda images: (images, jnp.zeros_like(images)),
        decode_latents=lambda latents: latents,
    )


def latent_space(
    encode: Encode,
    decode: Decode,
    info: AutoencoderInfo,
    image_shape: Shape,
    open: Callable[[], Any] = lambda: None,
) -> Space:
    """The space of an autoencoder's latents, shifted and scaled.

    Args:
      encode: `encode(images) -> (mean, std)`, unscaled.
      decode: `decode(latents) -> images`, unscaled.
      info: numbers and names of the autoencoder.
      image_shape: (height, width, channels) of the images.
      open: see `Space`.

    Raises:
      InputError: if the autoencoder does not take such images.

    >>> numbers = dict(image_channels=3, latent_channels=3, downsampling=2, scale=2.0, shift=1.0)
    >>> info = AutoencoderInfo(name="halves", fingerprint="0", **numbers)
    >>> def encode(images):
    ...     return images[:, ::2, ::2], 0 * images[:, ::2, ::2]
    >>> def decode(latents):
    ...     return jnp.repeat(jnp.repeat(latents, 2, axis=1), 2, axis=2)
    >>> space = latent_space(encode, decode, info, (8, 8, 3))
    >>> space.shape, float(space.encode(jnp.full((1, 8, 8, 3), 0.5)).mean())
    ((4, 4, 3), -1.0)
    """
    return Space(
        name=info.name,
        fingerprint=info.fingerprint,
        image_shape=image_shape,
        shape=info.latent_shape(image_shape),
        scale=info.scale,
        shift=info.shift,
        encode_latents=encode,
        decode_latents=decode,
        open=open,
    )


def from_uint8(images: UInt8[Array, "*shape"]) -> Float[jax.Array, "*shape"]:
    """Convert pixels from 0 to 255 to float32 in [-1, 1].

    >>> from_uint8(np.array([0, 255], np.uint8)).tolist()
    [-1.0, 1.0]
    """
    return jnp.asarray(images).astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Convert pixels from [-1, 1] to 0 to 255; pixels beyond are clipped.

    Args:
      images: of JAX or of NumPy, as the result.

    >>> to_uint8(np.array([-1.0, 0.0, 1.0, 1.5])).tolist()
    [0, 128, 255, 255]
    """
    xp = jnp if isinstance(images, jax.Array) else np
    return xp.round((xp.clip(images, -1, 1) + 1) * 127.5).astype(xp.uint8)


def in_tiles(decode: Decode, latents: X, downsampling: int, *, tile: int, overlap: int) -> Images:
    """Decode large latents in overlapping tiles, whose images are blended linearly where they overlap.

    The device holds one tile of each image at a time. An autoencoder with attention or group normalization decodes a
    tile slightly differently from the whole, which the overlap hides.

    Args:
      decode: of whole latents.
      latents: `[batch, height, width, channels]`.
      downsampling: the side of an image, divided by the side of its latent.
      tile: the largest side of a tile, in pixels of the latents.
      overlap: the least overlap of tiles, in pixels of the latents; less than `tile`.

    Returns:
      NumPy images.

    >>> def decode(latents):
    ...     return latents.repeat(2, axis=1).repeat(2, axis=2)
    >>> in_tiles(decode, np.ones((1, 9, 4, 3), np.float32), 2, tile=4, overlap=1).shape
    (1, 18, 8, 3)
    """
    sides = latents.shape[1:3]
    height, width = (min(side, tile) for side in sides)
    rows, columns = (_tile_starts(side, tile, overlap) for side in sides)
    parts = {
        (row, column): np.asarray(decode(latents[:, row : row + height, column : column + width]))
        for row in rows
        for column in columns
    }
    weights = [_tile_weights(side * downsampling, overlap * downsampling) for side in (height, width)]
    weight = np.multiply.outer(*weights)[..., np.newaxis]
    channels = parts[0, 0].shape[-1]
    images = np.zeros((len(latents), *(side * downsampling for side in sides), channels), np.float32)
    total = np.zeros((*images.shape[1:3], 1), np.float32)
    for (row, column), part in parts.items():
        down = slice(row * downsampling, (row + height) * downsampling)
        across = slice(column * downsampling, (column + width) * downsampling)
        images[:, down, across] += weight * part
        total[down, across] += weight
    return images / total


def _tile_starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin, evenly spaced from the first to the last."""
    count = 1 + max(0, -(-(side - tile) // (tile - overlap)))
    return np.linspace(0, max(side - tile, 0), count).round().astype(int).tolist()


def _tile_weights(side: int, overlap: int) -> Float[np.ndarray, "{side}"]:
    """The weight of each pixel of a tile: rising from the border over the overlap, then constant."""
    from_border = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    return np.minimum(from_border / max(overlap, 1), 1.0).astype(np.float32)


def check_image_shape(shape: Sequence[int], channels: int, downsampling: int) -> None:
    """Raise an InputError unless an autoencoder takes images of this shape.

    Args:
      shape: (height, width, channels).
      channels: those that the autoencoder takes.
      downsampling: the sides must be multiples of this number.

    >>> check_image_shape((256, 256, 3), 3, 8)
    """
    height, width, image_channels = shape
    if image_channels != channels:
        raise InputError(
            f"The images have {image_channels} channels, in the shape {list(shape)}; this autoencoder takes "
            f"{channels}. Channels come last."
        )
    if height % downsampling or width % downsampling or not (height and width):
        raise InputError(
            f"The images are {height}x{width}; this autoencoder takes sides that are multiples of {downsampling}. "
            "Crop, resize or pad them."
        )
