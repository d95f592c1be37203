"""The space in which a diffusion model works: pixels, or the scaled latents of an autoencoder.

A diffusion model turns noise into x. A `Space` says what x is, and turns images into x and back. There are two kinds:

- `pixels(image_shape)`: x is the image.
- `latent_space(encode, decode, info, image_shape)`: x = (latents - shift) * scale, latents of about unit variance
  (Rombach et al. 2022, section D.1).

Images are float, in [-1, 1].
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Float

from .errors import InputError
from .shapes import Array

Shape = tuple[int, int, int]  # (height, width, channels)
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
      downsampling: the height and width of an image, divided by those of its latent.
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
    """

    name: str
    fingerprint: str
    image_shape: Shape
    shape: Shape
    scale: PerChannel
    shift: PerChannel
    encode_latents: Encode
    decode_latents: Decode

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

    def check_fingerprint(self, fingerprint: str, origin: str) -> None:
        """Raise an InputError unless latents from elsewhere are those of this space.

        Args:
          fingerprint: of the space that the latents are from.
          origin: where they are, for the message.

        >>> pixels((8, 8, 3)).check_fingerprint("pixels", "runs/base")
        """
        if fingerprint != self.fingerprint:
            raise InputError(
                f"{origin} has latents of the autoencoder {fingerprint!r}; this model works with {self.name!r}, "
                f"{self.fingerprint!r}. Encode the images with this autoencoder."
            )

    def _per_channel(self, number: PerChannel, x: Array) -> Array:
        array = jnp.asarray(number, x.dtype)
        return array.reshape((1,) * (x.ndim - 1) + (-1,))  # explicit, for strict rank promotion


def pixels(image_shape: Shape) -> Space:
    """The space of pixels: x is the image.

    Args:
      image_shape: (height, width, channels).

    >>> pixels((32, 32, 3)).shape
    (32, 32, 3)
    """
    return Space(
        name="pixels",
        fingerprint="pixels",
        image_shape=image_shape,
        shape=image_shape,
        scale=1.0,
        shift=0.0,
        encode_latents=lambda images: (images, jnp.zeros_like(images)),
        decode_latents=lambda latents: latents,
    )


def latent_space(encode: Encode, decode: Decode, info: AutoencoderInfo, image_shape: Shape) -> Space:
    """The space of an autoencoder's latents, shifted and scaled.

    Args:
      encode: `encode(images) -> (mean, std)`, unscaled.
      decode: `decode(latents) -> images`, unscaled.
      info: numbers and names of the autoencoder.
      image_shape: (height, width, channels) of the images.

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
    )


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
