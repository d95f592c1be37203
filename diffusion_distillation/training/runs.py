"""A run's folder.

config.json is the config. inputs.json has fingerprints of what the config names by path: the data and the teacher.
config_history.jsonl records what --change changed in these two files, and when. environment.jsonl has one line per
start: versions, commit, command, devices, date. The other files and folders are metrics.jsonl, evaluations.jsonl,
checkpoints/, samples/ and best/.
"""

import contextlib
import datetime
import errno
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import BEST, newest_step
from ..config import resolve
from ..errors import InputError
from ..runtime import multihost
from ..runtime.environment import describe_environment
from ..runtime.files import as_path, file_lock, is_remote, parse_json, read_json, read_json_lines, write_atomic
from ..trust import check_foreign
from .averages import averaging_decay

# Fields that may change when a run resumes, as they do not shape the result.
OPERATIONAL = (
    "eval",
    "autoencoder",  # decodes samples alone; `training.checks` compares its fingerprint
    "model.args.remat",
    "train.parallel",
    "train.microbatch_size",
    "train.shard",
    "train.substeps",
    "train.log_loss_every_steps",
    "train.checkpoint_every_secs",
    "train.retain_checkpoint_every_steps",
    "train.eval_every_steps",
)

# Fields that can never change: the state would not fit, or would belong to another task. Whether an average is kept
# cannot change either.
FIXED = (
    "dataset.name",
    "dataset.args.image_size",
    "dataset.args.class_conditional",
    "dataset.args.label_key",
    "distillation.method",
    "distillation.only_finetune_temb",
    "distillation.rungs",
    "distillation.start_num_steps",
    "model.args",
    "model.mean_type",
    "model.name",
    "model.sigma_data",
    "model.sigma_min",
    "train.optimizer",
)
NOT_FIXED = ("model.args.dropout",)


class Input(NamedTuple):
    """Something that a config names by path and a run identifies by fingerprint.

    Attributes:
      title: for messages.
      paths: the fields that hold the path, which may change as long as the fingerprint stays.
    """

    title: str
    paths: tuple[str, ...]


INPUTS = {
    "data": Input("the training data", ("dataset.args.path", "dataset.args.data_dir", "dataset.args.fonts")),
    "teacher": Input("the teacher", ("distillation.teacher_checkpoint_path",)),
}
INPUTS_FILE = "inputs.json"
EVALUATIONS = "evaluations.jsonl"

Difference = tuple[str, Any, Any]  # a field, its old value and its new one

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # from Lustre mounted without locks, and some FUSE systems


def open_run(
    workdir: epath.PathLike, config: ConfigDict, change: bool = False, inputs: Mapping[str, str] | None = None
) -> None:
    """Create the folder of a run and write its config.json, or check that an existing run has this config.

    Only the main process works. Every process must call this function, and gets its errors.

    Args:
      workdir: the run's folder.
      config: resolved.
      change: continue a run that has another config or other inputs. config_history.jsonl records the differences.
      inputs: fingerprints of the `INPUTS` of the run. An input that was recorded before is compared by
        fingerprint; its path may differ.

    Raises:
      InputError: if the folder holds a run with another config or other inputs; with `change`, only if the run's state
        would not fit.
    """
    multihost.on_main(lambda: _open_run(as_path(workdir), config, change, inputs or {}))


def _open_run(workdir: epath.Path, config: ConfigDict, change: bool, inputs: Mapping[str, str]) -> None:
    if changes := changes_of_run(workdir, config, change, inputs):
        _keep_history(workdir, changes)
    recorded = read_inputs(workdir)
    write_atomic(workdir / "config.json", config.to_json(indent=2) + "\n")
    if inputs:
        write_atomic(workdir / INPUTS_FILE, json.dumps({**recorded, **inputs}, indent=2) + "\n")


def check_run(workdir: epath.PathLike, config: ConfigDict, change: bool = False) -> None:
    """Raise an InputError as `open_run` would, without comparing inputs and without writing anything.

    Every process must call this function.
    """
    multihost.on_main(lambda: len(changes_of_run(as_path(workdir), config, change, None)))


