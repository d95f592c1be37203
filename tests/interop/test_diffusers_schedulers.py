"""Models of diffusers' solvers, flow matching, EDM and consistency models: compared with its golden numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.diffusers_peer import needs_peer, peer, relative
from helpers.runs import ROOT, call
from peers import seeded

from diffusion_distillation import interop, sampling
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import diffusers
from diffusion_distillation.interop.diffusers import scheduler
from diffusion_distillation.networks.model import eval_schedule, make_network
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.schedules import get_logsnr_schedule

GOLDEN = ROOT / "tests" / "golden"
DESCRIBED = json.loads((GOLDEN / "diffusers_schedulers.json").read_text())
HEAVY = dict.fromkeys(("cd_imagenet64", "ct_bedroom256"), pytest.mark.slow)
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
    (tmp_path / diffusers.SCHEDULER).write_text(json.dumps(DESCRIBED["models"][name]["scheduler"]))
    model = scheduler.settings(scheduler.read_scheduler(as_path(tmp_path))).model
    schedule = get_logsnr_schedule(**model["eval_logsnr_schedule"])
    expected = golden(name)
    for num_steps in numbers_of_steps(expected):
        i = np.arange(num_steps)[::-1]
        t, dt = schedule.grid_time(i, num_steps), schedule.grid_step(i, num_steps)
        logsnr = logsnr_of(expected[f"sigmas_{num_steps}"][:-1], model["mean_type"])
        np.testing.assert_allclose(np.maximum(schedule(t), -40), np.maximum(logsnr, -40), atol=4e-5)
        np.testing.assert_allclose(t - dt, np.append(t[1:], 0), atol=1e-7)


@pytest.mark.parametrize("name", [pytest.param(name, marks=HEAVY.get(name, ())) for name in DESCRIBED["models"]])
def test_networks_and_samples_match_diffusers(name, tmp_path, monkeypatch):
    """Outputs at three times; samples from the same noise, with the same fresh noise at every step."""
    params, metadata = interop.load(written(tmp_path, name))
    expected = golden(name)
    assert network_error(params, metadata, expected) < 2e-5
    options = DESCRIBED["models"][name]["scheduler"]
    errors = sample_errors(params, metadata, options, expected, monkeypatch)
    assert max(errors.values()) < 1e-4, errors


@needs_peer
@pytest.mark.slow
@pytest.mark.parametrize("name", ["narrow_imagenet64", "narrow_lsun256"])
def test_published_consistency_models_match_diffusers(name, tmp_path, monkeypatch, optimized):
    """The published configs with fewer channels, as diffusers saves its pipeline."""
    peer("model", f"--name={name}", f"--folder={tmp_path}", f"--out={tmp_path}/out.npz", script="diffusers_schedulers")
    params, metadata = interop.load(tmp_path)
    expected = dict(np.load(tmp_path / "out.npz"))
    assert network_error(params, metadata, expected) < 1e-4
    options = json.loads((tmp_path / "scheduler" / diffusers.SCHEDULER).read_text())
    errors = sample_errors(params, metadata, options, expected, monkeypatch)
    assert max(errors.values()) < 1e-4, errors


def network_error(params, metadata, expected):
    """The relative error of the network's outputs at the first, the middle and the last time of the most steps."""
    config = metadata.config.model
    sigmas = expected[f"sigmas_{numbers_of_steps(expected)[-1]}"][:-1]
    logsnr = logsnr_of(sigmas[[0, len(sigmas) // 2, -1]], config.mean_type).astype(np.float32)
    labels = jnp.arange(3) if metadata.num_classes > 1 else None
    network = make_network(config, metadata.image_shape, metadata.num_classes)
    x = seeded.noise(3, *metadata.image_shape[1:], seed=2)
    return max(map(relative, jax.jit(network.apply)({"params": params}, x, logsnr, labels), expected["out"]))


def sample_errors(params, metadata, options, expected, monkeypatch):
    """The relative errors of the samples, by their number of steps."""
    noise, numbers = expected["noise"], numbers_of_steps(expected)
    labels = jnp.arange(len(noise)) if metadata.num_classes > 1 else None
    sample, params = Pipeline(params, metadata).pure_sampler()

    @jax.jit
    def run(params, z, fresh, num_steps):
        monkeypatch.setattr(sampling, "fold_in", lambda key, i: (num_steps - 1 - i).astype(jnp.uint32)[None])
        monkeypatch.setattr(sampling, "normal", lambda key, z: fresh[key[0]])
        return sample(params, z, num_steps=num_steps, key=jax.random.key(0), labels=labels)

    z = noise * start_scale(options, eval_schedule(metadata.config.model))
    fresh = seeded.noise(numbers[-1] * len(noise), *noise.shape[2:], seed=1).reshape(-1, *noise.shape)
    return {n: relative(run(params, z, fresh, jnp.int32(n)), expected[f"samples_{n}"]) for n in numbers}


def start_scale(options, schedule):
    """How much less noise diffusers starts with: some schedulers with a variance of sigma^2 and not 1 + sigma^2."""
    kind = options["_class_name"].removesuffix("Scheduler")
    if kind == "CMStochasticIterative" or (
        kind in ("EulerDiscrete", "HeunDiscrete") and options["timestep_spacing"] != "leading"
    ):
        return np.float32(np.sin(schedule.angle(1.0)))
    return np.float32(1)


def test_a_consistency_model_is_a_student_in_every_script(tmp_path, monkeypatch):
    """It samples by 'renoise', in 1 step by default; its archive gives the same images."""
    monkeypatch.chdir(tmp_path)
    checkpoint = f"--checkpoint={written(tmp_path / 'model', 'consistency')}"
    call("sample", checkpoint, "--num_samples=4", "--num_steps=2", "--out=two.npz")
    call("evaluate", checkpoint, "--reference=two.npz", "--num_samples=4", "--metrics=fid", "--out=evaluation.json")
    [row] = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert (row["model"], row["sampler"], row["num_steps"]) == ("student", "renoise", 1)
    call("export", checkpoint, "--format=archive", "--out=archive")
    call("sample", "--checkpoint=archive", "--num_samples=4", "--num_steps=2", "--out=again.npz")
    np.testing.assert_array_equal(np.load("two.npz")["images"], np.load("again.npz")["images"])
    refused = call("export", checkpoint, "--format=diffusers", "--out=diffusers", fails=True)
    assert "DDIMScheduler has no prediction_type for mean_type 'consistency'" in refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "euler",
            dict(interpolation_type="log_linear"),
            r"interpolation_type='log_linear' is not supported. Supported",
        ),
        ("euler_karras", dict(timestep_spacing="leading"), "range of sigma depend on the number of steps"),
        ("euler", dict(timestep_spacing="even"), "timestep_spacing='even' is not supported"),
        ("euler", dict(use_exponential_sigmas=True), "use_exponential_sigmas=True is not supported"),
        ("heun_karras", dict(clip_sample_range=2.0), "clip_sample_range=2.0 must be 1"),
        ("dpm_solver", dict(algorithm_type="sde-dpmsolver++"), "algorithm_type='sde-dpmsolver..' is not supported"),
        ("dpm_solver", dict(solver_order=3), "solver_order=3 is not supported"),
        ("dpm_solver", dict(lambda_min_clipped=-5.1), "lambda_min_clipped=-5.1 is not supported"),
        ("flow", dict(use_dynamic_shifting=True), "use_dynamic_shifting=True is not supported"),
        ("flow", dict(num_train_timesteps=0), "num_train_timesteps=0 must be an integer of at least 1"),
        ("edm", dict(prediction_type="v_prediction"), "prediction_type='v_prediction' is not supported"),
        ("consistency", dict(s_noise=1.01), "s_noise=1.01 is not supported"),
    ],
)
def test_an_unsupported_option_is_refused(name, options, message, tmp_path):
    values = DESCRIBED["models"][name]["scheduler"] | options
    (tmp_path / diffusers.SCHEDULER).write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        scheduler.settings(scheduler.read_scheduler(as_path(tmp_path)))


def test_a_solver_made_from_a_ddpm_scheduler_keeps_its_variance_type(tmp_path):
    """Deterministic solvers ignore the variance type."""
    found = []
    for options in ({}, dict(variance_type="fixed_small")):
        values = DESCRIBED["models"]["dpm_solver"]["scheduler"] | options
        (tmp_path / diffusers.SCHEDULER).write_text(json.dumps(values))
        found.append(scheduler.settings(scheduler.read_scheduler(as_path(tmp_path))))
    assert found[0] == found[1]


@pytest.mark.parametrize("options", [dict(shift="a"), dict(shift=-1.0), dict(shift=0.0, num_train_timesteps=1)])
def test_values_that_make_no_schedule_are_refused(options, tmp_path):
    with pytest.raises(InputError, match="and its scheduler's config: "):
        interop.load(written(tmp_path, "flow", **options))
