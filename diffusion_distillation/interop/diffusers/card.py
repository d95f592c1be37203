"""The README.md of a model in diffusers' format: what it is, and how to sample from it."""

from ...checkpoints import Metadata
from .dit import NO_CLASS

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# {size} images in {steps}

{what}

{call}
**Pass num_inference_steps={num_steps}.** The network looks up the time of each step in a table by the step's index. The
table has {num_steps} times, so other numbers of steps would get wrong times.
"""
SAMPLE = """```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("this/folder")
images = pipeline(batch_size=16, num_inference_steps={num_steps}{clip}).images
```
"""
SAMPLE_CLASSES = """The model has {num_classes} classes, which `DDIMPipeline` does not pass on. Sample in your own loop:

```python
import torch
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("this/folder")
pipeline.scheduler.set_timesteps({num_steps})
z = torch.randn(16, {channels}, {height}, {width})
labels = torch.arange(16) % {num_classes}
for t in pipeline.scheduler.timesteps:
    output = pipeline.unet(z, t, labels).sample
    z = pipeline.scheduler.step(output, t, z{clip}).prev_sample
```
"""


DIT_CARD = """---
library_name: diffusers
---

# {size} images in {steps}

{what}

```python
from diffusers import DiTPipeline

pipeline = DiTPipeline.from_pretrained("this/folder")
images = pipeline(class_labels=[0, 1], num_inference_steps={num_steps}, guidance_scale={scale}).images
```

{advice}
"""
DISTILLED = """\
**Pass num_inference_steps={num_steps} and guidance_scale={scale}.** The model was distilled for this number of steps.
If its teacher was guided, its images are guided already."""
UNGUIDED = """

**No other guidance_scale than 1 works.** `DiTPipeline` takes class {no_class} for "no class", and the model has other
classes."""


def dit_text(metadata: Metadata, num_steps: int) -> str:
    """The text of README.md for a diffusion transformer that samples in num_steps steps."""
    height, width, channels = metadata.image_shape
    values = dict(num_steps=num_steps, scale=1.0 + metadata.config.model.eval_guidance)
    advice = DISTILLED.format(**values) if metadata.num_steps else "Any number of steps works."
    if metadata.num_classes != NO_CLASS:
        advice += UNGUIDED.format(no_class=NO_CLASS)
    size = f"{height}x{width}x{channels}"
    return DIT_CARD.format(size=size, steps=_steps(num_steps), what=_what(metadata), advice=advice, **values)


def text(metadata: Metadata, num_steps: int) -> str:
    """The text of README.md for a model that samples in num_steps steps."""
    height, width, channels = metadata.image_shape
    call = SAMPLE if metadata.num_classes == 1 else SAMPLE_CLASSES
    return CARD.format(
        size=f"{height}x{width}x{channels}",
        steps=_steps(num_steps),
        what=_what(metadata),
        call=call.format(
            height=height,
            width=width,
            channels=channels,
            num_classes=metadata.num_classes,
            num_steps=num_steps,
            clip=", use_clipped_model_output=True" if metadata.config.model.eval_clip_denoised else "",
        ),
        num_steps=num_steps,
    )


def _what(metadata: Metadata) -> str:
    student = f"a student distilled for {_steps(metadata.num_steps)}" if metadata.num_steps else "a base model"
    return f"This is {student}, trained on {metadata.config.dataset.name} by diffusion_distillation."


def _steps(number: int) -> str:
    return "1 sampling step" if number == 1 else f"{number} sampling steps"
