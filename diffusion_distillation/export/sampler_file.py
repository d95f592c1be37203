"""A model for elsewhere: its sampler as one file that needs JAX alone, by `jax.export`, or its archive; and a card.

The file holds the whole program, from a seed or from noise to images, for CPUs, GPUs and TPUs, whichever of them it is
written on. What it draws is what `Pipeline` draws on one device of the same kind, bit for bit.
"""

import datetime
import functools
import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import unflatten_dict

from ..checkpoints import Metadata
from ..errors import InputError
from ..interop import archive
from ..keys import seed_key
from ..networks.layers import traced_for_cpu
from ..networks.model import condition_of
from ..pipeline import Pipeline, can_be_guided, start_noise
from ..runtime.files import is_remote, write_atomic
from ..sampling import SAMPLERS, sampler_name
from ..shapes import Array, Params
from . import card

SAMPLER, RUNNER = "sampler.jax", "run.py"
FORMATS = {"sampler": ("sampler",), "archive": ("archive",), "both": ("sampler", "archive")}
PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
INPUTS, OUTPUTS, PLACES, DTYPES = ("seed", "noise"), ("uint8", "float"), ("inside", "beside"), ("float32", "float16")
FREE = "free"


class ExportOptions(NamedTuple):
    """What a sampler's file takes and gives.

    Attributes:
      input: 'seed': a seed, and which of its samples; or 'noise': standard normal noise, for deterministic DDIM.
      output: 'uint8': pictures; or 'float': float32 images as from `Pipeline.from_noise`.
      batch_size: images at a time; None leaves it free.
      num_steps: sampling steps; None for the model's own, and 'free' makes them one more input.
      sampler: a name in `sampling.SAMPLERS`; None for the config's.
      platforms: that the file is for; some of KNOWN_PLATFORMS.
      params: 'inside': in the file; or 'beside': a safetensors file, whose arrays are one more input.
      dtype: that the parameters are stored in: 'float32', or 'float16' for half the size. It is not that of the
        network's activations, which is the config's.
    """

    input: str = "seed"
    output: str = "uint8"
    batch_size: int | None = None
    num_steps: int | str | None = None
    sampler: str | None = None
    platforms: tuple[str, ...] = PLATFORMS
    params: str = "inside"
    dtype: str = "float32"


class CardInfo(NamedTuple):
    """What the card says besides.

    Attributes:
      licence: an identifier of the Hugging Face Hub, such as 'apache-2.0'; 'unknown' where none was chosen.
      metrics: of the model's samples, by what was measured, as in `{'student, DDIM, 4 steps': 'FID 3.1'}`.
      date: of the export.
    """

    licence: str = "unknown"
    metrics: Mapping[str, str] = {}
    date: datetime.date | None = None


def write(
    folder: epath.Path,
    params: Params,
    metadata: Metadata,
    format: str = "sampler",
    options: ExportOptions | None = None,
    about: CardInfo | None = None,
) -> list[epath.Path]:
    """Writes a model for elsewhere to a folder: all of it or, if anything fails, nothing.

    Args:
      folder: that is not there yet, or is empty.
      params: of the model.
      metadata: of the model.
      format: one of FORMATS.
      options: of the sampler's file; `dtype` is the archive's too.
      about: what the card says besides.

    Returns:
      The files, the largest first.

    Raises:
      InputError: if an option is unknown or does not fit the model, or the folder holds something; before anything is
        compiled or written.
    """
    options, about = options or ExportOptions(), about or CardInfo()
    check(folder, metadata, format, options, about)
    files: dict[str, str | bytes] = {}
    if "sampler" in FORMATS[format]:
        files[SAMPLER] = export_sampler(params, metadata, options)
        files[RUNNER] = runner(metadata, options)
    date = about.date or datetime.datetime.now(datetime.UTC).date()
    files[card.NAME] = card.text(metadata, FORMATS[format], options, about.licence, about.metrics, date)
    # a folder takes its name once all is in it; in a bucket, the card comes last
    place = folder if is_remote(folder) else folder.with_name(f".{folder.name}.unfinished")
    if place != folder and place.exists():
        place.rmtree()
    place.mkdir(parents=True, exist_ok=True)
    if "archive" in FORMATS[format]:
        archive.write(place, params, metadata, options.dtype)
    elif options.params == "beside":
        archive.write_weights(place, params, options.dtype)
    for name, content in files.items():
        write_atomic(place / name, content)
    if place != folder:
        if folder.exists():
            folder.rmdir()  # it is empty
        place.rename(folder)
    return sorted(folder.iterdir(), key=lambda path: -path.stat().length)


