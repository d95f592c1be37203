"""The report's figures, drawn with matplotlib."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib.figure import Figure

from ..files import save_whole

Images = UInt8[np.ndarray, "n height width channels"]
TEACHER, STUDENT, MUTED = "#4c5c73", "#d1495b", "#8a8f98"


def save_columns(columns: Sequence[tuple[str, str, Images]], path: epath.Path, rows: int = 10) -> None:
    """A column of images for each `(heading, colour, images)`; row j shows the j-th image of every column."""
    figure = Figure(figsize=(0.66 * len(columns), 0.6 * rows + 0.5), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (heading, colour, images) in zip(axes, columns, strict=True):
        gap = max(1, images.shape[1] // 8)
        column = np.concatenate(np.pad(images[:rows], ((0, 0), (0, gap), (0, 0), (0, 0)), constant_values=255))[:-gap]
        axis.imshow(column, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(heading, fontsize=7, color=colour)
        axis.axis("off")
    save_whole(path, functools.partial(figure.savefig, format="png"))


def save_distances(teacher: Mapping[int, float], students: Mapping[int, float], floor: float, path: epath.Path) -> None:
    """Frechet distance against sampling steps, log-log: the teacher, its students, and the data's halves as a level."""
    figure = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    for label, colour, marker, line in (("teacher", TEACHER, "o", teacher), ("students", STUDENT, "s", students)):
        axis.plot(*zip(*sorted(line.items()), strict=True), marker=marker, color=colour, label=label)
    axis.axhline(floor, color=MUTED, linestyle="--", linewidth=1, label="data, one half to the other")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("sampling steps")
    axis.set_ylabel("Fréchet distance")
    axis.grid(which="major", color="#e5e7ea")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    save_whole(path, functools.partial(figure.savefig, format="png"))
