"""The samples of several models and samplers, measured alike: the rows of an evaluation.json.

It is written after each row, and a row that it has is not measured again.
"""

import functools
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..interop import from_checkpoint, model_version
from ..runtime import multihost
from ..runtime.files import parse_json, save_atomic, write_atomic
from ..runtime.hashing import sha256
from ..sampling import SAMPLER_ALIASES, SAMPLERS
from .extractor import Images
from .measure import Evaluator, Measurement, SampleSet, measure
from .metrics import Criterion, MetricValue, MetricValues, named_values
from .reference import Reference, halves_distance


class Entry(NamedTuple):
    """Whose samples.

    Attributes:
      model: 'teacher', 'student', or 'samples' that were there already.
      sampler: a name of `sampling.SAMPLERS`; '' for samples that were there already.
      num_steps: sampling steps; 0 for samples that were there already.
    """

    model: str
    sampler: str = ""
    num_steps: int = 0

    @property
    def title(self) -> str:
        """As it is printed."""
        if not self.sampler:
            return self.model
        return f"{self.model}, {SAMPLERS[self.sampler].title}, {self.steps}"

    @property
    def steps(self) -> str:
        """The number of steps in words."""
        return "1 step" if self.num_steps == 1 else f"{self.num_steps} steps"

    @property
    def name(self) -> str:
        """As it is in file names and in `metrics`."""
        return "_".join(str(part) for part in self if part)


class Row(NamedTuple):
    """What was measured of an entry.

    Attributes:
      entry: whose samples.
      values: one per criterion; with repeats, the best.
      images_per_sec: drawn, on all devices; None for samples that were there already.
      content: of the run, see `interop.model_version`.
    """

    entry: Entry
    values: MetricValues
    images_per_sec: float | None
    content: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        values = [criterion._asdict() | value._asdict() for criterion, value in self.values.items()]
        own = {"values": values, "images_per_sec": self.images_per_sec, "content": self.content}
        return self.entry._asdict() | own

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Row":
        """The inverse of `to_json`."""
        values = {_part(Criterion, of_one): _part(MetricValue, of_one) for of_one in stored["values"]}
        entry = _part(Entry, stored)
        entry = entry._replace(sampler=SAMPLER_ALIASES.get(entry.sampler, entry.sampler))
        return cls(entry, values, stored["images_per_sec"], stored["content"])


def _part(kind: type[Any], stored: dict[str, Any]) -> Any:
    """Build a named tuple of this kind from stored fields, which may include other fields."""
    return kind(*(stored[field] for field in kind._fields))


class Evaluation(NamedTuple):
    """The content of an evaluation.json.

    Attributes:
      about: what was measured and how; a row of another `about` is measured again.
      floors: in a report, Frechet distances between two halves of the reference, to hold those of samples against.
      rows: in order.
    """

    about: dict[str, Any]
    floors: dict[str, float]
    rows: list[Row]

    @property
    def criteria(self) -> list[Criterion]:
        """The criteria of the rows."""
        return list(self.rows[0].values)

    @property
    def metrics(self) -> dict[str, float]:
        """Names and numbers; where there are several rows, names begin with the row's."""
        if len(self.rows) == 1:
            return named_values(self.rows[0].values)
        return {
            f"{row.entry.name}_{name}": value for row in self.rows for name, value in named_values(row.values).items()
        }

    def to_json(self) -> str:
        """As it is stored."""
        rows = [row.to_json() for row in self.rows]
        values = {"metrics": self.metrics, "about": self.about, "floors": self.floors, "rows": rows}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """The inverse of `to_json`; raises a ValueError, TypeError or KeyError for anything else."""
        values = parse_json(text)
        return cls(values["about"], values["floors"], [Row.from_json(row) for row in values["rows"]])


def read(path: epath.Path) -> Evaluation | None:
    """Read an evaluation.json. Returns None if there is none, or, with a warning, if it cannot be read."""
    if not path.exists():
        return None
    try:
        return Evaluation.from_json(path.read_text())
    except (ValueError, TypeError, KeyError):
        logging.warning("%s is damaged or from an earlier version; its rows are measured again.", path)
        return None


