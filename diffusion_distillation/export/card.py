"""The card of an exported model: README.md, with the header in YAML that the Hugging Face Hub reads."""

import calendar
import datetime
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..checkpoints import Metadata
from ..errors import InputError
from ..pipeline import can_be_guided
from ..sampling import SAMPLERS, sampler_name
from ..version import __version__

NAME = "README.md"
NAMED_CLASSES = 20  # the most class names in a card
MONTHS_READ = 6  # that JAX promises to read a file of jax.export for


def text(
    metadata: Metadata,
    parts: Sequence[str],
    options: Any,
    licence: str,
    metrics: Mapping[str, str],
    date: datetime.date,
) -> str:
    """The text of a card.

    Args:
      metadata: of the model.
      parts: what is in the folder: 'sampler', 'archive'.
      options: the `sampler_file.ExportOptions` of the sampler.
      licence: an identifier of the Hub.
      metrics: values by what was measured.
      date: of the export.
    """
    height, width, channels = metadata.image_shape
    config = metadata.config
    own = metadata.num_steps or config.model.eval_sampling_num_steps
    kind = f"a student distilled for {_steps(metadata.num_steps)}" if metadata.num_steps else "a base model"
    values = {
        "licence": licence,
        "dataset": config.dataset.name,
        "kind": kind,
        "shape": f"{height} x {width} pixels, {channels} {'channel' if channels == 1 else 'channels'}",
        "classes": _classes(metadata),
        "steps": f"{own}" if metadata.num_steps else f"{own} by default, any number works",
        "updates": f"{metadata.step:,}",
        "sampler": SAMPLERS[sampler_name(options.sampler or config.sampler)].title,
        "stored": options.dtype,
        "metrics": _metrics(metrics),
        "jax": jax.__version__,
        "package": __version__,
        "date": date.isoformat(),
        "until": months_after(date, MONTHS_READ).isoformat(),
    }
    sections = [HEAD, *(SECTIONS[part] for part in parts)]
    values |= {"inputs": "\n".join(f"- {line}" for line in _inputs(metadata, options)), "output": _output(options)}
    values["platforms"] = ", ".join(options.platforms)
    return "\n".join(string.Template(section).substitute(values) for section in sections)


def check_licence(licence: str) -> None:
    """Raises an InputError for what cannot be an identifier of a licence on the Hub."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise InputError(
            f"license={licence!r} must be one of the Hugging Face Hub's identifiers, such as apache-2.0, mit, "
            "cc-by-4.0, other or unknown: small letters, digits, dots and dashes."
        )


def months_after(date: datetime.date, months: int) -> datetime.date:
    """The same day some months later; the month's last where it has no such day."""
    years, month = divmod(date.month - 1 + months, 12)
    year, month = date.year + years, month + 1
    return datetime.date(year, month, min(date.day, calendar.monthrange(year, month)[1]))


def _steps(number: int) -> str:
    return "1 sampling step" if number == 1 else f"{number} sampling steps"


def _metrics(metrics: Mapping[str, str]) -> str:
    if not metrics:
        return "Nothing was measured for this card."
    return "\n".join(f"- {what}: {values}" for what, values in metrics.items())


def _inputs(metadata: Metadata, options: Any) -> list[str]:
    batch = "batch" if options.batch_size is None else options.batch_size
    shape = ", ".join(map(str, (batch, *metadata.image_shape)))
    lines = {
        "seed": [
            "`seed`: uint32, a number.",
            f"`index`: int32 [{batch}], which of the seed's samples: each depends on the two alone.",
        ],
        "noise": [f"`z`: float32 [{shape}], standard normal noise."],
    }[options.input]
    if metadata.num_classes > 1:
        lines = [*lines, f"`labels`: int32 [{batch}], classes from 0 to {metadata.num_classes - 1}."]
    if can_be_guided(metadata):
        lines = [*lines, f"`guidance`: float32 [{batch}], the weight w of guidance, 0 for the label alone."]
    if options.num_steps == "free":
        lines = [*lines, "`num_steps`: int32, a number from 1 on."]
    elif options.num_steps is not None:
        lines = [*lines, f"The number of sampling steps is fixed: {options.num_steps}."]
    if options.params == "beside":
        lines = [*lines, "`params`: a dict, the arrays of model.safetensors by their names."]
    return [*lines, "The batch size is free." if options.batch_size is None else f"Batches are of {batch} images."]


def _output(options: Any) -> str:
    return "uint8 images, 0 to 255" if options.output == "uint8" else "float32 images, -1 to 1"


HEAD = """\
---
license: $licence
library_name: diffusion_distillation
tags:
- diffusion
- progressive-distillation
- image-generation
- jax
---

# Diffusion model of $dataset

This is $kind, exported by diffusion_distillation, an implementation in JAX of progressive
distillation ([Salimans & Ho, ICLR 2022](https://arxiv.org/abs/2202.00512)).

| | |
|---|---|
| data | $dataset |
| images | $shape |
| classes | $classes |
| sampling steps | $steps |
| sampler | $sampler |
| updates | $updates |
| parameters stored in | $stored |
| exported | $date, with JAX $jax and diffusion_distillation $package |

## Metrics

$metrics
"""

SECTIONS = {
    "sampler": """\
## The sampler

`sampler.jax` is the whole sampler as one program, for $platforms. It needs jax and flatbuffers (a small package of
pure Python that jax.export reads files with) and none of the code that made it:

```
pip install jax flatbuffers
python run.py 64 0 images.npy
```

draws 64 images with seed 0. In a program: `jax.export.deserialize(bytearray(content)).call(...)`, with the inputs, by
name,

$inputs

gives $output.

JAX promises to read the file for six months: until $until with the releases of that time. Later ones may, too; or
export it again from the checkpoint.
""",
    "archive": """\
## The archive

`model.safetensors` and `config.json` are the parameters and all that is needed besides them; with
diffusion_distillation,

```python
import jax
from diffusion_distillation import from_checkpoint

images = from_checkpoint("this/folder").sample(jax.random.key(0), 64)
```
""",
}


def _classes(metadata: Metadata) -> str:
    """Describe the classes: how many there are, their numbers, and the first names."""
    count, names = metadata.num_classes, metadata.class_names or ()
    if count == 1:
        return "none"
    named = ", ".join(f"{number} {name}" for number, name in enumerate(names[:NAMED_CLASSES]))
    return f"{count}, 0 to {count - 1}" + (f" ({named}{', ...' if count > NAMED_CLASSES else ''})" if named else "")
