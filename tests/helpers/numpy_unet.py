"""A U-Net in float64 NumPy, written from its description, as an oracle for the Flax module."""

import numpy as np

LOGSNR_INPUTS = {
    "inv_cos": lambda logsnr, _: np.arctan(np.exp(-0.5 * np.clip(logsnr, -20, 20))) / (np.pi / 2),
    "sigmoid": lambda logsnr, _: 1 / (1 + np.exp(-logsnr)),
    "linear": lambda logsnr, ends: (logsnr - ends[0]) / (ends[1] - ends[0]),
    "flow_time": lambda logsnr, _: 1 / (1 + np.exp(0.5 * logsnr)),
    "data_time": lambda logsnr, _: 1 / (1 + np.exp(-0.5 * logsnr)),
    "c_noise": lambda logsnr, _: np.log(np.exp(-0.5 * logsnr)) / 4,
}


def unet(params, options, x, logsnr, y=None, guidance=None):
    """The raw output for images x, `[n, side, side, channels]`, with their logsnr, labels and guidance weights.

    `options` are the arguments of `UNet`, and `params` are its parameters.
    """

    groups, epsilon = options.get("norm_groups", 32), options.get("norm_eps", 1e-6)
    stages, resampling = options.get("attn_stages"), options.get("resample_stages")

    def residual(h, name, resample=None):
        return residual_block(params[name], h, emb, resample, groups, epsilon)

    def attention(h, name, groups=groups):
        heads = options.get("num_heads"), options.get("head_dim")
        return attention_block(params[name], h, *heads, groups, epsilon)

    def attended(h, name):
        stage = name.partition(".")[0]
        attends = h.shape[1] in options["attn_resolutions"] if stages is None else stage in stages
        return attention(h, name) if attends else h

    def inside(stage):
        return options.get("resblock_resample", False) if resampling is None else stage in resampling

    x = np.asarray(x, np.float64)
    sinusoids = embedding(network_time(options, logsnr), options["ch"], options.get("freq_shift", 1))
    emb = dense(params["dense1"], swish(dense(params["dense0"], sinusoids)))
    if options["num_classes"] > 1:
        emb = emb + dense(params["class_emb"], np.eye(options["num_classes"])[y])
    if guidance is not None:
        low, high = options["guidance_range"]
        weight = embedding(1000 * (guidance - low) / (high - low), options["ch"], options.get("freq_shift", 1))
        emb = emb + dense(params["guidance1"], swish(dense(params["guidance0"], weight)))
    emb = swish(emb)

    levels, blocks = len(options["ch_mult"]), options["num_res_blocks"]
    h = conv(params["conv_in"], x)
    skips = [h]
    for level in range(levels):
        for block in range(blocks):
            h = attended(residual(h, f"down_{level}.block_{block}"), f"down_{level}.attn_{block}")
            skips.append(h)
        if level < levels - 1:
            name = f"down_{level}.downsample"
            both = options.get("pad_both_sides", False)
            h = residual(h, name, pool) if inside(f"down_{level}") else conv(params[name], h, 2, both)
            skips.append(h)
    h = residual(h, "mid.block_1")
    if stages is None or "mid" in stages:
        mid_groups = options.get("mid_attn_groups")
        h = attention(h, "mid.attn_1", groups if mid_groups is None else mid_groups)
    h = residual(h, "mid.block_2")
    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            h = np.concatenate([h, skips.pop()], axis=-1)
            h = attended(residual(h, f"up_{level}.block_{block}"), f"up_{level}.attn_{block}")
        if level > 0:
            name = f"up_{level}.upsample"
            h = residual(h, name, nearest) if inside(f"up_{level}") else conv(params[name], nearest(h))
    return conv(params["conv_out"], swish(group_norm(params["norm_out"], h, groups, epsilon)))


def network_time(options, logsnr):
    """The number that a network's sinusoids embed in place of logsnr."""
    logsnr = np.asarray(logsnr, np.float64)
    kind = options.get("logsnr_input_type", "inv_cos")
    if kind == "step":
        products = options["schedule"].alphas_cumprod.astype(np.float64)
        return np.interp(-logsnr, np.log(1 / products - 1), np.arange(len(products)))
    return options.get("time_scale", 1000) * LOGSNR_INPUTS[kind](logsnr, options.get("logsnr_scale_range", (-10, 10)))


def residual_block(p, x, emb, resample, groups, epsilon):
    h = swish(group_norm(p["norm1"], x, groups, epsilon))
    if resample:
        h, x = resample(h), resample(x)
    emb, h = dense(p["temb_proj"], emb)[:, None, None], conv(p["conv1"], h)
    if emb.shape[-1] == h.shape[-1]:
        h = group_norm(p["norm2"], h + emb, groups, epsilon)
    else:
        scale, shift = np.split(emb, 2, axis=-1)
        h = group_norm(p["norm2"], h, groups, epsilon) * (1 + scale) + shift
    h = swish(h)
    return conv(p["conv2"], h) + (dense(p["nin_shortcut"], x) if "nin_shortcut" in p else x)


def attention_block(p, x, num_heads, head_dim, groups, epsilon):
    channels = x.shape[-1]
    num_heads = num_heads or channels // head_dim
    assert p["q"]["kernel"].shape == (channels, num_heads, channels // num_heads)
    pixels = (group_norm(p["norm"], x, groups, epsilon) if groups else x).reshape(len(x), -1, channels)
    out = p["proj_out"]["bias"] + np.zeros(pixels.shape)
    for head in range(num_heads):
        q, k, v = (pixels @ p[name]["kernel"][:, head] + p[name]["bias"][head] for name in "qkv")
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(channels // num_heads))
        out += weights @ v / weights.sum(axis=-1, keepdims=True) @ p["proj_out"]["kernel"][head]
    return x + out.reshape(x.shape)


def embedding(time, width, freq_shift):
    half = width // 2
    phases = time[:, None] / 10000 ** (np.arange(half) / (half - freq_shift))
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=1)


def group_norm(p, x, groups, epsilon):
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * p["scale"] + p["bias"]


def conv(p, x, stride=1, both_sides=False):
    """3x3. To half the size, zeros are put below and on the right alone, as TensorFlow's and Flax's SAME has it."""
    zeros = (1, 1) if stride == 1 or both_sides else (0, 1)
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
