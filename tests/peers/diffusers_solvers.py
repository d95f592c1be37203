"""Samples by diffusers' schedulers from the same noise, by `seeded.pixel_network`: the golden numbers of our solvers.

.venv-peer/bin/python tests/peers/diffusers_solvers.py
"""

from pathlib import Path

import numpy as np
import seeded
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NOISE = seeded.noise(4, 4, 2)
KARRAS = {"ddim": EulerDiscreteScheduler, "heun": HeunDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}


def flow(num_steps, shift):
    """Samples of a network that predicts eps - x, on the times (i + 1) / num_steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[(i + 1) / num_steps for i in reversed(range(num_steps))])
    z = torch.from_numpy(NOISE)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        out = torch.from_numpy(seeded.pixel_network(z.numpy(), sigma.item()))
        z = scheduler.step(out, t, z).prev_sample
    return z.numpy()


def karras(scheduler, num_steps):
    """The grid's sigmas, and samples of a network that predicts eps."""
    scheduler = scheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", use_karras_sigmas=True)
    scheduler.set_timesteps(num_steps)
    sigmas = scheduler.sigmas
    z = torch.from_numpy(NOISE)
    if not isinstance(scheduler, DPMSolverMultistepScheduler):  # whose samples are z, of variance 1
        z = z * torch.sqrt(1 + sigmas[0] ** 2)
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(z, t).numpy()
        out = seeded.pixel_network(scaled, (sigmas[i] / (1 + sigmas[i])).item())
        z = scheduler.step(torch.from_numpy(out), t, z).prev_sample
    return np.unique(sigmas.numpy())[::-1], z.numpy()


def main():
    """Write tests/golden/solvers.npz."""
    arrays = {"noise": NOISE}
    for num_steps in (1, 2, 5, 12):
        for shift in (1, 3):
            arrays[f"flow_{shift}_{num_steps}"] = flow(num_steps, shift)
    for name, scheduler in KARRAS.items():
        for num_steps in (6, 12):
            arrays[f"sigmas_{num_steps}"], arrays[f"{name}_{num_steps}"] = karras(scheduler, num_steps)
    np.savez_compressed(GOLDEN / "solvers.npz", **arrays)


if __name__ == "__main__":
    main()
