"""The report's figures, made with matplotlib: image columns, metric curves and training losses."""

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

Points = Sequence[tuple[int | float, int | float]]

# Of a heading or a curve, by its model: the first ladder has the first color, and so on.
COLORS = {
    "teacher": ("#4c5c73", "#7a9cc6", "#2f6f73", "#d1495b", "#e9a23b", "#8a4fbe", "#9c6644"),
    "student": ("#d1495b", "#e9a23b", "#8a4fbe", "#2f9e6e", "#3a86d1", "#1b1f24", "#9c6644", "#c26bb0"),
}
DARK = "#1b1f24"
MUTED = "#8a8f98"
LIGHT = "#e5e7ea"

STEPS_LABEL = "sampling steps"
NFE_LABEL = "network evaluations per sample"
COUNTS = (STEPS_LABEL, NFE_LABEL)  # axes with powers of two


class Curve(NamedTuple):
    """A curve of a plot.

    Attributes:
      label: the curve's name in the legend.
      model: 'teacher' or 'student'. Selects the palette and the marker.
      color: index into the palette, which repeats.
      points: (x, y), sorted by x.
      dotted: draw a dotted line, as for a second sampler of the same model.
      ranges: for each point that is a mean, the smallest and largest y; empty for no error bars.
    """

    label: str
    model: str
    color: int
    points: Points
    dotted: bool = False
    ranges: Points = ()


class Panel(NamedTuple):
    """A plot of one metric.

    Attributes:
      title: label of the y axis.
      curves: one for each model and sampler.
      log_scale: use a logarithmic y axis if all values are positive.
      baseline: a value to compare the curves with, drawn as a dashed horizontal line; None for no line.
    """

    title: str
    curves: Sequence[Curve]
    log_scale: bool
    baseline: float | None = None


class Column(NamedTuple):
    """A column of images.

    Attributes:
      heading: one or more lines above the column.
      images: from top to bottom.
      model: 'teacher' or 'student', which selects the color of the heading; '' for neither.
    """

    heading: str
    images: UInt8[np.ndarray, "n height width channels"]
    model: str = ""


def metric_panel(criterion: Criterion, curves: Sequence[Curve], baseline: float | None = None) -> Panel:
    """The panel of a criterion: distances get a logarithmic axis, shares and scores a linear one."""
    return Panel(criterion.title, curves, METRICS[criterion.metric].log_scale, baseline)


def row_labels(num_images: int, class_labels: Sequence[str] = ()) -> list[str]:
    """Label up to ten rows of images: by class, or, without classes, by the number of their noise.

    Args:
      num_images: images per column.
      class_labels: a label for each class. Samples go through the classes in turn: 0, 1, 2, ..., 0, 1, ...

    >>> row_labels(3)
    ['noise 0', 'noise 1', 'noise 2']
    >>> row_labels(3, ["cat", "dog"])
    ['cat', 'dog', 'cat']
    """
    rows = range(min(num_images, 10))
    return [class_labels[row % len(class_labels)] if class_labels else f"noise {row}" for row in rows]


def save_columns(columns: Sequence[Column], labels: Sequence[str], path: epath.Path) -> None:
    """Save columns of images as a PNG file, each column below its heading and each row after its label.

    Args:
      columns: each has at least as many images as there are labels; further images are not shown.
      labels: one for each row.
      path: of the PNG file.
    """
    rows = len(labels)
    height = columns[0].images.shape[1]
    pitch = height + max(1, height // 8)  # an image and the gap below it
    longest = max(len(line) for label in labels for line in label.split("\n"))
    size = (0.66 * len(columns) + 0.06 * longest, 0.6 * rows + 0.5)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for axis, (heading, images, model) in zip(axes, columns, strict=True):
        padded = np.pad(images[:rows], ((0, 0), (0, pitch - height), (0, 0), (0, 0)), constant_values=255)
        axis.imshow(np.concatenate(padded)[: height - pitch], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(heading, fontsize=7, color=COLORS[model][0] if model else DARK)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    centers = [row * pitch + (height - 1) / 2 for row in range(rows)]
    axes[0].set_yticks(centers, labels, fontsize=7, color=DARK)
    axes[0].tick_params(length=0)
    _save(figure, path)


def save_curves(panels: Sequence[Panel], x_label: str, path: epath.Path) -> None:
    """Save one plot per panel as a PNG file, two plots per row. The x axis is logarithmic.

    Args:
      panels: the first one shows the legend.
      x_label: what the curves are plotted against. `COUNTS` get powers of two.
      path: of the PNG file.
    """
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    size = (6.4, 4.2) if len(panels) == 1 else (4.8 * columns, 3.4 * rows)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        for curve in panel.curves:
            _plot_curve(axis, curve)
        if panel.baseline is not None:
            axis.axhline(
                panel.baseline, color=MUTED, linestyle="--", linewidth=1, label="one half of the data to the other"
            )
        _scale(axis, panel, x_label)
        _style(axis, x_label, panel.title)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def save_losses(losses: Mapping[str, Points], path: epath.Path) -> None:
    """Save a plot of training losses, on a logarithmic axis.

    Args:
      losses: (update, loss) of each model, by its name in the legend.
      path: of the PNG file.
    """
    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained")
    axis = figure.subplots()
    shades = colormaps["plasma"](np.linspace(0, 0.9, len(losses)))
    for shade, (label, points) in zip(shades, losses.items(), strict=True):
        axis.plot(*zip(*points, strict=True), color=shade, label=label, marker=".", markersize=3)
    axis.set_yscale("log")
    _style(axis, "updates", "loss")
    axis.legend(frameon=False, fontsize=7, ncols=2)
    _save(figure, path)


class _PlainLogFormatter(LogFormatter):
    """The labels of `LogFormatter` without exponents: 0.6, not 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _plot_curve(axis: Axes, curve: Curve) -> None:
    palette = COLORS[curve.model]
    color = palette[curve.color % len(palette)]
    marker = "o" if curve.model == "teacher" else "s"
    linestyle = ":" if curve.dotted else "-"
    x, y = zip(*curve.points, strict=True)
    axis.plot(x, y, color=color, label=curve.label, marker=marker, markersize=4, linestyle=linestyle)
    if curve.ranges:
        axis.vlines(x, *zip(*curve.ranges, strict=True), color=color, alpha=0.5)


def _scale(axis: Axes, panel: Panel, x_label: str) -> None:
    axis.set_xscale("log", base=2 if x_label in COUNTS else 10)
    if x_label in COUNTS:
        axis.xaxis.set_major_formatter("{x:.0f}")
    if panel.log_scale and all(y > 0 for curve in panel.curves for _, y in curve.points):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1, 0.5)))  # labels within a power of ten


def _style(axis: Axes, x_label: str, y_label: str) -> None:
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(which="major", color=LIGHT)
    axis.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: epath.Path) -> None:
    save_atomic(path, functools.partial(figure.savefig, format="png"))
