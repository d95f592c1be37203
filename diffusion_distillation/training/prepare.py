"""Check and prepare a run before its folder is created and before anything is compiled."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ..checkpoints import Metadata, abstract_params, check_path, load, newest_step, params_hash
from ..data import Source, fingerprint
from ..errors import InputError
from ..keys import seed_key
from ..latents import Space
from ..networks.model import Model, init_params, make_model, matching
from ..pipeline import space_of
from ..runtime import multihost
from ..runtime.devices import data_mesh, host_device, shares
from ..runtime.files import as_path
from ..shapes import Keys, Params
from .checks import check_batch_size, check_processes, check_same_model, check_space, describe_model
from .step import Teacher

LoadModel = Callable[..., tuple[Params, Metadata]]  # of a path and, for divided parameters, shard='all'


class Prepared(NamedTuple):
    """What a run starts from.

    Attributes:
      metadata: of its checkpoints.
      model: the model to train.
      space: what it diffuses.
      mesh: the mesh of all devices.
      initial_params: returns the initial parameters.
    """

    metadata: Metadata
    model: Model
    space: Space
    mesh: Mesh
    initial_params: Callable[[], Params]


def prepare(
    config: ConfigDict,
    workdir: epath.Path,
    source: Source,
    *,
    teacher: Teacher | None = None,
    load_model: LoadModel = load,
) -> Prepared:
    """Check everything that can be checked before a run's folder is created.

    Args:
      config: resolved.
      workdir: the run's folder, which may hold the run already.
      source: the training images.
      teacher: the student's teacher; None for a base model.
      load_model: returns the parameters and the metadata at `train.init_from`.

    Raises:
      InputError: if the config does not fit the devices, the images or the model that the run starts from, or if the
        processes disagree.
    """
    mesh = data_mesh()
    check_path(workdir)
    check_processes(config, source)
    if config.train.label_dropout and source.num_classes == 1:
        raise InputError(
            f"config.train.label_dropout={config.train.label_dropout} drops labels, and the dataset has one class: set "
            "config.dataset.args.class_conditional=True."
        )
    newest = multihost.on_main(lambda: newest_step(workdir))
    if (newest or 0) < config.train.num_train_steps:
        check_batch_size(config.train, mesh)
    metadata = describe_model(config, source, num_steps=int(teacher.rung.num_steps) if teacher else 0)
    space = space_of(metadata)
    check_space(space, config, source)
    model = make_model(config.model, space.shape, source.num_classes)
    initial_params = _initial_params(metadata, model, teacher, load_model, begun=newest is not None)
    return Prepared(metadata, model, space, mesh, initial_params)


def _initial_params(
    metadata: Metadata, model: Model, teacher: Teacher | None, load_model: LoadModel, *, begun: bool
) -> Callable[[], Params]:
    """A function that returns the parameters that a run begins with, unless it resumes from a whole state.

    Raises:
      InputError: if `train.init_from` has no model, a model without updates left to do, or another network.
    """
    key = seed_key(metadata.config.seed)

    def init(key: Keys) -> Params:
        return init_params(model.network, key, metadata.shape, metadata.num_classes)

    def random_params() -> Params:
        if metadata.config.train.shard == "all":  # on the devices: no host holds all of them
            return jax.jit(init, out_shardings=shares(jax.eval_shape(init, key), data_mesh()))(key)
        # On the host: an accelerator may be choosing kernels by trial meanwhile.
        with jax.default_device(host_device()):
            return init(key)

    if teacher is not None:
        if teacher.model is None:
            return lambda: teacher.params
        if teacher.starts_student:
            return lambda: matching(teacher.params, random_params())
        return random_params
    init_from = metadata.config.train.init_from
    if init_from is None or begun:
        return random_params
    params, start = read_model(load_model, init_from, metadata.config)
    check_same_model(f"No model can start from config.train.init_from={init_from!r}", "there", start, metadata)
    if holds_run(init_from):
        updates = metadata.config.train.num_train_steps
        if start.step >= updates:
            raise InputError(
                f"config.train.init_from={init_from!r} has done {start.step:,} updates, which "
                f"config.train.num_train_steps={updates:,} includes. Set config.train.num_train_steps to more."
            )
        return random_params
    _check_shapes(init_from, params, abstract_params(metadata))
    return lambda: params


def read_model(load_model: LoadModel, path: str, config: ConfigDict) -> tuple[Params, Metadata]:
    """Read a model that a run learns or starts from; with `train.shard='all'`, divided among the devices."""
    return load_model(path, shard="all") if config.train.shard == "all" else load_model(path)


def _check_shapes(init_from: str, params: Params, like: Params) -> None:
    """Raise an InputError that names the first array in which the parameters differ from the network's."""
    there, here = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, like)
    )
    if here != there:
        name = next(name for name in {**here, **there} if here.get(name) != there.get(name))
        raise InputError(
            f"config.train.init_from={init_from!r} has another network: {name} is {there.get(name, 'missing')} "
            f"there and {here.get(name, 'missing')} here."
        )


def holds_run(path: str) -> bool:
    """Whether a path holds a run, with a whole state to resume from, and not parameters alone."""
    return multihost.on_main(lambda: "://" not in path.removeprefix("gs://") and newest_step(as_path(path)) is not None)


def inputs_of(source: Source, teacher: Params | None = None) -> Mapping[str, str]:
    """The fingerprints of a run's inputs: the data and, for a student, the teacher (`runs.INPUTS`)."""
    data = {"data": fingerprint(source)}
    return data if teacher is None else data | {"teacher": params_hash(teacher)}
