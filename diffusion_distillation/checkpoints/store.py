"""Checkpoints, in orbax: the train state, and JSON metadata that make it usable without the command that wrote it."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from ..config import resolve, to_share
from ..errors import TRANSIENT, InputError, RunError
from ..networks.model import init_params, make_network
from ..registry import check_foreign
from ..runtime import multihost
from ..runtime.devices import host_device
from ..runtime.files import absolute, as_path, parse_json, paths_below
from ..runtime.hashing import sha256
from ..shapes import Params

State = Any  # a NamedTuple of trees of arrays, with `step` and `params`, and with `ema_params` if samples are of these
FORMAT_VERSION = 1
KEEP_LAST = 2
NOT_IN_PATHS = "*?[\\"  # orbax reads whole paths as glob patterns; tensorstore turns a backslash into a slash
# What the machine lacks that wants to read a file, or what is between them: another time or place it may be read.
NOT_OF_THE_FILE = {*TRANSIENT, errno.EACCES, errno.EPERM}
NOR_THESE = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")
SHARED_BYTES = 2**20  # what all devices hold is written by all hosts, each a part of this size or more; or else by one


class NewerFormatError(InputError):
    """A checkpoint of a later version of this package."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is needed besides the parameters to sample from them or to teach with them.

    Attributes:
      config: the resolved config of the run.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.
      num_steps: the student's number of sampling steps; 0 for a base model, which takes any.
      step: updates done.
      class_names: one name per class; None if the classes have no names.
    """

    config: ConfigDict
    image_shape: tuple[int, int, int]
    num_classes: int
    num_steps: int
    step: int = 0
    class_names: tuple[str, ...] | None = None

    def to_share(self) -> "Metadata":
        """The metadata for others, see `config.to_share`."""
        return dataclasses.replace(self, config=to_share(self.config))

    def to_json(self) -> dict[str, Any]:
        """As it is stored; the step is the name of the checkpoint's folder."""
        named = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {
            "format_version": FORMAT_VERSION,
            "config": self.config.to_dict(),
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "num_steps": self.num_steps,
            **named,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], step: int, origin: epath.Path) -> "Metadata":
        """The inverse of `to_json`.

        Raises:
          InputError: if others may have written the file and its config names code to run.
          ValueError: if the class names are not one string per class.
        """
        check_foreign(values["config"], origin)
        names = values.get("class_names")
        if names is not None and [type(name) for name in names] != [str] * values["num_classes"]:
            raise ValueError("class_names are not one string per class")
        return cls(
            config=resolve(ConfigDict(values["config"])),
            image_shape=tuple(values["image_shape"]),
            num_classes=values["num_classes"],
            num_steps=values["num_steps"],
            step=step,
            class_names=None if names is None else tuple(names),
        )


