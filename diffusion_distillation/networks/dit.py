"""The diffusion transformers DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024) in Flax.

The two are one network. A DiT predicts eps on a discrete schedule: mean_type 'eps', logsnr_input_type 'step'. A SiT
predicts the velocity of flow matching: mean_type 'flow', logsnr_input_type 'data_time', time_scale 1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, Integer

from ..errors import InputError
from ..schedules import Discrete
from ..shapes import Array, at_least_float32
from .embedding import (
    LogsnrInputType,
    check_condition,
    check_guidance_input,
    check_logsnr_input,
    embedded_guidance,
    embedded_time,
    sinusoidal_embedding,
)
from .layers import EPSILON, add, attention, flatten_pixels

SINUSOIDS = 256  # that embed log-SNR, and a guidance weight
MAX_DEPTH = 256
MAX_SIZE = 2**20  # of a width, a side or a number of classes


class DiT(nn.Module):
    """Vision transformer over patches with adaptive layer normalization, adaLN-Zero (Peebles & Xie 2023, figure 3).

    It is conditioned on log-SNR and, optionally, on a class. It has no dropout.

    Attributes:
      num_classes: number of classes; 1 for an unconditional network. A class table has one more row, the last one, for
        no class. Label dropout trains this row.
      out_ch: output channels: those of the image, or twice as many for mean_type 'both'.
      patch_size: side of the patches, which must divide the side of the images. One patch is one token.
      hidden_size: width of the tokens, a multiple of 4 and of num_heads.
      depth: number of blocks.
      num_heads: attention heads.
      mlp_ratio: width of the hidden layer of the MLPs, in multiples of hidden_size.
      logsnr_input_type: how log-SNR enters; see `embedding.embedded_time`.
      logsnr_scale_range: the smallest and the largest log-SNR, for 'linear'.
      remat: recompute the activations inside blocks in the backward pass: less memory, a third more computation.
      dtype: type of the activations, such as jnp.bfloat16 for mixed precision; by default that of the input.
        Parameters stay float32. The head (`adaln_out`, normalization, `proj_out`) computes in float32 or wider.
      schedule: for 'step', the discrete schedule that the network was trained with.
      guidance_range: the smallest and the largest guidance weight, for the student of a guided teacher, which takes the
        weight as an input (Meng et al. 2023); None for a network without this input.
      time_scale: factor of the number that stands for log-SNR, except for 'step'.
      freq_shift: 1 if the lowest frequency of the sinusoidal embedding is 1 / 10000, as in diffusers; 0 if the one
        after it would be, as in the original code.
      mlp_norm_eps: added to variances in the normalization before each MLP: 1e-6 in the original code, 1e-5 in most
        diffusers folders.

    >>> network = DiT(num_classes=10, out_ch=4, patch_size=2, hidden_size=32, depth=2, num_heads=2)
    >>> x, logsnr, y = jnp.zeros((3, 8, 8, 4)), jnp.zeros(3), jnp.array([0, 9, -1])
    >>> variables = network.init(jax.random.key(0), x, logsnr, y)
    >>> network.apply(variables, x, logsnr, y).shape
    (3, 8, 8, 4)
    """

    num_classes: int
    out_ch: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    logsnr_input_type: LogsnrInputType = "inv_cos"
    logsnr_scale_range: tuple[float, float] = (-10.0, 10.0)
    remat: bool = False
    dtype: Any = None
    schedule: Discrete | None = None
    guidance_range: tuple[float, float] | None = None
    time_scale: float = 1000.0
    freq_shift: int = 0
    mlp_norm_eps: float = EPSILON

    def __post_init__(self):
        # Lists, as JSON has them, would keep the network from being a static argument of a jitted function.
        for name in ("logsnr_scale_range", "guidance_range"):
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
          x: noisy images or latents, square.
          logsnr: log-SNR of each image, or of all.
          y: class labels, for a class-conditional network; -1 for no class.
          guidance: guidance weights, if and only if the network has a guidance_range.
          train: without effect, as there is no dropout.
          index: without effect.

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

        # Tokens, one per patch.
        side = height // self.patch_size
        h = _dense(self.hidden_size, dtype, name="patch_in")(to_patches(x.astype(dtype), self.patch_size))
        h = h.reshape(batch, side**2, self.hidden_size) + position_embedding(side, self.hidden_size, dtype)[None]

        block = nn.remat(DiTBlock) if self.remat else DiTBlock
        mlp_width = int(self.hidden_size * self.mlp_ratio)
        for number in range(self.depth):
            h = block(self.num_heads, mlp_width, self.mlp_norm_eps, dtype, name=f"block_{number}")(h, emb)
        return self._head(h, emb, side).astype(x.dtype)

    def _embed(self, logsnr, y, guidance, dtype):
        """The embedding of log-SNR, class and guidance weight, of width hidden_size."""
        normal = nn.initializers.normal(0.02)
        dense = functools.partial(nn.Dense, self.hidden_size, dtype=dtype, kernel_init=normal)
        time = embedded_time(
            logsnr,
            self.logsnr_input_type,
            scale=self.time_scale,
            scale_range=self.logsnr_scale_range,
            schedule=self.schedule,
        )
        emb = dense(name="dense0")(sinusoidal_embedding(time, SINUSOIDS, self.freq_shift).astype(dtype))
        emb = dense(name="dense1")(nn.swish(emb))
        if self.num_classes > 1:
            y = jnp.asarray(y).astype(jnp.int32)
            table = nn.Embed(
                self.num_classes + 1, self.hidden_size, dtype=dtype, embedding_init=normal, name="class_emb"
            )
            emb += table(jnp.where(y < 0, self.num_classes, y))
        if guidance is not None:
            weight = embedded_guidance(guidance, self.guidance_range, logsnr.dtype)
            weight = sinusoidal_embedding(weight, SINUSOIDS, self.freq_shift).astype(dtype)
            weight = nn.swish(dense(name="guidance0")(weight))
            # Zero at first: a student starts as its teacher without guidance.
            emb += dense(kernel_init=nn.initializers.zeros, name="guidance1")(weight)
        return nn.swish(emb)

    def _head(self, h, emb, side):
        """The output images, from the tokens of the last block."""
        dtype = at_least_float32(h.dtype)
        dense = functools.partial(nn.Dense, dtype=dtype, kernel_init=nn.initializers.zeros)
        shift, scale = jnp.split(dense(2 * self.hidden_size, name="adaln_out")(emb), 2, axis=-1)
        h = modulated_norm(h.astype(dtype), shift, scale, EPSILON)
        patches = dense(self.patch_size**2 * self.out_ch, name="proj_out")(flatten_pixels(h))
        return from_patches(patches, side, self.patch_size)

    def validate(self, height: int, width: int) -> None:
        """Raise an InputError that names the attribute at fault, if these options or this image size cannot work."""
        for name in ("patch_size", "hidden_size", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.depth > MAX_DEPTH:
            raise InputError(f"depth={self.depth} must be {MAX_DEPTH} at most.")
        # A larger size would take all memory before a parameter is read.
        sizes = {"mlp_ratio times hidden_size": self.mlp_ratio * self.hidden_size, "height": height}
        for name, value in {**sizes, **{name: getattr(self, name) for name in ("out_ch", "num_classes")}}.items():
            if not 1 <= value <= MAX_SIZE:
                raise InputError(f"{name}={value} must be from 1 to {MAX_SIZE:,}.")
        if height != width or height % self.patch_size:
            raise InputError(
                f"The images are {height}x{width}; with patch_size={self.patch_size} they must be square, with a side "
                f"that {self.patch_size} divides."
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise InputError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}, and of 4 for the "
                "position embedding."
            )
        if not self.mlp_norm_eps > 0:
            raise InputError(f"mlp_norm_eps={self.mlp_norm_eps} must be more than 0.")
        if self.freq_shift not in (0, 1):
            raise InputError(f"freq_shift={self.freq_shift} must be 0 or 1.")
        check_logsnr_input(self.logsnr_input_type, self.time_scale, self.logsnr_scale_range, self.schedule)
        check_guidance_input(self.guidance_range, self.num_classes)


class DiTBlock(nn.Module):
    """Self-attention and an MLP, each with adaLN-Zero: the embedding shifts, scales and gates (figure 3).

    Attributes:
      num_heads: attention heads.
      mlp_width: width of the MLP's hidden layer.
      mlp_norm_eps: added to variances in the normalization before the MLP.
      dtype: type of the activations.
    """

    num_heads: int
    mlp_width: int
    mlp_norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length channels"], emb: Float[Array, "batch channels"]
    ) -> Float[Array, "batch length channels"]:
        """Run the block.

        Args:
          x: tokens.
          emb: the embedding of log-SNR and of the other conditions.
        """
        batch, length, channels = x.shape
        heads = (self.num_heads, channels // self.num_heads)
        modulation = nn.Dense(6 * channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="adaln")(emb)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)

        h = flatten_pixels(modulated_norm(x, shift1, scale1, EPSILON))
        qkv = _dense((3, *heads), self.dtype, name="qkv")(h).reshape(batch, length, 3, *heads)
        h = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = _dense(channels, self.dtype, name="attn_out")(h.reshape(-1, channels))
        x = add(x, gate1[:, None] * h.reshape(x.shape))

        h = flatten_pixels(modulated_norm(x, shift2, scale2, self.mlp_norm_eps))
        h = nn.gelu(_dense(self.mlp_width, self.dtype, name="mlp0")(h), approximate=True)
        h = _dense(channels, self.dtype, name="mlp1")(h)
        return add(x, gate2[:, None] * h.reshape(x.shape))


def _dense(features: int | tuple[int, ...], dtype: Any, name: str) -> nn.DenseGeneral:
    """A linear layer with the initialization of the paper's code."""
    return nn.DenseGeneral(features, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)