def check(folder: epath.Path, metadata: Metadata, format: str, options: ExportOptions, about: CardInfo) -> None:
    """Raises an InputError if `write` cannot do what it is asked for."""
    for name, value, allowed in (
        ("format", format, FORMATS),
        ("input", options.input, INPUTS),
        ("output", options.output, OUTPUTS),
        ("params", options.params, PLACES),
        ("dtype", options.dtype, DTYPES),
    ):
        if value not in allowed:
            raise InputError(f"{name}={value!r} must be one of {list(allowed)}.")
    if not options.platforms or any(platform not in KNOWN_PLATFORMS for platform in options.platforms):
        raise InputError(f"platforms={','.join(options.platforms)} must be some of {', '.join(KNOWN_PLATFORMS)}.")
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"batch_size={options.batch_size} must be at least 1; leave it out to have it free.")
    if isinstance(options.num_steps, str) and options.num_steps != FREE:
        raise InputError(f"num_steps={options.num_steps!r} must be a number from 1 on, or 'free'.")
    if isinstance(options.num_steps, int) and options.num_steps < 1:
        raise InputError(f"num_steps={options.num_steps} must be at least 1, or 'free'.")
    sampler = sampler_name(options.sampler or metadata.config.sampler)
    if options.input == "noise" and SAMPLERS[sampler].needs_key():
        raise InputError(f"{sampler!r} draws noise at every step: give it a seed, input='seed', or take 'ddim'.")
    card.check_licence(about.licence)
    check_new(folder)


def check_new(folder: epath.Path) -> None:
    """Raises an InputError unless a folder is not there, or empty."""
    if folder.exists() and (not folder.is_dir() or any(True for _ in folder.iterdir())):
        raise InputError(f"{str(folder)!r} is there already and not empty: give a new folder, or remove it first.")


def export_sampler(params: Params, metadata: Metadata, options: ExportOptions) -> bytes:
    """The bytes of a sampler's file, which `jax.export.deserialize(bytearray(...))` reads.

    What that returns has `call(**inputs)`, with the inputs that `inputs_of` names.

    Raises:
      InputError: if the network cannot be traced with a batch size that is free.
    """
    draw = sampler_function(params, metadata, options)
    shapes = inputs_of(params, metadata, options)
    try:
        exported = jax.export.export(jax.jit(draw), platforms=list(options.platforms))(**shapes)
    except Exception as error:  # another's network may ask for the batch size in any way
        if options.batch_size is not None or isinstance(error, InputError):
            raise
        what = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"The network does not work with a batch size that is free ({what}): give batch_size, or let it ask for "
            "x.shape[0], which may be a symbol, and never len(x)."
        ) from error
    return bytes(exported.serialize())


def inputs_of(params: Params, metadata: Metadata, options: ExportOptions) -> dict[str, Any]:
    """The inputs of a sampler's file, by name, as shapes and types.

    With a seed: seed, an integer, and index, `[batch]`, which of its samples; with noise: z, `[batch, height, width,
    channels]`. Then labels, `[batch]`, if the model has classes; guidance, `[batch]`, if it can be guided; num_steps,
    an integer, if it is free; and params, the arrays of the safetensors file by their names, if they are beside.
    """
    [batch] = jax.export.symbolic_shape("batch") if options.batch_size is None else [options.batch_size]
    of = jax.ShapeDtypeStruct
    if options.input == "seed":
        inputs = {"seed": of((), np.uint32), "index": of((batch,), np.int32)}
    else:
        inputs = {"z": of((batch, *metadata.image_shape), np.float32)}
    if metadata.num_classes > 1:
        inputs["labels"] = of((batch,), np.int32)
    if can_be_guided(metadata):
        inputs["guidance"] = of((batch,), np.float32)
    if options.num_steps == FREE:
        inputs["num_steps"] = of((), np.int32)
    if options.params == "beside":
        inputs["params"] = {
            name: of(leaf.shape, leaf.dtype) for name, leaf in archive.flat_arrays(params, options.dtype).items()
        }
    return inputs


