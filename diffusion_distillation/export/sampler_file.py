"""Export a model to a folder: its sampler as one file that runs without this package, an archive, and a model card.

The sampler's file is written by `jax.export`. It holds the whole program, from a seed or from noise to images, and runs
on CPUs, GPUs and TPUs, wherever it was written. It generates the same images, bit for bit, as `Pipeline` on one device
of the same kind. The file of a model of latents has the decoder in it, whose images are the same to rounding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from ..checkpoints import AUTOENCODER, Metadata
from ..errors import InputError
from ..interop import archive, copy_autoencoder, read_autoencoder
from ..keys import seed_key
from ..latents import to_uint8
from ..networks.autoencoder import check_fingerprint
from ..pipeline import Pipeline, can_be_guided, space_of, start_noise, step_keys
from ..runtime.devices import host_device
from ..runtime.files import UNFINISHED, is_remote, write_atomic
from ..shapes import Array, Params
from . import card, runner
from .card import CardInfo
from .options import FREE, ExportOptions, check_options
from .runner import SAMPLER

FORMATS = {"sampler": ("sampler",), "archive": ("archive",), "both": ("sampler", "archive")}


def write(
    folder: epath.Path,
    params: Params,
    metadata: Metadata,
    format: str = "sampler",
    options: ExportOptions | None = None,
    info: CardInfo | None = None,
) -> list[epath.Path]:
    """Export a model to a folder. If anything fails, nothing is written.

    Args:
      folder: a new or an empty folder.
      params: the model's parameters.
      metadata: the model's metadata.
      format: 'sampler', 'archive' or 'both'.
      options: the options of the sampler's file. Its `dtype` applies to the archive too.
      info: license, metrics and date for the card.

    Returns:
      The files, the largest first.

    Raises:
      InputError: before anything is compiled or written, if an option is unknown or does not fit the model, or the
        folder is not empty.
    """
    options = options or ExportOptions()
    info = info or CardInfo()
    if format not in FORMATS:
        raise InputError(f"format={format!r} must be one of {list(FORMATS)}.")
    check_options(options, metadata)
    card.check_license(info.license)
    check_new_folder(folder)

    contents = FORMATS[format]
    files: dict[str, str | bytes] = {}
    if "sampler" in contents:
        files[SAMPLER] = export_sampler(params, metadata, options)
        files[runner.NAME] = runner.text(metadata, options)
    files[card.NAME] = card.text(metadata, contents, options, info)  # last: in a bucket it shows that all is written

    # A local folder gets its name once everything is in it.
    target = folder if is_remote(folder) else folder.with_name(f".{folder.name}{UNFINISHED}")
    if target != folder and target.exists():
        target.rmtree()
    target.mkdir(parents=True, exist_ok=True)
    if "archive" in contents:
        if metadata.autoencoder is not None:
            copy_autoencoder(metadata.autoencoder_path, target / AUTOENCODER, metadata.autoencoder)
        archive.write(target, params, metadata, options.dtype)
    elif options.params == "beside":
        archive.write_weights(target, params, options.dtype)
    for name, content in files.items():
        write_atomic(target / name, content)
    if target != folder:
        if folder.exists():
            folder.rmdir()  # it is empty
        target.rename(folder)
    written = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
    return sorted(written, key=lambda path: -path.stat().length)


def check_new_folder(folder: epath.Path) -> None:
    """Raise an InputError if a folder exists and is not empty."""
    if not folder.name:
        raise InputError(f"{str(folder)!r} must name a new folder, such as runs/exported.")
    if folder.exists() and (not folder.is_dir() or any(True for _ in folder.iterdir())):
        raise InputError(f"{str(folder)!r} exists and is not empty. Choose a new folder, or remove it first.")


def export_sampler(params: Params, metadata: Metadata, options: ExportOptions) -> bytes:
    """Export a model's sampler.

    Returns:
      A file for `jax.export.deserialize(bytearray(...))`. The result has a method `call`, which takes the inputs of
      `input_shapes` by name.

    Raises:
      InputError: if the network does not support batches of any size, and `options.batch_size` is None.
    """
    sample = sampler_function(params, metadata, options)
    shapes = input_shapes(params, metadata, options)
    try:
        with jax.default_device(host_device()):  # on a GPU, the network would use operations that a file cannot hold
            exported = jax.export.export(jax.jit(sample), platforms=list(options.platforms))(**shapes)
    except Exception as error:  # a user's network may use the batch size in any way
        if options.batch_size is not None or isinstance(error, InputError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"The network does not support batches of any size ({reason}). Pass batch_size, or use x.shape[0] in the "
            "network, which may be a symbol, instead of len(x)."
        ) from error
    return bytes(exported.serialize())


def input_shapes(params: Params, metadata: Metadata, options: ExportOptions) -> dict[str, Any]:
    """The shapes and dtypes of the inputs of a sampler's file, by name.

    With input 'seed': `seed`, an integer, and `index`, `[batch]`, which of the seed's samples to generate. With input
    'noise': `z`, `[batch, height, width, channels]`, as large as what is diffused. Then, if the model or the options
    have them: `labels`, `[batch]`; `guidance`, `[batch]`; `num_steps`, an integer; and `params`, the arrays of the
    safetensors file by their names.
    """
    [batch] = jax.export.symbolic_shape("batch") if options.batch_size is None else [options.batch_size]
    array = jax.ShapeDtypeStruct
    if options.input == "seed":
        inputs = {"seed": array((), np.uint32), "index": array((batch,), np.int32)}
    else:
        inputs = {"z": array((batch, *metadata.shape), np.float32)}
    if metadata.num_classes > 1:
        inputs["labels"] = array((batch,), np.int32)
    if can_be_guided(metadata):
        inputs["guidance"] = array((batch,), np.float32)
    if options.num_steps == FREE:
        inputs["num_steps"] = array((), np.int32)
    if options.params == "beside":
        inputs["params"] = {
            name: array(leaf.shape, leaf.dtype) for name, leaf in archive.flat_arrays(params, options.dtype).items()
        }
    return inputs


def sampler_function(params: Params, metadata: Metadata, options: ExportOptions) -> Callable[..., jax.Array]:
    """The function in a sampler's file. It takes the inputs of `input_shapes` by name and returns images."""
    pipeline = Pipeline(params, metadata, None if options.num_steps == FREE else options.num_steps)
    generate, _ = pipeline.pure_sampler(sampler=options.sampler)
    needs_key = not pipeline.is_deterministic(sampler=options.sampler)
    stored = archive.flat_arrays(params, options.dtype)
    decode = decoder(metadata, options) if options.output == "uint8" else None

    # A barrier keeps XLA from precomputing with constants what the pipeline computes with arguments, and from merging
    # two of the pipeline's programs into one. Both would take longer to compile and round differently.
    barrier = jax.lax.optimization_barrier

    def sample(*, seed=None, index=None, z=None, labels=None, guidance=None, num_steps=None, params=None):
        weights = _from_flat(barrier(stored) if params is None else params)
        steps = barrier(jnp.int32(pipeline.num_steps)) if num_steps is None else num_steps
        key = None if seed is None else seed_key(seed)
        if z is None:
            z = barrier(start_noise(key, index, pipeline.space.shape))
        keys = step_keys(key, index) if needs_key else None
        x = generate(weights, z, key=keys, num_steps=steps, labels=labels, guidance=guidance)
        return x if decode is None else to_uint8(barrier(decode(barrier(x))))

    return sample


def decoder(metadata: Metadata, options: ExportOptions) -> Callable[[jax.Array], jax.Array]:
    """The part of a sampler's file that turns x into images. For latents, the file holds the decoder's parameters."""
    space = space_of(metadata)
    if space.is_pixels:
        return lambda x: x
    path = metadata.autoencoder_path
    network, params, found = read_autoencoder(path, dtype=metadata.config.autoencoder.dtype)
    check_fingerprint(path, found, metadata.autoencoder)
    stored = archive.flat_arrays(params["decoder"], options.dtype)

    def decode(x):
        weights = _from_flat(jax.lax.optimization_barrier(stored))
        return network.apply({"params": {"decoder": weights}}, space.to_latents(x), method="decode")

    return decode


def _from_flat(arrays: Mapping[str, Array]) -> Params:
    """The tree of float32 parameters from arrays by their names in a safetensors file."""
    return unflatten_dict({tuple(name.split("/")): jnp.asarray(array, jnp.float32) for name, array in arrays.items()})
