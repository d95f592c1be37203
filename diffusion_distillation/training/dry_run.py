"""Check and describe what a run would do, without compiling or writing anything."""

import functools
import math

import jax
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import abstract_params, load
from ..config import rung_config
from ..data import Source, read_batches
from ..methods import ladder_rungs, make_method
from ..networks.model import count_params
from ..runtime import multihost
from ..runtime.devices import AnyMesh, describe_devices, replicated
from ..runtime.files import as_path
from ..runtime.multihost import print_on_main
from .checks import wasteful_settings
from .ladder import Plan, load_teacher, student_folder
from .prepare import LoadModel, inputs_of, prepare
from .runner import state_shardings, teacher_shardings
from .runs import changes_of_run
from .step import Teacher, TrainState, init_state


def dry_run(
    config: ConfigDict, workdir: epath.PathLike, source: Source, *, change: bool = False, load_model: LoadModel = load
) -> None:
    """Check a base run or a ladder as `train` and `run_ladder` do, up to compilation, and print what it would do.

    It reads one batch, the teacher or the parameters at train.init_from, and the config of a run that is in the folder.

    Args:
      config: resolved.
      workdir: the folder of the run or the ladder; it is not created.
      source: the images.
      change: see `train`.
      load_model: see `train` and `run_ladder`.

    Raises:
      InputError: as `train` and `run_ladder`.
    """
    workdir = as_path(workdir)
    params = None
    if "distillation" in config:
        params, network = load_teacher(config, source, load_model)
        runs = [
            (rung_config(config, rung), student_folder(workdir, rung.num_steps), Teacher(params, rung, network))
            for rung in ladder_rungs(config)
        ]
        Plan(workdir, {int(teacher.rung.num_steps): of_run for of_run, _, teacher in runs}, on_metrics=None)
    else:
        runs = [(config, workdir, None)]
        print_on_main(f"{workdir}: {config.train.num_train_steps:,} updates of {config.train.batch_size:,} images")
    prepared = [
        prepare(of_run, folder, source, teacher=teacher, load_model=load_model) for of_run, folder, teacher in runs
    ]
    inputs = inputs_of(source, params)
    multihost.on_main(lambda: len(changes_of_run(workdir, config, change, inputs)))
    next(read_batches(source, config.seed, range(1), config.train.batch_size))
    height, width, channels = source.image_shape
    classes = f"{source.num_classes} classes" if source.num_classes > 1 else "no classes"
    print_on_main(
        f"Data: {len(source):,} images of {height}x{width}, {channels} channel{'s' * (channels != 1)}, {classes}; "
        "a batch can be read."
    )
    first, (of_first, _, teacher) = prepared[0], runs[0]
    print_on_main(
        f"Devices: {describe_devices(first.mesh)}, {of_first.train.batch_size // first.mesh.size} images of each batch "
        "per device."
    )
    make_state = functools.partial(init_state, of_first, make_method(of_first))
    state = jax.eval_shape(make_state, abstract_params(first.metadata))
    size, count = (
        bytes_held(state, teacher, first.mesh, shard=of_first.train.shard_state),
        count_params(state.params),
    )
    print_on_main(f"Memory: {size / 1e6:,.1f} MB on each device for {count:,} parameters, plus activations.")
    for of_run, folder, _ in runs:
        for warning in wasteful_settings(of_run.train):
            print_on_main(f"Warning: {folder}: {warning}")
    print_on_main(f"Nothing was written to {workdir}. Run the same command without --dry_run to start.")


def bytes_held(state: TrainState, teacher: Teacher | None, mesh: AnyMesh, *, shard: bool) -> int:
    """The bytes of state, gradients and teacher that each device holds in training, without activations and the batch.

    Args:
      state: the run's state, or its shapes.
      teacher: the run's teacher, or its shapes.
      mesh: the devices.
      shard: the config's train.shard_state.
    """
    held = jax.eval_shape(lambda *both: both, state, teacher)
    gradients = jax.tree.map(lambda _: replicated(mesh), state.params)
    placed = state_shardings(held[0], mesh, shard=shard), teacher_shardings(held[1], mesh, shard=shard), gradients
    pairs = zip(jax.tree.leaves((*held, state.params)), jax.tree.leaves(placed), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)
