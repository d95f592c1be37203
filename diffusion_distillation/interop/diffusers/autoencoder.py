"""diffusers' AutoencoderKL: its config as our network and its numbers, its weights as our parameters."""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict

from ...checkpoints import AUTOENCODER
from ...errors import InputError
from ...latents import AutoencoderInfo, PerChannel, Shape
from ...networks.autoencoder import AutoencoderKL, check_fingerprint
from ...runtime.files import absolute, read_json, write_atomic
from ...runtime.hashing import sha256
from ...shapes import Params
from . import weights
from .fields import check_integer, header, with_defaults

CONFIG = "config.json"
DTYPES = (None, "float32", "bfloat16", "float16")
DEFAULTS = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 4, "norm_num_groups": 32, "sample_size": 32, "scaling_factor": 0.18215, "shift_factor": None,
    "latents_mean": None, "latents_std": None, "force_upcast": True, "use_quant_conv": True,
    "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
ALLOWED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "force_upcast": (False, True),
    "use_quant_conv": (False, True),
    "use_post_quant_conv": (False, True),
    "mid_block_add_attention": (False, True),
}
# The block types of levels on the way down and up: plain, and with attention.
BLOCKS = {
    "down": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}


def read(folder: epath.Path, dtype: str | None = None) -> tuple[AutoencoderKL, Params, AutoencoderInfo]:
    """Read an `AutoencoderKL` from its folder, or from the folder of a pipeline, which has it in vae/.

    Weights may be float32, float16 or bfloat16, in safetensors files or files of torch.save (.bin), in one file, in a
    variant such as fp16, or in several files with an index.

    Args:
      folder: has config.json and the weights.
      dtype: type of the activations, 'float32', 'bfloat16' or 'float16'. None, the default, is float32, and so is any
        other type if the config has force_upcast: such an autoencoder overflows in 16 bits.

    Returns:
      The network, its parameters in float32, and what its users need to know.

    Raises:
      InputError: if an option of the config or a file is not supported. The message names it.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} must be one of {list(DTYPES)}.")
    folder = _folder_of(folder)
    origin = str(folder / CONFIG)
    config = _config(folder / CONFIG)
    network = _network(config, dtype, origin)
    files = weights.find_weights(folder)
    params = _params(weights.read_arrays(files), network, str(files[0]))
    scale, shift = _scale_and_shift(config, origin)
    info = AutoencoderInfo(
        name=_name(folder),
        fingerprint=_fingerprint(network, params),
        image_channels=network.image_channels,
        latent_channels=network.latent_channels,
        downsampling=network.downsampling,
        scale=scale,
        shift=shift,
    )
    return network, params, info


def write(
    folder: epath.Path,
    network: AutoencoderKL,
    params: Params,
    *,
    scale: float,
    image_shape: Shape,
    dtype: str = "float32",
) -> None:
    """Write an autoencoder as a folder of diffusers, which `read` and diffusers read.

    Args:
      folder: created if it is missing.
      network: the network.
      params: its parameters.
      scale: the scaling_factor, 1 over the standard deviation of the latents.
      image_shape: (height, width, channels) of the images that it was trained on.
      dtype: the dtype of the stored parameters, 'float32' or 'float16'.
    """
    levels = range(len(network.channels))
    blocks = {way: [BLOCKS[way][f"{way}_{level}" in network.attn_stages] for level in levels] for way in BLOCKS}
    config = header("AutoencoderKL") | {
        "in_channels": network.image_channels,
        "out_channels": network.image_channels,
        "down_block_types": blocks["down"],
        "up_block_types": blocks["up"][::-1],
        "block_out_channels": list(network.channels),
        "layers_per_block": network.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": network.latent_channels,
        "norm_num_groups": network.norm_groups,
        "sample_size": image_shape[0],
        "scaling_factor": scale,
        "force_upcast": False,
        "use_quant_conv": network.use_quant_conv,
        "use_post_quant_conv": network.use_post_quant_conv,
        "mid_block_add_attention": "mid" in network.attn_stages,
    }
    flat = {path: np.asarray(leaf, dtype) for path, leaf in flatten_dict(params).items()}
    arrays = weights.to_arrays(flat, _names(params, len(network.channels)))
    write_atomic(folder / weights.WEIGHTS, safetensors.numpy.save(arrays, {"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def copy(source: epath.Path, folder: epath.Path, expected: AutoencoderInfo) -> None:
    """Copy the config and the weights of an autoencoder.

    Args:
      source: see `read`.
      folder: created if it is missing.
      expected: what is known of the autoencoder.

    Raises:
      InputError: if the source has another autoencoder.
    """
    source = _folder_of(source)
    check_fingerprint(str(source), read(source)[-1], expected)
    folder.mkdir(parents=True, exist_ok=True)
    (source / CONFIG).copy(folder / CONFIG, overwrite=True)
    weights.copy_weights(source, folder)


def _folder_of(folder: epath.Path) -> epath.Path:
    """The folder itself, or vae/ in the folder of a pipeline."""
    if (folder / AUTOENCODER / CONFIG).is_file():
        return folder / AUTOENCODER
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"Neither {str(folder / CONFIG)!r} nor {str(folder / AUTOENCODER / CONFIG)!r} exists. Pass the folder of "
            "an AutoencoderKL of diffusers, or of a pipeline that has one."
        )
    return folder


def _config(path: epath.Path) -> dict[str, Any]:
    """The config with defaults. Names that start with an underscore say where a config is from."""
    values = read_json(path)
    config = with_defaults(values, DEFAULTS, ALLOWED, str(path))
    if unknown := sorted(name for name in values if name not in DEFAULTS and not name.startswith("_")):
        raise InputError(f"{path!s}: unknown option {unknown[0]!r}. An AutoencoderKL has {sorted(DEFAULTS)}.")
    return config


def _network(config: dict[str, Any], dtype: str | None, origin: str) -> AutoencoderKL:
    """The network of a config, which computes in this type."""
    widths = config["block_out_channels"]
    blocks = {way: _block_types(config, way, origin) for way in BLOCKS}
    if not isinstance(widths, list) or not len(widths) == len(blocks["down"]) == len(blocks["up"]):
        raise InputError(
            f"{origin}: block_out_channels={widths!r}, down_block_types and up_block_types must have the same length."
        )
    names = ("in_channels", "latent_channels", "layers_per_block", "norm_num_groups")
    image_channels, latent_channels, num_res_blocks, norm_groups = (
        check_integer(config[name], name, origin) for name in names
    )
    if config["out_channels"] != image_channels:
        raise InputError(f"{origin}: out_channels={config['out_channels']!r} must equal in_channels={image_channels}.")
    attended = [f"{way}_{i}" for way in BLOCKS for i, block in enumerate(blocks[way]) if block.startswith("Attn")]
    network = AutoencoderKL(
        image_channels=image_channels,
        latent_channels=latent_channels,
        channels=tuple(check_integer(width, "block_out_channels", origin) for width in widths),
        num_res_blocks=num_res_blocks,
        norm_groups=norm_groups,
        attn_stages=(*attended, "mid") if config["mid_block_add_attention"] else tuple(attended),
        use_quant_conv=config["use_quant_conv"],
        use_post_quant_conv=config["use_post_quant_conv"],
        dtype=jnp.dtype("float32" if dtype is None or config["force_upcast"] else dtype),
    )
    try:
        network.validate()
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
    return network


def _block_types(config: dict[str, Any], way: str, origin: str) -> list[str]:
    """The block types of the levels on the way 'down' or 'up', from the finest level on."""
    name = f"{way}_block_types"
    blocks = config[name]
    if not isinstance(blocks, list) or not set(map(str, blocks)) <= set(BLOCKS[way]):
        raise InputError(f"{origin}: {name}={blocks!r} is not supported. Supported: a list of {list(BLOCKS[way])}.")
    return blocks if way == "down" else blocks[::-1]


def _scale_and_shift(config: dict[str, Any], origin: str) -> tuple[PerChannel, PerChannel]:
    """The numbers with which x = (latents - shift) * scale is what a diffusion model sees."""
    scale = _number(config["scaling_factor"], "scaling_factor", origin)
    if scale <= 0:
        raise InputError(f"{origin}: scaling_factor={scale} must be more than 0.")
    shift, mean, std = (config[name] for name in ("shift_factor", "latents_mean", "latents_std"))
    if mean is None and std is None:
        return scale, 0.0 if shift is None else _number(shift, "shift_factor", origin)
    if shift is not None:
        raise InputError(f"{origin}: shift_factor={shift} must be null where latents_mean and latents_std are set.")
    means, stds = (_numbers(config, name, origin) for name in ("latents_mean", "latents_std"))
    if min(stds) <= 0:
        raise InputError(f"{origin}: latents_std={std} must be more than 0.")
    return tuple(scale / number for number in stds), means


def _number(value: Any, name: str, origin: str) -> float:
    if type(value) not in (int, float) or not abs(value) < float("inf"):
        raise InputError(f"{origin}: {name}={value!r} must be a number.")
    return float(value)


def _numbers(config: dict[str, Any], name: str, origin: str) -> tuple[float, ...]:
    """A list with one number per latent channel."""
    values, count = config[name], config["latent_channels"]
    if not isinstance(values, list) or len(values) != count:
        raise InputError(f"{origin}: {name}={values!r} must be a list of {count} numbers, one per latent channel.")
    return tuple(_number(value, name, origin) for value in values)


def _params(arrays: dict[str, Any], network: AutoencoderKL, origin: str) -> Params:
    side = network.downsampling
    images = jax.ShapeDtypeStruct((1, side, side, network.image_channels), jnp.float32)
    like = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    return weights.arrange(arrays, like, _names(like, len(network.channels)), origin)


def _names(params: Params, num_levels: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of each of our parameters and the name of the array in diffusers."""
    for half in ("encoder", "decoder"):
        for path, name in weights.names(params[half], num_levels):
            yield (half, *path), name if "quant_conv" in name else f"{half}.{name}"


def _name(folder: epath.Path) -> str:
    """The name of a folder, and before it the pipeline's for the vae/ of a pipeline."""
    full = absolute(folder)
    return f"{full.parent.name}/{full.name}" if full.name == AUTOENCODER else full.name


def _fingerprint(network: AutoencoderKL, params: Params) -> str:
    """A hash of the architecture and the parameters, whatever type the network computes in."""
    options = {name: getattr(network, name) for name in network.__dataclass_fields__}
    described = {name: options[name] for name in sorted(options) if name not in ("dtype", "parent", "name")}
    return sha256([json.dumps(described), *jax.tree.leaves(params)], digits=16)
