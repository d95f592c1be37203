"""Save and restore checkpoints with orbax: a run's train state and its metadata, one folder per step."""

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ..errors import InputError, RunError
from ..runtime import multihost
from ..runtime.devices import abstract, data_mesh, shares
from ..runtime.files import absolute, as_path, paths_below
from ..shapes import Params
from .integrity import Sound, Stored, fingerprints, first_line, newest_sound, seal
from .metadata import Metadata, abstract_params, read_values

State = Any  # a NamedTuple of trees of arrays, with `step` and `params`, and with `ema_params` if sampling uses them
KEEP_LAST = 2
BEST = "best"  # a folder in a run's folder, for the checkpoint that is best by the first metric
NOT_IN_PATHS = "*?[\\"  # orbax reads paths as glob patterns; tensorstore turns a backslash into a slash
SHARED_BYTES = 2**20  # hosts divide the writing of replicated arrays into slices of at least this size
MAX_DIFFERENCES = 5  # in an error message


class Checkpoints:
    """The checkpoints of one run, in `<folder>/checkpoints/<step>`. Saving continues in the background.

    The last two are kept. Checkpoints that an earlier process left unfinished are removed.

    A checkpoint holds fingerprints of its arrays and a hash of its metadata. `restore` compares them, and falls back to
    the checkpoint before one whose files are truncated, missing or changed.

    Args:
      folder: the folder of the run.
      keep_every: also keep the checkpoints at multiples of this number of updates, for good. 0, the default, keeps
        none of them.

    Raises:
      InputError: if orbax cannot save in the folder because of its name.
    """

    def __init__(self, folder: epath.PathLike, keep_every: int = 0):
        self._folder = absolute(as_path(folder)) / "checkpoints"
        check_path(self._folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP_LAST, keep_period=keep_every or None)
        if multihost.is_main():
            _remove_unfinished(self._folder)
        multihost.barrier("unfinished checkpoints are removed")
        handlers = {"state": _array_handler(), "metadata": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: State, metadata: Metadata) -> None:
        """Start to save a state, unless its step is saved already.

        Raises:
          RunError: if this checkpoint or an earlier one could not be written.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        arrays = _array_fields(state)
        values = seal(metadata.to_json() | {"fingerprints": fingerprints(arrays)})
        with self._writing(step):
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), metadata=ocp.args.JsonSave(values))
            )

    def restore(self, like: State) -> State | None:
        """Restore the newest state that is sound for every process. Every process must call this method.

        Damaged newer checkpoints are moved to `broken_checkpoints` with a warning. Only damage moves a checkpoint:
        files that are missing, cannot be read, or differ from what was saved.

        Args:
          like: the shapes, dtypes and shardings of the state. Fields that are None are not read.

        Returns:
          The state; None if there are no checkpoints.

        Raises:
          InputError: if there are checkpoints, but all are damaged or their arrays differ from `like` in shape or
            dtype. No checkpoint is moved then.
          RunError: if another process fails, for example because it is out of memory.
        """
        sound = _newest_state(self._folder, self._manager.all_steps(), like)
        if sound is None:
            return None
        for step in sound.damaged:
            self._move_away(step)
        return like._replace(**sound.stored.arrays)

    def _move_away(self, step: int) -> None:
        if multihost.is_main():
            broken = self._folder.parent / "broken_checkpoints"
            broken.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(broken / f"{step}_{time.time_ns()}")
        multihost.barrier("a broken checkpoint is moved")
        self._manager.reload()

    @contextlib.contextmanager
    def _writing(self, step: int | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # from orbax, tensorstore or the system
            subject = "A checkpoint" if step is None else f"The checkpoint of step {step:,}, or an earlier one,"
            raise RunError(
                f"{subject} could not be written to {str(self._folder)!r}: {first_line(error)[:300]}. Finished "
                "checkpoints are intact. Free disk space or make the folder writable, then run the same command again."
            ) from error

    def is_saving(self) -> bool:
        """Whether a checkpoint is still being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Wait until everything is written. Raises a RunError if the newest checkpoint cannot be opened."""
        with self._writing():
            self._manager.wait_until_finished()
            if (step := self.latest_step()) is not None:
                multihost.on_main(lambda: _check_opens(self._folder / str(step)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        with self._writing():
            self._manager.close()  # waits until everything is written


def load(path: epath.PathLike, *, shard: str | None = "none") -> tuple[Params, Metadata]:
    """Load the newest sound sampling parameters of a run, and their metadata.

    Every process of a job must call this function, and all get the same parameters.

    Args:
      path: the folder of a run, such as `runs/digits/base` or `runs/digits/ladder/steps_0004`.
      shard: 'all' to divide the parameters among all devices; each process reads only its part. None to do so if the
        run's config.train.shard is 'all'. Default: 'none', NumPy arrays.

    Returns:
      The averaged parameters if the run has them, else the parameters; and the metadata.

    Raises:
      InputError: if there is no such folder, or no usable checkpoint in it.
    """

    def read(checkpoint: epath.Path) -> Stored:
        values = read_values(checkpoint)
        metadata = Metadata.from_json(values, int(checkpoint.name), checkpoint)
        averaged = any(path.startswith("['ema_params']") for path in values["fingerprints"])
        like = {"ema_params" if averaged else "params": abstract_params(metadata)}
        if (shard or metadata.config.train.shard) == "all":
            like = abstract(like, shares(like, data_mesh()))
            restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        else:
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        return Stored(read_arrays(checkpoint, like, restore_args), values)

    folder = as_path(path) / "checkpoints"
    sound = newest_sound(folder, finished_steps(as_path(path)), read)
    if sound is None:
        raise InputError(_none_finished(path))
    [params] = sound.stored.arrays.values()
    return params, Metadata.from_json(sound.stored.values, sound.step, folder)


def restore_from(path: epath.PathLike, like: State) -> State:
    """Restore the newest sound state of another run and leave its folder unchanged. Every process must call it.

    Args:
      path: the folder of a run, such as `runs/digits/base`.
      like: the shapes, dtypes and shardings of the state. Fields that are None are not read, so with `opt_state=None`
        the other run may have had another optimizer.

    Raises:
      InputError: if there is no usable checkpoint, or its arrays differ from `like` in shape or dtype.
    """
    run = as_path(path)
    sound = _newest_state(run / "checkpoints", finished_steps(run), like)
    if sound is None:
        raise InputError(_none_finished(path))
    return like._replace(**sound.stored.arrays)


def newest_step(run: epath.Path) -> int | None:
    """The step of the newest finished checkpoint in a run's folder; None if there is none."""
    names = [path.name for path in paths_below(run, "checkpoints", "")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def finished_steps(run: epath.Path) -> Sequence[int]:
    """The steps of the finished checkpoints in a run's folder. Raises an InputError if it is not a run's folder."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"No checkpoint in {str(run)!r}: {_describe_folder(run)}")
    with ocp.CheckpointManager(absolute(folder), options=ocp.CheckpointManagerOptions(create=False)) as manager:
        return manager.all_steps()


def check_path(folder: epath.Path) -> None:
    """Raise an InputError if orbax or tensorstore would read the path of a run as another path.

    >>> check_path(epath.Path("runs/a[1]"))
    Traceback (most recent call last):
      ...
    diffusion_distillation.errors.InputError: Checkpoints cannot be saved below '...': [ in a path ...
    """
    name = os.fspath(absolute(folder))
    if wrong := sorted({*name} & ({*NOT_IN_PATHS} - {os.sep})):
        raise InputError(
            f"Checkpoints cannot be saved below {name!r}: {' or '.join(wrong)} in a path is read as a pattern. "
            "Rename the folder, or choose another one."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"Checkpoints cannot be saved below {name!r}: the path is not UTF-8.") from None


def read_arrays(checkpoint: epath.Path, like: dict[str, Any], restore_args: Any) -> dict[str, Any]:
    """Read some fields of a checkpoint's state.

    Orbax's manager would wait for the other processes, so this function uses its handler.

    Args:
      checkpoint: the folder of the checkpoint.
      like: the fields to read, as shapes and dtypes.
      restore_args: orbax's, one per array.
    """
    args = ocp.args.PyTreeRestore(item=like, restore_args=restore_args, partial_restore=True)
    return _array_handler().restore(absolute(checkpoint / "state"), args=args)


def _newest_state(folder: epath.Path, steps: Sequence[int], like: State) -> Sound | None:
    """The newest sound state; None if there are no checkpoints."""
    fields = _array_fields(like)

    def read(checkpoint: epath.Path) -> Stored:
        values = read_values(checkpoint)
        _check_fit(checkpoint, values["fingerprints"], fields)
        return Stored(read_arrays(checkpoint, fields, ocp.checkpoint_utils.construct_restore_args(fields)), values)

    return newest_sound(folder, steps, read)


def _array_fields(state: State) -> dict[str, Any]:
    """The fields of a state that hold arrays. Fields that are None are not saved, so a state may get new fields."""
    return {name: value for name, value in state._asdict().items() if jax.tree.leaves(value)}


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler, set up for many small arrays: hosts do not divide them, and shardings are not saved.

    Restoring always names a sharding.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SHARED_BYTES, enable_write_sharding_file=False
    )
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _check_opens(checkpoint: epath.Path) -> None:
    """Raise an error unless a checkpoint exists and its metadata and all its arrays can be opened."""
    saved = read_values(checkpoint)["fingerprints"]
    stored = _describe_arrays(_array_handler().metadata(absolute(checkpoint / "state")).tree)
    if missing := {_readable(path) for path in saved} - stored.keys():
        raise ValueError(f"{checkpoint.name} lacks {min(missing)}")


def _check_fit(checkpoint: epath.Path, saved: Iterable[str], like: dict[str, Any]) -> None:
    """Raise an InputError that names the differences if saved arrays do not have the expected shapes and dtypes.

    Args:
      checkpoint: the folder of the checkpoint.
      saved: the paths of its arrays. They come from the sealed metadata, as orbax's own file may be damaged.
      like: the fields to restore, as shapes and dtypes.
    """
    stored = _describe_arrays(_array_handler().metadata(absolute(checkpoint / "state")).tree)
    names = {_readable(path) for path in saved}
    actual = {name: stored[name] for name in names if name.partition("/")[0] in like}
    expected = _describe_arrays(like)
    differences = [
        f"{name} is {actual.get(name, 'missing')} in the checkpoint and {expected.get(name, 'missing')} in the config"
        for name in sorted({**actual, **expected})
        if actual.get(name) != expected.get(name)
    ]
    if differences:
        hidden = len(differences) - MAX_DIFFERENCES
        more = f"; and {hidden} more" if hidden > 0 else ""
        raise InputError(
            f"The state in {str(checkpoint)!r} does not fit this config: {'; '.join(differences[:MAX_DIFFERENCES])}"
            f"{more}. Nothing was changed there."
        )


def _describe_arrays(tree: Any) -> dict[str, str]:
    """The dtype and shape of each array in a tree, such as 'float32[3, 4]'."""
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0] if hasattr(leaf, "shape")]
    return {
        _readable(jax.tree_util.keystr(path)): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves
    }


def _readable(path: str) -> str:
    """Turn a path of `keystr` into 'params/conv_in/kernel'. Orbax does not distinguish fields from keys either."""
    return "/".join(re.findall(r"[^][.']+", path))


def _remove_unfinished(folder: epath.Path) -> None:
    for path in paths_below(folder, ""):
        if ".orbax-checkpoint-tmp" in path.name:
            logging.warning("Removing the unfinished checkpoint %s.", path)
            with contextlib.suppress(OSError):
                path.rmtree()


def warn_if_unfinished(path: epath.PathLike, metadata: Metadata) -> None:
    """Warn in the main process if a model was saved in the middle of its training.

    A run's best checkpoint may have any step, and a model from elsewhere has all the updates that it will have.
    """
    updates = metadata.config.train.num_train_steps
    if 0 < metadata.step < updates and as_path(path).name != BEST and multihost.is_main():
        logging.warning("%s is not finished: it has done %s of %s updates.", path, f"{metadata.step:,}", f"{updates:,}")


def _none_finished(path: epath.PathLike) -> str:
    return f"No finished checkpoint in {str(path)!r} yet. Let the run continue until it saves one."


def _describe_folder(path: epath.Path) -> str:
    """Describe a path that is not the folder of a run, and what to pass instead."""
    if not path.exists():
        return "there is no such folder. Pass the folder of a run: the --workdir of `train`, or a ladder's steps_*."
    if not path.is_dir():
        return "it is a file. Pass the folder of a run."
    students = [student.name for student in paths_below(path, "steps_") if student.is_dir()]
    if students:
        return f"it holds the students of a ladder. Choose one of its folders: {', '.join(students)}."
    names = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    return f"a run's folder contains 'checkpoints'; this one contains {names}."
