"""A process that times the same network and steps in PyTorch; see `benchmark.py`. It runs where torch is installed."""

import functools
import math
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_networks import DEVICE, NETWORKS, Params, wait
from worker import product_size, serve

PROJECTIONS = ("q", "k", "v", "qkv")  # layers whose outputs Flax splits into heads


def read_params(path: str) -> tuple[Params, dict[str, np.ndarray]]:
    """Read the parameters of a file in PyTorch's layout, and the other arrays of the file.

    Names are paths in the Flax tree, with slashes; kernels become [out, in, height, width] and [out, in].
    """
    params, rest = {}, {}
    for name, array in np.load(path).items():
        if not name.startswith("params/"):
            rest[name] = array
            continue
        name = name.removeprefix("params/")
        layer = name.split("/")[-2]
        if name.endswith("kernel"):
            if layer in PROJECTIONS:
                array = array.reshape(array.shape[0], -1)
            elif layer == "proj_out":
                array = array.reshape(-1, array.shape[-1])
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        elif layer in PROJECTIONS:
            array = array.reshape(-1)
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        params[name] = tensor
    return params, rest


def angle(t):
    """The cosine schedule without its truncation: alpha = cos, sigma = sin."""
    return t * (math.pi / 2)


def logsnr_of(t):
    """The log-SNR."""
    return -2 * torch.log(torch.tan(angle(t).clip(1e-4, math.pi / 2 - 1e-4)))


class Work:
    """The work that can be timed; see `worker.serve`. The network predicts v; Adam trains it, with an average."""

    devices, platform = 1, {"cuda": "gpu"}.get(DEVICE.type, DEVICE.type)

    def __init__(self, setup: dict[str, Any], compiled: bool):
        self.params, self.arrays = read_params(setup["file"])
        model = setup["base"]["model"]
        network = NETWORKS[model["name"]](model["args"])
        self.apply = torch.compile(network) if compiled else network
        self.in_bfloat16 = model["dtype"] == "bfloat16"
        size = product_size(self.platform)
        self.matrix = torch.randn(size, size, device=DEVICE).to(torch.bfloat16 if self.in_bfloat16 else torch.float32)
        self.steps = 1 if DEVICE.type == "cpu" else setup["base"]["train"]["substeps"]  # of training, in a call
        self.student = {name: value.clone().requires_grad_() for name, value in self.params.items()}
        self.average = [value.clone() for value in self.params.values()]
        self.optimizer = torch.optim.Adam(self.student.values(), lr=1e-5, fused=True)

    def call(self, params: Params, z: Tensor, t: Tensor, *, train: bool = False) -> Tensor:
        """v, in float32."""
        return self.raw(params, z, logsnr_of(t), train=train).float()

    def raw(self, params: Params, z: Tensor, logsnr: Tensor, *, train: bool = False) -> Tensor:
        """The network's output."""
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=self.in_bfloat16):
            return self.apply(params, z, logsnr, train=train)

    def error(self) -> float:
        """The relative distance of the network's output from the expected one."""
        x, logsnr, out = (torch.from_numpy(self.arrays[name]).to(DEVICE) for name in ("x", "logsnr", "out"))
        with torch.no_grad():
            got = self.raw(self.params, x.permute(0, 3, 1, 2), logsnr).permute(0, 2, 3, 1)
        return ((got - out).norm() / out.norm()).item()

    def accelerator_memory(self) -> int:
        """Peak bytes of the accelerator's memory since the start."""
        return torch.accelerator.max_memory_allocated()

    def images(self, batch: int) -> Tensor:
        """Noise in the shape of images."""
        _, height, width, channels = self.arrays["x"].shape
        return torch.randn(batch, channels, height, width, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def product(self, batch: int) -> None:
        """Multiply two matrices."""
        self.matrix @ self.matrix
        wait()

    @torch.no_grad()
    def forward(self, batch: int) -> None:
        """Call the network once."""
        self.call(self.params, self.images(batch), torch.rand(batch, device=DEVICE))
        wait()

    @torch.no_grad()
    def sample(self, batch: int, num_steps: int) -> None:
        """Sample by DDIM."""
        z = self.images(batch)
        for i in range(num_steps, 0, -1):
            t, s = (torch.full((batch,), float(j / num_steps), device=DEVICE) for j in (i, i - 1))
            z = step(z, self.call(self.params, z, t), t, s)
        wait()

    def base_step(self, batch: int) -> int:
        """Train a base model. Returns the number of updates."""
        return self._base_steps(batch, dropout=True)

    def base_step_without_dropout(self, batch: int) -> int:
        """Train a base model without dropout. Returns the number of updates."""
        return self._base_steps(batch, dropout=False)

    def _base_steps(self, batch: int, *, dropout: bool) -> int:
        for _ in range(self.steps):
            x, eps, t = self.images(batch), self.images(batch), torch.rand(batch, device=DEVICE)
            self.update(x, eps, t, cos(t) * eps - sin(t) * x, train=dropout)
        wait()
        return self.steps

    def distillation_step(self, batch: int) -> int:
        """Distill two teacher steps into one, without dropout. Returns the number of updates."""
        for _ in range(self.steps):
            x, eps, t = self.images(batch), self.images(batch), 0.5 + 0.5 * torch.rand(batch, device=DEVICE)
            z = cos(t) * x + sin(t) * eps
            with torch.no_grad():
                half = step(z, self.call(self.params, z, t), t, t - 0.05)
                end = step(half, self.call(self.params, half, t - 0.05), t - 0.05, t - 0.1)
                ratio = sin(t - 0.1) / sin(t)
                target = (end - ratio * z) / (cos(t - 0.1) - ratio * cos(t))
                eps = (z - cos(t) * target) / sin(t)
            self.update(target, eps, t, cos(t) * eps - sin(t) * target, train=False)
        wait()
        return self.steps

    def update(self, x: Tensor, eps: Tensor, t: Tensor, target: Tensor, *, train: bool) -> None:
        """Do one update: gradient, clipping, Adam, average."""
        self.optimizer.zero_grad(set_to_none=True)
        v = self.call(self.student, cos(t) * x + sin(t) * eps, t, train=train)
        (v - target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.student.values(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [value.detach() for value in self.student.values()], 1e-4)


def cos(t):
    """Alpha at time t, broadcast to images."""
    return torch.cos(angle(t))[:, None, None, None]


def sin(t):
    """Sigma at time t, broadcast to images."""
    return torch.sin(angle(t))[:, None, None, None]


def step(z, v, t, s):
    """Take one DDIM step from t to s."""
    return torch.cos(angle(t - s))[:, None, None, None] * z - torch.sin(angle(t - s))[:, None, None, None] * v


if __name__ == "__main__":
    compiled = "--compile" in sys.argv
    name = f"torch {torch.__version__}{', compiled' if compiled else ''}"
    serve(functools.partial(Work, compiled=compiled), name)
