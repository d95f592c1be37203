"""Samples of diffusers' networks, with seeded weights, by its solvers and its consistency models.

    .venv-peer/bin/python tests/peers/diffusers_schedulers.py golden
    .venv-peer/bin/python tests/peers/diffusers_schedulers.py model --name=imagenet64 --folder=f --out=out.npz

`golden` writes the golden numbers of SMALL_MODELS. `model` writes the folder of a consistency model among MODELS, and
its samples. All arrays have channels last.
"""

import argparse
import json
import warnings
from pathlib import Path

import diffusers
import numpy as np
import seeded
import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
from diffusers.schedulers import scheduling_consistency_models, scheduling_flow_match_euler_discrete
from diffusers_peer import GOLDEN, SMALL, call

# The networks of the published consistency models: openai/diffusers-cd_imagenet64_*, and *_bedroom256_*, *_cat256_*.
IMAGENET64 = dict(
    sample_size=64, layers_per_block=3, num_class_embeds=1000, block_out_channels=[192, 384, 576, 768],
    attention_head_dim=64, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=32,
    down_block_types=["ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    up_block_types=["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    upsample_type="resnet", downsample_type="resnet",
)  # fmt: skip
LSUN256 = dict(
    sample_size=256, layers_per_block=2, block_out_channels=[256, 256, 512, 512, 1024, 1024], attention_head_dim=64,
    down_block_types=["ResnetDownsampleBlock2D"] * 3 + ["AttnDownBlock2D"] * 3,
    up_block_types=["AttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"] * 3,
    resnet_time_scale_shift="default", upsample_type="resnet", downsample_type="resnet",
)  # fmt: skip
CONSISTENCY = dict(
    _class_name="CMStochasticIterativeScheduler", num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0
)
SLIM = dict(norm_num_groups=8, attention_head_dim=16)
EULER = dict(_class_name="EulerDiscreteScheduler", beta_schedule="scaled_linear", beta_end=0.012)
HEUN = dict(_class_name="HeunDiscreteScheduler")
DPM_SOLVER = dict(_class_name="DPMSolverMultistepScheduler")
FLOW = dict(_class_name="FlowMatchEulerDiscreteScheduler")
SMALL_UNETS = {
    "small": SMALL,
    "classes": SMALL | dict(num_class_embeds=3),
    "small_imagenet64": IMAGENET64 | SLIM | dict(
        sample_size=16, layers_per_block=1, block_out_channels=[16, 32, 48, 64], attn_norm_num_groups=8
    ),
    "small_lsun256": LSUN256 | SLIM | dict(
        sample_size=32, layers_per_block=1, block_out_channels=[16, 16, 32, 32, 64, 64]
    ),
}  # fmt: skip
UNETS = SMALL_UNETS | {
    "imagenet64": IMAGENET64,
    "narrow_imagenet64": IMAGENET64 | dict(block_out_channels=[64, 128, 192, 256]),
    "narrow_lsun256": LSUN256
    | dict(sample_size=64, block_out_channels=[32, 32, 64, 64, 128, 128], attention_head_dim=32),
}
# The network, the scheduler and the numbers of steps of each model.
SMALL_MODELS = {
    "consistency": ("classes", CONSISTENCY, (1, 2, 4, 20)),
    "cd_imagenet64": ("small_imagenet64", CONSISTENCY, (1, 2, 4)),
    "ct_bedroom256": ("small_lsun256", CONSISTENCY | dict(num_train_timesteps=151), (1, 2, 4)),
    "euler": ("small", EULER, (10,)),
    "euler_leading": (
        "small", EULER | dict(timestep_spacing="leading", steps_offset=1, prediction_type="sample"), (7,)
    ),
    "euler_karras": ("small", EULER | dict(use_karras_sigmas=True, prediction_type="v_prediction"), (5,)),
    "heun": ("small", HEUN, (10,)),
    "heun_karras": ("small", HEUN | dict(use_karras_sigmas=True, clip_sample=True), (5,)),
    "dpm_solver": ("small", DPM_SOLVER | dict(prediction_type="v_prediction"), (9,)),
    "dpm_solver_leading": (
        "small", DPM_SOLVER | dict(timestep_spacing="leading", prediction_type="v_prediction"), (7,)
    ),
    "dpm_solver_trailing": (
        "small", DPM_SOLVER | dict(timestep_spacing="trailing", solver_order=1, prediction_type="sample"), (5,)
    ),
    "flow": ("small", FLOW, (1, 5)),
    "flow_shifted": ("small", FLOW | dict(shift=3.0, num_train_timesteps=500), (1, 5)),
    "flow_stochastic": ("classes", FLOW | dict(stochastic_sampling=True), (4,)),
    "edm": ("small", dict(_class_name="EDMEulerScheduler", sigma_data=0.4, sigma_max=60.0, rho=6.0), (5,)),
}  # fmt: skip
MODELS = SMALL_MODELS | {
    "narrow_imagenet64": ("narrow_imagenet64", CONSISTENCY, (1, 2)),
    "narrow_lsun256": ("narrow_lsun256", CONSISTENCY, (1,)),
    "imagenet64": ("imagenet64", CONSISTENCY, (1,)),
}


def build(name):
    """The network, with seeded weights, and the scheduler of one of MODELS."""
    unet, scheduler, _ = MODELS[name]
    network = UNet2DModel(**UNETS[unet]).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(array) for key, array in seeded.unet_weights(shapes).items()})
    kind = getattr(diffusers, scheduler["_class_name"])
    return network, kind(**{key: value for key, value in scheduler.items() if key != "_class_name"}), shapes


