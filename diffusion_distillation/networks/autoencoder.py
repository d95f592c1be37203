"""The autoencoder of latent diffusion models, `AutoencoderKL` of diffusers, in Flax.

An encoder turns images into the mean and the standard deviation of smaller latents, and a decoder turns latents into
images (Rombach et al. 2022, section 3.1). Diffusion models of latents see `(latents - info.shift) * info.scale`;
everything here is unscaled.

- `load(path)` reads a folder of diffusers and returns `encode`, `decode` and `info`. It is
  `interop.load_autoencoder`, which the package binds to this name: readers of files are on a floor above.
- `load_space` makes the space of an autoencoder that is read when it is first needed.
- `AutoencoderKL` is the network, for programs of your own.
- `make_functions` makes `encode` and `decode` of a network and its parameters.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Num

from ..errors import InputError
from ..latents import AutoencoderInfo, Decode, Encode, Shape, Space, check_image_shape, in_tiles, latent_space
from ..runtime.devices import AXIS, replicated
from ..shapes import Array, Params, at_least_float32
from .layers import GroupNorm, conv3x3
from .unet import MAX_BLOCKS, MAX_SIZE, AttentionBlock, ResidualBlock

MAX_LEVELS = 16
MAX_PIXELS = 2**18  # of the images that a device encodes or decodes at once: four of 256x256
MAX_SIDE = 1024  # of images that are decoded as a whole
LOGVAR_RANGE = (-30.0, 20.0)

Images = Float[Array, "batch height width image_channels"]
Latents = Float[Array, "batch latent_height latent_width latent_channels"]
AnyImages = Num[Array, "batch height width image_channels"]  # before the check that they are floats
AnyLatents = Num[Array, "batch latent_height latent_width latent_channels"]

load: Callable[..., tuple[Encode, Decode, AutoencoderInfo]]  # bound by the package


class AutoencoderKL(nn.Module):
    """An autoencoder of images with normally distributed latents (Kingma & Welling 2014; Rombach et al. 2022).

    The encoder is the way down of a U-Net, the decoder the way up, without skip connections. A stage is a level of
    either way or the middle of both: 'down_0', 'down_1', ..., 'mid', ..., 'up_1', 'up_0'. Parameters have the names of
    `unet.UNet`, below 'encoder' and 'decoder'.

    Attributes:
      image_channels: channels of an image.
      latent_channels: channels of a latent.
      channels: of each level, multiples of norm_groups. From level to level the resolution halves.
      num_res_blocks: residual blocks per level of the encoder. The decoder has one more.
      norm_groups: groups of the group normalizations.
      attn_stages: the stages with self-attention, of one head, after every residual block.
      use_quant_conv: a 1x1 convolution follows the encoder.
      use_post_quant_conv: a 1x1 convolution precedes the decoder.
      dtype: type of the activations, such as jnp.bfloat16; by default that of the input. Parameters, the last
        convolution of encoder and decoder, and the results are float32 or wider.

    >>> network = AutoencoderKL(channels=(8, 16), num_res_blocks=1, norm_groups=4)
    >>> variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
    >>> variables["params"]["encoder"]["down_1.block_0"]["conv1"]["kernel"].shape
    (3, 3, 8, 16)
    """

    image_channels: int = 3
    latent_channels: int = 4
    channels: Sequence[int] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    norm_groups: int = 32
    attn_stages: Sequence[str] = ("mid",)
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    dtype: Any = None

    def __post_init__(self):
        # Lists, as JSON has them, would keep the network from being a static argument of a jitted function.
        for name in ("channels", "attn_stages"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    def setup(self):
        """Make the encoder and the decoder."""
        self.validate()
        options = dict(
            channels=self.channels,
            num_res_blocks=self.num_res_blocks,
            norm_groups=self.norm_groups,
            attn_stages=self.attn_stages,
            dtype=self.dtype,
        )
        self.encoder = Encoder(2 * self.latent_channels, self.use_quant_conv, **options)
        self.decoder = Decoder(self.image_channels, self.use_post_quant_conv, **options)

    def __call__(self, images: Images) -> Images:
        """Decode the mean of the latents of images."""
        mean, _ = self.encode(images)
        return self.decode(mean)

    def encode(self, images: AnyImages) -> tuple[Latents, Latents]:
        """Return the mean and the standard deviation of the latents of images.

        Args:
          images: pixels in [-1, 1]. The sides are multiples of `downsampling`.

        Returns:
          `(mean, std)`; a random latent is mean + std * noise.

        Raises:
          InputError: if the shape or the type of the images does not fit.
        """
        _check_float(images, "images", "images / 127.5 - 1 for uint8 images")
        check_image_shape(images.shape[1:], self.image_channels, self.downsampling)
        mean, logvar = jnp.split(self.encoder(images), 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(logvar, *LOGVAR_RANGE))

    def decode(self, latents: AnyLatents) -> Images:
        """Return the images of latents.

        Args:
          latents: unscaled, as `encode` returns them.

        Returns:
          Pixels, about in [-1, 1], not clipped.

        Raises:
          InputError: if the shape or the type of the latents does not fit.
        """
        _check_float(latents, "latents", "float32")
        if latents.shape[-1] != self.latent_channels:
            raise InputError(
                f"The latents have {latents.shape[-1]} channels, in the shape {list(latents.shape)}; this autoencoder "
                f"has {self.latent_channels}. Channels come last."
            )
        return self.decoder(latents)

    @property
    def downsampling(self) -> int:
        """The side of an image, divided by the side of its latent."""
        return 2 ** (len(self.channels) - 1)

    def validate(self) -> None:
        """Raise an InputError that names the attribute at fault, if these options cannot work."""
        if not 1 <= len(self.channels) <= MAX_LEVELS:
            raise InputError(f"channels={self.channels} must have 1 to {MAX_LEVELS} levels.")
        if not 1 <= self.num_res_blocks <= MAX_BLOCKS:
            raise InputError(f"num_res_blocks={self.num_res_blocks} must be from 1 to {MAX_BLOCKS}.")
        sizes = {name: getattr(self, name) for name in ("image_channels", "latent_channels", "norm_groups")}
        for name, size in (*sizes.items(), *(("channels", width) for width in self.channels)):
            if type(size) is not int or not 1 <= size <= MAX_SIZE:
                raise InputError(f"{name} has {size!r}; it must be an integer from 1 to {MAX_SIZE:,}.")
        for width in self.channels:
            if width % self.norm_groups:
                raise InputError(
                    f"channels={self.channels} must be multiples of norm_groups={self.norm_groups}, the groups of the "
                    "group normalizations."
                )
        known = ["mid", *(f"{way}_{level}" for way in ("down", "up") for level in range(len(self.channels)))]
        if unknown := sorted({*self.attn_stages} - {*known}):
            raise InputError(f"attn_stages has {unknown}; the stages of this network are {known}.")


class _Half(nn.Module):
    """What encoder and decoder share.

    Attributes:
      out_channels: channels of the result.
      use_quant_conv: a 1x1 convolution follows the encoder, or precedes the decoder.
      channels: of each level.
      num_res_blocks: residual blocks per level of the encoder.
      norm_groups: groups of the group normalizations.
      attn_stages: the stages with self-attention.
      dtype: type of the activations; by default that of the input.
    """

    out_channels: int
    use_quant_conv: bool
    channels: tuple[int, ...]
    num_res_blocks: int
    norm_groups: int
    attn_stages: tuple[str, ...]
    dtype: Any

    def _residual(self, h, name, width):
        norm = functools.partial(GroupNorm, num_groups=self.norm_groups, dtype=h.dtype)
        options = dict(dropout=0.0, resample=None, scale_shift=False, norm=norm, dtype=h.dtype)
        return ResidualBlock(width, name=name, **options)(h, None, None)

    def _attention_if_any(self, h, stage, block):
        if stage not in self.attn_stages:
            return h
        norm = functools.partial(GroupNorm, num_groups=self.norm_groups, dtype=h.dtype)
        return AttentionBlock(1, None, norm, h.dtype, name=f"{stage}.attn_{block}")(h)

    def _level(self, h, stage, width, num_blocks):
        for block in range(num_blocks):
            h = self._residual(h, f"{stage}.block_{block}", width)
            h = self._attention_if_any(h, stage, block)
        return h

    def _middle(self, h):
        h = self._residual(h, "mid.block_1", self.channels[-1])
        h = self._attention_if_any(h, "mid", 1)
        return self._residual(h, "mid.block_2", self.channels[-1])

    def _head(self, h):
        dtype = at_least_float32(h.dtype)
        h = GroupNorm(self.norm_groups, dtype, nn.swish, name="norm_out")(h)
        return conv3x3(h, self.out_channels, dtype=dtype, name="conv_out")


class Encoder(_Half):
    """From images to the means and log-variances of latents, in float32 or wider."""

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "batch latent_height latent_width moments"]:
        """Run the encoder."""
        dtype = self.dtype or images.dtype
        h = conv3x3(images.astype(dtype), self.channels[0], dtype=dtype, name="conv_in")
        for level, width in enumerate(self.channels):
            h = self._level(h, f"down_{level}", width, self.num_res_blocks)
            if level < len(self.channels) - 1:
                # Pad below and on the right alone.
                options = dict(strides=2, padding=((0, 1), (0, 1)), dtype=dtype)
                h = conv3x3(h, width, name=f"down_{level}.downsample", **options)
        moments = self._head(self._middle(h))
        if self.use_quant_conv:
            moments = nn.Conv(self.out_channels, (1, 1), dtype=moments.dtype, name="quant_conv")(moments)
        return moments


class Decoder(_Half):
    """From latents to images, in float32 or wider."""

    @nn.compact
    def __call__(self, latents: Latents) -> Images:
        """Run the decoder."""
        dtype = self.dtype or latents.dtype
        h = latents.astype(at_least_float32(dtype))
        if self.use_quant_conv:
            h = nn.Conv(h.shape[-1], (1, 1), dtype=h.dtype, name="post_quant_conv")(h)
        h = conv3x3(h.astype(dtype), self.channels[-1], dtype=dtype, name="conv_in")
        h = self._middle(h)
        for level, width in reversed(list(enumerate(self.channels))):
            h = self._level(h, f"up_{level}", width, self.num_res_blocks + 1)
            if level > 0:
                h = conv3x3(h, width, upsample=True, dtype=dtype, name=f"up_{level}.upsample")
        return self._head(h)


@functools.lru_cache(maxsize=4)
def load_space(path: str, dtype: str, info: AutoencoderInfo, image_shape: Shape) -> Space:
    """Return the space of an autoencoder, which is read when something is first encoded or decoded.

    All spaces of one autoencoder share it.

    Args:
      path: the folder or the URL of the autoencoder; see `load`.
      dtype: type of the activations; see `load`.
      info: what is known of the autoencoder.
      image_shape: (height, width, channels).

    Raises:
      InputError: if the autoencoder does not take such images. By `encode` and `decode`: if there is no autoencoder at
        the path, or another one.
    """

    def encode(images: AnyImages) -> tuple[Latents, Latents]:
        return load_checked(path, dtype, info)[0](images)

    def decode(latents: AnyLatents) -> Images:
        return load_checked(path, dtype, info)[1](latents)

    return latent_space(encode, decode, info, image_shape, open=lambda: load_checked(path, dtype, info))


@functools.lru_cache(maxsize=1)
def load_checked(path: str, dtype: str, info: AutoencoderInfo) -> tuple[Encode, Decode]:
    """Load an autoencoder, and keep it until another one is loaded.

    Args:
      path: see `load`.
      dtype: see `load`.
      info: what is known of the autoencoder.

    Raises:
      InputError: if there is no autoencoder at the path, or another one.
    """
    with jax.ensure_compile_time_eval():  # the first call may be traced
        encode, decode, found = load(path, dtype=dtype)
    check_fingerprint(path, found, info)
    return encode, decode


def check_fingerprint(path: str, found: AutoencoderInfo, info: AutoencoderInfo) -> None:
    """Raise an InputError if the autoencoder at a path has other parameters than the one of the latents.

    Args:
      path: where it was read.
      found: what was read.
      info: what is known of the latents' autoencoder.
    """
    if found.fingerprint != info.fingerprint:
        raise InputError(
            f"The autoencoder {path!r} has the fingerprint {found.fingerprint}; the latents need {info.fingerprint} "
            f"({info.name!r}). Point config.autoencoder.path to the one that encoded them, or encode the images again "
            "with the command encode_data."
        )


def make_functions(network: AutoencoderKL, params: Params, *, max_pixels: int = MAX_PIXELS) -> tuple[Encode, Decode]:
    """Return `encode(images) -> (mean, std)` and `decode(latents) -> images` of a network and its parameters.

    Both are compiled, once per shape, and return float32 arrays or wider. All devices of this process share the batch.
    Large batches are computed part by part, and images with a side above MAX_SIDE are decoded in tiles of this side,
    which overlap by a quarter and are blended. Larger batches and images need more memory only for results. Inside a
    program of yours, such as under `jax.jit` or `jax.grad`, a batch is computed as a whole.

    Args:
      network: the network.
      params: its parameters.
      max_pixels: pixels of all images of a part together, on each device. A part is one image per device at least.

    Raises:
      InputError: by the functions, if the shape or the type of their argument does not fit.

    >>> network = AutoencoderKL(channels=(8, 16), num_res_blocks=1, norm_groups=4)
    >>> images = jnp.zeros((2, 16, 24, 3))
    >>> params = jax.jit(network.init)(jax.random.key(0), images)["params"]
    >>> encode, decode = make_functions(network, params)
    >>> mean, std = encode(images)
    >>> mean.shape, decode(mean).shape
    ((2, 8, 12, 4), (2, 16, 24, 3))
    """
    apply = jax.jit(network.apply, static_argnames="method")
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    by_rows = NamedSharding(mesh, PartitionSpec(AXIS))
    on_all = jax.device_put(params, replicated(mesh))
    on_first = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, on_all)

    def run(method, x, pixels_per_row):
        if isinstance(x, jax.core.Tracer):
            return apply({"params": params}, x, method=method)
        size = max(1, max_pixels // max(1, pixels_per_row))
        if len(x) < mesh.size:  # one device computes small batches, which need no filling up
            return _in_parts(lambda rows: apply({"params": on_first}, rows, method=method), x, min(size, len(x)))

        def compute(rows):
            return apply({"params": on_all}, jax.device_put(rows, by_rows), method=method)

        return _in_parts(compute, x, mesh.size * min(size, -(-len(x) // mesh.size)))

    def encode(images: AnyImages) -> tuple[Latents, Latents]:
        return run("encode", images, math.prod(images.shape[1:3]))

    def decode_whole(latents: AnyLatents) -> Images:
        return run("decode", latents, network.downsampling**2 * math.prod(latents.shape[1:3]))

    def decode(latents: AnyLatents) -> Images:
        tile = max(1, MAX_SIDE // network.downsampling)
        if isinstance(latents, jax.core.Tracer) or max(latents.shape[1:3]) <= tile:
            return decode_whole(latents)
        return jnp.asarray(in_tiles(decode_whole, latents, network.downsampling, tile=tile, overlap=tile // 4))

    return encode, decode


def _in_parts(compute: Callable[[Array], Any], x: Array, size: int) -> Any:
    """Compute independent rows in parts of `size` rows. The last part is filled up: it needs no other program."""
    parts = []
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        count = len(rows)
        filled = rows if count == size else jnp.concatenate([rows, jnp.repeat(rows[-1:], size - count, axis=0)])
        # Wait for each part: parts that are computed at the same time would need memory at the same time.
        part = jax.block_until_ready(compute(filled))
        parts.append(part if count == size else jax.tree.map(lambda rows, count=count: rows[:count], part))
    return jax.tree.map(lambda *rows: rows[0] if len(rows) == 1 else jnp.concatenate(rows), *parts)


def _check_float(x: Array, what: str, hint: str) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"The {what} are of type {x.dtype}; pass floating-point numbers, such as {hint}.")
