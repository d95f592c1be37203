"""Load a model from a path: a run, an archive, a diffusers folder or a file of another project, here or at a URL."""

import os
from pathlib import Path

from etils import epath
from ml_collections import ConfigDict

from .. import checkpoints
from ..checkpoints import Metadata, newest_step, params_hash
from ..errors import InputError, did_you_mean
from ..latents import AutoencoderInfo, Decode, Encode
from ..networks.autoencoder import AutoencoderKL, make_functions
from ..pipeline import Pipeline
from ..pretrained import PRETRAINED
from ..runtime.devices import data_mesh, put, shares
from ..runtime.files import as_path, stat_hash
from ..runtime.hashing import sha256
from ..shapes import Params
from . import archive, diffusers, dit_file, published
from .download import local_folder


def load(
    path: epath.PathLike, config: ConfigDict | None = None, *, shard: str | None = "none"
) -> tuple[Params, Metadata]:
    """Load the sampling parameters and the metadata of a model.

    Every process of a job must call this function, and all get the same parameters.

    Args:
      path: one of
        - the folder of a run, such as `runs/digits/base` or `runs/digits/ladder/steps_0004`: its newest checkpoint;
        - an archive: a folder with `model.safetensors` and our `config.json`, which `scripts/export.py` writes;
        - a diffusers folder with a U-Net or a DiT, or with a pipeline that has one; see `diffusers.read`;
        - a checkpoint of the paper's code: a msgpack file of flax. It needs a `config`;
        - the weights of an original DiT or SiT: a .pt or .safetensors file. It needs a `config`; see `dit_file.read`;
        - the name of a pretrained model in this package, such as 'digits', unless there is a file of that name;
        - the URL of one of these, `gs://`, `s3://`, `https://` or `hf://user/name[@revision]`. It is downloaded once.
      config: the config of a single file, resolved or not. Other models have their own.
      shard: how the parameters are returned: 'all', divided among all devices; the string 'none' (default), as NumPy
        arrays; or None, as the model's own config.train.shard says.

    Raises:
      InputError: if there is no model at the path, it cannot be read, or it does not fit the config.
    """
    folder = local_path(path)
    name = os.fspath(path)
    if archive.is_archive(folder):
        params, metadata = archive.read(folder)
    elif diffusers.is_diffusers(folder):
        params, metadata = diffusers.read(folder)
    elif folder.is_file():
        params, metadata = (dit_file if folder.suffix in dit_file.SUFFIXES else published).read(folder, config)
    elif os.path.basename(name) == name and not folder.exists():
        raise InputError(
            f"There is no model {name!r} here.{did_you_mean(name, PRETRAINED)} Or pass the folder of a run."
        )
    else:
        return checkpoints.load(folder, shard=shard)
    divides = (shard or metadata.config.train.shard) == "all"
    return put(params, shares(params, data_mesh())) if divides else params, metadata


def from_checkpoint(
    path: epath.PathLike,
    num_steps: int | None = None,
    config: ConfigDict | None = None,
    *,
    shard: str | None = None,
) -> Pipeline:
    """Load a model as a pipeline.

    Args:
      path: such as `runs/digits/ladder/steps_0004`; see `load`.
      num_steps: sampling steps, 1 or more. Default: the number that a student was distilled for, or a base model's
        `config.model.eval_sampling_num_steps`.
      config: the config of a single file; see `load`.
      shard: see `load`. Default: None, as the model's own config.train.shard says.

    Raises:
      InputError: if there is no model at the path, or num_steps is below 1.

    >>> from_checkpoint("digits").num_steps
    4
    """
    params, metadata = load(path, config, shard=shard)
    checkpoints.warn_if_unfinished(path, metadata)
    return Pipeline(params, metadata, num_steps)