@functools.partial(jax.checkpoint, static_argnums=3)  # the backward pass recomputes cheap intermediates from x
def modulated_norm(
    x: Float[Array, "batch length channels"],
    shift: Float[Array, "batch channels"],
    scale: Float[Array, "batch channels"],
    epsilon: float,
) -> Float[Array, "batch length channels"]:
    """Normalize each token to mean 0 and variance 1, then scale by 1 + scale and shift (adaLN).

    All arithmetic is in float32 or wider.

    Args:
      x: tokens.
      shift: what is added, per example and channel.
      scale: the factor minus 1, per example and channel.
      epsilon: added to the variance.

    >>> h = modulated_norm(jnp.array([[[1.0, 3.0]]]), jnp.ones((1, 2)), jnp.ones((1, 2)), 1e-6)
    >>> [round(value, 3) for value in h.ravel().tolist()]
    [-1.0, 3.0]
    """
    f = x.astype(at_least_float32(x.dtype))
    centered = f - f.mean(axis=-1, keepdims=True)
    normalized = centered * jax.lax.rsqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + epsilon)
    factor, offset = (part[:, None].astype(f.dtype) for part in (scale, shift))
    return (normalized * (1 + factor) + offset).astype(x.dtype)


def to_patches(
    x: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "patches {patch_size}*{patch_size}*channels"]:
    """Cut images into patches, row by row, one row of the result each.

    >>> to_patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return x.swapaxes(2, 3).reshape(-1, patch_size**2 * channels)


def from_patches(
    patches: Float[Array, "patches values"], side: int, patch_size: int
) -> Float[Array, "batch height width channels"]:
    """The inverse of `to_patches`.

    Args:
      patches: the patches of all images.
      side: patches along a side of an image.
      patch_size: side of a patch.

    >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    >>> bool((from_patches(to_patches(x, 2), 2, 2) == x).all())
    True
    """
    x = patches.reshape(-1, side, side, patch_size, patch_size, patches.shape[1] // patch_size**2)
    return x.swapaxes(2, 3).reshape(-1, side * patch_size, side * patch_size, x.shape[-1])


def position_embedding(side: int, width: int, dtype: Any = jnp.float32) -> Float[Array, "{side}*{side} {width}"]:
    """Return the fixed embedding of the position of each token: sinusoids of its column, then of its row.

    Args:
      side: tokens along a side of an image.
      width: of the tokens, a multiple of 4.
      dtype: of the result.

    >>> rows = position_embedding(2, 4).tolist()  # [sin, cos] of the column, then of the row
    >>> [[round(value, 2) for value in row] for row in rows]
    [[0.0, 1.0, 0.0, 1.0], [0.84, 0.54, 0.0, 1.0], [0.0, 1.0, 0.84, 0.54], [0.84, 0.54, 0.84, 0.54]]
    """
    count = width // 4
    phases = np.arange(side)[:, None] * 10000.0 ** (-np.arange(count) / count)
    table = jnp.asarray(np.concatenate([np.sin(phases), np.cos(phases)], axis=1), dtype)
    shape = (side, side, 2 * count)
    columns, rows = jnp.broadcast_to(table[None], shape), jnp.broadcast_to(table[:, None], shape)
    return jnp.concatenate([columns, rows], axis=-1).reshape(side**2, width)
