"""A model by its path: a run of ours, an archive of ours, a published checkpoint, or one of another library."""

import os
from pathlib import Path

from etils import epath
from ml_collections import ConfigDict

from .. import checkpoints
from ..checkpoints import Metadata, newest_step
from ..errors import InputError, did_you_mean
from ..pipeline import Pipeline
from ..pretrained import PRETRAINED, pretrained_folder
from ..runtime import files
from ..runtime.files import as_path
from ..runtime.hashing import sha256
from ..shapes import Params
from . import archive, diffusers, published
from .download import is_url, local_copy


def load(path: epath.PathLike, config: ConfigDict | None = None) -> tuple[Params, Metadata]:
    """The sampling parameters of a model and what is needed besides them, from whatever is at the path.

    Where several processes work together, all must call it, and get the same.

    Args:
      path: one of
        - the folder of a run, such as `runs/digits/base` or `runs/digits/ladder/steps_0004`: its newest checkpoint;
        - an archive, a folder with `model.safetensors` and our `config.json`, as scripts/export.py writes it;
        - a folder of diffusers' UNet2DModel, or of a pipeline of one, see `diffusers.read`;
        - a checkpoint in the format of the paper's code, a single file of flax's msgpack; it needs a `config`;
        - the name of a model that comes with the package, 'digits', where nothing else is called so.
        Each may also be a URL, `gs://`, `s3://`, `https://`, or `hf://user/name` or `hf://user/name@revision`, and is
        then downloaded once.
      config: of the model, resolved or not; of published checkpoints alone, which do not say it.

    Raises:
      InputError: if there is nothing there that can be read, with what was found, or it does not fit the config.
    """
    given, path = path, local_path(path)
    if archive.is_archive(path):
        return archive.read(path)
    if diffusers.is_diffusers(path):
        return diffusers.read(path)
    if path.is_file():
        return published.read(path, config)
    name = os.fspath(given)
    if os.path.basename(name) == name and not path.exists():
        raise InputError(
            f"There is no model {name!r} here.{did_you_mean(name, PRETRAINED)} Or give the folder of a run."
        )
    return checkpoints.load(path)


def from_checkpoint(path: epath.PathLike, num_steps: int | None = None, config: ConfigDict | None = None) -> Pipeline:
    """The pipeline of the model at a path; see `load` for what that may be.

    Args:
      path: such as `runs/digits/ladder/steps_0004`, or the file of a published checkpoint.
      num_steps: sampling steps; by default those that a student was distilled for, or a base model's own.
      config: of the model, for published checkpoints.

    Raises:
      InputError: if there is no model at the path, or num_steps is below 1.
    """
    return Pipeline(*load(path, config), num_steps)


def local_path(path: epath.PathLike) -> epath.Path:
    """Where a model is here: its path; or, at a URL, that of its copy, made now if there is none."""
    if os.fspath(path) in PRETRAINED and not as_path(path).exists():
        return as_path(pretrained_folder(os.fspath(path)))
    return as_path(local_copy(os.fspath(path)) if is_url(path) and not _is_run(path) else path)


def model_version(path: epath.Path) -> str:
    """A name for what is at a path, as far as can be told without reading it all; another model has another one.

    Of a run, the step and the fingerprints of its newest checkpoint; of others, names, sizes and times of files.
    """
    step = newest_step(path)
    if step is None:
        here = Path(os.fspath(path))  # which it is: what is elsewhere has been copied
        found = sorted(here.rglob("*")) if here.is_dir() else [here]
        return files.stat_hash(file for file in found if file.is_file())
    metadata = path / "checkpoints" / str(step) / "metadata" / "metadata"
    content = metadata.read_bytes() if metadata.exists() else b""
    return f"step {step}, {sha256([content], 16)}"


def _is_run(path: epath.PathLike) -> bool:
    """Whether a URL is that of a run or a ladder in a bucket, which is read where it is."""
    if not os.fspath(path).startswith("gs://"):
        return False
    folder = as_path(path)
    return (folder / "checkpoints").is_dir() or (
        (folder / archive.CONFIG).exists() and not (folder / archive.WEIGHTS).exists()
    )