def evaluate(
    runs: Mapping[Entry, epath.Path | None],
    draw: Callable[[Entry, int], SampleSet],
    evaluators: Sequence[Evaluator],
    reference: Reference,
    path: epath.Path,
    *,
    about: Mapping[str, Any],
    num_samples: int,
    repeats: int = 1,
    shown: epath.Path | None = None,
    say: Callable[[str], Any] = multihost.print_on_main,
) -> Evaluation:
    """Measures what an evaluation.json does not have yet. All processes draw; the main one alone looks and writes.

    Args:
      runs: what is measured, and the run that it is of.
      draw: `draw(entry, first)` gives its images from number `first` on.
      evaluators: what they are measured by.
      reference: what they are judged against.
      path: of the evaluation.json; unfinished work is kept beside it.
      about: what shapes the numbers besides, of JSON's types.
      num_samples: of each.
      repeats: how many sets of samples of each; of a metric the best is taken, as EDM does.
      shown: a folder for the first samples of each row; a row whose samples are not there is measured again.
      say: is told each row.
    """
    about = {
        "features": {evaluator.features: evaluator.extractor.identity for evaluator in evaluators},
        "wanted": {evaluator.features: list(evaluator.metrics) for evaluator in evaluators},
        "reference": [reference.name, reference.content],
        "num_samples": num_samples,
        "repeats": repeats,
        **about,
    }

    unfinished = path.with_name(f"{path.name}.unfinished")
    content = {entry: None if run is None else model_version(run) for entry, run in runs.items()}

    def is_known(row: Row) -> bool:
        if row.entry not in runs or (shown is not None and not samples_path(shown, row.entry).exists()):
            return False
        return row.content == content[row.entry]

    def begin() -> str:
        for evaluator in evaluators:
            evaluator.reference()  # before anything is drawn: it may not have what is needed
        earlier = read(path)
        if any(evaluator.extractor.identity is None for evaluator in evaluators):  # it may be another one now
            earlier = None
            if unfinished.exists():
                unfinished.rmtree()
        if earlier is None or earlier.about != json.loads(json.dumps(about)):
            return Evaluation(about, {} if shown is None else _floors(evaluators, reference), []).to_json()
        return earlier._replace(rows=[row for row in earlier.rows if is_known(row)]).to_json()

    _, floors, known = Evaluation.from_json(multihost.on_main(begin))
    rows = {row.entry: row for row in known}
    for entry in runs:
        if entry not in rows:
            folder = unfinished / multihost.broadcast(_digest([entry, content[entry], about]))
            sets = [
                measure(draw(entry, repeat * num_samples), num_samples, evaluators, folder / str(repeat))
                for repeat in range(repeats)
            ]
            if multihost.is_main():
                rows[entry] = _row(entry, sets, content[entry])
                if shown is not None:
                    save_samples(shown, entry, sets[0].images)
                found = Evaluation(about, floors, [rows[entry] for entry in runs if entry in rows])
                write_atomic(path, found.to_json())
                unfinished.rmtree()
        if multihost.is_main():
            say(f"{entry.title}: {describe_row(rows[entry])}")
    multihost.barrier("what was drawn is measured")
    return Evaluation(about, floors, [rows[entry] for entry in runs if entry in rows])


def describe_row(row: Row) -> str:
    """A row's values in a line."""
    values = (
        f"{criterion.title} {of.value:.4g}" + ("" if of.spread is None else f" (spread {of.spread:.2g})")
        for criterion, of in row.values.items()
    )
    return ", ".join([*values, *([] if row.images_per_sec is None else [f"{row.images_per_sec:,.1f} images/s"])])


def pipeline_loader(config: ConfigDict) -> Callable[[epath.Path], Any]:
    """`from_checkpoint` with a config, which keeps the last pipeline: the rows of a teacher follow each other.

    It does not warn that a student, as the teacher of others is one, draws in fewer steps: that is what is measured.
    """

    @functools.lru_cache(maxsize=1)
    def open_pipeline(path: epath.Path) -> Any:
        pipeline = from_checkpoint(path, config=config)
        pipeline.distilled_for = 0  # any number of steps will do
        return pipeline

    return open_pipeline


def save_samples(folder: epath.Path, entry: Entry, images: Images) -> None:
    """Keeps the first samples of a row."""
    save_atomic(samples_path(folder, entry), lambda file: np.savez_compressed(file, images))


def load_samples(folder: epath.Path, entry: Entry) -> Images:
    """What `save_samples` has kept."""
    return np.load(io.BytesIO(samples_path(folder, entry).read_bytes()))["arr_0"]


def samples_path(folder: epath.Path, entry: Entry) -> epath.Path:
    """Where the first samples of a row are kept."""
    path = folder / f"{entry.name}.npz"
    for alias, name in SAMPLER_ALIASES.items():
        published = folder / f"{entry._replace(sampler=alias).name}.npz"
        if entry.sampler == name and not path.exists() and published.exists():
            return published
    return path


def _row(entry: Entry, sets: Sequence[Measurement], content: str | None) -> Row:
    values = {
        criterion: _best(criterion, [of_set.values[criterion] for of_set in sets]) for criterion in sets[0].values
    }
    speed = len(sets) / sum(1 / found.images_per_sec for found in sets) if entry.sampler else None
    return Row(entry, values, speed, content)


def _best(criterion: Criterion, of_sets: Sequence[MetricValue]) -> MetricValue:
    """The value of the best set, with the spread over all sets if there are several."""
    values = [of_set.value for of_set in of_sets]
    best = of_sets[values.index(criterion.best(values))]
    return best if len(of_sets) == 1 else best._replace(spread=max(values) - min(values))


def _floors(evaluators: Sequence[Evaluator], reference: Reference) -> dict[str, float]:
    return {
        Criterion("frechet", evaluator.features).name: halves_distance(reference.images, evaluator.extractor)
        for evaluator in evaluators
        if "frechet" in evaluator.metrics
    }


def _digest(values: Any) -> str:
    return sha256([json.dumps(values, sort_keys=True)], 16)
