"""Save a picture of the same noise through a teacher and its students, such as README's first picture.

python docs/same_noise.py --base=runs/mnist/base --ladder=runs/mnist/ladder --guidance=0.5 --out=docs/mnist.png
"""

import logging

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from diffusion_distillation import from_checkpoint
from diffusion_distillation.report.plots import COLORS

BASE = flags.DEFINE_string("base", None, "The teacher's run.", required=True)
LADDER = flags.DEFINE_string("ladder", None, "The folder of the ladder.", required=True)
TEACHER_STEPS = flags.DEFINE_integer("teacher_steps", 256, "Sampling steps of the teacher.")
STEPS = flags.DEFINE_list("steps", ["8", "4", "2", "1"], "Sampling steps of the students to show.")
UNDISTILLED = flags.DEFINE_list("undistilled", ["4", "2", "1"], "Fewer steps for the undistilled teacher.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance weight of all models that take one.")
COLUMNS = flags.DEFINE_integer("columns", 20, "Images per row.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")
OUT = flags.DEFINE_string("out", None, "The PNG file.", required=True)


def main(_: list[str]) -> None:
    logging.disable(logging.WARNING)
    teacher = from_checkpoint(BASE.value)
    rows = [("teacher", TEACHER_STEPS.value, teacher)]
    rows += [("student", int(n), from_checkpoint(f"{LADDER.value}/steps_{int(n):04d}")) for n in STEPS.value]
    rows += [("undistilled", int(n), teacher) for n in UNDISTILLED.value]
    key = jax.random.key(SEED.value)
    size = teacher.image_shape[0]
    figure = Figure(figsize=(0.5 * COLUMNS.value + 1.4, 0.55 * len(rows)), dpi=120, layout="constrained")
    for axis, (model, n, pipeline) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        images = pipeline.sample(key, COLUMNS.value, num_steps=n, guidance=GUIDANCE.value)
        gap = max(1, size // 12)
        row = np.concatenate(np.pad(images, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255), axis=1)
        axis.imshow(row[:, :-gap], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        color = COLORS["student" if model == "student" else "teacher"][0]
        label = f"{model}, {n} step{'s' if n > 1 else ''}"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", color=color, fontsize=10)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.savefig(OUT.value, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    app.run(main)
