"""The content of an evaluation.json: one row for each model and sampler, with its values and first samples."""

import io
import json
import logging
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ..runtime.files import parse_json, save_atomic
from ..sampling import SAMPLER_ALIASES, SAMPLERS
from .extractor import Uint8Images
from .metrics import Criterion, MetricValue, MetricValues, named_values


class Entry(NamedTuple):
    """A set of samples, which a row of an evaluation measures.

    Attributes:
      model: 'teacher', 'student', or 'samples' for images that exist already.
      sampler: a key of `sampling.SAMPLERS`; '' for images that exist already.
      num_steps: sampling steps; 0 for images that exist already.

    >>> Entry("student", "ddim", 4).title, Entry("student", "ddim", 4).name
    ('student, DDIM, 4 steps', 'student_ddim_4')
    """

    model: str
    sampler: str = ""
    num_steps: int = 0

    @property
    def title(self) -> str:
        """The printed name."""
        if not self.sampler:
            return self.model
        return f"{self.model}, {SAMPLERS[self.sampler].title}, {self.steps}"

    @property
    def steps(self) -> str:
        """The number of sampling steps in words."""
        return "1 step" if self.num_steps == 1 else f"{self.num_steps} steps"

    @property
    def nfe(self) -> int:
        """The number of network evaluations (NFE) per sample. Guidance, which doubles it, is not counted.

        >>> Entry("teacher", "heun", 4).nfe
        8
        """
        return self.num_steps * SAMPLERS[self.sampler].evaluations if self.sampler else 0

    @property
    def name(self) -> str:
        """The name in files and in `Evaluation.metrics`."""
        return "_".join(str(part) for part in self if part)


class Row(NamedTuple):
    """A measured set of samples.

    Attributes:
      entry: the samples.
      values: one per criterion; with several sets of samples, the best set's.
      images_per_sec: generated per second, on all devices; None for images that exist already.
      version: of the model, see `interop.model_version`; None for images that exist already.
    """

    entry: Entry
    values: MetricValues
    images_per_sec: float | None
    version: str | None = None

    @property
    def summary(self) -> str:
        """All values and the speed, in one line."""
        parts = [f"{criterion.title} {value}" for criterion, value in self.values.items()]
        if self.images_per_sec is not None:
            parts.append(f"{self.images_per_sec:,.1f} images/s")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON."""
        values = [criterion._asdict() | value._asdict() for criterion, value in self.values.items()]
        return {
            **self.entry._asdict(),
            "values": values,
            "images_per_sec": self.images_per_sec,
            "content": self.version,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Row":
        """Restore a row from JSON. Published names of samplers are accepted."""
        entry = _from_fields(Entry, stored)
        sampler = SAMPLER_ALIASES.get(entry.sampler, entry.sampler)
        values = {_from_fields(Criterion, part): _from_fields(MetricValue, part) for part in stored["values"]}
        return cls(entry._replace(sampler=sampler), values, stored["images_per_sec"], stored["content"])


def _from_fields(kind: type[Any], stored: dict[str, Any]) -> Any:
    """Build a named tuple of this kind from stored fields, which may include other fields."""
    return kind(*(stored[field] for field in kind._fields))


class Evaluation(NamedTuple):
    """The content of an evaluation.json.

    Attributes:
      settings: what was measured and how. Rows measured with other settings are measured again.
      baselines: in a report, the Fréchet distances between two halves of the reference, by `Criterion.name`: what
        samples as good as the data would reach.
      rows: in order.
    """

    settings: dict[str, Any]
    baselines: dict[str, float]
    rows: list[Row]

    @property
    def criteria(self) -> list[Criterion]:
        """The criteria of the rows."""
        return list(self.rows[0].values)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers by name. If there are several rows, each name starts with the row's."""
        if len(self.rows) == 1:
            return named_values(self.rows[0].values)
        return {
            f"{row.entry.name}_{name}": value for row in self.rows for name, value in named_values(row.values).items()
        }

    def to_json(self) -> str:
        """Return the text of an evaluation.json."""
        content = {
            "metrics": self.metrics,
            "about": self.settings,
            "floors": self.baselines,
            "rows": [row.to_json() for row in self.rows],
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """Parse the text of an evaluation.json; raises a ValueError, TypeError or KeyError for any other text."""
        content = parse_json(text)
        return cls(content["about"], content["floors"], [Row.from_json(row) for row in content["rows"]])


def read_evaluation(path: epath.Path) -> Evaluation | None:
    """Read an evaluation.json. Returns None if there is none, or, with a warning, if it cannot be read."""
    if not path.exists():
        return None
    try:
        return Evaluation.from_json(path.read_text())
    except (ValueError, TypeError, KeyError):
        logging.warning("%s is damaged or from an earlier version; its rows are measured again.", path)
        return None


def save_samples(folder: epath.Path, entry: Entry, images: Uint8Images) -> None:
    """Save the first samples of a row."""
    save_atomic(samples_path(folder, entry), lambda file: np.savez_compressed(file, images))


def load_samples(folder: epath.Path, entry: Entry) -> Uint8Images:
    """Load what `save_samples` saved."""
    return np.load(io.BytesIO(samples_path(folder, entry).read_bytes()))["arr_0"]


def samples_path(folder: epath.Path, entry: Entry) -> epath.Path:
    """Return the file of a row's first samples, which may be named after the sampler's published name."""
    path = folder / f"{entry.name}.npz"
    for alias, name in SAMPLER_ALIASES.items():
        published = folder / f"{entry._replace(sampler=alias).name}.npz"
        if entry.sampler == name and not path.exists() and published.exists():
            return published
    return path
