"""Check and describe what a run would do, without compiling or writing anything."""

import functools
import math

import jax
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import abstract_params, load
from ..data import Source, read_batches
from ..keys import seed_key
from ..methods import make_method
from ..networks.model import count_params
from ..runtime import multihost
from ..runtime.devices import AnyMesh, describe_devices
from ..runtime.files import as_path
from ..runtime.multihost import print_on_main
from .checks import wasteful_settings
from .ladder import Plan, student_folder
from .prepare import LoadModel, inputs_of, prepare
from .runner import state_shardings, teacher_shardings
from .runs import changes_of_run
from .step import Teacher, TrainState, cast, init_state, make_train_step
from .teacher import load_teacher


def dry_run(
    config: ConfigDict, workdir: epath.PathLike, source: Source, *, change: bool = False, load_model: LoadModel = load
) -> None:
    """Check a base run or a ladder as `train` and `run_ladder` do, up to compilation, and print what it would do.

    It reads one batch, the teacher or the parameters at `train.init_from`, and the config of a run in the folder, and
    traces the training step of a ladder's first student or of the base model.

    Args:
      config: resolved.
      workdir: the folder of the run or the ladder. It is not created.
      source: the training images.
      change: allow differences from a run in the folder.
      load_model: returns the parameters and the metadata at `train.init_from` or
        `distillation.teacher_checkpoint_path`.

    Raises:
      InputError: for the reasons of `train` and `run_ladder`.
    """
    # Every run: its config, folder and teacher.
    workdir = as_path(workdir)
    params = None
    if "distillation" in config:
        teacher = load_teacher(config, source, load_model)
        params = teacher.params
        plan = Plan(config, workdir)
        plan.print()
        runs = [
            (plan.configs[rung.num_steps], student_folder(workdir, rung.num_steps), teacher.replace(rung=rung))
            for rung in plan.rungs
        ]
    else:
        print_on_main(f"{workdir}: {config.train.num_train_steps:,} updates of {config.train.batch_size:,} images")
        runs = [(config, workdir, None)]

    # Check.
    prepared = [
        prepare(run_config, folder, source, teacher=teacher, load_model=load_model)
        for run_config, folder, teacher in runs
    ]
    inputs = inputs_of(source, params)
    multihost.on_main(lambda: len(changes_of_run(workdir, config, change, inputs)))
    batch = next(read_batches(source, config.seed, range(1), config.train.batch_size))
    first_config, _, first_teacher = runs[0]
    method = make_method(first_config)
    state = jax.eval_shape(functools.partial(init_state, first_config, method), abstract_params(prepared[0].metadata))
    # This evaluates the functions of the method and the network on shapes alone.
    step = make_train_step(first_config, method, prepared[0].model, space=prepared[0].space)
    jax.eval_shape(step, state, seed_key(first_config.seed), first_teacher, batch)

    # Print.
    _print_data(source)
    _print_devices(first_config, prepared[0].mesh, state, first_teacher)
    for run_config, folder, _ in runs:
        for warning in wasteful_settings(run_config.train):
            print_on_main(f"warning: {folder}: {warning}")
    print_on_main(f"Nothing was written to {workdir}. Run the same command without --dry_run to start.")


def _print_data(source: Source) -> None:
    height, width, channels = source.image_shape
    info = getattr(source, "autoencoder", None)
    latents = "" if info is None else f", as latents {list(info.latent_shape(source.image_shape))} of {info.name}"
    kind = f"{channels} channel{'s' * (channels != 1)}{latents}"
    classes = f"{source.num_classes} classes" if source.num_classes > 1 else "no classes"
    print_on_main(f"Data: {len(source):,} images of {height}x{width}, {kind}, {classes}; a batch can be read.")


def _print_devices(config: ConfigDict, mesh: AnyMesh, state: TrainState, teacher: Teacher | None) -> None:
    rows = config.train.batch_size // mesh.size
    print_on_main(f"Devices: {describe_devices(mesh)}, {rows} image{'s' * (rows != 1)} of each batch per device.")
    size = bytes_held(state, teacher, mesh, config.train.shard)
    count = count_params(state.params)
    print_on_main(f"Memory: {size / 1e6:,.1f} MB on each device for {count:,} parameters, plus activations.")


def bytes_held(state: TrainState, teacher: Teacher | None, mesh: AnyMesh, shard: str) -> int:
    """The bytes of state, gradients and teacher that each device holds in training, without activations and the batch.

    Args:
      state: the run's state, or its shapes.
      teacher: the run's teacher, or its shapes; None in base training.
      mesh: the devices.
      shard: `train.shard`.
    """
    state, teacher = jax.eval_shape(lambda state, teacher: (state, cast(teacher)), state, teacher)
    held = state, teacher, state.params  # the last for the gradients
    of_state = state_shardings(state, mesh, shard)
    shardings = of_state, teacher_shardings(teacher, mesh, shard), of_state.params
    pairs = zip(jax.tree.leaves(held), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, sharding in pairs)