class Checkpoints:
    """The checkpoints of one run, `<folder>/checkpoints/<step>`; saving goes on in the background.

    The last two are kept, and those at multiples of `keep_every` for good (0 for none). What an earlier process left
    half written is removed.

    Each holds fingerprints of its arrays and of its metadata, which are checked when it is read: files that were cut
    off, lost or changed are found out, and the newest checkpoint before them is used.
    """

    def __init__(self, folder: epath.PathLike, keep_every: int = 0):
        self._folder = absolute(as_path(folder)) / "checkpoints"
        check_path(self._folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP_LAST, keep_period=keep_every or None)
        if multihost.is_main():
            for path in (path for path in paths_below(self._folder, "") if ".orbax-checkpoint-tmp" in path.name):
                logging.warning("%s: a checkpoint that was not finished; it is removed.", path)
                with contextlib.suppress(OSError):
                    path.rmtree()
        multihost.barrier("unfinished checkpoints are removed")
        handlers = {"state": _array_handler(), "metadata": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def latest_step(self) -> int | None:
        """The updates done by the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: State, metadata: Metadata) -> None:
        """Saves a state, unless its step is saved already; raises a RunError if an earlier one could not be written."""
        step = int(state.step)
        if step == self.latest_step():
            return
        arrays = _with_arrays(state)
        values = _sealed(metadata.to_json() | {"fingerprints": _fingerprints(arrays)})
        with self._writing(step):
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), metadata=ocp.args.JsonSave(values))
            )

    def restore(self, like: State) -> State | None:
        """The newest state that is sound for every process; None if there is none. Every process must call it.

        Newer ones that are damaged are named in a warning and moved to `broken_checkpoints`. Only damage moves a
        checkpoint: files that are missing, cannot be read, or hold other data than were saved.

        Args:
          like: abstract: shapes, types and shardings. Of fields that are None in it nothing is read.

        Raises:
          InputError: if there are checkpoints and none can be used, or their arrays are others than those of `like`;
            they stay where they are.
          RunError: if another process cannot go on, as when it is out of memory.
        """
        found = _newest_state(self._folder, self._manager.all_steps(), like)
        if found is None:
            return None
        state, broken = found
        for step in broken:
            self._move_away(step)
        return state

    def _move_away(self, step: int) -> None:
        if multihost.is_main():
            aside = self._folder.parent / "broken_checkpoints"
            aside.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(aside / f"{step}_{time.time_ns()}")
        multihost.barrier("a broken checkpoint is moved")
        self._manager.reload()

    @contextlib.contextmanager
    def _writing(self, step: int | None = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of orbax, tensorstore or the system
            what = "A checkpoint" if step is None else f"The checkpoint of step {step:,}, or one before it,"
            raise RunError(
                f"{what} could not be written to {str(self._folder)!r}: {_first_line(error)[:300]}. "
                "Finished checkpoints are untouched; "
                "make room, or let the folder be written, and run the same command again."
            ) from error

    def is_saving(self) -> bool:
        """Whether something is still being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Wait until all is written. Raises a RunError if the newest checkpoint is missing or cannot be opened."""
        with self._writing():
            self._manager.wait_until_finished()
            if (step := self.latest_step()) is not None:
                multihost.on_main(lambda: _check_opens(self._folder / str(step)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        """Waits for what is being written."""
        with self._writing():
            self._manager.close()


def check_path(folder: epath.Path) -> None:
    """Raise an InputError for the path of a run that orbax or tensorstore takes for another one."""
    name = os.fspath(absolute(folder))
    if found := sorted({*name} & ({*NOT_IN_PATHS} - {os.sep})):
        raise InputError(
            f"Checkpoints cannot be saved below {name!r}: {' or '.join(found)} in a path is read as a pattern. "
            "Rename the folder or choose another one."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"Checkpoints cannot be saved below {name!r}: the path is not UTF-8.") from None


def _check_opens(checkpoint: epath.Path) -> None:
    """Raise an error unless a checkpoint exists and its metadata and all its arrays can be opened."""
    saved = _read_metadata(checkpoint)["fingerprints"]
    stored = _described(_array_handler().metadata(absolute(checkpoint / "state")).tree)
    if missing := {_name(path) for path in saved} - stored.keys():
        raise ValueError(f"{checkpoint.name} lacks {min(missing)}")


def _with_arrays(state: State) -> dict[str, Any]:
    """The fields of a state that hold arrays. What is None is not written down: states may get such fields later."""
    return {name: value for name, value in state._asdict().items() if jax.tree.leaves(value)}


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's, but quicker with many small arrays: they are not divided among hosts, and no sharding is written down.

    A sharding is always given when an array is restored.
    """
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SHARED_BYTES, enable_write_sharding_file=False
    )
    registry = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def load(path: epath.PathLike) -> tuple[Params, Metadata]:
    """The newest sampling parameters of a run that are sound, as NumPy arrays, and their metadata.

    Where several processes work together, all must call it, and get the same ones.

    Args:
      path: the folder of a run, such as `runs/digits/base` or `runs/digits/ladder/steps_0004`.

    Raises:
      InputError: if there is no such folder, or no checkpoint of ours that can be used in it.
    """

    def read(checkpoint: epath.Path) -> tuple[Any, dict[str, Any]]:
        values = _read_metadata(checkpoint)
        metadata = Metadata.from_json(values, int(checkpoint.name), checkpoint)
        averaged = any(path.startswith("['ema_params']") for path in values["fingerprints"])
        wanted = {"ema_params" if averaged else "params": abstract_params(metadata)}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        return _read_arrays(checkpoint, wanted, as_numpy), values

    folder = as_path(path) / "checkpoints"
    found = _newest_sound(folder, _steps_of_another(as_path(path)), read)
    if found is None:
        raise InputError(f"No finished checkpoint in {str(folder)!r} yet; let the run go on until it saves one.")
    (params, values), step, _ = found
    return next(iter(params.values())), Metadata.from_json(values, step, folder)


def params_hash(params: Params) -> str:
    """A name for parameters that no others have."""
    return sha256(map(np.ascontiguousarray, jax.tree.leaves(params)), 16)