def _on_each_platform(draw: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function as it is traced for CPUs where it runs on one, and elsewhere as it is traced for others."""

    def traced(*args, for_cpu):
        with traced_for_cpu(for_cpu):
            return draw(*args)

    on_cpu, elsewhere = (functools.partial(traced, for_cpu=for_cpu) for for_cpu in (True, False))
    return functools.partial(jax.lax.platform_dependent, cpu=on_cpu, default=elsewhere)


def sampler_function(params: Params, metadata: Metadata, options: ExportOptions) -> Callable[..., jax.Array]:
    """The function of a sampler's file: it takes the inputs of `inputs_of` by name and returns the images."""
    num_steps = None if options.num_steps == FREE else options.num_steps
    pipeline = Pipeline(params, metadata, num_steps)
    on_each = _on_each_platform(pipeline.as_function(sampler=options.sampler)[0])
    deterministic = pipeline.is_deterministic(sampler=options.sampler)
    stored = archive.flat_arrays(params, options.dtype)

    # The barriers keep XLA from computing with constants beforehand what the pipeline computes with arguments, and from
    # one program over what there are two: it would take longer to compile, and round otherwise.
    fixed = jax.lax.optimization_barrier

    def draw_images(*, seed=None, index=None, z=None, labels=None, guidance=None, num_steps=None, params=None):
        held = _as_float32(fixed(stored) if params is None else params)
        steps = fixed(jnp.int32(pipeline.num_steps)) if num_steps is None else num_steps
        key = None if seed is None else seed_key(seed)
        if z is None:
            z = fixed(start_noise(key, index, pipeline.image_shape))
        condition = condition_of(labels, pipeline.num_classes, guidance)
        x = on_each(held, (None if deterministic else key, steps), (z, index, condition))
        return _to_uint8(fixed(x)) if options.output == "uint8" else x

    return draw_images


def runner(metadata: Metadata, options: ExportOptions) -> str:
    """The text of run.py, which draws with a sampler's file and needs JAX alone."""
    inputs = {"labels": f"index % {metadata.num_classes}"} if metadata.num_classes > 1 else {}
    if can_be_guided(metadata):
        inputs["guidance"] = f"np.full(len(index), {metadata.config.model.eval_guidance}, np.float32)"
    before = []
    if options.input == "seed":
        inputs |= {"seed": "np.uint32(seed)", "index": "index"}
    else:
        before.append(NOISE.substitute(shape=tuple(metadata.image_shape)))
        inputs |= {"z": "noise(index)"}
    if options.num_steps == FREE:
        inputs["num_steps"] = f"np.int32({metadata.num_steps or metadata.config.model.eval_sampling_num_steps})"
    if options.params == "beside":
        before.append(PARAMS.substitute(weights=archive.WEIGHTS))
        inputs["params"] = "params"
    return RUN.substitute(
        sampler=SAMPLER,
        size="min(num_images, 256)" if options.batch_size is None else options.batch_size,
        imports="import json\n" if options.params == "beside" else "",
        before="".join(before),
        inputs=", ".join(f"{name}={value}" for name, value in inputs.items()),
    )


RUN = string.Template('''\
"""Draws images: python run.py 64 0 images.npy (how many, seed, file). Needs jax and flatbuffers, nothing else."""

${imports}import pathlib
import sys

import jax.export
import numpy as np

num_images, seed, here = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(__file__).parent
sampler = jax.export.deserialize(bytearray((here / "$sampler").read_bytes()))
size = $size
${before}batches = np.arange(num_images + -num_images % size, dtype=np.int32).reshape(-1, size)
images = [sampler.call($inputs) for index in batches]
np.save(sys.argv[3], np.concatenate(images)[:num_images])
''')

NOISE = string.Template("""\
key = jax.random.key(seed, impl="threefry2x32")
keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i))[0])
noise = lambda index: jax.vmap(lambda key: jax.random.normal(key, $shape, np.float32))(keys(index))
""")

PARAMS = string.Template("""\
raw = memoryview((here / "$weights").read_bytes())
start = 8 + int.from_bytes(raw[:8], "little")  # the arrays lie after a header in JSON and its length
header = {name: entry for name, entry in json.loads(bytes(raw[8:start])).items() if name != "__metadata__"}
data = {name: raw[start:][slice(*entry["data_offsets"])] for name, entry in header.items()}
types = {"F32": "<f4", "F16": "<f2"}
params = {name: np.frombuffer(data[name], types[header[name]["dtype"]]).reshape(header[name]["shape"]) for name in data}
""")


def _as_float32(params: Mapping[str, Array]) -> Params:
    """The tree of parameters of a safetensors file's."""
    return unflatten_dict({tuple(name.split("/")): jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()})


def _to_uint8(x: Array) -> jax.Array:
    """`pipeline.to_uint8` in JAX."""
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)
