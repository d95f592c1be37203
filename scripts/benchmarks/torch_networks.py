"""The networks of `peer.py` in plain PyTorch, as functions of their parameters."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Params = dict[str, Tensor]

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def wait():
    """Wait until the device has finished."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


class UNet:
    """The U-Net as a function of its parameters, with the options of `networks.unet.UNet`."""

    def __init__(self, options: dict[str, Any]):
        self.options = options

    def __call__(self, p: Params, x: Tensor, logsnr: Tensor, *, train: bool = False) -> Tensor:
        """The raw output for images [batch, channels, height, width]."""
        o = self.options
        rate = o["dropout"] if train else 0.0
        emb = linear(p, "dense0", embedding(time_of(logsnr), o["ch"], freq_shift=1))
        emb = functional.silu(linear(p, "dense1", functional.silu(emb)))

        def residual(h, name, resample=None):
            return residual_block(p, name, h, emb, rate, resample)

        def attended(h, name):
            return attention_block(p, name, h, o) if h.shape[2] in o["attn_resolutions"] else h

        inside = o["resblock_resample"]
        h = conv(p, "conv_in", x)
        skips = [h]
        levels = len(o["ch_mult"])
        for level in range(levels):
            for block in range(o["num_res_blocks"]):
                h = attended(residual(h, f"down_{level}.block_{block}"), f"down_{level}.attn_{block}")
                skips.append(h)
            if level < levels - 1:
                name = f"down_{level}.downsample"
                h = residual(h, name, pool) if inside else strided(p, name, h)
                skips.append(h)
        h = residual(h, "mid.block_1")
        h = attention_block(p, "mid.attn_1", h, o)
        h = residual(h, "mid.block_2")
        for level in reversed(range(levels)):
            for block in range(o["num_res_blocks"] + 1):
                h = residual(torch.cat([h, skips.pop()], dim=1), f"up_{level}.block_{block}")
                h = attended(h, f"up_{level}.attn_{block}")
            if level > 0:
                name = f"up_{level}.upsample"
                h = residual(h, name, upsample) if inside else conv(p, name, upsample(h))
        h = functional.silu(norm(p, "norm_out", h.float()))
        with torch.autocast(DEVICE.type, enabled=False):  # the last convolution is in float32, as ours
            return conv(p, "conv_out", h.float())


class DiT:
    """The transformer as a function of its parameters, with the options of `networks.dit.DiT`."""

    def __init__(self, options: dict[str, Any]):
        self.options = options

    def __call__(self, p: Params, x: Tensor, logsnr: Tensor, *, train: bool = False) -> Tensor:
        """The raw output for images or latents [batch, channels, height, width]."""
        o = self.options
        width, heads, size, side = o["hidden_size"], o["num_heads"], o["patch_size"], x.shape[2] // o["patch_size"]
        emb = linear(p, "dense0", embedding(time_of(logsnr), 256, freq_shift=o["freq_shift"]))
        emb = functional.silu(linear(p, "dense1", functional.silu(emb)))
        patches = x.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        h = linear(p, "patch_in", patches.reshape(len(x), side * side, -1)) + positions(side, width)
        for number in range(o["depth"]):
            name = f"block_{number}"
            shift1, scale1, gate1, shift2, scale2, gate2 = linear(p, f"{name}/adaln", emb)[:, None].chunk(6, dim=-1)
            qkv = linear(p, f"{name}/qkv", modulated(h, shift1, scale1, 1e-6))
            q, k, v = qkv.view(len(x), -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            a = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
            h = h + gate1 * linear(p, f"{name}/attn_out", a)
            m = linear(p, f"{name}/mlp0", modulated(h, shift2, scale2, o["mlp_norm_eps"]))
            h = h + gate2 * linear(p, f"{name}/mlp1", functional.gelu(m, approximate="tanh"))
        with torch.autocast(DEVICE.type, enabled=False):  # the head is in float32, as ours
            shift, scale = linear(p, "adaln_out", emb.float())[:, None].chunk(2, dim=-1)
            out = linear(p, "proj_out", modulated(h.float(), shift, scale, 1e-6))
        return out.view(len(x), side, side, size, size, -1).permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *x.shape[2:])


NETWORKS = {"unet_iddpm": UNet, "dit": DiT}


def modulated(x, shift, scale, epsilon):
    """Layer normalization of tokens with adaptive scale and shift."""
    return functional.layer_norm(x, x.shape[-1:], eps=epsilon) * (1 + scale) + shift


def positions(side, width):
    """The fixed embedding of the column, then of the row, of each token."""
    count = width // 4
    phases = torch.arange(side)[:, None] * 10000.0 ** (-torch.arange(count) / count)
    table = torch.cat([torch.sin(phases), torch.cos(phases)], dim=1)
    columns, rows = table[None].expand(side, side, -1), table[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(side * side, width).to(DEVICE)


def linear(p, name, x):
    """A dense layer."""
    return functional.linear(x, p[f"{name}/kernel"], p[f"{name}/bias"])


def conv(p, name, x):
    """A 3x3 convolution with padding."""
    return functional.conv2d(x, p[f"{name}/kernel"], p[f"{name}/bias"], padding=1)


def strided(p, name, x):
    """A convolution with stride 2, padded only after the image, like 'SAME'."""
    return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), p[f"{name}/kernel"], p[f"{name}/bias"], stride=2)


def norm(p, name, x):
    """Group normalization."""
    return functional.group_norm(x, 32, p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)


def pool(x):
    """Average pooling over 2x2 pixels."""
    return functional.avg_pool2d(x, 2)


def upsample(x):
    """Nearest-neighbor upsampling to twice the size."""
    return functional.interpolate(x, scale_factor=2, mode="nearest")


def time_of(logsnr):
    """The number that stands for log-SNR, the time of the cosine schedule in thousandths."""
    return 1000 * torch.arctan(torch.exp(-0.5 * logsnr.clip(-20, 20))) / (0.5 * math.pi)


def embedding(time, width, *, freq_shift):
    """Sinusoidal embedding."""
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=DEVICE)
    frequencies = torch.exp(-math.log(10000) / (half - freq_shift) * places)
    phases = time[:, None] * frequencies
    return torch.cat([torch.sin(phases), torch.cos(phases)], dim=1)


def residual_block(p, name, x, emb, rate, resample):
    """A residual block, like `networks.unet.ResidualBlock`."""
    h = functional.silu(norm(p, f"{name}/norm1", x))
    if resample is not None:
        h, x = resample(h), resample(x)
    h = conv(p, f"{name}/conv1", h)
    scale, shift = linear(p, f"{name}/temb_proj", emb)[:, :, None, None].chunk(2, dim=1)
    h = functional.silu(norm(p, f"{name}/norm2", h) * (1 + scale) + shift)
    h = conv(p, f"{name}/conv2", functional.dropout(h, rate, training=rate > 0))
    if f"{name}/nin_shortcut/kernel" in p:
        x = functional.conv2d(x, p[f"{name}/nin_shortcut/kernel"][:, :, None, None], p[f"{name}/nin_shortcut/bias"])
    return x + h


def attention_block(p, name, x, options):
    """Self-attention, like `networks.unet.AttentionBlock`."""
    batch, channels, height, width = x.shape
    heads = options["num_heads"] or channels // options["head_dim"]
    h = norm(p, f"{name}/norm", x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    q, k, v = (
        linear(p, f"{name}/{part}", h).view(batch, -1, heads, channels // heads).transpose(1, 2) for part in "qkv"
    )
    h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels)
    return x + linear(p, f"{name}/proj_out", h).view(batch, height, width, channels).permute(0, 3, 1, 2)
