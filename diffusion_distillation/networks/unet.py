"""The Improved-DDPM U-Net in Flax, with the parameter names of the published checkpoints."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float, Int, Integer, UInt32

from ..errors import InputError
from ..schedules import Discrete
from ..shapes import Array, at_least_float32
from .cpu_kernels import nearest
from .dropout import dropout, dropout_seeds, site_seeds
from .embedding import (
    LogsnrInputType,
    check_condition,
    check_guidance_input,
    check_logsnr_input,
    embedded_guidance,
    embedded_time,
    sinusoidal_embedding,
)
from .layers import EPSILON, GroupNorm, add, attention, average_pool, conv3x3, flatten_pixels

MAX_BLOCKS = 32  # residual blocks of a level
MAX_SIZE = 2**20  # of a width, a side or a number of classes
TUPLES = ("ch_mult", "attn_resolutions", "logsnr_scale_range", "attn_stages", "resample_stages", "guidance_range")


class UNet(nn.Module):
    """Residual U-Net with self-attention (Nichol & Dhariwal 2021), conditioned on log-SNR and, optionally, on a class.

    A stage is a level on the way down or up, or the middle: 'down_0', 'down_1', ..., 'mid', ..., 'up_1', 'up_0'.

    Attributes:
      num_classes: number of classes; 1 for an unconditional network.
      ch: channels at the first level, a multiple of norm_groups.
      emb_ch: width of the embedding of log-SNR and class.
      out_ch: output channels: those of the image, or twice as many for mean_type 'both'.
      ch_mult: channels of each level, in multiples of ch. From level to level the resolution halves.
      num_res_blocks: residual blocks per level on the way down. The way up has one more.
      attn_resolutions: heights at which self-attention follows every residual block.
      num_heads: attention heads. Set either this or head_dim.
      dropout: rate in every residual block, from 0 to below 1, applied when `train`.
      logsnr_input_type: how log-SNR enters; see `embedding.embedded_time`.
      logsnr_scale_range: the smallest and the largest log-SNR, for 'linear'.
      resblock_resample: resample inside a residual block (average pool, nearest neighbor), not by a convolution.
      head_dim: channels per attention head. Set either this or num_heads.
      remat: recompute the activations inside blocks in the backward pass: less memory, a third more computation.
      dtype: type of the activations, such as jnp.bfloat16 for mixed precision; by default that of the input.
        Parameters stay float32. The head (`norm_out`, swish, `conv_out`) computes in float32 or wider: an x rounded to
        bfloat16 would be off by 1e-3, which the SNR weighs by up to 1e8.
      schedule: for 'step', the discrete schedule that the network was trained with.
      guidance_range: the smallest and the largest guidance weight, for the student of a guided teacher, which takes the
        weight as an input (Meng et al. 2023); None for a network without this input.

    The remaining attributes exist to reproduce other projects' U-Nets:

      time_scale: factor of the number that stands for log-SNR, except for 'step'; default 1000.
      freq_shift: 1 if the lowest frequency of the sinusoidal embedding is 1 / 10000, 0 if the one after it would be.
      scale_shift: the embedding scales and shifts inside residual blocks; if False, it is added before `norm2`.
      norm_groups: groups of the group normalizations.
      norm_eps: added to variances.
      mid_attn_groups: groups of the normalization in the middle's attention; 0 for no normalization, None for
        norm_groups.
      pad_both_sides: pad with zeros on all sides before strided convolutions, not only below and on the right.
      attn_stages: the stages with self-attention; None for those of attn_resolutions, and the middle.
      resample_stages: the stages that resample inside a residual block; None for all or none, as resblock_resample.
    """

    num_classes: int
    ch: int
    emb_ch: int
    out_ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    num_heads: int | None = None
    dropout: float = 0.0
    logsnr_input_type: LogsnrInputType = "inv_cos"
    logsnr_scale_range: tuple[float, float] = (-10.0, 10.0)
    resblock_resample: bool = False
    head_dim: int | None = None
    remat: bool = False
    dtype: Any = None
    schedule: Discrete | None = None
    time_scale: float = 1000.0
    freq_shift: int = 1
    scale_shift: bool = True
    norm_groups: int = 32
    norm_eps: float = EPSILON
    mid_attn_groups: int | None = None
    pad_both_sides: bool = False
    attn_stages: Sequence[str] | None = None
    resample_stages: Sequence[str] | None = None
    guidance_range: tuple[float, float] | None = None

    def __post_init__(self):
        # Lists, as JSON has them, would keep the network from being a static argument of a jitted function.
        for name in TUPLES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        logsnr: Float[Array, "batch"] | Float[Array, ""] | float,
        y: Integer[Array, "batch"] | None = None,
        *,
        guidance: Float[Array, "batch"] | None = None,
        train: bool = False,
        index: Int[Array, "batch"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """Run the network.

        Args:
          x: noisy images, square.
          logsnr: log-SNR of each image, or of all.
          y: class labels, for a class-conditional network; -1 for no class.
          guidance: guidance weights, if and only if the network has a guidance_range.
          train: apply dropout; needs `rngs={'dropout': key}`.
          index: position of each example in the global batch, by default 0, 1, 2, ... Dropout masks depend on the key
            and on the position alone, not on how a batch is divided among devices.

        Returns:
          The raw output, in the type of x.

        Raises:
          InputError: if the image size, a class label or an option does not fit; see `validate`.
        """
        batch, height, width, _ = x.shape
        self.validate(height, width)
        check_condition(batch, y, guidance, num_classes=self.num_classes, guidance_range=self.guidance_range)
        dtype = self.dtype or x.dtype
        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, at_least_float32(x.dtype)), (batch,))
        emb = self._embed(logsnr, y, guidance, dtype)
        blocks = _Blocks(network=self, emb=emb, seeds=self._dropout_seeds(batch, train, index), dtype=dtype)

        h = conv3x3(x.astype(dtype), self.ch, dtype=dtype, name="conv_in")
        h, skips = self._down(h, blocks)
        h = self._middle(h, blocks)
        h = self._up(h, skips, blocks)
        return self._head(h, blocks).astype(x.dtype)

    def _embed(self, logsnr, y, guidance, dtype):
        """The embedding of log-SNR, class and guidance weight, of width emb_ch."""
        dense = functools.partial(nn.Dense, self.emb_ch, dtype=dtype)
        emb = dense(name="dense0")(self.time_embedding(logsnr).astype(dtype))
        emb = dense(name="dense1")(nn.swish(emb))
        if self.num_classes > 1:
            emb += dense(name="class_emb")(jax.nn.one_hot(y, self.num_classes, dtype=dtype))
        if guidance is not None:
            weight = embedded_guidance(guidance, self.guidance_range, logsnr.dtype)
            weight = sinusoidal_embedding(weight, self.ch, self.freq_shift).astype(dtype)
            weight = nn.swish(dense(name="guidance0")(weight))
            # Zero at first: a student starts as its teacher without guidance.
            emb += dense(kernel_init=nn.initializers.zeros, name="guidance1")(weight)
        return nn.swish(emb)

    def _dropout_seeds(self, batch, train, index):
        """Each example's seed for all dropout layers; None without dropout."""
        if not (train and self.dropout):
            return None
        index = jnp.arange(batch, dtype=jnp.int32) if index is None else index
        return dropout_seeds(self.make_rng("dropout"), index)

    def _down(self, h, blocks):
        """The features at the lowest resolution, and the skip features for the way up."""
        skips = [h]
        for level, mult in enumerate(self.ch_mult):
            stage = f"down_{level}"
            for block in range(self.num_res_blocks):
                h = blocks.residual(h, f"{stage}.block_{block}", self.ch * mult)
                h = blocks.attention_if_any(h, stage, block)
                skips.append(h)
            if level < len(self.ch_mult) - 1:
                h = blocks.downsample(h, stage)
                skips.append(h)
        return h, skips

    def _middle(self, h, blocks):
        h = blocks.residual(h, "mid.block_1")
        h = blocks.attention_if_any(h, "mid", 1)
        return blocks.residual(h, "mid.block_2")

    def _up(self, h, skips, blocks):
        for level, mult in reversed(list(enumerate(self.ch_mult))):
            stage = f"up_{level}"
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = blocks.residual(h, f"{stage}.block_{block}", self.ch * mult)
                h = blocks.attention_if_any(h, stage, block)
            if level > 0:
                h = blocks.upsample(h, stage)
        return h

    def _head(self, h, blocks):
        dtype = at_least_float32(blocks.dtype)
        h = blocks.norm(dtype=dtype, activation=nn.swish, name="norm_out")(h)
        return conv3x3(h, self.out_ch, dtype=dtype, kernel_init=nn.initializers.zeros, name="conv_out")

    def validate(self, height: int, width: int) -> None:
        """Raise an InputError that names the attribute at fault, if these options or this image size cannot work."""
        self._check_ranges()
        self._check_sizes(height, width)
        self._check_blocks(height)
        self._check_embedding()

    def _check_ranges(self) -> None:
        for name in ("ch_mult", "attn_resolutions"):
            if not all(type(value) is int and value >= 1 for value in getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)} must hold integers of at least 1.")
        if not self.ch_mult or self.num_res_blocks < 0:
            raise InputError(
                f"ch_mult={self.ch_mult} must not be empty, nor num_res_blocks={self.num_res_blocks} negative."
            )
        for name in ("ch", "emb_ch", "norm_groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.norm_eps > 0:
            raise InputError(f"norm_eps={self.norm_eps} must be more than 0.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be at least 0 and below 1.")

    def _check_sizes(self, height: int, width: int) -> None:
        """Check sizes and divisibility. A larger size would take all memory before a parameter is read."""
        if self.num_res_blocks > MAX_BLOCKS:
            raise InputError(f"num_res_blocks={self.num_res_blocks} must be {MAX_BLOCKS} at most.")
        widest = max(self.ch, *self._level_channels)
        sizes = dict(height=height, emb_ch=self.emb_ch, out_ch=self.out_ch, num_classes=self.num_classes)
        for name, value in {**sizes, "ch times ch_mult": widest}.items():
            if value > MAX_SIZE:
                raise InputError(f"{name}={value} must be {MAX_SIZE:,} at most.")
        divisor = 2 ** (len(self.ch_mult) - 1)
        if height != width or height % divisor:
            raise InputError(
                f"The images are {height}x{width}; with ch_mult={self.ch_mult} they must be square, with a side that "
                f"{divisor} divides (one halving between levels)."
            )
        for channels in self._level_channels:
            if channels % self.norm_groups:
                raise InputError(
                    f"ch={self.ch} with ch_mult={self.ch_mult} gives a level {channels} channels; group normalization "
                    f"needs a multiple of {self.norm_groups}. Choose ch as a multiple of {self.norm_groups}."
                )

    def _check_blocks(self, height: int) -> None:
        """Check what attention and resampling need."""
        if (self.num_heads is None) == (self.head_dim is None):
            raise InputError(
                f"Set either num_heads or head_dim; got num_heads={self.num_heads}, head_dim={self.head_dim}."
            )
        middle = self._level_channels[-1] if self.num_res_blocks else self.ch
        channels = {f"{way}_{level}": ch for level, ch in enumerate(self._level_channels) for way in ("down", "up")}
        channels["mid"] = middle
        for name in ("attn_stages", "resample_stages"):
            if unknown := sorted(set(getattr(self, name) or ()) - set(channels)):
                raise InputError(f"{name} has {unknown}; the stages of this network are {sorted(channels)}.")
        sides = {stage: height // 2 ** int(stage.partition("_")[2] or 0) for stage in channels}
        option = "num_heads" if self.head_dim is None else "head_dim"
        value = getattr(self, option)
        for stage, ch in channels.items():
            if self.attends(stage, sides[stage]) and (value < 1 or ch % value):
                raise InputError(f"{option}={value} must divide the {ch} channels of every level with attention.")
        if self.mid_attn_groups and (self.mid_attn_groups < 0 or middle % self.mid_attn_groups):
            raise InputError(f"mid_attn_groups={self.mid_attn_groups} must divide the middle's {middle} channels.")

    def _check_embedding(self) -> None:
        check_logsnr_input(self.logsnr_input_type, self.time_scale, self.logsnr_scale_range, self.schedule)
        if self.ch % 2 or self.ch // 2 <= self.freq_shift:
            raise InputError(f"ch={self.ch} must be even and above 2 * freq_shift, with freq_shift={self.freq_shift}.")
        check_guidance_input(self.guidance_range, self.num_classes)

    @property
    def _level_channels(self) -> list[int]:
        return [self.ch * mult for mult in self.ch_mult]

    def time_embedding(self, logsnr: Float[Array, "batch"]) -> Float[Array, "batch ch"]:
        """Return the sinusoids of log-SNR that the network is conditioned on. They depend on no parameter."""
        return sinusoidal_embedding(self._time(logsnr), self.ch, self.freq_shift)

    def attends(self, stage: str, side: int | None = None) -> bool:
        """Whether a stage, whose features have this height, has self-attention."""
        if self.attn_stages is not None:
            return stage in self.attn_stages
        return stage == "mid" or side in self.attn_resolutions

    def resamples_inside(self, stage: str) -> bool:
        """Whether a stage resamples inside a residual block."""
        return self.resblock_resample if self.resample_stages is None else stage in self.resample_stages

    def _time(self, logsnr):
        return embedded_time(
            logsnr,
            self.logsnr_input_type,
            scale=self.time_scale,
            scale_range=self.logsnr_scale_range,
            schedule=self.schedule,
        )


class _Blocks:
    """The blocks of one call of a network, which share its options, the embedding and the dropout seeds.

    Attributes:
      network: the network; the blocks become its submodules.
      emb: the embedding.
      seeds: from `dropout_seeds`; None for no dropout.
      dtype: type of the activations.
      norm: `norm(...)` is a GroupNorm with the network's options.
    """

    def __init__(self, *, network: UNet, emb: Array, seeds: Array | None, dtype: Any):
        self.network = network
        self.emb = emb
        self.seeds = seeds
        self.dtype = dtype
        self.norm = functools.partial(GroupNorm, num_groups=network.norm_groups, dtype=dtype, epsilon=network.norm_eps)
        self._sites = itertools.count()
        self._residual = nn.remat(ResidualBlock) if network.remat else ResidualBlock
        self._attention = nn.remat(AttentionBlock) if network.remat else AttentionBlock

    def residual(self, h, name, out_ch=None, resample=None):
        block = self._residual(
            out_ch=out_ch or h.shape[-1],
            dropout=self.network.dropout,
            resample=resample,
            scale_shift=self.network.scale_shift,
            norm=self.norm,
            dtype=self.dtype,
            name=name,
        )
        seeds = None if self.seeds is None else site_seeds(self.seeds, next(self._sites))
        return block(h, self.emb, seeds)

    def attention_if_any(self, h, stage, block):
        network = self.network
        if not network.attends(stage, h.shape[1]):
            return h
        norm = self.norm
        if stage == "mid" and network.mid_attn_groups is not None:
            norm = functools.partial(norm, num_groups=network.mid_attn_groups) if network.mid_attn_groups else None
        name = f"{stage}.attn_{block}"
        return self._attention(network.num_heads, network.head_dim, norm, self.dtype, name=name)(h)

    def downsample(self, h, stage):
        name = f"{stage}.downsample"
        if self.network.resamples_inside(stage):
            return self.residual(h, name, resample=average_pool)
        padding = 1 if self.network.pad_both_sides else "SAME"
        return conv3x3(h, h.shape[-1], strides=2, padding=padding, dtype=self.dtype, name=name)

    def upsample(self, h, stage):
        name = f"{stage}.upsample"
        if self.network.resamples_inside(stage):
            return self.residual(h, name, resample=nearest)
        return conv3x3(h, h.shape[-1], upsample=True, dtype=self.dtype, name=name)


class ResidualBlock(nn.Module):
    """Pre-activation residual block.

    Attributes:
      out_ch: channels of the result.
      dropout: rate.
      resample: `average_pool` or `nearest`, applied before the first convolution and on the shortcut; or None.
      scale_shift: the embedding scales and shifts after the second normalization; if False, it is added before.
      norm: `norm(activation=..., name=...)` is the GroupNorm to use.
      dtype: type of the activations.
    """

    out_ch: int
    dropout: float
    resample: Any
    scale_shift: bool
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        emb: Float[Array, "batch emb_ch"] | None,
        seeds: UInt32[Array, "batch 2"] | None,
    ) -> Float[Array, "batch out_height out_width out_ch"]:
        """Run the block.

        Args:
          x: features.
          emb: the embedding of log-SNR and of the other conditions; None for a block without conditions.
          seeds: of `site_seeds`, different in each block; None for no dropout.
        """
        h = self.norm(activation=nn.swish, name="norm1")(x)
        if self.resample is average_pool:
            h = average_pool(h)
        if self.resample is not None:
            x = self.resample(x)
        h = conv3x3(h, self.out_ch, upsample=self.resample is nearest, dtype=self.dtype, name="conv1")

        film = None
        if emb is not None:
            emb = nn.Dense((1 + self.scale_shift) * self.out_ch, dtype=self.dtype, name="temb_proj")(emb)
            if self.scale_shift:
                film = tuple(jnp.split(emb, 2, axis=-1))
            else:
                h += emb[:, None, None]
        h = self.norm(activation=nn.swish, name="norm2")(h, film=film)
        if seeds is not None:
            h = dropout(h, seeds, self.dropout)
        h = conv3x3(h, self.out_ch, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv2")

        if x.shape[-1] != self.out_ch:
            shortcut = nn.Dense(self.out_ch, dtype=self.dtype, name="nin_shortcut")(flatten_pixels(x))
            x = shortcut.reshape(h.shape)
        return add(x, h)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input.

    Attributes:
      num_heads: attention heads, if head_dim is None.
      head_dim: channels per head; None to divide the channels among num_heads.
      norm: `norm(name=...)` is the GroupNorm to use; None for no normalization.
      dtype: type of the activations.
    """

    num_heads: int | None
    head_dim: int | None
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Run the block."""
        batch, *_, channels = x.shape
        head_dim = self.head_dim or channels // self.num_heads
        heads = (channels // head_dim, head_dim)
        h = flatten_pixels(x if self.norm is None else self.norm(name="norm")(x))
        q, k, v = (nn.DenseGeneral(heads, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))
        h = attention(*(part.reshape(batch, -1, *heads) for part in (q, k, v)))
        h = nn.DenseGeneral(
            channels, axis=(-2, -1), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out"
        )(h.reshape(-1, *heads))
        return add(x, h.reshape(x.shape))
