"""Checkpoints, in orbax: the train state, and JSON metadata that make it usable without the command that wrote it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from ..config import resolve
from ..errors import InputError
from ..model import init_params, make_network
from ..shapes import Params
from .step import TrainState, averaging_decay

FORMAT_VERSION = 1
KEEP_LAST = 2


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is needed besides the parameters to sample from them or to teach with them.

    Attributes:
      config: the resolved config of the run.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.
      num_steps: the student's number of sampling steps; 0 for a base model, which takes any.
      step: updates done.
    """

    config: ConfigDict
    image_shape: tuple[int, int, int]
    num_classes: int
    num_steps: int
    step: int = 0

    def to_json(self) -> dict[str, Any]:
        """As it is stored; the step is the name of the checkpoint's folder."""
        return {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "num_steps": self.num_steps,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], step: int) -> "Metadata":
        """The inverse of `to_json`; raises an InputError for a format of a later version."""
        if values["format_version"] > FORMAT_VERSION:
            raise InputError(
                f"The checkpoint has format {values['format_version']}; this version of diffusion_distillation reads "
                f"up to {FORMAT_VERSION}. Upgrade the package."
            )
        return cls(
            config=resolve(ConfigDict(values["config"])),
            image_shape=tuple(values["image_shape"]),
            num_classes=values["num_classes"],
            num_steps=values["num_steps"],
            step=step,
        )


class Checkpoints:
    """The checkpoints of one run, `<folder>/checkpoints/<step>`; saving goes on in the background.

    The last two are kept, and those at multiples of `keep_every` for good (0 for none).
    """

    def __init__(self, folder: Path, keep_every: int = 0):
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP_LAST, keep_period=keep_every or None)
        self._manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def latest_step(self) -> int | None:
        """The updates done by the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, metadata: Metadata) -> None:
        """Saves a state, unless its step is saved already."""
        step = int(state.step)
        if step != self.latest_step():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state._asdict()), metadata=ocp.args.JsonSave(metadata.to_json())
                ),
            )

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the types and placement of `like`, which may be abstract."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like._asdict()))
        return TrainState(**self._manager.restore(self.latest_step(), args=args)["state"])

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        """Waits for what is being written."""
        self._manager.close()


def load(path: str | Path) -> tuple[Params, Metadata]:
    """The newest sampling parameters of a run, as NumPy arrays, and their metadata.

    Args:
      path: the folder of a run, such as `runs/digits/base` or `runs/digits/ladder/steps_0004`.

    Raises:
      InputError: if there is no such folder, or no checkpoint of ours in it.
    """
    path = Path(path)
    folder = path / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"No checkpoint in {str(path)!r}: {_what_is_there(path)}")
    with ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(create=False)) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"No finished checkpoint in {str(folder)!r} yet; let the run go on until it saves one.")
        if not (folder / str(step) / "metadata").is_dir():
            raise InputError(
                f"{str(folder / str(step))!r} was not saved by diffusion_distillation: it has no metadata."
            )
        values = manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
        metadata = Metadata.from_json(values, step)
        name = "ema_params" if averaging_decay(metadata.config.train) else "params"
        wanted = {name: abstract_params(metadata)}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        restore = ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True)
        return manager.restore(step, args=ocp.args.Composite(state=restore))["state"][name], metadata


def abstract_params(metadata: Metadata) -> Params:
    """Shapes and types of the parameters that go with the metadata."""
    network = make_network(metadata.config.model, metadata.image_shape, metadata.num_classes)
    return jax.eval_shape(lambda: init_params(network, jax.random.key(0), metadata.image_shape))


def _what_is_there(path: Path) -> str:
    if not path.exists():
        return (
            "there is no such folder. Give the folder of a run, the --workdir of train.py or one of a ladder's steps_*."
        )
    if not path.is_dir():
        return "it is a file. Give the folder of a run."
    students = sorted(child.name for child in path.glob("steps_*") if child.is_dir())
    if students:
        return f"it holds the students of a ladder. Choose one of {', '.join(students)} in it."
    found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    return f"a run's folder has 'checkpoints' in it, this one has {found}."
