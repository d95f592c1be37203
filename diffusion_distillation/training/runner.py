"""The training step on many devices: one program over a mesh of all of them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..latents import Space
from ..methods import Method
from ..networks.model import Model
from ..networks.sharded import sharded
from ..runtime.cpu import compiler_options, release_memory
from ..runtime.devices import AXIS, AnyMesh, abstract, put, replicated, shares, to_host
from ..shapes import Array, Params
from .packing import is_packed, pack, pack_state, unpack, unpack_for_networks
from .step import (
    Metrics,
    Teacher,
    TrainingBatch,
    TrainState,
    cast,
    init_state,
    make_train_step,
    num_rows,
    trains_embedding_only,
)

CallMetrics = dict[str, Array | list[Array]]  # one entry per update of a call: stacked by the devices, or a list


class Runner:
    """The training step of a config, compiled for a mesh of devices.

    A call does one update; or, on accelerators, up to `train.substeps` updates in one program. On CPU and GPU, the
    devices hold packed parameters (`packing`), unless they divide the state or only some parameters are trained.

    Attributes:
      method: the training objective.
      call_length: the largest number of updates in a call.

    Args:
      config: resolved.
      method: the training objective.
      model: the model to train.
      mesh: from `data_mesh`.
      space: what is diffused; None for pixels.
      scan: do the updates of a call in one program. By default on accelerators only: XLA's CPU backend computes the
        gradients of convolutions inside a loop many times slower than outside of it. The result is the same.
    """

    axis_name = None

    def __init__(
        self,
        config: Any,
        method: Method,
        model: Model,
        mesh: Mesh,
        *,
        space: Space | None = None,
        scan: bool | None = None,
    ):
        self.method = method
        self._scans = jax.default_backend() != "cpu" if scan is None else scan
        self.call_length = config.train.substeps if self._scans else 1
        self._mesh = mesh
        self._shard = config.train.shard
        is_whole = self._shard == "none"
        self._packs = jax.default_backend() in ("cpu", "gpu") and is_whole and not trains_embedding_only(config)
        shards = {"axis_name": self.axis_name} if self.axis_name else {"num_shards": mesh.size}
        self._step = make_train_step(config, method, self._placed_model(model), space=space, **shards)
        self._program = self._make_program(self._updates if self._scans else self._update)

    def place(self, state: TrainState, teacher: Teacher | None) -> tuple[TrainState, Teacher | None]:
        """Put a state and a teacher on the devices, in the form that `steps` takes.

        The state is consumed, and so is a divided teacher that changes its type: devices hold them once.
        """
        if self._packs:
            state = move_to_host(state, pack_state)
        evaluated = self._as_evaluated(teacher)
        if self._shard == "all":
            delete(teacher, but=evaluated)
        return (
            put(state, state_shardings(state, self._mesh, self._shard)),
            put(evaluated, teacher_shardings(evaluated, self._mesh, self._shard)),
        )

    def compile(
        self, state: TrainState, key: jax.Array, teacher: Teacher | None, batches: Sequence[TrainingBatch]
    ) -> None:
        """Compile `steps` before the devices hold anything.

        `steps` would compile too, but then the compiler's memory and the activations would be in use at the same time.

        Args:
          state: a state for `place`; its shapes suffice.
          key: see `steps`.
          teacher: a teacher for `place`; its shapes suffice.
          batches: see `steps`.
        """
        self.lower(state, key, teacher, batches).compile()  # JAX caches the program, and `_program` finds it there
        release_memory()

    def lower(
        self, state: TrainState, key: jax.Array, teacher: Teacher | None, batches: Sequence[TrainingBatch]
    ) -> jax.stages.Lowered:
        """Lower the program of `steps`, with the arguments of `compile`."""
        if self._packs:
            state = jax.eval_shape(functools.partial(pack_state, xp=jnp), state)
        state, teacher = self._like_placed(state, teacher)
        return self._program.lower(state, key, teacher, *self._put_call(batches))

    def steps(
        self, state: TrainState, key: jax.Array, teacher: Teacher | None, batches: Sequence[TrainingBatch]
    ) -> tuple[TrainState, CallMetrics]:
        """Do one update per batch. The state is consumed.

        Args:
          state: from `place` or `steps`.
          key: the run's, `seed_key(seed)`.
          teacher: from `place`.
          batches: this process's rows of each batch, NumPy arrays; `call_length` batches at most if the updates of a
            call are one program.

        Returns:
          The state after the updates, and their metrics, one entry per update.
        """
        if self._scans:
            state, metrics = self._program(state, key, teacher, *self._put_call(batches))
            return state, {name: values[: len(batches)] for name, values in self._to_scalars(metrics).items()}
        per_update = []
        for batch in batches:
            state, metrics = self._program(state, key, teacher, self._put(batch))
            per_update.append(self._to_scalars(metrics))
        return state, {name: [metrics[name] for metrics in per_update] for name in per_update[0]}

    def collect(self, tree: Any) -> Any:
        """Return a state, or a part of it, in the form that checkpoints have.

        The result has arrays that span all devices; or, if the devices hold another form, copies on the host, so that
        no device holds both forms.
        """
        return unpack(to_host(tree)) if self._packs else tree

    # The compiled program.

    def _make_program(self, call: Any) -> Any:
        return jax.jit(call, donate_argnums=0, compiler_options=compiler_options())

    def _update(
        self, state: TrainState, key: jax.Array, teacher: Teacher | None, batch: TrainingBatch
    ) -> tuple[TrainState, Metrics]:
        """One update."""
        loss, grads = self._step.gradients(unpack_for_networks(state), key, teacher, batch)
        state, metrics = self._step.update(state, loss, pack(grads) if is_packed(state.params) else grads)
        return self._constrain(state, metrics)

    def _updates(
        self, state: TrainState, key: jax.Array, teacher: Teacher | None, batches: TrainingBatch, count: Array
    ) -> tuple[TrainState, Metrics]:
        """An update for each of the first `count` batches of a stack."""

        def update_if_counted(state, indexed):
            i, batch = indexed
            new, metrics = self._update(state, key, teacher, batch)
            return jax.tree.map(lambda new, old: jnp.where(i < count, new, old), new, state), metrics

        length = num_rows(batches)
        state, metrics = jax.lax.scan(update_if_counted, state, (jnp.arange(length), batches))
        return self._constrain(state, metrics)  # constraints inside a scan do not hold for its results

    def _constrain(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        """Keep a state where `place` puts it, and metrics on every device."""
        shardings = (
            state_shardings(state, self._mesh, self._shard),
            jax.tree.map(lambda _: replicated(self._mesh), metrics),
        )
        return jax.lax.with_sharding_constraint((state, metrics), shardings)

    def _placed_model(self, model: Model) -> Model:
        """A model for parameters as the devices hold them."""
        return sharded(model, self._mesh) if self._shard == "all" else model

    # The program's arguments.

    def _as_evaluated(self, teacher: Teacher | None) -> Teacher | None:
        """A teacher as the program takes it."""
        if teacher is None or teacher.model is None:
            return cast(teacher)
        return cast(teacher).replace(model=self._placed_model(teacher.model))

    def _like_placed(self, state: TrainState, teacher: Teacher | None) -> tuple[TrainState, Teacher | None]:
        """The shapes and shardings of the placed state and teacher."""
        teacher = jax.eval_shape(self._as_evaluated, teacher)
        return (
            abstract(state, state_shardings(state, self._mesh, self._shard)),
            abstract(teacher, teacher_shardings(teacher, self._mesh, self._shard)),
        )

    def _put_call(self, batches: Sequence[TrainingBatch]) -> tuple[Any, ...]:
        """The batches of a call on the devices, as arguments of the program.

        A short call uses the program of a full one: it is filled up with its last batch, and the count of batches is
        an argument.
        """
        if not self._scans:
            return (self._put(batches[0]),)
        filled = [*batches, *[batches[-1]] * (self.call_length - len(batches))]
        stack = {name: np.stack([batch[name] for batch in filled]) for name in filled[0]}
        return self._put(stack), np.int32(len(batches))

    def _put(self, batch: TrainingBatch) -> TrainingBatch:
        """A batch, or a stack of them, divided among the devices."""
        divided = NamedSharding(self._mesh, PartitionSpec(*[None] * self._scans, AXIS))
        return {name: jax.make_array_from_process_local_data(divided, rows) for name, rows in batch.items()}

    def _to_scalars(self, metrics: Metrics) -> Metrics:
        """Metrics as the devices return them, one value per update."""
        return metrics


def move_to_host(state: TrainState, change: Callable[[TrainState], TrainState] = lambda state: state) -> TrainState:
    """Apply a change to a state and return it as NumPy arrays. The state's device arrays are deleted."""
    on_host = to_host(change(state))
    delete(state)
    return on_host