def restore_from(path: epath.PathLike, like: State) -> State:
    """The newest sound state of another run, whose folder stays as it is. Every process must call it.

    Args:
      path: the folder of a run, such as `runs/digits/base`.
      like: abstract: shapes, types and shardings. Of fields that are None in it nothing is read: with `opt_state=None`
        it need not fit.

    Raises:
      InputError: if there is no checkpoint that can be used, or its arrays are others than those of `like`.
    """
    found = _newest_state(as_path(path) / "checkpoints", _steps_of_another(as_path(path)), like)
    if found is None:
        raise InputError(f"No finished checkpoint in {str(path)!r} yet; let the run go on until it saves one.")
    return found[0]


def newest_step(run: epath.Path) -> int | None:
    """The updates done by the newest finished checkpoint in a run's folder; None if there is none."""
    names = [path.name for path in paths_below(run, "checkpoints", "")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def _steps_of_another(run: epath.Path) -> Sequence[int]:
    """The steps of the finished checkpoints in a run's folder; raises an InputError if it is none."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"No checkpoint in {str(run)!r}: {_what_is_there(run)}")
    with ocp.CheckpointManager(absolute(folder), options=ocp.CheckpointManagerOptions(create=False)) as manager:
        return manager.all_steps()


def _newest_state(folder: epath.Path, steps: Sequence[int], like: State) -> tuple[State, list[int]] | None:
    """The newest sound state, and the steps that are damaged; None if there are no checkpoints."""
    wanted = _with_arrays(like)

    def read(checkpoint: epath.Path) -> tuple[Any, dict[str, Any]]:
        values = _read_metadata(checkpoint)
        _check_fit(checkpoint, values["fingerprints"], wanted)
        return _read_arrays(checkpoint, wanted, ocp.checkpoint_utils.construct_restore_args(wanted)), values

    found = _newest_sound(folder, steps, read)
    if found is None:
        return None
    (arrays, _), _, broken = found
    return like._replace(**arrays), broken


Read = tuple[Any, dict[str, Any]]  # a tree of arrays, and the checkpoint's metadata


def _newest_sound(
    folder: epath.Path, steps: Sequence[int], read: Callable[[epath.Path], Read]
) -> tuple[Read, int, list[int]] | None:
    """What `read` returns for the newest checkpoint that it can read in every process and whose fingerprints hold.

    All processes try the same steps, and each goes on to an older one when any of them finds damage.

    Returns:
      What was read, its step, and the newer steps, which are damaged; None if there are no checkpoints.
    """
    broken: dict[int, str] = {}
    for step in sorted(json.loads(multihost.broadcast(json.dumps(list(steps)))), reverse=True):
        found, damage = _agreed(lambda step=step: read(folder / str(step)))
        if damage is None:  # now that all have their part: a program of all devices
            _, damage = _agreed(lambda found=found: _check_fingerprints(found[0], found[1]["fingerprints"]))
        if damage is not None:
            broken[step] = damage
            continue
        for damaged, reason in broken.items():
            logging.warning(
                "%s: this checkpoint is damaged (%s); that of step %d is used.", folder / str(damaged), reason, step
            )
        return found, step, list(broken)
    if broken:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in broken.items())
        raise InputError(
            f"No checkpoint in {str(folder)!r} can be used, and nothing was changed there ({reasons}). Bring a sound "
            "one back, or give another folder to start again."
        )
    return None


def _agreed(act: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `act` returns, and None; or None, and the damage that it found here or in another process.

    Anything else that it raises is raised, and a RunError in the other processes.
    """
    result = error = None
    try:
        result = act()
    except Exception as raised:
        error = raised
    sound, damaged, failed = range(3)
    ours = sound if error is None else damaged if _is_damage(error) else failed
    worst = multihost.all_max([ours])[0]
    if ours == failed:
        raise error
    if worst == failed:
        raise RunError("Another process could not read a checkpoint, and says why; nothing was changed.")
    if worst == damaged:
        return None, "another process cannot read it" if error is None else _first_line(error)[:200]
    return result, None


def _is_damage(error: Exception) -> bool:
    """Whether an error speaks of the files. Damaged ones make orbax raise almost anything, so what does not is listed.

    That is: what we say ourselves, and what the machine lacks, be it memory, devices, files, rights or network.
    """
    if isinstance(error, InputError | MemoryError | jax.errors.JaxRuntimeError):
        return False
    if isinstance(error, OSError) and error.errno in NOT_OF_THE_FILE:
        return False
    cause = error.__cause__ or error.__context__
    elsewhere = any(code in str(error) for code in NOR_THESE)
    return not elsewhere and (cause is None or _is_damage(cause))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@jax.jit  # within the program of a whole tree: traced once for all arrays of a shape
def _fingerprint(array: jax.Array) -> jax.Array:
    """The sum of an array's words times odd numbers by position, modulo 2^32: any single word that changes changes it.

    Integer arithmetic, so that it is the same however the array is divided among devices.
    """
    words = _words(array)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words.astype(jnp.uint32) * (2 * position + 1), dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as unsigned integers: one for each element, or two of 32 bits if it has 64."""
    if array.dtype == bool:
        return array.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32))


@jax.jit
def _all_fingerprints(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_fingerprint(array) for array in arrays])


def _fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of each array of a tree, by its path: one program for all of them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    with jax.default_device(host_device()):  # do not copy NumPy arrays to an accelerator
        found = np.asarray(_all_fingerprints([leaf for _, leaf in leaves])).tolist()
    return {jax.tree_util.keystr(path): value for (path, _), value in zip(leaves, found, strict=True)}


def _read_metadata(checkpoint: epath.Path) -> dict[str, Any]:
    """The metadata of a checkpoint, whose seal must be right; raises a NewerFormatError for a later format."""
    values = _checked(parse_json((checkpoint / "metadata" / "metadata").read_text()))
    if values["format_version"] > FORMAT_VERSION:
        raise NewerFormatError(
            f"{str(checkpoint)!r} has format {values['format_version']}; this version of diffusion_distillation reads "
            f"up to {FORMAT_VERSION}. Upgrade the package."
        )
    return values


def _read_arrays(checkpoint: epath.Path, wanted: dict[str, Any], restore_args: Any) -> dict[str, Any]:
    """These fields of a state. By orbax's handler, which, unlike its manager, does not wait for other processes."""
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    return _array_handler().restore(absolute(checkpoint / "state"), args=args)


def _check_fit(checkpoint: epath.Path, saved: Iterable[str], wanted: dict[str, Any]) -> None:
    """Raises an InputError that names what differs, unless the arrays of these fields have the wanted shapes and types.

    Args:
      checkpoint: its folder.
      saved: the paths of its arrays, from its metadata, which are sealed; orbax's own file may be damaged.
      wanted: abstract.
    """
    stored = _described(_array_handler().metadata(absolute(checkpoint / "state")).tree)
    names = {_name(path) for path in saved}
    there = {name: stored[name] for name in names if name.partition("/")[0] in wanted}
    here = _described(wanted)
    differences = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in sorted({**there, **here})
        if there.get(name) != here.get(name)
    ]
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise InputError(
            f"The state in {str(checkpoint)!r} does not fit this config: {'; '.join(differences[:5])}{more}. Nothing "
            "was changed there."
        )


