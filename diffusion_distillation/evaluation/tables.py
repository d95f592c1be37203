"""An evaluation as a table, with the published figures beside ours where the config is one of the paper's."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from ..sampling import SAMPLER_TITLES
from .evaluation import Evaluation, Row

# FID of 50,000 samples by the number of steps of a student; by the dataset, and by the channels and image size that the
# paper's model has. CIFAR-10: Salimans & Ho 2022, table 2; ImageNet 64x64: as given by Song et al. 2023, table 2.
PUBLISHED = {
    ("CIFAR10", 256, None): {8: 2.57, 4: 3.00, 2: 4.51, 1: 9.12},
    ("ImageNet", 192, 64): {2: 8.95, 1: 15.39},
}

TITLES = {
    "fid": "FID", "kid": "KID", "is": "IS", "is_5000": "IS, 5,000", "precision": "precision", "recall": "recall",
    "density": "density", "coverage": "coverage", "swd": "sliced Wasserstein", "accuracy": "accuracy",
}  # fmt: skip


def title_of(found: Evaluation, name: str) -> str:
    """A metric's name as the head of a column. Only a Frechet distance of Inception's features is called FID."""
    metric, features = _parts(name)
    title = "Fréchet distance" if metric == "fid" and not _is_inception(found, features) else TITLES[metric]
    return f"{title}, {features}" if features else title


def _is_inception(found: Evaluation, features: str) -> bool:
    _, identity = found.about["features"][f"features_{features}" if features else "features"]
    return (identity or "").startswith("inception")


def is_distance(name: str) -> bool:
    """Whether a metric is one of those that go to 0, by any number of powers of ten."""
    return _parts(name)[0] in ("fid", "kid", "swd")


def _parts(name: str) -> tuple[str, str]:
    metric = max((known for known in TITLES if name == known or name.startswith(f"{known}_")), key=len)
    return metric, name[len(metric) + 1 :]


def published(config: ConfigDict | None) -> Mapping[int, float]:
    """The paper's FIDs by a student's number of steps, for one of its configs."""
    if config is None:
        return {}
    return PUBLISHED.get((config.dataset.name, config.model.args.get("ch"), config.dataset.args.get("image_size")), {})


def values_of(row: Row, name: str) -> str:
    """A value as it stands in a table, with its spread if there is one."""
    value = f"{row.metrics[name]:.4g}"
    if f"{name}_std" in row.metrics:
        value += f" ± {row.metrics[f'{name}_std']:.2g}"
    if name in row.spread:
        value += f" (+{row.spread[name]:.2g})"
    return value


def columns(found: Evaluation) -> list[str]:
    """The metrics that have a column of their own."""
    names = found.rows[0].metrics
    return [name for name in names if not (name.endswith("_std") and name.removesuffix("_std") in names)]


def table(found: Evaluation, published: Mapping[int, float]) -> list[list[str]]:
    """The head and the rows."""
    names = columns(found)
    published = published if any(_is_inception(found, _parts(name)[1]) for name in names) else {}
    lines = [
        [
            "model",
            "sampler",
            "steps",
            *(title_of(found, name) for name in names),
            "images/s",
            *(["published FID"] if published else []),
        ]
    ]
    for row in found.rows:
        line = [row.entry.model, SAMPLER_TITLES.get(row.entry.sampler, ""), str(row.entry.num_steps or "")]
        line += [values_of(row, name) for name in names] + [
            "" if row.images_per_sec is None else f"{row.images_per_sec:,.1f}"
        ]
        if published:
            value = published.get(row.entry.num_steps) if row.entry.model == "student" else None
            line.append("" if value is None else f"{value:.2f}")
        lines.append(line)
    return lines


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
