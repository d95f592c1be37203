"""The report's figures, drawn with matplotlib."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ..evaluation.metrics import METRICS, Criterion
from ..runtime.files import save_atomic

Images = UInt8[np.ndarray, "n height width channels"]
Points = Sequence[tuple[int | float, int | float]]
COLOURS = {
    "teacher": ("#4c5c73", "#7a9cc6", "#2f6f73"),
    "student": ("#d1495b", "#e9a23b", "#8a4fbe", "#2f9e6e", "#3a86d1", "#1b1f24", "#9c6644", "#c26bb0"),
}
DARK, MUTED, LIGHT = "#1b1f24", "#8a8f98", "#e5e7ea"


class Line(NamedTuple):
    """A line of a plot.

    Attributes:
      label: in the legend.
      model: 'teacher' or 'student'.
      ladder: the number of the ladder on the page.
      dotted: for a second sampler of the same model.
      points: (x, y), by x.
      ends: of each point, the least and the largest y that it is the mean of.
    """

    label: str
    model: str
    ladder: int
    dotted: bool
    points: Points
    ends: Points = ()


class Panel(NamedTuple):
    """A plot of a metric.

    Attributes:
      title: the metric's.
      lines: of models and samplers.
      log: whether values are better seen on a log scale, if all are positive.
      level: to hold them against, such as the distance of the data's halves.
    """

    title: str
    lines: Sequence[Line]
    log: bool
    level: float | None = None


class Column(NamedTuple):
    """A column of images.

    Attributes:
      heading: one or more lines above the column.
      images: from top to bottom.
      model: 'teacher' or 'student', which gives the heading its color; '' for neither.
    """

    heading: str
    images: Images
    model: str = ""


def save_columns(columns: Sequence[Column], labels: Sequence[str], path: epath.Path) -> None:
    """Save columns of images under their headings, with one row per label and the label before its row."""
    rows, tall = len(labels), columns[0].images.shape[1]
    pitch = tall + max(1, tall // 8)  # an image and the gap below it
    lines = [line for label in labels for line in label.split("\n")]
    width = 0.66 * len(columns) + 0.06 * max(map(len, lines))
    figure = Figure(figsize=(width, 0.6 * rows + 0.5), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (heading, images, model) in zip(axes, columns, strict=True):
        padded = np.pad(images[:rows], ((0, 0), (0, pitch - tall), (0, 0), (0, 0)), constant_values=255)
        axis.imshow(np.concatenate(padded)[: tall - pitch], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(heading, fontsize=7, color=COLOURS[model][0] if model else DARK)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    centers = [row * pitch + (tall - 1) / 2 for row in range(rows)]
    axes[0].set_yticks(centers, labels, fontsize=7, color=DARK)
    axes[0].tick_params(length=0)
    save_atomic(path, functools.partial(figure.savefig, format="png"))


def row_labels(images: Images, classes: Sequence[str] = ()) -> list[str]:
    """Labels of a key's first ten samples: their classes, which take turns, or their noise's number."""
    rows = range(min(len(images), 10))
    return [classes[row % len(classes)] if classes else f"noise {row}" for row in rows]


def panel_of(criterion: Criterion, lines: Sequence[Line], level: float | None = None) -> Panel:
    """The plot of a criterion."""
    return Panel(criterion.title, lines, METRICS[criterion.metric].is_distance, level)


def save_curves(panels: Sequence[Panel], x_label: str, path: epath.Path) -> None:
    """A plot for each metric, against sampling steps, seconds or whatever it is, on a log scale."""
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    width, height = (6.4, 4.2) if len(panels) == 1 else (4.8 * columns, 3.4 * rows)
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, lines, log, level) in zip(axes, panels, strict=False):
        for line in lines:
            colour = COLOURS[line.model][line.ladder % len(COLOURS[line.model])]
            style = dict(marker="o" if line.model == "teacher" else "s", linestyle=":" if line.dotted else "-")
            axis.plot(*zip(*line.points, strict=True), color=colour, label=line.label, markersize=4, **style)
            if line.ends:
                axis.vlines([x for x, _ in line.points], *zip(*line.ends, strict=True), color=colour, alpha=0.5)
        if level is not None:
            axis.axhline(level, color=MUTED, linestyle="--", linewidth=1, label="data, one half to the other")
        axis.set_xscale("log", base=2 if x_label == "sampling steps" else 10)
        if x_label == "sampling steps":
            axis.xaxis.set_major_formatter("{x:.0f}")
        if log and all(y > 0 for line in lines for _, y in line.points):
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))  # within a power of ten
        _style(axis, x_label, title)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    axes[0].legend(frameon=False, fontsize=8)
    save_atomic(path, functools.partial(figure.savefig, format="png"))


def save_losses(losses: Mapping[str, Points], path: epath.Path) -> None:
    """The loss of every stage against its updates, on a log scale."""
    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    axis = figure.subplots()
    shades = colormaps["plasma"](np.linspace(0, 0.9, len(losses)))
    for colour, (stage, points) in zip(shades, losses.items(), strict=True):
        axis.plot(*zip(*points, strict=True), color=colour, label=stage, marker=".", markersize=3)
    axis.set_yscale("log")
    _style(axis, "updates", "loss")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    save_atomic(path, functools.partial(figure.savefig, format="png"))


def _style(axis: Axes, x_label: str, y_label: str) -> None:
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(which="major", color=LIGHT)
    axis.spines[["top", "right"]].set_visible(False)
