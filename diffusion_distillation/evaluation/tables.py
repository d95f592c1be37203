"""An evaluation as a table, with the published FIDs beside ours if the config is one of the paper's."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from ..sampling import SAMPLERS
from .metrics import INCEPTION, Criterion
from .results import Evaluation, Row

# FIDs of 50,000 samples by a student's sampling steps, for each dataset, channels and image size of the paper's models.
# CIFAR-10: Salimans & Ho 2022, table 2. ImageNet 64x64: as quoted by Song et al. 2023, table 2.
PUBLISHED_FIDS = {
    ("CIFAR10", 256, None): {8: 2.57, 4: 3.00, 2: 4.51, 1: 9.12},
    ("ImageNet", 192, 64): {2: 8.95, 1: 15.39},
}
FID = Criterion("frechet", INCEPTION)


def published_fids(config: ConfigDict | None) -> Mapping[int, float]:
    """Return the paper's FIDs by a student's sampling steps; empty if the config is not one of the paper's."""
    if config is None:
        return {}
    key = config.dataset.name, config.model.args.get("ch"), config.dataset.args.get("image_size")
    return PUBLISHED_FIDS.get(key, {})


def table_rows(evaluation: Evaluation, published: Mapping[int, float]) -> list[list[str]]:
    """Lay out an evaluation as a table.

    Args:
      evaluation: one row per model and sampler, one column per criterion. The speed is after the first criterion. The
        number of network evaluations (NFE) follows the steps if a sampler takes more than one per step.
      published: from `published_fids`; shown beside our FIDs.

    Returns:
      The header and the rows.
    """
    first, *others = evaluation.criteria
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("model", lambda row: row.entry.model),
        ("sampler", lambda row: SAMPLERS[row.entry.sampler].title if row.entry.sampler else ""),
        ("steps", lambda row: str(row.entry.num_steps or "")),
        *_nfe_column(evaluation),
        *_criterion_columns(first, published),
        ("images/s", lambda row: "" if row.images_per_sec is None else f"{row.images_per_sec:,.1f}"),
        *itertools.chain.from_iterable(_criterion_columns(criterion, published) for criterion in others),
    ]
    header = [heading for heading, _ in columns]
    return [header, *([cell(row) for _, cell in columns] for row in evaluation.rows)]


def _nfe_column(evaluation: Evaluation) -> list[tuple[str, Callable[[Row], str]]]:
    """Return the heading and cells of the network evaluations; nothing if they are the steps."""
    if all(row.entry.nfe == row.entry.num_steps for row in evaluation.rows):
        return []
    return [("NFE", lambda row: str(row.entry.nfe or ""))]


def _criterion_columns(criterion: Criterion, published: Mapping[int, float]) -> list[tuple[str, Callable[[Row], str]]]:
    """Return the heading and cells of a criterion and, for FIDs, of the published ones."""

    def published_cell(row):
        fid = published.get(row.entry.num_steps) if row.entry.model == "student" else None
        return "" if fid is None else f"{fid:.2f}"

    columns = [(criterion.title, lambda row: str(row.values[criterion]))]
    return [*columns, ("published FID", published_cell)] if published and criterion == FID else columns


def markdown(evaluation: Evaluation, published: Mapping[int, float]) -> str:
    """Return the table of an evaluation in Markdown; see `table_rows`."""
    return markdown_table(table_rows(evaluation, published))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown.

    Args:
      rows: the header and the rows.

    >>> print(markdown_table([["steps", "FID"], ["4", "3.00"]]), end="")
    | steps | FID |
    | --- | --- |
    | 4 | 3.00 |
    """
    header, *lines = rows
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *lines])


def latex(evaluation: Evaluation, published: Mapping[int, float]) -> str:
    """Return the table of an evaluation in LaTeX, for the package booktabs; see `table_rows`."""
    rows = table_rows(evaluation, published)
    header, *lines = (" & ".join(map(_escape_latex, row)) + r" \\" for row in rows)
    columns = "ll" + "r" * (len(rows[0]) - 2)
    begin = rf"\begin{{tabular}}{{{columns}}}"
    end = r"\end{tabular}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *lines, r"\bottomrule", end, ""])


def _escape_latex(text: str) -> str:
    return text.replace("±", r"$\pm$").replace("_", r"\_").replace("%", r"\%")
