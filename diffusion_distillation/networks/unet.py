"""The Improved-DDPM U-Net in Flax, with the parameter names of the published checkpoints."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend.random import threefry_2x32
from jaxtyping import Float, Int, Integer, UInt32

from ..diffusion import sigmoid
from ..errors import InputError
from ..keys import fold_in, threefry
from ..schedules import Discrete, bounded
from ..shapes import Array, Keys, at_least_float32
from .layers import (
    EPSILON,
    GroupNorm,
    attention,
    average_pool,
    computed_once,
    conv3x3,
    nearest,
    pixels,
)

MOST_BLOCKS, MOST_SIZE = 32, 2**20  # of a level; of a width, a side or a number of classes
LOGSNR_INPUT_TYPES = ("inv_cos", "sigmoid", "linear", "step")


def check_guidance_range(weights: Sequence[Any]) -> None:
    """Raise an InputError unless these are the smallest and largest guidance weights that a network can take."""
    if not is_interval(weights) or weights[0] < 0:
        raise InputError(
            f"guidance_range={weights} must be the smallest weight, at least 0, and the largest, such as (0.0, 4.0)."
        )


def is_interval(ends: Sequence[Any]) -> bool:
    """Whether these are two numbers, the smaller first."""
    return len(ends) == 2 and all(isinstance(end, int | float) for end in ends) and ends[0] < ends[1]


class UNet(nn.Module):
    """Residual U-Net with self-attention (Nichol & Dhariwal 2021), conditioned on log-SNR and, if asked, on a class.

    Attributes:
      num_classes: number of classes; 1 for an unconditional network.
      ch: channels at the first level, a multiple of norm_groups.
      emb_ch: width of the embedding of log-SNR and class.
      out_ch: output channels: those of the image, twice that for mean_type 'both'.
      ch_mult: channels of each level in multiples of ch; from level to level the resolution halves.
      num_res_blocks: residual blocks of each level on the way down; there is one more on the way up.
      attn_resolutions: heights at which every residual block is followed by self-attention.
      num_heads: attention heads; give this or head_dim.
      dropout: rate in every residual block, applied when `train`.
      logsnr_input_type: how log-SNR enters: 'inv_cos' is atan(exp(-logsnr / 2)) / (pi/2), 'sigmoid' is
        sigmoid(logsnr), 'linear' maps logsnr_scale_range to [0, 1]; 'step' is the number of the step of `schedule`.
      logsnr_scale_range: for 'linear'.
      resblock_resample: resample inside a residual block (average pool, nearest neighbour), not by a convolution.
      head_dim: channels of each attention head; give this or num_heads.
      remat: in the backward pass, compute the activations inside blocks again and do not keep them: less memory, a
        third more computation.
      dtype: type of the activations (jnp.bfloat16 for mixed precision); by default the type of the input. Parameters
        stay float32, and the head (`norm_out`, swish, `conv_out`) computes in float32 at least: an x rounded to
        bfloat16 would be off by 1e-3, which the SNR weighs by up to 1e8.
      schedule: for 'step', the discrete schedule that the network was trained with.

    By the others, networks of other projects are this one. A stage is a level on the way down or up, or the middle:
    'down_0', 'down_1', ..., 'mid', ..., 'up_1', 'up_0'.

      freq_shift: see `sinusoidal_embedding`.
      scale_shift: the embedding scales and shifts inside residual blocks; if not, it is added before `norm2`.
      norm_groups: groups of the group normalizations.
      norm_eps: what they add to variances.
      mid_attn_groups: groups of the middle's attention, if others; 0 for no normalization there.
      pad_both_sides: pad images with zeros on all sides, not only below and on the right, for strided convolutions.
      attn_stages: the stages with self-attention, where not attn_resolutions says it (and the middle has it).
      resample_stages: the stages that resample inside a residual block, where not resblock_resample says it for all.

    A student of a guided teacher has one more input:

      guidance_range: the least and the largest weight of guidance that it takes (Meng et al. 2023); None for a network
        that takes none.
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
    schedule: Discrete | None = None
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
        tuples = (
            "ch_mult",
            "attn_resolutions",
            "logsnr_scale_range",
            "attn_stages",
            "resample_stages",
            "guidance_range",
        )
        for name in tuples:
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
        """Runs the network.

        Args:
          x: noisy images, square.
          logsnr: log-SNR of each.
          y: labels, for a class-conditional network; -1 for no class.
          guidance: the weight of each, for a network with a guidance_range, and for no other.
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
        if self.num_classes > 1 and not isinstance(y, jax.core.Tracer):
            self._check_labels(np.asarray(y))
        if (self.guidance_range is None) != (guidance is None):
            raise InputError(f"A network of guidance_range={self.guidance_range} was called with guidance={guidance}.")
        num_levels = len(self.ch_mult)
        dtype = self.dtype or x.dtype
        seeds = None
        if train and self.dropout:
            index = jnp.arange(batch, dtype=jnp.int32) if index is None else index
            seeds = dropout_seeds(self.make_rng("dropout"), index)
        sites = itertools.count()

        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, at_least_float32(x.dtype)), (batch,))
        emb = self.time_embedding(logsnr).astype(dtype)
        emb = nn.Dense(self.emb_ch, dtype=dtype, name="dense0")(emb)
        emb = nn.Dense(self.emb_ch, dtype=dtype, name="dense1")(nn.swish(emb))
        if self.num_classes > 1:
            one_hot = jax.nn.one_hot(y, self.num_classes, dtype=dtype)
            emb += nn.Dense(self.emb_ch, dtype=dtype, name="class_emb")(one_hot)
        if guidance is not None:  # the last layer is zero at first: a student begins as its teacher without guidance
            low, high = self.guidance_range
            weight = 1000 * (guidance.astype(logsnr.dtype) - low) / (high - low)
            weight = sinusoidal_embedding(weight, self.ch, self.freq_shift).astype(dtype)
            weight = nn.swish(nn.Dense(self.emb_ch, dtype=dtype, name="guidance0")(weight))
            emb += nn.Dense(self.emb_ch, dtype=dtype, kernel_init=nn.initializers.zeros, name="guidance1")(weight)
        emb = nn.swish(emb)

        residual_block, attention_block = ResidualBlock, AttentionBlock
        if self.remat:
            residual_block, attention_block = nn.remat(ResidualBlock), nn.remat(AttentionBlock)

        norm = functools.partial(GroupNorm, num_groups=self.norm_groups, dtype=dtype, epsilon=self.norm_eps)
        mid_norm = norm
        if self.mid_attn_groups is not None:
            mid_norm = functools.partial(norm, num_groups=self.mid_attn_groups) if self.mid_attn_groups else None

        def residual(h, name, out_ch=None, resample=None):
            options = dict(resample=resample, scale_shift=self.scale_shift, norm=norm, dtype=dtype)
            # one draw for all blocks: keys of Threefry may be as near to each other
            of_site = None if seeds is None else seeds + jnp.array([[0, next(sites)]], jnp.uint32)
            return residual_block(out_ch or h.shape[-1], self.dropout, **options, name=name)(h, emb, of_site)

        def attention(h, name, norm=norm):
            return attention_block(self.num_heads, self.head_dim, norm, dtype, name=name)(h)

        def conv(h, name, **options):
            return conv3x3(h, h.shape[-1], dtype=dtype, name=name, **options)

        def downsample(h, stage):
            if self.resamples_inside(stage):
                return residual(h, f"{stage}.downsample", resample=average_pool)
            return conv(h, f"{stage}.downsample", strides=2, padding=1 if self.pad_both_sides else "SAME")

        def upsample(h, stage):
            if self.resamples_inside(stage):
                return residual(h, f"{stage}.upsample", resample=nearest)
            return conv(h, f"{stage}.upsample", of_nearest=True)

        h = conv3x3(x.astype(dtype), self.ch, dtype=dtype, name="conv_in")
        skips = [h]
        for level, mult in enumerate(self.ch_mult):
            stage = f"down_{level}"
            for block in range(self.num_res_blocks):
                h = residual(h, f"{stage}.block_{block}", out_ch=self.ch * mult)
                if self.attends(stage, h.shape[1]):
                    h = attention(h, f"{stage}.attn_{block}")
                skips.append(h)
            if level < num_levels - 1:
                h = downsample(h, stage)
                skips.append(h)

        h = residual(h, "mid.block_1")
        if self.attends("mid"):
            h = attention(h, "mid.attn_1", mid_norm)
        h = residual(h, "mid.block_2")

        for level, mult in reversed(list(enumerate(self.ch_mult))):
            stage = f"up_{level}"
            for block in range(self.num_res_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(h, f"{stage}.block_{block}", out_ch=self.ch * mult)
                if self.attends(stage, h.shape[1]):
                    h = attention(h, f"{stage}.attn_{block}")
            if level > 0:
                h = upsample(h, stage)

        head_dtype = at_least_float32(dtype)
        h = norm(dtype=head_dtype, activation=nn.swish, name="norm_out")(h)
        h = conv3x3(h, self.out_ch, dtype=head_dtype, kernel_init=nn.initializers.zeros, name="conv_out")
        return h.astype(x.dtype)

    def validate(self, height: int, width: int) -> None:
        """Raises an InputError that names the attribute at fault, if these options or this image size cannot work."""
        for name in ("ch_mult", "attn_resolutions"):
            if not all(type(value) is int and value >= 1 for value in getattr(self, name)):
                raise InputError(f"{name}={getattr(self, name)} must hold integers of at least 1.")
        levels = [self.ch * mult for mult in self.ch_mult]
        if not levels or self.num_res_blocks < 0:
            raise InputError(
                f"ch_mult={self.ch_mult} must not be empty, nor num_res_blocks={self.num_res_blocks} negative."
            )
        for name in ("ch", "emb_ch", "norm_groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if not self.norm_eps > 0:
            raise InputError(f"norm_eps={self.norm_eps} must be more than 0.")
        if not is_interval(self.logsnr_scale_range):
            raise InputError(f"logsnr_scale_range={self.logsnr_scale_range} must be two numbers, the smaller first.")
        sizes = dict(height=height, emb_ch=self.emb_ch, out_ch=self.out_ch, num_classes=self.num_classes)
        sizes |= {"num_res_blocks": self.num_res_blocks, "ch times ch_mult": max(self.ch, *levels)}
        for name, value in sizes.items():  # or else a config would take all memory before a parameter is read
            if value > (most := MOST_BLOCKS if name == "num_res_blocks" else MOST_SIZE):
                raise InputError(f"{name}={value} must be {most:,} at most.")
        downsampling = 2 ** (len(levels) - 1)
        if height != width or height % downsampling:
            raise InputError(
                f"The images are {height}x{width}; with ch_mult={self.ch_mult} they must be square, with a side "
                f"that {downsampling} divides (one halving between levels)."
            )
        for channels in levels:
            if channels % self.norm_groups:
                raise InputError(
                    f"ch={self.ch} with ch_mult={self.ch_mult} gives a level {channels} channels; group normalization "
                    f"needs a multiple of {self.norm_groups}. Choose ch as a multiple of {self.norm_groups}."
                )
        if (self.num_heads is None) == (self.head_dim is None):
            raise InputError(
                f"Give either num_heads or head_dim; got num_heads={self.num_heads}, head_dim={self.head_dim}."
            )
        middle = levels[-1] if self.num_res_blocks else self.ch
        stages = {f"{way}_{level}": ch for level, ch in enumerate(levels) for way in ("down", "up")} | {"mid": middle}
        for name in ("attn_stages", "resample_stages"):
            if unknown := sorted(set(getattr(self, name) or ()) - set(stages)):
                raise InputError(f"{name} has {unknown}; the stages of this network are {sorted(stages)}.")
        sides = {stage: height // 2 ** int(stage.partition("_")[2] or 0) for stage in stages}
        attended = [ch for stage, ch in stages.items() if self.attends(stage, sides[stage])]
        option, value = ("num_heads", self.num_heads) if self.head_dim is None else ("head_dim", self.head_dim)
        for channels in attended:
            if value < 1 or channels % value:
                raise InputError(f"{option}={value} must divide the {channels} channels of every level with attention.")
        if self.logsnr_input_type not in LOGSNR_INPUT_TYPES:
            raise InputError(
                f"Unknown logsnr_input_type {self.logsnr_input_type!r}; choose one of {list(LOGSNR_INPUT_TYPES)}."
            )
        if self.logsnr_input_type == "step" and not isinstance(self.schedule, Discrete):
            raise InputError(
                "logsnr_input_type='step' needs the 'discrete' schedule that the network was trained with: set "
                "model.train_logsnr_schedule to it."
            )
        if self.ch % 2 or self.ch // 2 <= self.freq_shift:
            raise InputError(f"ch={self.ch} must be even and above 2 * freq_shift, with freq_shift={self.freq_shift}.")
        if self.mid_attn_groups and middle % self.mid_attn_groups:
            raise InputError(f"mid_attn_groups={self.mid_attn_groups} must divide the middle's {middle} channels.")
        if self.guidance_range is not None:
            check_guidance_range(self.guidance_range)
            if self.num_classes == 1:
                raise InputError(
                    f"guidance_range={self.guidance_range} is for networks with classes: set the dataset's "
                    "class_conditional=True."
                )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout={self.dropout} must be at least 0 and below 1.")

    def time_embedding(self, logsnr: Float[Array, "batch"]) -> Float[Array, "batch ch"]:
        """The sinusoids that log-SNR enters as; they depend on no parameter."""
        return sinusoidal_embedding(self._time(logsnr), self.ch, self.freq_shift)

    def attends(self, stage: str, side: int | None = None) -> bool:
        """Whether a stage has self-attention, with images of this side there."""
        if self.attn_stages is not None:
            return stage in self.attn_stages
        return stage == "mid" or side in self.attn_resolutions

    def resamples_inside(self, stage: str) -> bool:
        """Whether a stage resamples inside a residual block."""
        return self.resblock_resample if self.resample_stages is None else stage in self.resample_stages

    def _check_labels(self, y: np.ndarray) -> None:
        if not np.issubdtype(y.dtype, np.integer) or np.any((y < -1) | (y >= self.num_classes)):
            got = np.array2string(y, threshold=20, separator=", ")
            raise InputError(f"labels must be integers from 0 to {self.num_classes - 1}, or -1 for none; got {got}.")

    def _time(self, logsnr):
        if self.logsnr_input_type == "step":
            return self.schedule.step(logsnr)
        if self.logsnr_input_type == "inv_cos":
            return 1000 * (jnp.arctan(jnp.exp(-0.5 * bounded(logsnr, -20.0, 20.0))) / (0.5 * jnp.pi))
        if self.logsnr_input_type == "sigmoid":
            return 1000 * sigmoid(logsnr)
        low, high = self.logsnr_scale_range
        return 1000 * ((logsnr - low) / (high - low))


class ResidualBlock(nn.Module):
    """Pre-activation residual block; the embedding scales and shifts the second normalization, or is added before."""

    out_ch: int
    dropout: float
    resample: Any
    scale_shift: bool
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch in_height in_width in_ch"],
        emb: Float[Array, "batch emb_ch"],
        seeds: UInt32[Array, "batch 2"] | None,
    ) -> Float[Array, "batch height width out_ch"]:
        """Returns the block's output.

        Args:
          x: images of features.
          emb: the embedding of time and what else the network is told.
          seeds: of `dropout_seeds`, others for each block; None for no dropout.
        """
        h = self.norm(activation=nn.swish, name="norm1")(x)
        upsamples = self.resample is nearest
        if self.resample is not None:
            x = self.resample(x)
            if not upsamples:
                h = self.resample(h)
        h = conv3x3(h, self.out_ch, of_nearest=upsamples, dtype=self.dtype, name="conv1")

        emb = nn.Dense((1 + self.scale_shift) * self.out_ch, dtype=self.dtype, name="temb_proj")(emb)
        film = tuple(jnp.split(emb, 2, axis=-1)) if self.scale_shift else None
        if film is None:
            h += emb[:, None, None]
        h = self.norm(activation=nn.swish, name="norm2")(h, film=film)
        if seeds is not None:
            h = dropout(h, seeds, self.dropout)
        h = conv3x3(h, self.out_ch, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv2")

        if x.shape[-1] == self.out_ch:
            return computed_once(x + h)
        shortcut = nn.Dense(self.out_ch, dtype=self.dtype, name="nin_shortcut")(pixels(x))
        return computed_once(shortcut.reshape(h.shape) + h)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, added to its input."""

    num_heads: int | None
    head_dim: int | None
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x):
        """Returns x plus what it attends to."""
        batch, *_, channels = x.shape
        head_dim = self.head_dim or channels // self.num_heads
        heads = (channels // head_dim, head_dim)
        h = pixels(x if self.norm is None else self.norm(name="norm")(x))
        q, k, v = (nn.DenseGeneral(heads, dtype=self.dtype, name=name)(h) for name in ("q", "k", "v"))
        h = attention(*(part.reshape(batch, -1, *heads) for part in (q, k, v)))
        h = nn.DenseGeneral(
            channels, axis=(-2, -1), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out"
        )(h.reshape(-1, *heads))
        return computed_once(x + h.reshape(x.shape))


def sinusoidal_embedding(time: Float[Array, "batch"], width: int, freq_shift: int = 1) -> Float[Array, "batch width"]:
    """Sines and cosines of `time` at width / 2 frequencies, from 1 down to 1 / 10000 (Vaswani et al. 2017).

    The last frequency is 1 / 10000 with a freq_shift of 1; with 0, the one after it would be.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(10000) / (half - freq_shift) * jnp.arange(half, dtype=time.dtype))
    phases = time[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1)


def dropout_seeds(key: Keys, index: Int[Array, "batch"]) -> UInt32[Array, "batch 2"]:
    """What `dropout` draws each example's mask from: depends on the key, of any kind, and on the example's index."""
    return jax.vmap(lambda i: jax.random.bits(fold_in(threefry(key), i), (2,), jnp.uint32))(index)


def dropout(x, seeds, rate):
    """Dropout whose mask is drawn for each example from its seed, a key of Threefry, which is to be used once.

    Sixteen bits decide on an element, half of a word of Threefry: a fourth of the work of `jax.random.bernoulli`.
    """
    size = math.prod(x.shape[1:])
    kept = max(1, round((1 - rate) * 2**16))  # of the numbers that sixteen bits can be
    counts = jnp.arange((size + 1) // 2, dtype=jnp.uint32)
    words = jax.vmap(lambda seed: threefry_2x32(seed, counts))(seeds)
    halves = (words[:, None] >> jnp.array([[[0], [16]]], jnp.uint32)) & 0xFFFF
    # written to memory: XLA would draw it again for each use, in the backward pass too
    keep = jax.lax.optimization_barrier(halves.reshape(len(x), -1)[:, :size].reshape(x.shape) < kept)
    return jnp.where(keep, x * (2**16 / kept), 0)
