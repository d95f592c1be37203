"""A process that times diffusers' autoencoder; see `autoencoder.py`. It runs where torch and diffusers are."""

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch_networks import DEVICE, wait
from worker import relative_error, serve


class Work:
    """The work that can be timed; see `worker.serve`."""

    devices, platform = 1, {"cuda": "gpu"}.get(DEVICE.type, DEVICE.type)

    def __init__(self, setup: dict[str, Any], compiled: bool):
        self.dtype = getattr(torch, setup["dtype"])
        network = AutoencoderKL.from_pretrained(setup["folder"], torch_dtype=self.dtype, low_cpu_mem_usage=False).eval()
        network = network.to(DEVICE, memory_format=torch.channels_last)
        self._encoder, self._decoder = network.encode, network.decode
        if compiled:
            self._encoder, self._decoder = torch.compile(self._encoder), torch.compile(self._decoder)
        self._expected = np.load(Path(setup["folder"]) / "expected.npz")
        self._image, self._latent = (self._tensor(self._expected[name]) for name in ("image", "mean"))

    def _tensor(self, array: np.ndarray) -> Tensor:
        """An array with channels last as PyTorch has images."""
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2).to(DEVICE, self.dtype)
        return tensor.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def error(self) -> float:
        """The largest relative distance of a result from the expected one."""
        latent = self._encoder(self._image).latent_dist
        found = {"mean": latent.mean, "std": latent.std, "decoded": self._decoder(self._latent).sample}
        arrays = {name: tensor.permute(0, 2, 3, 1).float().cpu().numpy() for name, tensor in found.items()}
        return max(relative_error(array, self._expected[name]) for name, array in arrays.items())

    def accelerator_memory(self) -> int:
        """Peak bytes of the accelerator's memory since the start."""
        return torch.accelerator.max_memory_allocated()

    @torch.no_grad()
    def encode(self, batch: int) -> None:
        """Encode images."""
        self._encoder(self._image.expand(batch, -1, -1, -1))
        wait()

    @torch.no_grad()
    def decode(self, batch: int) -> None:
        """Decode latents."""
        self._decoder(self._latent.expand(batch, -1, -1, -1))
        wait()


if __name__ == "__main__":
    compiled = "--compile" in sys.argv
    name = f"diffusers, torch {torch.__version__}{', compiled' if compiled else ''}"
    serve(functools.partial(Work, compiled=compiled), name)