def outputs(name, network, scheduler, batch=2):
    """Samples from the same noise, the sigmas of the steps, and the network's outputs at three of the steps' times."""
    shape = network.config.sample_size, network.config.in_channels
    arrays = {"noise": seeded.noise(batch, *shape)}
    for num_steps in MODELS[name][2]:
        fresh = seeded.noise(num_steps * batch, *shape, seed=1).reshape(num_steps, batch, *arrays["noise"].shape[1:])
        arrays[f"samples_{num_steps}"] = sample(network, scheduler, arrays["noise"], fresh, num_steps)
        arrays[f"sigmas_{num_steps}"] = without_repeats(scheduler.sigmas.numpy())
    times = without_repeats(scheduler.timesteps.numpy())
    times = times[[0, len(times) // 2, -1]].astype(np.float32)
    labels = np.arange(3) if network.config.num_class_embeds else None
    return arrays | {"out": call(network, seeded.noise(3, *shape, seed=2), times, labels)}


def without_repeats(array):
    """Heun's method visits each time but the first twice."""
    return array[np.flatnonzero(np.diff(array, prepend=np.inf))]


def sample(network, scheduler, noise, fresh, num_steps):
    """Samples in this number of steps, with the fresh noise of each step."""
    added = iter(torch.from_numpy(fresh))
    scheduling_consistency_models.randn_tensor = lambda *_, **__: next(added).permute(0, 3, 1, 2)
    scheduling_flow_match_euler_discrete.randn_tensor = lambda *_, **__: next(added)
    labels = np.arange(len(noise)) if network.config.num_class_embeds else None
    if isinstance(scheduler, CMStochasticIterativeScheduler):
        pipeline = ConsistencyModelPipeline(network, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        latents = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
        options = {} if labels is None else {"class_labels": labels.tolist()}
        options |= dict(num_inference_steps=num_steps, latents=latents, output_type="np")
        return 2 * pipeline(len(noise), **options).images - 1
    scheduler.set_timesteps(num_steps)
    z = noise * np.float32(getattr(scheduler, "init_noise_sigma", 1.0))
    for t in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", lambda z, _: z)
        out = call(network, scale(torch.from_numpy(z), t).numpy(), np.full(len(z), t, np.float32), labels)
        z = scheduler.step(torch.from_numpy(out.copy()), t, torch.from_numpy(z)).prev_sample.numpy()
    return z


def save(name, folder):
    """Write the pipeline of a consistency model. Returns what `build` does."""
    network, scheduler, shapes = build(name)
    ConsistencyModelPipeline(network, scheduler).save_pretrained(folder)
    return network, scheduler, shapes


def write_golden():
    """Write the golden numbers: configs and shapes in JSON, samples in NumPy's format."""
    described, arrays = {"unets": {}, "models": {}}, {}
    for name, (unet, *_) in SMALL_MODELS.items():
        network, scheduler, shapes = build(name)
        config, options = (json.loads(part.to_json_string()) for part in (network, scheduler))
        described["unets"][unet] = dict(config=config, shapes=shapes)
        described["models"][name] = dict(unet=unet, scheduler=options)
        arrays |= {f"{name}/{key}": array for key, array in outputs(name, network, scheduler).items()}
    text = json.dumps(described, separators=(",", ":"))
    (GOLDEN / "diffusers_schedulers.json").write_text(text.replace('},"', '},\n"') + "\n")
    np.savez_compressed(GOLDEN / "diffusers_schedulers.npz", **arrays)


def main():
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["golden", "model"])
    parser.add_argument("--name", choices=MODELS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # of several, on busy cores, each waits for the others
    if args.what == "golden":
        return write_golden()
    network, scheduler, _ = save(args.name, args.folder)
    np.savez(args.out, **outputs(args.name, network, scheduler))


if __name__ == "__main__":
    main()
