"""The weights of diffusers' networks: their files, their names, and their layout in PyTorch."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from ...checkpoints import Metadata, abstract_params
from ...errors import InputError
from ...runtime.files import read_json
from ...shapes import Params
from ..arrays import fit_params, read_safetensors
from ..model_files import PICKLE, WEIGHTS, weight_file
from ..torch_file import read_tensors

# Our names of modules, and diffusers' names: modules of the network, and modules inside of blocks.
MODULES = {
    "conv_in": "conv_in",
    "dense0": "time_embedding.linear_1",
    "dense1": "time_embedding.linear_2",
    "class_emb": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}
LEVEL_MODULES = {
    "block": "resnets",
    "attn": "attentions",
    "downsample": "downsamplers",
    "upsample": "upsamplers",
}
INNER_MODULES = {
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def find_weights(folder: epath.Path) -> list[epath.Path]:
    """The files with a network's weights: one file, or the files that an index names.

    Raises:
      InputError: if there are none, or weights of several variants; see `weight_file`.
    """
    chosen = _choose(folder)
    return _files_of_index(chosen) if chosen.suffix == ".json" else [chosen]


def copy_weights(source: epath.Path, folder: epath.Path) -> None:
    """Copy the files with a network's weights. The copy of a variant has the names that diffusers looks for by default.

    Args:
      source: the network's folder.
      folder: must exist.
    """
    chosen = _choose(source)
    whole = WEIGHTS if ".safetensors" in chosen.name else PICKLE
    if chosen.suffix != ".json":
        chosen.copy(folder / whole, overwrite=True)
        return
    for shard in _files_of_index(chosen):
        shard.copy(folder / shard.name, overwrite=True)
    chosen.copy(folder / f"{whole}.index.json", overwrite=True)


def _choose(folder: epath.Path) -> epath.Path:
    """The file with a network's weights, or the index of several files."""
    name = weight_file((path.name for path in folder.iterdir()), str(folder))
    if name is None:
        raise InputError(f"There is no {str(folder / WEIGHTS)!r}, nor {PICKLE}, nor a variant of them.")
    return folder / name


def _files_of_index(index: epath.Path) -> list[epath.Path]:
    present = {path.name for path in index.parent.iterdir()}
    weight_map = read_json(index).get("weight_map")
    shards = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not shards or not {*shards} <= present:
        raise InputError(f"{str(index)!r} must name files in its own folder under 'weight_map'; it names {shards[:4]}.")
    return [index.parent / shard for shard in shards]


def read_arrays(files: list[epath.Path]) -> dict[str, np.ndarray]:
    """Read the arrays of several files, by their present names in diffusers."""
    return {_present_name(name): array for file in files for name, array in _read(file).items()}


def _read(file: epath.Path) -> dict[str, np.ndarray]:
    return read_tensors(file.read_bytes(), repr(str(file))) if file.suffix == ".bin" else read_safetensors(file)


def _present_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def swap_sin_and_cos(arrays: dict[str, np.ndarray]) -> None:
    """Adapt the layer that reads the embedding of time to our order, [sin, cos], if diffusers has [cos, sin]."""
    name = "time_embedding.linear_1.weight"
    if (weight := arrays.get(name)) is not None:
        arrays[name] = np.roll(weight, weight.shape[-1] // 2, axis=-1)


def to_params(arrays: dict[str, np.ndarray], metadata: Metadata, origin: str) -> Params:
    """Convert arrays of diffusers to the parameters of our U-Net; see `arrange`."""
    like = abstract_params(metadata)
    return arrange(arrays, like, names(like, len(metadata.config.model.args.ch_mult)), origin)


def arrange(
    arrays: dict[str, np.ndarray], like: Params, named: Iterable[tuple[tuple[str, ...], str]], origin: str
) -> Params:
    """Convert arrays of diffusers to the parameters of a network.

    Args:
      arrays: by their present names in diffusers, in the layout of PyTorch.
      like: the shapes of the network's parameters.
      named: the path of each parameter and the name of its array in diffusers; see `names`.
      origin: the file of the weights, for error messages.

    Raises:
      InputError: if arrays are missing, unexpected or of the wrong shape.
    """
    arrays = dict(arrays)
    params: dict[tuple[str, ...], Any] = {}
    for path, name in named:
        if path == ("class_emb", "bias"):
            params[path] = np.zeros(like["class_emb"]["bias"].shape, np.float32)
        elif (array := arrays.pop(name, None)) is not None:
            params[path] = np.ascontiguousarray(_from_torch(path, array))
    unexpected = {(name,): array for name, array in arrays.items()}
    return fit_params(params | unexpected, like, origin)


def from_params(params: Params, metadata: Metadata) -> dict[str, np.ndarray]:
    """Convert our parameters to arrays of diffusers. The bias of class_emb is added to its kernel."""
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(params).items()}
    if (bias := flat.get(("class_emb", "bias"))) is not None:
        flat["class_emb", "kernel"] = flat["class_emb", "kernel"] + bias
    named = names(params, len(metadata.config.model.args.ch_mult))
    return to_arrays(flat, ((path, name) for path, name in named if path != ("class_emb", "bias")))


def to_arrays(
    flat: dict[tuple[str, ...], np.ndarray], named: Iterable[tuple[tuple[str, ...], str]]
) -> dict[str, np.ndarray]:
    """Convert our parameters to arrays of diffusers: the inverse of `arrange`.

    Args:
      flat: the parameters by their paths.
      named: the path of each parameter and the name of its array in diffusers.
    """
    return {name: np.ascontiguousarray(_to_torch(path, flat[path])) for path, name in named}


def _from_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:  # [out, in, height, width]
        return array[:, :, 0, 0].T if path[-2] == "nin_shortcut" else array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and path[0] != "class_emb":
        return array.T  # `fit_params` adds the axis of heads
    return array


def _to_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    *_, module, leaf = path
    if module == "class_emb":
        return array
    if module in ("q", "k", "v"):
        return array.reshape(array.shape[0], -1).T if leaf == "kernel" else array.reshape(-1)
    if module == "proj_out" and leaf == "kernel":
        return array.reshape(-1, array.shape[-1]).T
    if module == "nin_shortcut" and leaf == "kernel":
        return array.T[:, :, None, None]
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array


def names(params: Params, num_levels: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of each of our parameters and the name of the array in diffusers."""
    for path in flatten_dict(params):
        *modules, leaf = path
        parts = [_module(modules[0], num_levels), *(INNER_MODULES.get(name, name) for name in modules[1:])]
        if len(modules) == 1 and modules[0].endswith("sample"):
            parts.append("conv")
        yield path, ".".join([*parts, "bias" if leaf == "bias" else "weight"])


def _module(name: str, num_levels: int) -> str:
    """The name in diffusers of one of the network's modules, such as 'down_blocks.0.resnets.1' of 'down_0.block_1'."""
    if name in MODULES:
        return MODULES[name]
    level, part = name.split(".")
    way, _, depth = level.partition("_")
    kind, _, number = part.partition("_")
    index = int(depth) if way == "down" else num_levels - 1 - int(depth)
    return f"{way}_blocks.{index}.{LEVEL_MODULES[kind]}.{number or 0}"
