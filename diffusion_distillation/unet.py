"""The Improved-DDPM U-Net in Flax, with the parameter names of the published checkpoints."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int

from .errors import InputError
from .layers import GroupNorm, conv3x3
from .shapes import Array

LOGSNR_INPUT_TYPES = ("inv_cos", "sigmoid", "linear")
NUM_GROUPS = 32


class UNet(nn.Module):
    """Residual U-Net with self-attention (Nichol & Dhariwal 2021), conditioned on log-SNR and, if asked, on a class.

    Attributes:
      num_classes: number of classes; 1 for an unconditional network.
      ch: channels at the first level, a multiple of 32 (the number of groups of the group normalization).
      emb_ch: width of the embedding of log-SNR and class.
      out_ch: output channels: those of the image, twice that for mean_type 'both'.
      ch_mult: channels of each level in multiples of ch; from level to level the resolution halves.
      num_res_blocks: residual blocks of each level on the way down; there is one more on the way up.
      attn_resolutions: heights at which every residual block is followed by self-attention.
      num_heads: attention heads; give this or head_dim.
      dropout: rate in every residual block, applied when `train`.
      logsnr_input_type: how log-SNR enters: 'inv_cos' is atan(exp(-logsnr / 2)) / (pi/2), 'sigmoid' is
        sigmoid(logsnr), 'linear' maps logsnr_scale_range to [0, 1].
      logsnr_scale_range: for 'linear'.
      resblock_resample: resample inside a residual block (average pool, nearest neighbour), not by a convolution.
      head_dim: channels of each attention head; give this or num_heads.
      remat: in the backward pass, compute the activations inside blocks again and do not keep them: less memory, a
        third more computation.
      dtype: type of the activations (jnp.bfloat16 for mixed precision); by default the type of the input. Parameters
        stay float32, and the head (`norm_out`, swish, `conv_out`) computes in float32 at least: an x rounded to
        bfloat16 would be off by 1e-3, which the SNR weighs by up to 1e8.
    """

    num_classes: int
    ch: int
    emb_ch: int
    out_ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    num_heads: int | None
    dropout: float
    logsnr_input_type: str
    logsnr_scale_range: tuple[float, float] = (-10.0, 10.0)
    resblock_resample: bool = False
    head_dim: int | None = None
    remat: bool = False
    dtype: Any = None

    def __post_init__(self):
        # Lists, as JSON has them, would keep the network from being a static argument of a jitted function.
        for name in ("ch_mult", "attn_resolutions", "logsnr_scale_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        logsnr: Float[Array, "batch"] | Float[Array, ""] | float,
        y: Int[Array, "batch"] | None = None,
        *,
        train: bool = False,
        index: Int[Array, "batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """Runs the network.

        Args:
          x: noisy images, square.
          logsnr: log-SNR of each.
          y: labels, for a class-conditional network.
          train: apply dropout; needs `rngs={'dropout': key}`.
          index: position of each example in the global batch. Dropout masks depend on the key and on this alone, not
            on how a batch is split over devices. By default, 0, 1, 2, ...

        Returns:
          The raw output, in the type of x.

        Raises:
          InputError: for a size, a class label or an option that does not fit; see `validate`.
        """
        batch, height, width, _ = x.shape
        self.validate(height, width)
        if self.num_classes > 1 and y is None:
            raise InputError(f"A network of {self.num_classes} classes needs labels y, integers of shape [{batch}].")
        num_levels = len(self.ch_mult)
        dtype = self.dtype or x.dtype
        if not train or self.dropout == 0:
            index = None
        elif index is None:
            index = jnp.arange(batch)

        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, jnp.promote_types(x.dtype, jnp.float32)), (batch,))
        emb = sinusoidal_embedding(1000 * self._logsnr_input(logsnr), self.ch).astype(dtype)
        emb = nn.Dense(self.emb_ch, dtype=dtype, name="dense0")(emb)
        emb = nn.Dense(self.emb_ch, dtype=dtype, name="dense1")(nn.swish(emb))
        if self.num_classes > 1:
            one_hot = jax.nn.one_hot(y, self.num_classes, dtype=dtype)
            emb += nn.Dense(self.emb_ch, dtype=dtype, name="class_emb")(one_hot)
        emb = nn.swish(emb)

        residual_block, attention_block = ResidualBlock, AttentionBlock
        if self.remat:
            residual_block, attention_block = nn.remat(ResidualBlock), nn.remat(AttentionBlock)

        def residual(h, name, out_ch=None, resample=None):
            block = residual_block(out_ch or h.shape[-1], self.dropout, resample, dtype, name=name)
            return block(h, emb, index)

        def attention(h, name):
            return attention_block(self.num_heads, self.head_dim, dtype, name=name)(h)

        def conv(h, name, strides=1):
            return conv3x3(h, h.shape[-1], strides=strides, dtype=dtype, name=name)

        h = conv3x3(x.astype(dtype), self.ch, dtype=dtype, name="conv_in")
        skips = [h]
        for level, mult in enumerate(self.ch_mult):
            for block in range(self.num_res_blocks):
                h = residual(h, f"down_{level}.block_{block}", out_ch=self.ch * mult)
                if h.shape[1] in self.attn_resolutions:
                    h = attention(h, f"down_{level}.attn_{block}")
                skips.append(h)
            if level < num_levels - 1:
                name = f"down_{level}.downsample"
                h = residual(h, name, resample=average_pool) if self.resblock_resample else conv(h, name, strides=2)
                skips.append(h)

        h = residual(h, "mid.block_1")
        h = attention(h, "mid.attn_1")
        h = residual(h, "mid.block_2")

        for level, mult in reversed(list(enumerate(self.ch_mult))):
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(h, f"up_{level}.block_{block}", out_ch=self.ch * mult)
                if h.shape[1] in self.attn_resolutions:
                    h = attention(h, f"up_{level}.attn_{block}")
            if level > 0:
                name = f"up_{level}.upsample"
                h = residual(h, name, resample=upsample) if self.resblock_resample else conv(upsample(h), name)

        head_dtype = jnp.promote_types(dtype, jnp.float32)
        h = group_norm(head_dtype, "norm_out", nn.swish)(h)
        h = conv3x3(h, self.out_ch, dtype=head_dtype, kernel_init=nn.initializers.zeros, name="conv_out")
        return h.astype(x.dtype)

    def validate(self, height: int, width: int) -> None:
        """Raises an InputError that names the attribute at fault, if these options or this image size cannot work."""
        levels = [self.ch * mult for mult in self.ch_mult]
        if not levels or self.num_res_blocks < 0:
            raise InputError(
                f"ch_mult={self.ch_mult} must not be empty, nor num_res_blocks={self.num_res_blocks} negative."
            )
        downsampling = 2 ** (len(levels) - 1)
        if height != width or height % downsampling:
            raise InputError(
                f"The images are {height}x{width}; with ch_mult={self.ch_mult} they must be square, with a side "
                f"that {downsampling} divides (one halving between levels)."
            )
        for channels in levels:
            if channels % NUM_GROUPS:
                raise InputError(
                    f"ch={self.ch} with ch_mult={self.ch_mult} gives a level {channels} channels; group "
                    f"normalization needs a multiple of {NUM_GROUPS}. Choose ch as a multiple of {NUM_GROUPS}."
                )
        if (self.num_heads is None) == (self.head_dim is None):
            raise InputError(
                f"Give either num_heads or head_dim; got num_heads={self.num_heads}, head_dim={self.head_dim}."
            )
        sides = [height // 2**level for level in range(len(levels))]
        attended = [ch for ch, side in zip(levels, sides, strict=True) if side in self.attn_resolutions]
        attended.append(levels[-1] if self.num_res_blocks else self.ch)  # the middle's
        option, value = ("num_heads", self.num_heads) if self.head_dim is None else ("head_dim", self.head_dim)
        for channels in attended:
            if value < 1 or channels % value:
                raise InputError(f"{option}={value} must divide the {channels} channels of every level with attention.")
        if self.logsnr_input_type not in LOGSNR_INPUT_TYPES:
            raise InputError(
                f"Unknown logsnr_input_type {self.logsnr_input_type!r}; choose one of {list(LOGSNR_INPUT_TYPES)}."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be at least 0 and below 1.")

    def _logsnr_input(self, logsnr):
        if self.logsnr_input_type == "inv_cos":
            return jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20, 20))) / (0.5 * jnp.pi)
        if self.logsnr_input_type == "sigmoid":
            return nn.sigmoid(logsnr)
        low, high = self.logsnr_scale_range
        return (logsnr - low) / (high - low)


class ResidualBlock(nn.Module):
    """Pre-activation residual block; the embedding scales and shifts the second normalization."""

    out_ch: int
    dropout: float
    resample: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, emb, index):
        """`index` is the examples' positions in the global batch, for dropout; None for none."""
        h = group_norm(self.dtype, "norm1", nn.swish)(x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv3x3(h, self.out_ch, dtype=self.dtype, name="conv1")

        emb = nn.Dense(2 * self.out_ch, dtype=self.dtype, name="temb_proj")(emb)
        h = group_norm(self.dtype, "norm2", nn.swish)(h, film=tuple(jnp.split(emb, 2, axis=-1)))
        if index is not None:
            h = dropout(h, self.make_rng("dropout"), index, self.dropout)
        h = conv3x3(h, self.out_ch, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv2")

        if x.shape[-1] != self.out_ch:
            x = nn.Dense(self.out_ch, dtype=self.dtype, name="nin_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input."""

    num_heads: int | None
    head_dim: int | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """Returns x plus what it attends to."""
        batch, height, width, channels = x.shape
        head_dim = self.head_dim or channels // self.num_heads
        heads = (channels // head_dim, head_dim)
        h = group_norm(self.dtype, "norm")(x).reshape(batch, height * width, channels)
        q, k, v = (nn.DenseGeneral(heads, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))
        h = jax.nn.dot_product_attention(q, k, v)
        h = nn.DenseGeneral(
            channels, axis=(-2, -1), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out"
        )(h)
        return x + h.reshape(x.shape)


def sinusoidal_embedding(time: Float[Array, "batch"], width: int) -> Float[Array, "batch width"]:
    """Sines and cosines of `time` at width / 2 frequencies, from 1 down to 1 / 10000 (Vaswani et al. 2017)."""
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half, dtype=time.dtype))
    phases = time[:, None] * frequencies
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


def group_norm(dtype, name, activation=None):
    """Group normalization as everywhere in the network."""
    return GroupNorm(NUM_GROUPS, dtype, activation, name=name)


def average_pool(x):
    """Means of 2x2 pixels, half the size."""
    return nn.avg_pool(x, (2, 2), (2, 2))


def upsample(x):
    """Nearest neighbour, twice the size."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def dropout(x, key, index, rate):
    """Dropout whose mask is drawn for each example from the key and the example's index."""
    keep = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate, x.shape[1:]))(index)
    return jnp.where(keep, x / (1 - rate), 0)