def delete(tree: Any, *, but: Any = ()) -> None:
    """Free the device arrays of a tree, except for those that are in another tree too."""
    kept = {id(leaf) for leaf in jax.tree.leaves(but)}
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and id(leaf) not in kept:
            leaf.delete()


def begin(config: Any, method: Method, params: Params, mesh: Mesh) -> TrainState:
    """Make the state before the first update, directly with its shardings: no device ever holds more than its share."""
    make = functools.partial(init_state, config, method)
    shardings = state_shardings(jax.eval_shape(make, params), mesh, config.train.shard)
    return jax.jit(make, out_shardings=shardings)(put(params, shardings.params))


def state_shardings(state: TrainState, mesh: AnyMesh, shard: str) -> TrainState:
    """The sharding of each array of a state.

    Args:
      state: the state, or its shapes.
      mesh: the devices.
      shard: `train.shard`. With 'state', all but the parameters are divided among the devices; with 'all', everything.
    """
    everywhere = jax.tree.map(lambda _: replicated(mesh), state)
    if shard == "none":
        return everywhere
    divided = shares(state, mesh)
    return divided if shard == "all" else divided._replace(params=everywhere.params)


def teacher_shardings(teacher: Teacher | None, mesh: AnyMesh, shard: str) -> Teacher | None:
    """The sharding of each array of the teacher: replicated; if anything is divided, divided. See `state_shardings`."""
    return shares(teacher, mesh) if shard != "none" else jax.tree.map(lambda _: replicated(mesh), teacher)
