"""A process that times this package's autoencoder; see `autoencoder.py`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from worker import relative_error, serve

from diffusion_distillation.interop import load_autoencoder
from diffusion_distillation.runtime.cpu import set_cpu_flags, use_all_cpu_cores


class Work:
    """The work that can be timed; see `worker.serve`."""

    def __init__(self, setup: dict[str, Any]):
        set_cpu_flags(setup["dtype"], training=False)
        use_all_cpu_cores(1)
        self._encode, self._decode, _ = load_autoencoder(setup["folder"], dtype=setup["dtype"])
        self._expected = np.load(Path(setup["folder"]) / "expected.npz")
        self.devices, self.platform = jax.local_device_count(), jax.default_backend()

    def error(self) -> float:
        """The largest relative distance of a result from the expected one."""
        mean, std = self._encode(self._expected["image"])
        found = {"mean": mean, "std": std, "decoded": self._decode(self._expected["mean"])}
        return max(relative_error(array, self._expected[name]) for name, array in found.items())

    def accelerator_memory(self) -> int | None:
        """Peak bytes of an accelerator's memory since the start; None if it does not report them."""
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def encode(self, batch: int) -> None:
        """Encode images."""
        jax.block_until_ready(self._encode(np.repeat(self._expected["image"], batch, axis=0)))

    def decode(self, batch: int) -> None:
        """Decode latents."""
        jax.block_until_ready(self._decode(np.repeat(self._expected["mean"], batch, axis=0)))


if __name__ == "__main__":
    serve(Work, f"ours, JAX {jax.__version__}")