def load_autoencoder(path: epath.PathLike, *, dtype: str | None = None) -> tuple[Encode, Decode, AutoencoderInfo]:
    """Load the autoencoder of a latent diffusion model; `networks.autoencoder.load` is this function.

    Args:
      path: the folder or the URL of an `AutoencoderKL` of diffusers, or of a pipeline that has one in vae/.
      dtype: type of the activations, 'float32', 'bfloat16' or 'float16'. None, the default, is float32, and so is any
        other type for an autoencoder with force_upcast, which overflows in 16 bits.

    Returns:
      `(encode, decode, info)`. `encode(images)` returns the mean and the standard deviation of latents, and
      `decode(latents)` images. Images are `[batch, height, width, channels]` in [-1, 1], latents are unscaled, channels
      come last. Both functions are compiled; see `networks.autoencoder.make_functions`. A diffusion model sees
      `(latents - info.shift) * info.scale`.

    Raises:
      InputError: if there is no autoencoder at the path, or an option or a file of it is not supported.

    >>> encode, decode, info = load_autoencoder("stable-diffusion-v1-5")  # doctest: +SKIP
    >>> mean, std = encode(images)  # doctest: +SKIP
    >>> decode(mean).shape, info.scale  # doctest: +SKIP
    ((16, 256, 256, 3), 0.18215)
    """
    network, params, info = read_autoencoder(path, dtype=dtype)
    return *make_functions(network, params), info


def read_autoencoder(
    path: epath.PathLike, *, dtype: str | None = None
) -> tuple[AutoencoderKL, Params, AutoencoderInfo]:
    """Read an autoencoder as a network and its parameters; see `load_autoencoder` for arguments and errors."""
    return diffusers.autoencoder.read(local_path(path), dtype)


def copy_autoencoder(path: epath.PathLike, folder: epath.Path, expected: AutoencoderInfo) -> None:
    """Copy the config and the weights of an autoencoder to a new folder.

    Args:
      path: see `load_autoencoder`.
      folder: created if it is missing.
      expected: what is known of the autoencoder.

    Raises:
      InputError: if there is another autoencoder at the path.
    """
    diffusers.autoencoder.copy(local_path(path), folder, expected)


def local_path(path: epath.PathLike) -> epath.Path:
    """The path where a model can be read. Models at URLs are downloaded first, unless they are runs in a bucket."""
    return as_path(path) if _is_run_in_bucket(path) else local_folder(path)


def model_version(path: epath.Path) -> str:
    """Identify the content of a model without reading its arrays.

    Args:
      path: what `local_path` returned.

    Returns:
      For a run, the step of its newest checkpoint and a hash of that checkpoint's fingerprints. For other models, a
      hash of the names, sizes and times of their files.
    """
    step = newest_step(path)
    if step is None:
        local = Path(os.fspath(path))
        paths = sorted(local.rglob("*")) if local.is_dir() else [local]
        return stat_hash(file for file in paths if file.is_file())
    metadata = path / "checkpoints" / str(step) / "metadata" / "metadata"
    content = metadata.read_bytes() if metadata.exists() else b""
    return f"step {step}, {sha256([content], digits=16)}"


def sampled_model(path: epath.PathLike, params: Params, metadata: Metadata) -> dict[str, str]:
    """Identify a model whose samples are kept, by what determines them.

    Args:
      path: the model's, as given.
      params: its parameters.
      metadata: its metadata.

    Returns:
      `parameters`, a hash. For models other than runs also `model`, a hash of `config.model`: their file may leave the
      noise schedule and the network's output to a config, or to a scheduler's file.
    """
    found = {"parameters": params_hash(params)}
    if newest_step(local_path(path)) is None:
        found["model"] = sha256([metadata.config.model.to_json(sort_keys=True)], digits=16)
    return found


def _is_run_in_bucket(path: epath.PathLike) -> bool:
    """Whether a URL points to a run or a ladder in a bucket. These are read in place."""
    if not os.fspath(path).startswith("gs://"):
        return False
    folder = as_path(path)
    return (folder / "checkpoints").is_dir() or (
        (folder / archive.CONFIG).exists() and not (folder / archive.WEIGHTS).exists()
    )
