"""Choose the files that a model is read from, given the names of all files in its folder."""

import os
import re
from collections.abc import Iterable

from ..errors import InputError

SUFFIXES = (".json", ".safetensors", ".msgpack")  # of an archive's or a published model's files
# Of a pipeline of diffusers, only these parts are read.
PIPELINE = "model_index.json"
PARTS = ("", "unet", "transformer", "scheduler", "vae")
# The files of a network's weights in diffusers' folders.
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"  # as older models have it
ANY_WEIGHTS = r"diffusion_pytorch_model.*\.(safetensors|bin)(\.index.*\.json)?"
# Weights in several files have an index of their names. Variants, such as fp16, have another name or another index.
WHOLE = (WEIGHTS, f"{WEIGHTS}.index.json", PICKLE, f"{PICKLE}.index.json")
VARIANT = r"diffusion_pytorch_model\.(\w+\.{suffix}|{suffix}\.index\.(\w+)\.json)"
SHARD = r"diffusion_pytorch_model(\.\w+)?-\d+-of-\d+(\.\w+)?\.(safetensors|bin)"


def weight_file(names: Iterable[str], folder: str) -> str | None:
    """Choose the file with a network's weights, or the index of several files.

    Weights without a variant are preferred to a variant, and safetensors files to files of torch.save (.bin).

    Args:
      names: of the files in the folder.
      folder: its path, for the message.

    Returns:
      The file's name; None if no file has weights.

    Raises:
      InputError: if there are weights of several variants, and none without a variant.

    >>> weight_file(["config.json", "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"], "unet")
    'diffusion_pytorch_model.bin'
    """
    present = sorted(names)
    for name in WHOLE:
        if name in present:
            return name
    for suffix in ("safetensors", "bin"):
        found = [name for name in present if re.fullmatch(VARIANT.format(suffix=suffix), name)]
        if len(found) > 1:
            raise InputError(
                f"{folder!r} has several variants of the weights, {', '.join(found)}. Keep one, or rename one to "
                f"{WEIGHTS}."
            )
        if found:
            return found[0]
    return None


def needed(names: Iterable[str], folder: str) -> list[str]:
    """List the files of a folder that a model is read from, which are those to download.

    Args:
      names: of all files, relative to the folder.
      folder: its path or URL, for messages.

    Raises:
      InputError: see `weight_file`.

    >>> needed(["model.safetensors", "config.json", "README.md"], "hf://user/name")
    ['config.json', 'model.safetensors']
    >>> files = ["model_index.json", f"vae/{WEIGHTS}", "vae/config.json", "text_encoder/config.json"]
    >>> needed(files, "hf://user/name")
    ['model_index.json', 'vae/config.json', 'vae/diffusion_pytorch_model.safetensors']
    """
    by_folder: dict[str, list[str]] = {}
    for name in sorted(names):
        by_folder.setdefault(os.path.dirname(name), []).append(os.path.basename(name))
    is_pipeline = PIPELINE in by_folder.get("", [])
    suffixes = ".json" if is_pipeline else SUFFIXES
    found = []
    for part, inside in by_folder.items():
        if is_pipeline and part not in PARTS:
            continue
        weights = [name for name in inside if re.fullmatch(ANY_WEIGHTS, name)]
        others = [name for name in inside if name.endswith(suffixes) and name not in weights]
        found += [os.path.join(part, name) for name in (*others, *_to_read(weights, os.path.join(folder, part)))]
    return found


def _to_read(weights: list[str], folder: str) -> list[str]:
    """The chosen file of weights. Of an index, which cannot be read before it is downloaded, all shards of its kind."""
    chosen = weight_file(weights, folder)
    if chosen is None:
        return []
    if not chosen.endswith(".json"):
        return [chosen]
    variant = re.fullmatch(r".*\.index(\.\w+)?\.json", chosen)[1]
    suffix = ".safetensors" if ".safetensors." in chosen else ".bin"
    shards = ((name, re.fullmatch(SHARD, name)) for name in weights if name.endswith(suffix))
    return [chosen, *(name for name, match in shards if match and (match[1] or match[2]) == variant)]