def changes_of_run(
    workdir: epath.Path, config: ConfigDict, change: bool, inputs: Mapping[str, str] | None
) -> list[Difference]:
    """Compare a config and inputs with the run in a folder; see `open_run`.

    Args:
      workdir: the folder.
      config: resolved.
      change: allow differences.
      inputs: fingerprints of inputs; None to compare neither inputs nor their paths.

    Returns:
      The differences; none if the folder holds no run.
    """
    if not (workdir / "config.json").exists():
        return []
    recorded = {} if inputs is None else read_inputs(workdir)
    known = [name for name in recorded if name in inputs and name in INPUTS]
    by_content = INPUTS if inputs is None else known
    ignored = (*OPERATIONAL, *(field for name in by_content for field in INPUTS[name].paths))
    earlier = json.loads(read_config(workdir).to_json())
    now = json.loads(config.to_json())
    changes = [(field, old, new) for field, old, new in differences(earlier, now) if not _among(ignored, field)]
    changes += [(name, recorded[name], inputs[name]) for name in known if inputs[name] != recorded[name]]
    if changes:
        _check_change(workdir, changes, earlier, now, change)
    return changes


def record_environment(workdir: epath.Path) -> None:
    """Add a line to environment.jsonl; see `environment.describe_environment`.

    Every process must call this function.
    """
    path = workdir / "environment.jsonl"

    def record() -> None:
        earlier = path.read_text() if path.exists() else ""
        write_atomic(path, earlier + json.dumps(describe_environment()) + "\n")

    multihost.on_main(record)


def read_inputs(workdir: epath.Path) -> dict[str, str]:
    """The fingerprints of a run's inputs; empty if the run is older than fingerprints, or if the file is damaged."""
    path = workdir / INPUTS_FILE
    try:
        return parse_json(path.read_text()) if path.exists() else {}
    except (ValueError, TypeError):
        logging.warning("%s is damaged. The data and the teacher cannot be compared with the run's earlier ones.", path)
        return {}


def read_config(workdir: epath.Path) -> ConfigDict:
    """Read the resolved config of an existing run. Fields that are newer than the run get their defaults.

    Raises:
      InputError: if the config is missing, is damaged, or cannot be run here.
    """
    path = workdir / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} is missing. Run the command that made the run again to restore it.") from None
    except InputError as error:
        raise InputError(
            f"{error} If your command has the config of this run, delete this file and run the command again. If not, "
            "pass another --workdir."
        ) from None
    check_foreign(config, path)
    try:
        return resolve(ConfigDict(config))
    except InputError as error:
        raise InputError(f"{str(path)!r} describes a run that cannot continue here: {error}") from None


def _check_change(
    workdir: epath.Path, changes: Sequence[Difference], earlier: dict[str, Any], now: dict[str, Any], change: bool
) -> None:
    """Raise an InputError unless --change allows these differences and the run's state still fits."""
    if not change:
        named = "; ".join(_described(*difference) for difference in changes)
        what = "other inputs" if all(field in INPUTS for field, *_ in changes) else "another config"
        elsewhere = f", where --config.train.init_from={workdir} continues from this run's state"
        elsewhere = "" if "distillation" in now else elsewhere
        raise InputError(
            f"{str(workdir)!r} holds a run with {what}: {named}. Pass another --workdir{elsewhere}. Or add --change to "
            "continue this run with the changes. Or delete the folder to start again."
        )
    fixed = [f"config.{field}" for field, *_ in changes if _among(FIXED, field) and field not in NOT_FIXED]
    if _averages(earlier) != _averages(now):
        fixed.append("whether an average is kept (config.train.ema_decay, config.train.avg_type)")
    if fixed:
        raise InputError(
            f"{str(workdir)!r} cannot be changed in {', '.join(fixed)}: its state would not fit. Pass another "
            "--workdir."
        )


def _described(field: str, old: Any, new: Any) -> str:
    if field in INPUTS:
        return f"{INPUTS[field].title} changed (fingerprint {old} there, {new} here)"
    return f"config.{field} is {old!r} there and {new!r} here"


def _averages(config: dict[str, Any]) -> bool:
    return averaging_decay(ConfigDict(config["train"])) is not None


