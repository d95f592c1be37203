"""The training step on many devices: one program over a mesh of them all (jit), or one for each of them (pmap)."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..errors import InputError
from ..networks.model import Network
from ..runtime.cpu import compiler_options, release_memory
from ..runtime.devices import (
    AXIS,
    AnyMesh,
    abstract,
    first_shard,
    num_local_devices,
    put,
    replicate,
    replicated,
    to_host,
)
from ..shapes import Array, Params
from .packing import pack_state, unpack
from .step import Batch, Teacher, TrainState, TrainStep, init_state, make_train_step, trains_embedding_only


def check_batch_size(train: Any, mesh: Mesh) -> None:
    """Raises an InputError unless the devices can share a batch, and a microbatch, evenly."""
    for name in ("batch_size", "microbatch_size"):
        size, count = train[name], mesh.size
        if size % count:
            raise InputError(
                f"config.train.{name}={size} must be divisible by the number of devices, {count}: "
                f"choose {size // count * count or count} or {(size // count + 1) * count}."
            )


CallMetrics = dict[str, Array | list[Array]]  # of the steps of a call: stacked by the devices, or one by one


class Runner(NamedTuple):
    """A compiled training step, and how its arguments are placed on the devices.

    Attributes:
      place: `place(state, teacher)`, as `steps` needs them. The state passed in is used up: devices hold it once.
      compile: `compile(state, key, teacher, batches)`, before `steps`, with the state and the teacher that `place` is
        to take; they need not be there yet, their shapes will do. `steps` would compile itself, but then the host holds
        what compiling leaves in its memory beside the activations; here it is given back first.
      steps: `steps(state, key, teacher, batches) -> (state, metrics)`, a step for every batch (NumPy arrays, this
        process's rows); metrics have an entry for each. The state passed in is used up.
      collect: a state, or a part of one, in the form that is saved: arrays that span all devices, or copies on the host
        if the devices hold another form, so that no device holds both.
      in_one_call: whether the devices do the steps of a call without the host, which then is as long as they take.
    """

    place: Callable[[TrainState, Teacher | None], tuple[TrainState, Teacher | None]]
    compile: Callable[[TrainState, jax.Array, Teacher | None, Sequence[Batch]], None]
    steps: Callable[[TrainState, jax.Array, Teacher | None, Sequence[Batch]], tuple[TrainState, CallMetrics]]
    collect: Callable[[Any], Any]
    in_one_call: bool


def make_runner(config: Any, network: Network, mesh: Mesh, *, scan: bool | None = None) -> Runner:
    """Compiles the training step of a config for a mesh, the way config.train.parallel says.

    Args:
      config: resolved.
      network: to train.
      mesh: from `data_mesh`.
      scan: do a sequence of steps in one call of the devices. By default on accelerators alone: XLA's CPU backend is
        many times slower at the gradients of convolutions inside a loop. The result is the same.

    On CPUs and GPUs, where that was found to pay, parameters are packed (`packing`), unless they are to be divided or
    told apart.
    """
    scan = jax.default_backend() != "cpu" if scan is None else scan
    make = _pmap_runner if config.train.parallel == "pmap" else _jit_runner
    runner = make(config, network, mesh, scan)
    whole = not config.train.shard_state and not trains_embedding_only(config)
    return _packing(runner) if whole and jax.default_backend() in ("cpu", "gpu") else runner


def _packing(runner: Runner) -> Runner:
    """The runner with parameters packed between `place` and `collect`."""

    def place_both(state, teacher):
        return runner.place(_moved_to_host(state, pack_state), teacher)

    def compile(state, key, teacher, batches):
        runner.compile(jax.eval_shape(functools.partial(pack_state, xp=jnp), state), key, teacher, batches)

    def collect(state):
        return unpack(to_host(runner.collect(state)))

    return runner._replace(place=place_both, compile=compile, collect=collect)


def _moved_to_host(state: TrainState, change: Callable[[TrainState], TrainState] = lambda state: state) -> TrainState:
    """Apply a change to a state and return it as NumPy arrays. The state's device arrays are deleted."""
    copies = to_host(change(state))
    for leaf in jax.tree.leaves(state):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    return copies


def begin(config: Any, params: Params, mesh: Mesh) -> TrainState:
    """The state before the first step, made where its arrays live: no device holds more of it than its share."""
    make = functools.partial(init_state, config)
    shardings = state_shardings(jax.eval_shape(make, params), mesh, shard=config.train.shard_state)
    params = put(params, jax.tree.map(lambda _: replicated(mesh), params))
    return jax.jit(make, out_shardings=shardings)(params)


def state_shardings(state: TrainState, mesh: AnyMesh, *, shard: bool) -> TrainState:
    """Where each array of a state lives: everywhere; or, all but the parameters, divided among the devices."""
    whole = jax.tree.map(lambda _: replicated(mesh), state)
    if not shard:
        return whole
    divided = functools.partial(jax.tree.map, functools.partial(_divided, mesh=mesh))
    return whole._replace(
        ema_params=divided(state.ema_params), opt_state=divided(state.opt_state), average=divided(state.average)
    )


def teacher_shardings(teacher: Teacher | None, mesh: AnyMesh, *, shard: bool) -> Teacher | None:
    """Where each array of the teacher lives."""
    return jax.tree.map(lambda leaf: _divided(leaf, mesh=mesh) if shard else replicated(mesh), teacher)


def _divided(leaf: Any, *, mesh: AnyMesh) -> NamedSharding:
    """Along the longest axis that the devices can share evenly; whole if there is none."""
    sizes = [size if size % mesh.size == 0 else 0 for size in np.shape(leaf)]
    if not any(sizes):
        return replicated(mesh)
    axis = int(np.argmax(sizes))
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def _over_batches(
    step: TrainStep, scan: bool, lie: Callable[[TrainState], TrainState] = lambda state: state
) -> Callable[..., tuple[TrainState, CallMetrics]]:
    """The step; or, with `scan`, a function that does it for the first `count` batches of a stack.

    `lie` says where the state lies after every step.
    """
    if not scan:
        return step

    def steps(state, key, teacher, batches, count):
        def one(state, indexed):
            i, batch = indexed
            new, metrics = step(state, key, teacher, batch)
            return lie(jax.tree.map(lambda new, old: jnp.where(i < count, new, old), new, state)), metrics

        length = len(batches["image"])
        return jax.lax.scan(one, state, (jnp.arange(length), batches))

    return steps


def _calls(
    jitted: Callable, placed: Callable, put: Callable[[Batch], Batch], scan: bool, length: int, scalar: Callable
) -> tuple[Callable, Callable]:
    """`Runner.compile` and `Runner.steps` of a jitted function, which with `scan` does so many steps at most.

    `placed` gives what stands for the state and the teacher, placed, to compile for.
    """

    def stack(batches):
        """All of them, filled up so that a short call has the same program, and how many they are."""
        filled = [*batches, *[batches[-1]] * (length - len(batches))]
        return put({name: np.stack([batch[name] for batch in filled]) for name in filled[0]}), np.int32(len(batches))

    def compile(state, key, teacher, batches):
        state, teacher = placed(state, teacher)
        # as `jitted` has it then, it need not be called with what is returned
        jitted.lower(state, key, teacher, *(stack(batches) if scan else [put(batches[0])])).compile()

    calls = itertools.count()

    def one_call(state, key, teacher, *batch):
        state, metrics = jitted(state, key, teacher, *batch)
        if next(calls) == 0:  # which has compiled the program
            jax.block_until_ready((state, metrics))
            release_memory()
        return state, jax.tree.map(scalar, metrics)

    def steps(state, key, teacher, batches):
        if scan:
            state, metrics = one_call(state, key, teacher, *stack(batches))
            return state, {name: of_steps[: len(batches)] for name, of_steps in metrics.items()}
        metrics = []
        for batch in batches:
            state, of_step = one_call(state, key, teacher, put(batch))
            metrics.append(of_step)
        return state, {name: [of_step[name] for of_step in metrics] for name in metrics[0]}

    return compile, steps


def _jit_runner(config: Any, network: Network, mesh: Mesh, scan: bool) -> Runner:
    shard = config.train.shard_state
    step = make_train_step(config, network, num_shards=mesh.size)
    split = NamedSharding(mesh, PartitionSpec(*[None] * scan, AXIS))

    def lie(state):
        """Where the state lies before and after every step, inside a scan too."""
        return jax.lax.with_sharding_constraint(state, state_shardings(state, mesh, shard=shard))

    def call(state, key, teacher, *batches):  # what holds in a scan does not hold for what comes out of it
        new, metrics = _over_batches(step, scan, lie)(state, key, teacher, *batches)
        everywhere = jax.tree.map(lambda _: replicated(mesh), metrics)
        return lie(new), jax.lax.with_sharding_constraint(metrics, everywhere)

    def put_batch(batch):
        return {name: jax.make_array_from_process_local_data(split, rows) for name, rows in batch.items()}

    def both(do, state, teacher):
        return (
            do(state, state_shardings(state, mesh, shard=shard)),
            do(teacher, teacher_shardings(teacher, mesh, shard=shard)),
        )

    jitted = jax.jit(call, donate_argnums=0, compiler_options=compiler_options())
    placed = functools.partial(both, abstract)
    calls = _calls(jitted, placed, put_batch, scan, config.train.substeps, lambda metric: metric)
    return Runner(functools.partial(both, put), *calls, lambda state: state, scan)


def _pmap_runner(config: Any, network: Network, mesh: Mesh, scan: bool) -> Runner:
    step = _over_batches(make_train_step(config, network, axis_name=AXIS), scan)
    devices, count = list(mesh.devices.flat), num_local_devices(mesh)
    jitted = jax.pmap(
        step, AXIS, in_axes=(0, None, 0, *((1, None) if scan else (0,))), devices=devices, donate_argnums=0
    )

    def put_batch(batch):
        if scan:
            return {name: rows.reshape(len(rows), count, -1, *rows.shape[2:]) for name, rows in batch.items()}
        return {name: rows.reshape(count, -1, *rows.shape[1:]) for name, rows in batch.items()}

    def place_both(state, teacher):
        return replicate((_moved_to_host(state), teacher), mesh, "pmap")

    def placed(state, teacher):  # pmap wants arrays
        shapes = jax.eval_shape(lambda *both: both, state, teacher)
        return replicate(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), mesh, "pmap")

    def collect(state):
        return jax.tree.map(lambda leaf: np.array(first_shard(leaf)), state)

    calls = _calls(jitted, placed, put_batch, scan, config.train.substeps, first_shard)
    return Runner(place_both, *calls, collect, scan)
