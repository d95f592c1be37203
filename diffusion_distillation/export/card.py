"""The model card of an exported model: README.md, with the YAML header that the Hugging Face Hub reads."""

import calendar
import datetime
import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from ..checkpoints import Metadata
from ..errors import InputError
from ..pipeline import can_be_guided
from ..sampling import SAMPLERS, sampler_name
from ..version import __version__
from .options import FREE, ExportOptions

NAME = "README.md"
MAX_CLASS_NAMES = 20
MONTHS_READABLE = 6  # for which JAX promises to read a file of jax.export


class CardInfo(NamedTuple):
    """The contents of a card that the model does not determine.

    Attributes:
      license: an identifier of the Hugging Face Hub, such as 'apache-2.0'. Default: 'unknown'.
      metrics: measurements by their title, such as `{'student, DDIM, 4 steps': 'FID 3.1'}`. Default: none.
      date: the date of the export. Default: None, today in UTC.
    """

    license: str = "unknown"
    metrics: Mapping[str, str] = {}
    date: datetime.date | None = None


def text(metadata: Metadata, contents: Sequence[str], options: ExportOptions, info: CardInfo) -> str:
    """The text of a card.

    Args:
      metadata: the model's metadata.
      contents: what the folder holds: 'sampler', 'archive'.
      options: the options of the sampler's file.
      info: license, metrics and date.
    """
    height, width, channels = metadata.image_shape
    config = metadata.config
    date = info.date or datetime.datetime.now(datetime.UTC).date()
    default_steps = metadata.num_steps or config.model.eval_sampling_num_steps
    values = {
        "license": info.license,
        "dataset": config.dataset.name,
        "kind": f"a student distilled for {_steps(metadata.num_steps)}" if metadata.num_steps else "a base model",
        "shape": f"{height} x {width} pixels, {channels} {'channel' if channels == 1 else 'channels'}",
        "classes": _classes(metadata),
        "steps": f"{default_steps}" if metadata.num_steps else f"{default_steps} by default; any number works",
        "updates": f"{metadata.step:,}",
        "sampler": SAMPLERS[sampler_name(options.sampler or config.sampler)].title,
        "dtype": options.dtype,
        "metrics": _metrics(info.metrics),
        "jax": jax.__version__,
        "package": __version__,
        "date": date.isoformat(),
        "until": months_after(date, MONTHS_READABLE).isoformat(),
        "inputs": "\n".join(f"- {line}" for line in _inputs(metadata, options)),
        "output": _output(metadata, options),
        "platforms": ", ".join(options.platforms),
    }
    sections = [HEAD, *(SECTIONS[content] for content in contents)]
    return "\n".join(string.Template(section).substitute(values) for section in sections)


def check_license(license: str) -> None:
    """Raise an InputError if a license cannot be an identifier on the Hub.

    >>> check_license("apache-2.0")
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise InputError(
            f"license={license!r} must be an identifier of the Hugging Face Hub: lowercase letters, digits, dots and "
            "dashes, such as apache-2.0, mit, cc-by-4.0, other or unknown."
        )


def months_after(date: datetime.date, months: int) -> datetime.date:
    """The same day some months later, or the last day of a month that has no such day.

    >>> months_after(datetime.date(2027, 8, 31), 6)
    datetime.date(2028, 2, 29)
    """
    years, month = divmod(date.month - 1 + months, 12)
    year = date.year + years
    month += 1
    return datetime.date(year, month, min(date.day, calendar.monthrange(year, month)[1]))


def _steps(number: int) -> str:
    return "1 sampling step" if number == 1 else f"{number} sampling steps"


def _metrics(metrics: Mapping[str, str]) -> str:
    return "\n".join(f"- {title}: {values}" for title, values in metrics.items()) or "None measured."


def _classes(metadata: Metadata) -> str:
    """The number of classes, their labels, and their first names."""
    count = metadata.num_classes
    if count == 1:
        return "none"
    names = metadata.class_names or ()
    listed = [f"{label} {name}" for label, name in enumerate(names[:MAX_CLASS_NAMES])]
    if count > MAX_CLASS_NAMES and listed:
        listed.append("...")
    return f"{count}, 0 to {count - 1}" + (f" ({', '.join(listed)})" if listed else "")


def _output(metadata: Metadata, options: ExportOptions) -> str:
    """What the sampler's file returns."""
    if options.output == "uint8":
        return "uint8 images, 0 to 255"
    info = metadata.autoencoder
    if info is None:
        return "float32 images, -1 to 1"
    return f"float32 x: latents of the autoencoder {info.name}, minus {info.shift}, times {info.scale}"


def _inputs(metadata: Metadata, options: ExportOptions) -> list[str]:
    """One line for each input of the sampler's file."""
    batch = "batch" if options.batch_size is None else options.batch_size
    if options.input == "seed":
        lines = [
            "`seed`: uint32, a number.",
            f"`index`: int32 [{batch}], which of the seed's samples to generate.",
        ]
    else:
        shape = ", ".join(map(str, (batch, *metadata.shape)))
        lines = [f"`z`: float32 [{shape}], standard normal noise."]
    if metadata.num_classes > 1:
        lines.append(f"`labels`: int32 [{batch}], classes from 0 to {metadata.num_classes - 1}.")
    if can_be_guided(metadata):
        lines.append(f"`guidance`: float32 [{batch}], the guidance weight w; 0 for no guidance.")
    if options.num_steps == FREE:
        lines.append("`num_steps`: int32, sampling steps, 1 or more.")
    elif options.num_steps is not None:
        lines.append(f"The number of sampling steps is fixed: {options.num_steps}.")
    if options.params == "beside":
        lines.append("`params`: a dict with the arrays of model.safetensors by name.")
    lines.append("Batches may have any size." if options.batch_size is None else f"Batches have {batch} images.")
    return lines


HEAD = """\
---
license: $license
library_name: diffusion_distillation
tags:
- diffusion
- progressive-distillation
- image-generation
- jax
---

# Diffusion model of $dataset

This is $kind, exported by diffusion_distillation, a JAX implementation of progressive distillation
([Salimans & Ho, ICLR 2022](https://arxiv.org/abs/2202.00512)).

| | |
|---|---|
| data | $dataset |
| images | $shape |
| classes | $classes |
| sampling steps | $steps |
| sampler | $sampler |
| updates | $updates |
| dtype of stored parameters | $dtype |
| exported | $date, with JAX $jax and diffusion_distillation $package |

## Metrics

$metrics
"""

SECTIONS = {
    "sampler": """\
## Sample with JAX only

`sampler.jax` is the whole sampler as one program, for $platforms. It needs only jax and flatbuffers (a small package
that jax.export reads files with). Generate 64 images with seed 0:

```
pip install jax flatbuffers
python run.py 64 0 images.npy
```

In your own code, call `jax.export.deserialize(bytearray(content)).call(...)` with these inputs, by name:

$inputs

It returns $output.

JAX promises to read the file for six months, until $until. Later releases may still read it. If not, export the
checkpoint again.
""",
    "archive": """\
## Sample with diffusion_distillation

`model.safetensors` holds the parameters, `config.json` everything else:

```python
import jax
from diffusion_distillation import from_checkpoint

images = from_checkpoint("this/folder").sample(jax.random.key(0), 64)
```
""",
}
