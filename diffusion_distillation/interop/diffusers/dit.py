"""diffusers' DiTTransformer2DModel, and the files of the original DiT and SiT, as our `networks.dit.DiT`.

The published networks have twice the output channels of the image: the second half predicts variances, which our
samplers do not use, and is left out.
"""

import re
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ...checkpoints import Metadata, abstract_params
from ...errors import InputError
from ...latents import Shape
from ...networks.dit import DiT, position_embedding
from ...networks.model import eval_schedule, train_schedule
from ...shapes import Params
from ..arrays import fit_params
from .fields import check_integer, header

CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second one in older folders
DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
    "dropout": 0.0, "attention_bias": True, "sample_size": 32, "patch_size": 2, "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero", "norm_elementwise_affine": False, "norm_eps": 1e-5,
}  # fmt: skip
ALLOWED = {
    "_class_name": CLASSES,
    "norm_type": ("ada_norm_zero",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "dropout": (0,),
}

# Our names of modules, and those of the original code: of the network, and inside of blocks.
MODULES = {
    "patch_in": "x_embedder.proj",
    "dense0": "t_embedder.mlp.0",
    "dense1": "t_embedder.mlp.2",
    "class_emb": "y_embedder.embedding_table",
    "adaln_out": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
INNER_MODULES = {
    "adaln": "adaLN_modulation.1",
    "qkv": "attn.qkv",
    "attn_out": "attn.proj",
    "mlp0": "mlp.fc1",
    "mlp1": "mlp.fc2",
}
LABEL_DROPOUT = 0.1  # the published models were trained with it
NO_CLASS = 1000  # the row of the class table that `DiTPipeline` takes for "no class", however many classes there are
POSITIONS = "pos_embed"  # the fixed position embedding, which some files store

# diffusers' names, and those of the original code: of the network, inside of blocks, and of the embedder. diffusers
# repeats the embedder in every block.
FROM_DIFFUSERS = {
    "pos_embed.proj": MODULES["patch_in"],
    "proj_out_1": MODULES["adaln_out"],
    "proj_out_2": MODULES["proj_out"],
}
INNER_FROM_DIFFUSERS = {
    "norm1.linear": INNER_MODULES["adaln"],
    "attn1.to_out.0": INNER_MODULES["attn_out"],
    "ff.net.0.proj": INNER_MODULES["mlp0"],
    "ff.net.2": INNER_MODULES["mlp1"],
}
ATTENTION_INPUTS = ("attn1.to_q", "attn1.to_k", "attn1.to_v")  # in the order of the original code's one array
EMBEDDER = {
    "norm1.emb.timestep_embedder.linear_1": MODULES["dense0"],
    "norm1.emb.timestep_embedder.linear_2": MODULES["dense1"],
    "norm1.emb.class_embedder.embedding_table": MODULES["class_emb"],
}


def image_shape(values: dict[str, Any], origin: str) -> tuple[int, int, int]:
    """(height, width, channels) of the latents or images of a DiTTransformer2DModel.

    Args:
      values: its config, with defaults.
      origin: the config's file, for error messages.
    """
    size = check_integer(values["sample_size"], "sample_size", origin)
    channels = check_integer(values["in_channels"], "in_channels", origin)
    if values["out_channels"] not in (None, channels, 2 * channels):
        raise InputError(
            f"{origin}: out_channels={values['out_channels']!r} must be in_channels={channels}, or twice as many with "
            "variances."
        )
    return size, size, channels


def num_classes(values: dict[str, Any], origin: str) -> int:
    """The number of classes of a DiTTransformer2DModel, without the row of its table for no class."""
    return check_integer(values["num_embeds_ada_norm"], "num_embeds_ada_norm", origin, least=2)


def dit_args(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The arguments with which our DiT is the same network as a DiTTransformer2DModel, but for its input for log-SNR.

    Args:
      values: its config, with defaults.
      origin: the config's file, for error messages.

    >>> dit_args(DEFAULTS, "config.json")["hidden_size"]
    1152
    """
    names = ("num_attention_heads", "attention_head_dim", "num_layers", "patch_size")
    heads, head_dim, depth, patch_size = (check_integer(values[name], name, origin) for name in names)
    return dict(
        patch_size=patch_size,
        hidden_size=heads * head_dim,
        depth=depth,
        num_heads=heads,
        freq_shift=1,
        mlp_norm_eps=values["norm_eps"],
    )


def dit_config(network: DiT, shape: Shape) -> dict[str, Any]:
    """The config of the DiTTransformer2DModel that is the same network as ours, without variances.

    Args:
      network: our network, which `check_writable` accepts.
      shape: (height, width, channels) of the latents.
    """
    side, _, channels = shape
    values = dict(
        num_attention_heads=network.num_heads,
        attention_head_dim=network.hidden_size // network.num_heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=network.depth,
        sample_size=side,
        patch_size=network.patch_size,
        num_embeds_ada_norm=network.num_classes,
        norm_eps=network.mlp_norm_eps,
    )
    return {**header(CLASSES[0]), **DEFAULTS, **values}


def check_writable(metadata: Metadata, network: DiT, num_steps: int) -> None:
    """Raise an InputError that names the reason if a `DiTPipeline` cannot sample a model as we do.

    It samples labeled latents at whole steps of a discrete schedule, and divides them by one scale. Its networks have
    the time input, the order of frequencies and the width of the MLPs that folders of diffusers have.

    Args:
      metadata: of the model.
      network: the model's network.
      num_steps: sampling steps.
    """
    info = metadata.autoencoder
    model = metadata.config.model
    schedule = train_schedule(model)
    problem = None
    if info is None:
        problem = "decodes latents, and this is a model of pixels"
    elif info.shift != 0.0 or not isinstance(info.scale, float):
        problem = f"divides latents by one number; those of {info.name!r} have shift={info.shift}, scale={info.scale}"
    elif network.num_classes < 2:
        problem = "has classes, and this model has none"
    elif network.logsnr_input_type != "step":
        problem = f"tells its network the training step; this one has logsnr_input_type={network.logsnr_input_type!r}"
    elif (network.freq_shift, network.mlp_ratio) != (1, 4.0):
        problem = f"has freq_shift=1, mlp_ratio=4.0; this one has {network.freq_shift} and {network.mlp_ratio}"
    elif schedule != eval_schedule(model):
        problem = "samples at the times of training; this model has two different noise schedules"
    elif schedule.num_steps % num_steps:
        problem = f"rounds times that are no training steps: num_steps={num_steps} does not divide {schedule.num_steps}"
    elif model.eval_guidance and network.num_classes != NO_CLASS:
        problem = (
            f"guides with row {NO_CLASS} of the class table, so only models of {NO_CLASS} classes; this one has "
            f"{network.num_classes} and model.eval_guidance={model.eval_guidance}"
        )
    elif model.eval_guidance and model.eval_guidance_interval is not None:
        problem = f"guides at all times; this model has eval_guidance_interval={tuple(model.eval_guidance_interval)}"
    if problem is not None:
        raise InputError(f"diffusers' DiTPipeline {problem}. Use --format=sampler instead.")


def from_params(params: Params, network: DiT) -> dict[str, np.ndarray]:
    """Convert our parameters to arrays of a DiTTransformer2DModel, the inverse of `to_params`.

    Args:
      params: of a network that `check_writable` accepts.
      network: our network.
    """
    arrays: dict[str, np.ndarray] = {}
    for path, leaf in flatten_dict(params).items():
        array = np.ascontiguousarray(_to_torch(path, np.asarray(leaf, np.float32), network.patch_size))
        names = _names_in_diffusers(_original_name(path), network.depth)
        if path[-2] == "qkv":
            arrays |= zip(names, np.split(array, 3), strict=True)
        else:
            arrays |= dict.fromkeys(names, array)
    return arrays


def _names_in_diffusers(original: str, depth: int) -> list[str]:
    """The names in diffusers of an array of the original code, which has one embedder, and q, k and v in one array."""
    module, _, leaf = original.rpartition(".")
    theirs = {ours: name for name, ours in (FROM_DIFFUSERS | EMBEDDER | INNER_FROM_DIFFUSERS).items()}
    if module in EMBEDDER.values():
        return [f"transformer_blocks.{block}.{theirs[module]}.{leaf}" for block in range(depth)]
    if not module.startswith("blocks."):
        return [f"{theirs[module]}.{leaf}"]
    _, block, inner = module.split(".", 2)
    parts = ATTENTION_INPUTS if inner == INNER_MODULES["qkv"] else [theirs[inner]]
    return [f"transformer_blocks.{block}.{part}.{leaf}" for part in parts]


def to_params(arrays: dict[str, np.ndarray], metadata: Metadata, origin: str) -> Params:
    """Convert arrays of a DiTTransformer2DModel, or of the original DiT or SiT, to our parameters.

    A SiT outputs the velocity toward the data, along its own time (logsnr_input_type 'data_time'). Ours, u = eps - x,
    has the other sign, which the last layer takes.

    Args:
      arrays: by their names in the file, in the layout of PyTorch.
      metadata: of the model, for the names and shapes of its parameters.
      origin: the file of the weights, for error messages.

    Raises:
      InputError: if arrays are missing, unexpected or of the wrong shape, if the embedder differs between blocks, or if
        the position embedding is not the fixed one.
    """
    like = flatten_dict(abstract_params(metadata))
    model = metadata.config.model
    patch_size = model.args.patch_size
    channels = metadata.shape[2]
    arrays = _original_names(arrays, origin)
    _check_positions(arrays.pop(POSITIONS, None), metadata, origin)
    params: dict[tuple[str, ...], Any] = {}
    for path, leaf in like.items():
        if (array := arrays.pop(name := _original_name(path), None)) is None:
            continue
        if path[0] == "proj_out" and array.shape[:1] == (2 * like["proj_out", "bias"].size,):
            array = _without_variances(array, channels)
        expected = _torch_shape(path, leaf.shape, (channels, patch_size, patch_size))
        if array.shape != expected:
            raise InputError(
                f"{origin}: {name} is {list(array.shape)}; in the network of the config it is {list(expected)}."
            )
        params[path] = _from_torch(path, array).reshape(leaf.shape)
        if path[0] == "proj_out" and model.mean_type == "flow" and model.args.logsnr_input_type == "data_time":
            params[path] = -params[path]
    unexpected = {(name,): array for name, array in arrays.items()}
    return fit_params(params | unexpected, abstract_params(metadata), origin)


def _original_names(arrays: dict[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """Rename the arrays of a DiTTransformer2DModel to those of the original code. Other names stay."""
    renamed = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        block, _, inner = module.removeprefix("transformer_blocks.").partition(".")
        if name == "pos_embed.pos_embed":
            renamed[POSITIONS] = array
        elif module in FROM_DIFFUSERS:
            renamed[f"{FROM_DIFFUSERS[module]}.{leaf}"] = array
        elif inner in INNER_FROM_DIFFUSERS:
            renamed[f"blocks.{block}.{INNER_FROM_DIFFUSERS[inner]}.{leaf}"] = array
        elif inner in EMBEDDER:
            first = arrays.get(f"transformer_blocks.0.{inner}.{leaf}", array)
            if not np.array_equal(array, first):
                raise InputError(f"{origin}: {name} differs from that of block 0. One embedder serves all our blocks.")
            renamed[f"{EMBEDDER[inner]}.{leaf}"] = array
        elif inner == "attn1.to_q":
            parts = [arrays.get(f"transformer_blocks.{block}.attn1.{part}.{leaf}") for part in ("to_q", "to_k", "to_v")]
            if any(part is None or part.shape != array.shape for part in parts):
                raise InputError(f"{origin}: {name} has no to_k and to_v of the same shape beside it.")
            renamed[f"blocks.{block}.{INNER_MODULES['qkv']}.{leaf}"] = np.concatenate(parts)
        elif not re.fullmatch(r"attn1\.to_[kv]", inner):
            renamed[name] = array
    return renamed


def _original_name(path: tuple[str, ...]) -> str:
    """The name in the original code of one of our parameters, such as 'blocks.1.attn.qkv.weight'."""
    *modules, leaf = path
    if len(modules) == 1:
        module = MODULES.get(modules[0], modules[0])
    else:
        module = f"blocks.{modules[0].removeprefix('block_')}.{INNER_MODULES[modules[1]]}"
    return f"{module}.{'bias' if leaf == 'bias' else 'weight'}"


def _check_positions(stored: np.ndarray | None, metadata: Metadata, origin: str) -> None:
    """Raise an InputError unless a stored position embedding is the fixed one, to the rounding of bfloat16."""
    if stored is None:
        return
    args = metadata.config.model.args
    side = metadata.shape[0] // args.patch_size
    expected = np.asarray(position_embedding(side, args.hidden_size))[None]
    if stored.shape != expected.shape or not np.allclose(stored.astype(np.float32), expected, atol=0.01):
        raise InputError(
            f"{origin}: {POSITIONS} of shape {list(stored.shape)} is not the fixed sin-cos embedding of {side}x{side} "
            "patches. Networks with another position embedding are not supported."
        )


def _without_variances(array: np.ndarray, channels: int) -> np.ndarray:
    """The part of the last layer's weight or bias, `[pixels * 2 * channels, ...]`, that makes no variances."""
    return array.reshape(-1, 2, channels, *array.shape[1:])[:, 0].reshape(len(array) // 2, *array.shape[1:])


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...], patch: tuple[int, int, int]) -> tuple[int, ...]:
    """The shape in PyTorch of one of our parameters. `patch` is (channels, height, width)."""
    module, leaf = path[-2:]
    if (module, leaf) == ("patch_in", "kernel"):
        return (shape[1], *patch)
    if module == "qkv":
        return (int(np.prod(shape[-3:])), *shape[:-3])
    return shape[::-1] if leaf == "kernel" else shape


def _from_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Convert the layout, and the order of the sinusoids: ours is [sin, cos], and that of the files [cos, sin]."""
    module, leaf = path[-2:]
    if leaf != "kernel":
        return array
    if module == "dense0":
        array = np.roll(array, array.shape[1] // 2, axis=1)
    return array.transpose(2, 3, 1, 0) if module == "patch_in" else array.T


def _to_torch(path: tuple[str, ...], array: np.ndarray, patch_size: int) -> np.ndarray:
    """The inverse of `_from_torch`."""
    module, leaf = path[-2:]
    if module == "qkv":
        array = array.reshape(*array.shape[:-3], -1)
    if leaf != "kernel":
        return array
    if module == "patch_in":
        return array.reshape(patch_size, patch_size, -1, array.shape[1]).transpose(3, 2, 0, 1)
    return np.roll(array.T, len(array) // 2, axis=1) if module == "dense0" else array.T