def _keep_history(workdir: epath.Path, changes: Sequence[Difference]) -> None:
    """Add a line to config_history.jsonl: the time, the step of the newest checkpoint, and the changes."""
    path = workdir / "config_history.jsonl"
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": newest_step(workdir),
        "changes": [{"field": field, "old": old, "new": new} for field, old, new in changes],
    }
    write_atomic(path, (path.read_text() if path.exists() else "") + json.dumps(entry) + "\n")


@contextlib.contextmanager
def locked(workdir: epath.PathLike) -> Iterator[None]:
    """Lock a run's folder within the context, so that no other run works in it.

    The main process holds the lock. The operating system releases it when that process ends. Every process must call
    this function.

    Raises:
      InputError: in every process, if another run has the lock.
    """
    with contextlib.ExitStack() as stack:
        multihost.on_main(lambda: _lock(as_path(workdir), stack))
        yield


def _lock(workdir: epath.Path, stack: contextlib.ExitStack) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    if is_remote(workdir):
        logging.warning("%s: a bucket has no locks. Make sure that no other run works there.", workdir)
        return

    def refuse(holder: str) -> None:
        raise InputError(
            f"Another process works in {str(workdir)!r} ({holder}). Wait for it, stop it, or choose another folder."
        ) from None

    try:
        stack.enter_context(file_lock(workdir / ".lock", on_wait=refuse))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logging.warning("%s: its file system has no locks. Make sure that no other run works there.", workdir)


def forget_after(workdir: epath.Path, step: int) -> None:
    """Remove what a run wrote after this step. Call it when the run resumes from the step and repeats the later ones.

    It removes sample grids, lines of evaluations.jsonl and checkpoints in `best`. `MetricsLog` and TensorBoard's
    writer remove their own lines. Only the main process may call this function.
    """
    for grid in _children(workdir / "samples"):
        found = re.fullmatch(r"step_(\d+)\.png", grid.name)
        if found and int(found[1]) > step:
            grid.unlink()
    lines = read_evaluations(workdir)
    if any(line["step"] > step for line in lines):
        write_evaluations(workdir, [line for line in lines if line["step"] <= step])
    for checkpoint in _children(workdir / BEST / "checkpoints"):
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            checkpoint.rmtree()


def _children(folder: epath.Path) -> list[epath.Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def read_evaluations(workdir: epath.Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluations.jsonl; none if there is no such file."""
    return read_json_lines(workdir / EVALUATIONS)


def write_evaluations(workdir: epath.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Replace a run's evaluations.jsonl."""
    write_atomic(workdir / EVALUATIONS, "".join(json.dumps(line) + "\n" for line in lines))


class MetricsLog:
    """Write metrics.jsonl: one JSON object per line, with its `step`. For the main process only.

    Args:
      workdir: the run's folder.
      step: updates done. Lines of later steps, which a resumed run repeats, are removed.
    """

    def __init__(self, workdir: epath.PathLike, step: int):
        self.path = as_path(workdir) / "metrics.jsonl"
        self._kept = "".join(line for line in self._lines() if _step_of(line) <= step)
        write_atomic(self.path, self._kept)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        line = json.dumps({"step": step, **values}) + "\n"
        if is_remote(self.path):
            self._kept += line
            write_atomic(self.path, self._kept)
        else:
            with open(self.path, "a") as file:
                file.write(line)

    def _lines(self) -> list[str]:
        text = self.path.read_bytes().decode(errors="replace") if self.path.exists() else ""
        return text.splitlines(keepends=True)


def read_metrics(workdir: epath.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none if there is no such file."""
    return read_json_lines(workdir / "metrics.jsonl")


def _step_of(line: str) -> int | float:
    """The step of a line of metrics.jsonl; infinite for a line that a killed run did not finish."""
    try:
        return parse_json(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _among(names: Sequence[str], field: str) -> bool:
    """Whether a field is one of these, or in one of these sections."""
    return any(field == name or field.startswith(name + ".") for name in names)


def differences(old: Any, new: Any, field: str = "") -> Iterator[Difference]:
    """Yield the fields in which two configs of JSON's types differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from differences(old.get(name), new.get(name), f"{field}.{name}" if field else name)
    elif old != new:
        yield field, old, new
