"""Generate a first picture, with a model that comes with the package.

    diffusion_distillation demo

It samples every class in turn, in the model's few steps. Nothing is downloaded.
"""

import time

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.interop import from_checkpoint
from diffusion_distillation.keys import MAX_SEED, seed_key
from diffusion_distillation.pretrained import PRETRAINED
from diffusion_distillation.report.grids import save_grid
from diffusion_distillation.runtime.files import as_path

MODEL = flags.DEFINE_enum("model", "letters", list(PRETRAINED), "The pretrained model.")
OUT = flags.DEFINE_string("out", None, "The PNG file to save; by default named after the model, such as letters.png.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0, upper_bound=MAX_SEED)
GUIDANCE = flags.DEFINE_float("guidance", 2.0, "Guidance weight.")
PROCESSES = cli.ProcessFlags()

ROWS = 4


def main() -> None:
    start = time.monotonic()
    out = as_path(OUT.value or f"{MODEL.value}.png")
    if out.suffix != ".png":
        raise cli.InputError(f"--out={OUT.value} must end in .png.")
    PROCESSES.start(batch_size=1, training=False)
    pipeline = from_checkpoint(MODEL.value)
    columns = min(pipeline.num_classes, 13)
    images = pipeline.sample(seed_key(SEED.value), ROWS * columns, guidance=GUIDANCE.value)
    save_grid(images, out, columns)
    seconds = time.monotonic() - start
    following = cli.command("sample", checkpoint=MODEL.value, guidance=GUIDANCE.value, out="samples.png")
    steps = cli.counted(pipeline.num_steps, "step")
    cli.saved(f"{cli.counted(len(images), 'image')}, {steps} each, to {out} in {seconds:.1f} s", following)


if __name__ == "__main__":
    cli.run(main)
