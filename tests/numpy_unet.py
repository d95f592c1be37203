"""The U-Net once more, in float64 NumPy and from its description alone, to check the Flax one against."""

import numpy as np

LOGSNR_INPUTS = {
    "inv_cos": lambda logsnr, _: np.arctan(np.exp(-0.5 * np.clip(logsnr, -20, 20))) / (np.pi / 2),
    "sigmoid": lambda logsnr, _: 1 / (1 + np.exp(-logsnr)),
    "linear": lambda logsnr, ends: (logsnr - ends[0]) / (ends[1] - ends[0]),
}


def unet(params, options, x, logsnr, y=None):
    """The raw output for images x, `[n, side, side, channels]`, their logsnr and labels.

    `options` are `UNet`'s arguments; `params` is its tree.
    """

    def residual(h, name, resample=None):
        return residual_block(params[name], h, emb, resample)

    def attention(h, name):
        return attention_block(params[name], h, options.get("num_heads"), options.get("head_dim"))

    def attended(h, name):
        return attention(h, name) if h.shape[1] in options["attn_resolutions"] else h

    x, logsnr = np.asarray(x, np.float64), np.asarray(logsnr, np.float64)
    ends = options.get("logsnr_scale_range", (-10, 10))
    time = LOGSNR_INPUTS[options["logsnr_input_type"]](logsnr, ends)
    emb = dense(params["dense1"], swish(dense(params["dense0"], embedding(1000 * time, options["ch"]))))
    if options["num_classes"] > 1:
        emb = emb + dense(params["class_emb"], np.eye(options["num_classes"])[y])
    emb = swish(emb)

    levels, blocks = len(options["ch_mult"]), options["num_res_blocks"]
    inside = options.get("resblock_resample", False)
    h = conv(params["conv_in"], x)
    skips = [h]
    for level in range(levels):
        for block in range(blocks):
            h = attended(residual(h, f"down_{level}.block_{block}"), f"down_{level}.attn_{block}")
            skips.append(h)
        if level < levels - 1:
            name = f"down_{level}.downsample"
            h = residual(h, name, pool) if inside else conv(params[name], h, stride=2)
            skips.append(h)
    h = residual(attention(residual(h, "mid.block_1"), "mid.attn_1"), "mid.block_2")
    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            h = np.concatenate([h, skips.pop()], axis=-1)
            h = attended(residual(h, f"up_{level}.block_{block}"), f"up_{level}.attn_{block}")
        if level > 0:
            name = f"up_{level}.upsample"
            h = residual(h, name, nearest) if inside else conv(params[name], nearest(h))
    return conv(params["conv_out"], swish(group_norm(params["norm_out"], h)))


def residual_block(p, x, emb, resample):
    h = swish(group_norm(p["norm1"], x))
    if resample:
        h, x = resample(h), resample(x)
    scale, shift = np.split(dense(p["temb_proj"], emb)[:, None, None], 2, axis=-1)
    h = swish(group_norm(p["norm2"], conv(p["conv1"], h)) * (1 + scale) + shift)
    return conv(p["conv2"], h) + (dense(p["nin_shortcut"], x) if "nin_shortcut" in p else x)


def attention_block(p, x, num_heads, head_dim):
    channels = x.shape[-1]
    num_heads = num_heads or channels // head_dim
    assert p["q"]["kernel"].shape == (channels, num_heads, channels // num_heads)
    pixels = group_norm(p["norm"], x).reshape(len(x), -1, channels)
    out = p["proj_out"]["bias"] + np.zeros(pixels.shape)
    for head in range(num_heads):
        q, k, v = (pixels @ p[name]["kernel"][:, head] + p[name]["bias"][head] for name in "qkv")
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(channels // num_heads))
        out += weights @ v / weights.sum(axis=-1, keepdims=True) @ p["proj_out"]["kernel"][head]
    return x + out.reshape(x.shape)


def embedding(time, width):
    half = width // 2
    phases = time[:, None] / 10000 ** (np.arange(half) / (half - 1))
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=1)


def group_norm(p, x, groups=32, epsilon=1e-6):
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * p["scale"] + p["bias"]


def conv(p, x, stride=1):
    """3x3. To half the size, zeros are put below and on the right alone, as TensorFlow's and Flax's SAME has it."""
    zeros = (1, 1) if stride == 1 else (0, 1)
    x = np.pad(x, [(0, 0), zeros, zeros, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(windows, p["kernel"], [(4, 5, 3), (0, 1, 2)]) + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def swish(x):
    return x / (1 + np.exp(-x))


def pool(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def nearest(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)
