"""The diffusion transformer in float64 NumPy, from its description alone, to check the Flax one against."""

import numpy as np

from helpers.numpy_unet import dense, embedding, network_time, swish


def dit(params, options, x, logsnr, y=None, guidance=None):
    """Return the raw output for images x, `[n, side, side, channels]`, their logsnr, labels and guidance weights.

    `options` are `DiT`'s arguments; `params` is its tree.
    """
    x = np.asarray(x, np.float64)
    size, width = options["patch_size"], options["hidden_size"]
    freq_shift = options.get("freq_shift", 0)
    sinusoids = embedding(network_time(options, logsnr), 256, freq_shift)
    emb = dense(params["dense1"], swish(dense(params["dense0"], sinusoids)))
    if options["num_classes"] > 1:
        emb = emb + params["class_emb"]["embedding"][y]  # NumPy's -1 is the last row
    if guidance is not None:
        low, high = options["guidance_range"]
        weight = embedding(1000 * (guidance - low) / (high - low), 256, freq_shift)
        emb = emb + dense(params["guidance1"], swish(dense(params["guidance0"], weight)))
    emb = swish(emb)

    side = x.shape[1] // size
    tokens = np.zeros((len(x), side, side, width))
    for row, column in np.ndindex(side, side):
        patch = x[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
        position = np.concatenate([positions(column, width // 2), positions(row, width // 2)])
        tokens[:, row, column] = dense(params["patch_in"], patch.reshape(len(x), -1)) + position
    tokens = tokens.reshape(len(x), -1, width)

    for number in range(options["depth"]):
        tokens = block(params[f"block_{number}"], tokens, emb, options)
    shift, scale = np.split(dense(params["adaln_out"], emb)[:, None], 2, axis=-1)
    patches = dense(params["proj_out"], layer_norm(tokens, 1e-6) * (1 + scale) + shift)

    out = np.zeros((*x.shape[:3], options["out_ch"]))
    for row, column in np.ndindex(side, side):
        patch = patches[:, row * side + column].reshape(len(x), size, size, -1)
        out[:, row * size : (row + 1) * size, column * size : (column + 1) * size] = patch
    return out


def block(p, x, emb, options):
    shift1, scale1, gate1, shift2, scale2, gate2 = np.split(dense(p["adaln"], emb)[:, None], 6, axis=-1)
    x = x + gate1 * self_attention(p, layer_norm(x, 1e-6) * (1 + scale1) + shift1, options["num_heads"])
    h = dense(p["mlp0"], layer_norm(x, options.get("mlp_norm_eps", 1e-6)) * (1 + scale2) + shift2)
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + gate2 * dense(p["mlp1"], gelu)


def self_attention(p, x, num_heads):
    heads = []
    for head in range(num_heads):
        q, k, v = (x @ p["qkv"]["kernel"][:, part, head] + p["qkv"]["bias"][part, head] for part in range(3))
        weights = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        heads.append(weights @ v / weights.sum(axis=-1, keepdims=True))
    return dense(p["attn_out"], np.concatenate(heads, axis=-1))


def layer_norm(x, epsilon):
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)


def positions(place, width):
    phases = place / 10000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(phases), np.cos(phases)])
