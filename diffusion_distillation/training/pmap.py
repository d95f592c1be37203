"""The training step by `jax.pmap`: one program per device, for `config.train.parallel = 'pmap'`."""

from typing import Any

import jax
import numpy as np

from ..runtime.devices import AXIS, first_shard, num_local_devices, replicate
from .packing import pack_state, unpack
from .runner import Runner, move_to_host
from .step import Metrics, Teacher, TrainingBatch, TrainState, cast


class PmapRunner(Runner):
    """A `Runner` whose arrays have a leading axis of devices. Every device holds the whole state and teacher."""

    axis_name = AXIS

    def place(self, state: TrainState, teacher: Teacher | None) -> tuple[TrainState, Teacher | None]:
        """See `Runner.place`."""
        state = move_to_host(state, pack_state) if self._packs else move_to_host(state)
        return replicate((state, cast(teacher)), self._mesh, "pmap")

    def collect(self, tree: Any) -> Any:
        """See `Runner.collect`."""
        return unpack(jax.tree.map(lambda leaf: np.array(first_shard(leaf)), tree))

    def _make_program(self, call: Any) -> Any:
        batch_axes = (1, None) if self._scans else (0,)
        devices = list(self._mesh.devices.flat)
        return jax.pmap(call, AXIS, in_axes=(0, None, 0, *batch_axes), devices=devices, donate_argnums=0)

    def _constrain(self, state: TrainState, metrics: Metrics) -> tuple[TrainState, Metrics]:
        return state, metrics

    def _like_placed(self, state: TrainState, teacher: Teacher | None) -> tuple[TrainState, Teacher | None]:
        shapes = jax.eval_shape(lambda state, teacher: (state, cast(teacher)), state, teacher)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)  # pmap lowers for arrays only
        return replicate(zeros, self._mesh, "pmap")

    def _put(self, batch: TrainingBatch) -> TrainingBatch:
        axis = int(self._scans)

        def divide(rows):
            return rows.reshape(*rows.shape[:axis], num_local_devices(self._mesh), -1, *rows.shape[axis + 1 :])

        return {name: divide(rows) for name, rows in batch.items()}

    def _to_scalars(self, metrics: Metrics) -> Metrics:
        return jax.tree.map(first_shard, metrics)