def _described(tree: Any) -> dict[str, str]:
    """Type and shape of each array of a tree."""
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0] if hasattr(leaf, "shape")]
    return {
        _name(jax.tree_util.keystr(path)): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves
    }


def _name(path: str) -> str:
    """A path of `keystr` for people, with a field written as a key is: orbax makes no difference between them."""
    return "/".join(re.findall(r"[^][.']+", path))


def _check_fingerprints(tree: Any, expected: dict[str, int]) -> None:
    for path, value in _fingerprints(tree).items():
        if value != expected.get(path):
            raise ValueError(f"{path} is not as it was saved")


def _sealed(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"seal": _digest(values)}


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Metadata without their seal, which must be right."""
    if not isinstance(values, dict) or "seal" not in values:
        raise ValueError("it was not saved by diffusion_distillation, or its metadata are lost")
    values = dict(values)
    if values.pop("seal") != _digest(values):
        raise ValueError("its metadata are not as they were saved")
    return values


def _digest(values: dict[str, Any]) -> str:
    return sha256([json.dumps(values, sort_keys=True)])


def abstract_params(metadata: Metadata) -> Params:
    """Shapes and types of the parameters that go with the metadata."""
    network = make_network(metadata.config.model, metadata.image_shape, metadata.num_classes)
    image_shape, num_classes = metadata.image_shape, metadata.num_classes
    return jax.eval_shape(lambda: init_params(network, jax.random.key(0), image_shape, num_classes))


def _what_is_there(path: epath.Path) -> str:
    if not path.exists():
        return (
            "there is no such folder. Give the folder of a run, the --workdir of train.py or one of a ladder's steps_*."
        )
    if not path.is_dir():
        return "it is a file. Give the folder of a run."
    students = [student.name for student in paths_below(path, "steps_") if student.is_dir()]
    if students:
        return f"it holds the students of a ladder. Choose one of {', '.join(students)} in it."
    found = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    return f"a run's folder has 'checkpoints' in it, this one has {found}."
