"""Options of an exported sampler: its inputs, outputs and platforms."""

from typing import NamedTuple

from ..checkpoints import Metadata
from ..errors import InputError
from ..sampling import SAMPLERS, sampler_name

FREE = "free"
INPUTS = ("seed", "noise")
OUTPUTS = ("uint8", "float")
PARAMS = ("inside", "beside")
DTYPES = ("float32", "float16")
PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")


class ExportOptions(NamedTuple):
    """Options of a sampler's file.

    Attributes:
      input: 'seed': a seed and the indices of samples; 'noise': standard normal noise, for deterministic samplers only.
      output: 'uint8': images, pixels from 0 to 255; 'float': float32 x, as `Pipeline.from_noise` returns it: images, or
        latents, for which the file has no decoder.
      batch_size: images per call. Default: None, any number.
      num_steps: sampling steps; 'free' makes them an input. Default: None, the model's number.
      sampler: a name in `sampling.SAMPLERS`. Default: None, the config's.
      platforms: some of KNOWN_PLATFORMS, on which the file runs.
      params: 'inside': the file holds the parameters; 'beside': they are in a separate safetensors file, whose arrays
        are an input.
      dtype: the dtype of the stored parameters: 'float32', or 'float16' for half the size. The network's activations
        have the dtype of the config.
    """

    input: str = "seed"
    output: str = "uint8"
    batch_size: int | None = None
    num_steps: int | str | None = None
    sampler: str | None = None
    platforms: tuple[str, ...] = PLATFORMS
    params: str = "inside"
    dtype: str = "float32"


def check_options(options: ExportOptions, metadata: Metadata) -> None:
    """Raise an InputError if an option is unknown or does not fit a model."""
    for name, allowed in (("input", INPUTS), ("output", OUTPUTS), ("params", PARAMS), ("dtype", DTYPES)):
        value = getattr(options, name)
        if value not in allowed:
            raise InputError(f"{name}={value!r} must be one of {list(allowed)}.")
    if not options.platforms or any(platform not in KNOWN_PLATFORMS for platform in options.platforms):
        raise InputError(f"platforms={','.join(options.platforms)} must be some of {', '.join(KNOWN_PLATFORMS)}.")
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"batch_size={options.batch_size} must be at least 1. Omit it for batches of any size.")
    steps = options.num_steps
    if steps is not None and steps != FREE and (isinstance(steps, str) or steps < 1):
        raise InputError(f"num_steps={steps!r} must be a positive integer, or 'free'.")
    sampler = sampler_name(options.sampler or metadata.config.sampler)
    if options.input == "noise" and SAMPLERS[sampler].needs_key():
        raise InputError(f"sampler={sampler!r} adds noise in every step. Use input='seed', or sampler='ddim'.")
