"""An evaluation as a table, with the published figures beside ours where the config is one of the paper's."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from ..sampling import SAMPLERS
from .metrics import INCEPTION, Criterion
from .results import Evaluation, Row

# FID of 50,000 samples by the number of steps of a student; by the dataset, and by the channels and image size that the
# paper's model has. CIFAR-10: Salimans & Ho 2022, table 2; ImageNet 64x64: as given by Song et al. 2023, table 2.
PUBLISHED = {
    ("CIFAR10", 256, None): {8: 2.57, 4: 3.00, 2: 4.51, 1: 9.12},
    ("ImageNet", 192, 64): {2: 8.95, 1: 15.39},
}
FID = Criterion("frechet", INCEPTION)


def published(config: ConfigDict | None) -> Mapping[int, float]:
    """The paper's FIDs by a student's number of steps, for one of its configs."""
    if config is None:
        return {}
    return PUBLISHED.get((config.dataset.name, config.model.args.get("ch"), config.dataset.args.get("image_size")), {})


def values_of(row: Row, criterion: Criterion) -> str:
    """Format a value for a table, with its deviation and its spread, if any."""
    number, deviation, spread = row.values[criterion]
    text = f"{number:.4g}"
    if deviation is not None:
        text += f" ± {deviation:.2g}"
    if spread is not None:
        text += f" (+{spread:.2g})"
    return text


def table(found: Evaluation, published: Mapping[int, float]) -> list[list[str]]:
    """The head and the rows. The speed comes after the first criterion, published FIDs come beside ours."""

    def of_student(row):
        value = published.get(row.entry.num_steps) if row.entry.model == "student" else None
        return "" if value is None else f"{value:.2f}"

    def of_criterion(criterion):
        own = [(criterion.title, lambda row: values_of(row, criterion))]
        return [*own, ("published FID", of_student)] if published and criterion == FID else own

    first, *others = found.criteria
    made: list[tuple[str, Callable[[Row], str]]] = [
        ("model", lambda row: row.entry.model),
        ("sampler", lambda row: SAMPLERS[row.entry.sampler].title if row.entry.sampler else ""),
        ("steps", lambda row: str(row.entry.num_steps or "")),
        *of_criterion(first),
        ("images/s", lambda row: "" if row.images_per_sec is None else f"{row.images_per_sec:,.1f}"),
        *itertools.chain.from_iterable(map(of_criterion, others)),
    ]
    return [[head for head, _ in made], *([cell(row) for _, cell in made] for row in found.rows)]


def markdown(found: Evaluation, published: Mapping[int, float]) -> str:
    """The table for a README."""
    return as_markdown(table(found, published))


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """A head and rows in Markdown."""
    head, *lines = rows
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])


def latex(found: Evaluation, published: Mapping[int, float]) -> str:
    """The table for a paper, of the package booktabs."""
    head, *lines = (" & ".join(map(_tex, line)) + r" \\" for line in table(found, published))
    columns = "ll" + "r" * (len(table(found, published)[0]) - 2)
    return "\n".join([
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""
    ])  # fmt: skip


def _tex(text: str) -> str:
    return text.replace("±", r"$\pm$").replace("_", r"\_").replace("%", r"\%")
