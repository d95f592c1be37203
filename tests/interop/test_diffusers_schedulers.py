"""Models of diffusers' solvers, flow matching, EDM and consistency models: compared with its golden numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.diffusers_peer import relative
from helpers.runs import ROOT
from peers import seeded

from diffusion_distillation import interop, sampling
from diffusion_distillation.interop import diffusers
from diffusion_distillation.networks.model import eval_schedule, make_network
from diffusion_distillation.pipeline import Pipeline

GOLDEN = ROOT / "tests" / "golden"
DESCRIBED = json.loads((GOLDEN / "diffusers_schedulers.json").read_text())
models = pytest.mark.parametrize("name", DESCRIBED["models"])


def written(folder, name, **scheduler):
    """Write the folder of a model with golden numbers, with changes to its scheduler. Returns the folder."""
    model = DESCRIBED["models"][name]
    unet = DESCRIBED["unets"][model["unet"]]
    folder.mkdir(exist_ok=True)
    (folder / diffusers.UNET).write_text(json.dumps(unet["config"]))
    (folder / diffusers.SCHEDULER).write_text(json.dumps(model["scheduler"] | scheduler))
    safetensors.numpy.save_file(seeded.unet_weights(unet["shapes"]), folder / diffusers.WEIGHTS)
    return folder


def golden(name):
    arrays = np.load(GOLDEN / "diffusers_schedulers.npz")
    return {key.removeprefix(f"{name}/"): arrays[key] for key in arrays.files if key.startswith(f"{name}/")}


def numbers_of_steps(expected):
    return sorted(int(key.removeprefix("samples_")) for key in expected if key.startswith("samples_"))


def logsnr_of(sigmas, mean_type):
    """The log-SNR at diffusers' sigmas: sigma / alpha, or the times of flow matching."""
    sigmas = sigmas.astype(np.float64)
    if mean_type == "flow":
        sigmas = sigmas / np.maximum(1 - sigmas, 1e-9)
    return -2 * np.log(sigmas)


@models
def test_samplers_visit_the_times_of_diffusers(name, tmp_path):
    _, metadata = interop.load(written(tmp_path, name))
    schedule = eval_schedule(metadata.config.model)
    expected = golden(name)
    for num_steps in numbers_of_steps(expected):
        i = np.arange(num_steps)[::-1]
        t, dt = schedule.grid_time(i, num_steps), schedule.grid_step(i, num_steps)
        logsnr = logsnr_of(expected[f"sigmas_{num_steps}"][:-1], metadata.config.model.mean_type)
        np.testing.assert_allclose(schedule(t), np.maximum(logsnr, -40), atol=4e-5)
        np.testing.assert_allclose(t - dt, np.append(t[1:], 0), atol=1e-7)


@models
def test_networks_match_diffusers(name, tmp_path, optimized):
    params, metadata = interop.load(written(tmp_path, name))
    config = metadata.config.model
    expected = golden(name)
    sigmas = expected[f"sigmas_{numbers_of_steps(expected)[-1]}"][:-1]
    logsnr = logsnr_of(sigmas[[0, len(sigmas) // 2, -1]], config.mean_type).astype(np.float32)
    labels = jnp.arange(3) if metadata.num_classes > 1 else None
    network = make_network(config, metadata.image_shape, metadata.num_classes)
    x = seeded.noise(3, *metadata.image_shape[1:], seed=2)
    out = jax.jit(network.apply)({"params": params}, x, logsnr, labels)
    assert max(map(relative, out, expected["out"])) < 2e-5


@models
def test_samples_match_diffusers(name, tmp_path, optimized, monkeypatch):
    """From the same noise, with the same fresh noise at every step."""
    params, metadata = interop.load(written(tmp_path, name))
    pipeline = Pipeline(params, metadata)
    expected = golden(name)
    noise, numbers = expected["noise"], numbers_of_steps(expected)
    labels = jnp.arange(len(noise)) if metadata.num_classes > 1 else None
    sample, params = pipeline.pure_sampler()

    @jax.jit
    def run(params, z, fresh, num_steps):
        monkeypatch.setattr(sampling, "fold_in", lambda key, i: (num_steps - 1 - i).astype(jnp.uint32)[None])
        monkeypatch.setattr(sampling, "normal", lambda key, z: fresh[key[0]])
        return sample(params, z, num_steps=num_steps, key=jax.random.key(0), labels=labels)

    z = noise * start_scale(DESCRIBED["models"][name]["scheduler"], eval_schedule(metadata.config.model))
    fresh = seeded.noise(numbers[-1] * len(noise), *noise.shape[2:], seed=1).reshape(-1, *noise.shape)
    for num_steps in numbers:
        x = run(params, z, fresh, jnp.int32(num_steps))
        assert relative(x, expected[f"samples_{num_steps}"]) < 1e-4, num_steps


def start_scale(scheduler, schedule):
    """How much less noise diffusers starts with: some schedulers with a variance of sigma^2 and not 1 + sigma^2."""
    kind = scheduler["_class_name"].removesuffix("Scheduler")
    if kind == "CMStochasticIterative" or (
        kind in ("EulerDiscrete", "HeunDiscrete") and scheduler["timestep_spacing"] != "leading"
    ):
        return np.float32(np.sin(schedule.angle(1.0)))
    return np.float32(1)
