"""What a run would do, checked and described without compiling or writing anything."""

import functools
import math
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from .. import multihost
from ..checkpoints import abstract_params, load
from ..config import stage
from ..data import Source, read_batches
from ..devices import described
from ..files import as_path
from ..methods import make_method
from ..model import count_params
from ..multihost import say
from .ladder import Plan, load_teacher, student_folder
from .loop import Load, Prepared, prepare
from .parallel import state_shardings, teacher_shardings
from .runs import changes_of_run
from .step import Teacher, doubts, init_state


def dry_run(
    config: ConfigDict, workdir: epath.PathLike, source: Source, *, change: bool = False, load_model: Load = load
) -> None:
    """Checks a base run or a ladder as `train` and `run_ladder` do, up to compilation, and prints what it would do.

    It reads a batch, the teacher or the parameters at train.init_from, and the config of a run in the folder.

    Args:
      config: resolved.
      workdir: the folder of the run or the ladder; it is not made.
      source: the images.
      change: see `train`.
      load_model: see `train` and `run_ladder`.

    Raises:
      InputError: as `train` and `run_ladder`.
    """
    workdir = as_path(workdir)
    multihost.on_main(lambda: len(changes_of_run(workdir, config, change)))
    if "distillation" in config:
        params, network = load_teacher(config, source, load_model)
        rungs = make_method(config).rungs
        teachers = {student_folder(workdir, rung.num_steps): Teacher(params, rung, network) for rung in rungs}
        stages = {rung.num_steps: stage(config, rung.num_steps) for rung in rungs}
        Plan(workdir, stages, on_metrics=None)
        runs = [
            (prepare(stages[teacher.rung.num_steps], folder, source, teacher=teacher), folder, teacher)
            for folder, teacher in teachers.items()
        ]
    else:
        runs = [(prepare(config, workdir, source, load_model=load_model), workdir, None)]
        say(f"{workdir}: {config.train.num_steps:,} updates of {config.train.batch_size:,} images")
    next(read_batches(source, config.seed, range(1), config.train.batch_size))
    height, width, channels = source.image_shape
    classes = f"{source.num_classes} classes" if source.num_classes > 1 else "no classes"
    say(f"Data: {len(source):,} images of {height}x{width}, {channels} channel(s), {classes}; a batch can be read.")
    run, _, teacher = runs[0]
    say(f"Devices: {described(run.mesh)}, {config.train.batch_size // run.mesh.size} images of a batch on each.")
    params = count_params(abstract_params(run.metadata))
    size = state_bytes(run, teacher) / 1e6
    say(f"Memory: {params:,} parameters; {size:,.1f} MB of state on each device. Activations need memory besides.")
    for run, folder, _ in runs:
        for doubt in doubts(run.metadata.config.train):
            say(f"Warning: {folder}: {doubt}")
    say(f"Nothing was compiled or written. Run the same command without --dry_run to make {workdir}.")


def state_bytes(run: Prepared, teacher: Teacher | None) -> int:
    """Bytes that the state of a run, and the parameters of its teacher, take on each device."""
    config = run.metadata.config
    state = jax.eval_shape(functools.partial(init_state, config), abstract_params(run.metadata))
    options = dict(mesh=run.mesh, shard=config.train.shard_state)
    teacher = jax.eval_shape(lambda: teacher)
    return _bytes(state, state_shardings(state, **options)) + _bytes(teacher, teacher_shardings(teacher, **options))


def _bytes(tree: Any, shardings: Any) -> int:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)
