"""A process that times this package's network and training steps as scripts call them; see `benchmark.py`."""

import functools
import types
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from worker import product_size, relative_error, serve

from diffusion_distillation.keys import seed_key
from diffusion_distillation.methods import Rung, make_method
from diffusion_distillation.networks.model import make_model, make_network
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.runtime.cpu import set_cpu_flags, use_all_cpu_cores
from diffusion_distillation.runtime.devices import AXIS, data_mesh, map_rows, replicate
from diffusion_distillation.training.runner import Runner
from diffusion_distillation.training.step import Teacher, init_state


class Work:
    """The work that can be timed; see `worker.serve`."""

    def __init__(self, setup: dict[str, Any]):
        self.base, self.without_dropout, self.ladder = (
            ConfigDict(setup[name]) for name in ("base", "without_dropout", "ladder")
        )
        set_cpu_flags(self.base.model.dtype, training="_step" in setup.get("what", ""))
        use_all_cpu_cores(self.base.train.batch_size, self.base.train.microbatch_size)
        arrays = unflatten_dict(dict(np.load(setup["file"]).items()), sep="/")
        self.x, self.logsnr, self.out = (arrays[name] for name in ("x", "logsnr", "out"))
        self.shape, self.mesh = self.x.shape[1:], data_mesh()
        self.params = replicate(arrays["params"], self.mesh, "jit")
        self.training, self.devices, self.platform = {}, self.mesh.size, jax.default_backend()

    # Made at the first use, so that a process holds only what its work needs.

    @functools.cached_property
    def _network(self):
        network = make_network(self.base.model, self.shape, 1)
        apply = map_rows(lambda params, _, rows: network.apply({"params": params}, *rows), self.mesh, "jit")
        return functools.partial(apply, self.params, ())

    @functools.cached_property
    def _pipeline(self):
        about = types.SimpleNamespace(config=self.base, image_shape=self.shape, num_classes=1, num_steps=0)
        return Pipeline(self.params, about)

    @functools.cached_property
    def _product(self):
        size, everywhere = product_size(self.platform), NamedSharding(self.mesh, PartitionSpec(AXIS))
        matrices = np.random.default_rng(0).standard_normal((self.mesh.size, size, size), np.float32)
        matrices = jax.device_put(matrices.astype(self.base.model.dtype), everywhere)
        return functools.partial(jax.jit(lambda a: a @ a), matrices)

    def error(self) -> float:
        """The relative distance of the network's output from the expected one."""
        out = self._network((self.x, self.logsnr))
        return relative_error(out, self.out)

    def accelerator_memory(self) -> int | None:
        """Peak bytes of an accelerator's memory since the start; None if it does not report them."""
        held = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in self.mesh.local_devices]
        return None if None in held else max(held)

    def product(self, batch: int) -> None:
        """Multiply matrices on every device."""
        jax.block_until_ready(self._product())

    def forward(self, batch: int) -> None:
        """Call the network once."""
        self._network((noise(batch, *self.shape), np.linspace(-5, 5, batch, dtype=np.float32)))

    def sample(self, batch: int, num_steps: int) -> None:
        """Sample by DDIM."""
        self._pipeline.from_noise(noise(batch, *self.shape), num_steps=num_steps, batch_size=batch)

    def base_step(self, batch: int) -> int:
        """Train a base model. Returns the number of updates."""
        return self._steps(self.base, None, batch)

    def base_step_without_dropout(self, batch: int) -> int:
        """Train a base model without dropout. Returns the number of updates."""
        return self._steps(self.without_dropout, None, batch)

    def distillation_step(self, batch: int) -> int:
        """Distill. Returns the number of updates."""
        return self._steps(self.ladder, Teacher(self.params, Rung(np.int32(8), np.int32(4))), batch)

    def _steps(self, config: ConfigDict, teacher: Teacher | None, batch: int) -> int:
        kind, key = id(config), seed_key(0)
        if kind not in self.training:
            images = np.random.default_rng(0).integers(0, 256, (batch, *self.shape), np.uint8)
            method = make_method(config)
            runner = Runner(config, method, make_model(config.model, self.shape, 1), self.mesh)
            batches = [{"image": images}] * runner.call_length
            state = init_state(config, method, self.params)
            runner.compile(state, key, teacher, batches)
            state, teacher = runner.place(state, teacher)
            self.training = {kind: (runner, state, teacher, batches)}
        runner, state, teacher, batches = self.training[kind]
        state, metrics = runner.steps(state, key, teacher, batches)
        jax.block_until_ready((state, metrics))
        self.training[kind] = runner, state, teacher, batches
        return len(batches)


@functools.cache
def noise(*shape: int) -> np.ndarray:
    """Noise in the shape of images."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


if __name__ == "__main__":
    serve(Work, f"ours, JAX {jax.__version__}")
