"""A process that times this package's network and steps, called as the scripts call them; see `benchmark.py`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from worker import PRODUCT, serve

from diffusion_distillation.checkpoints import Metadata
from diffusion_distillation.devices import AXIS, data_mesh, hold, set_cpu_flags, spread, use_all_cpu_cores
from diffusion_distillation.methods import Rung
from diffusion_distillation.model import make_network
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.training.parallel import make_runner
from diffusion_distillation.training.step import Teacher, init_state, run_key


class Work:
    """What is timed."""

    def __init__(self, setup: dict[str, Any]):
        self.base, self.ladder = ConfigDict(setup["base"]), ConfigDict(setup["ladder"])
        set_cpu_flags(self.base.model.dtype)
        use_all_cpu_cores(self.base.train.batch_size)
        given = unflatten_dict(dict(np.load(setup["file"]).items()), sep="/")
        self.x, self.logsnr, self.out = (given[name] for name in ("x", "logsnr", "out"))
        self.shape, self.mesh = self.x.shape[1:], data_mesh()
        self.params = hold(given["params"], self.mesh, "jit")
        self.training, self.devices, self.platform = {}, self.mesh.size, jax.default_backend()

    # Made when first used: a process has what its work needs.

    @functools.cached_property
    def _network(self):
        network = make_network(self.base.model, self.shape, 1)
        apply = spread(lambda params, _, rows: network.apply({"params": params}, *rows), self.mesh, "jit")
        return functools.partial(apply, self.params, ())

    @functools.cached_property
    def _pipeline(self):
        return Pipeline(self.params, Metadata(self.base, self.shape, 1, 0))

    @functools.cached_property
    def _product(self):
        dtype, everywhere = jnp.dtype(self.base.model.dtype), NamedSharding(self.mesh, PartitionSpec(AXIS))
        matrices = jax.device_put(jnp.ones((self.mesh.size, PRODUCT, PRODUCT), dtype), everywhere)
        return functools.partial(jax.jit(lambda a: a @ a), matrices)

    def error(self) -> float:
        """How far the output is from the one given, relative to its size."""
        out = self._network((self.x, self.logsnr))
        return float(np.linalg.norm(out - self.out) / np.linalg.norm(self.out))

    def noise(self, batch: int) -> np.ndarray:
        """Images of noise."""
        return np.random.default_rng(0).standard_normal((batch, *self.shape), np.float32)

    def product(self, batch: int) -> None:
        """A matrix product on every device."""
        jax.block_until_ready(self._product())

    def forward(self, batch: int) -> None:
        """One call of the network."""
        self._network((self.noise(batch), np.linspace(-5, 5, batch, dtype=np.float32)))

    def sample(self, batch: int, num_steps: int) -> None:
        """DDIM."""
        self._pipeline.from_noise(self.noise(batch), num_steps=num_steps, batch_size=batch)

    def base_step(self, batch: int) -> None:
        """A step of base training."""
        self._step(self.base, None, batch)

    def distillation_step(self, batch: int) -> None:
        """A step of distillation."""
        self._step(self.ladder, Teacher(self.params, Rung(np.int32(8), np.int32(4))), batch)

    def _step(self, config: ConfigDict, teacher: Teacher | None, batch: int) -> None:
        key, images = run_key(0), np.random.default_rng(0).integers(0, 256, (batch, *self.shape), np.uint8)
        batches = [{"image": images}]
        kind = teacher is None
        if kind not in self.training:
            runner = make_runner(config, make_network(config.model, self.shape, 1), self.mesh, scan=False)
            state, teacher = runner.place(init_state(config, self.params), teacher)
            runner.compile(state, key, teacher, batches)
            self.training = {kind: (runner, state, teacher)}
        runner, state, teacher = self.training[kind]
        state, metrics = runner.steps(state, key, teacher, batches)
        jax.block_until_ready((state, metrics))
        self.training[kind] = runner, state, teacher


if __name__ == "__main__":
    serve(Work, f"ours, JAX {jax.__version__}")
