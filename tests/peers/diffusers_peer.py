"""Run diffusers on its own models with seeded weights, and on models that this package has written.

It needs the environment of `make peer`. The tests run it. To write the golden numbers again, run:

    .venv-peer/bin/python tests/peers/diffusers_peer.py golden
    .venv-peer/bin/python tests/peers/diffusers_peer.py model --name=heads --folder=heads --out=heads.npz
    .venv-peer/bin/python tests/peers/diffusers_peer.py train --folder=trained --images=in.npz --updates=200
    .venv-peer/bin/python tests/peers/diffusers_peer.py pipeline --folder=written --noise=in.npz --out=out.npz

`model` writes the folder of one of MODELS, with its outputs at some times and its samples. `train` trains TRAINED on
images in [-1, 1] and writes its folder. All arrays have channels last.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import seeded
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.pipelines.ddim import pipeline_ddim

GOLDEN = Path(__file__).parents[1] / "golden"
BLOCKS = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
CIFAR = dict(
    sample_size=32, attention_head_dim=None, block_out_channels=[128, 256, 256, 256], downsample_padding=0,
    down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], flip_sin_to_cos=False,
    up_block_types=["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"], freq_shift=1, norm_eps=1e-6,
)  # fmt: skip
SMALL = dict(
    sample_size=8, block_out_channels=[16, 32], layers_per_block=1, norm_num_groups=8,
    down_block_types=BLOCKS[0], up_block_types=BLOCKS[1],
)  # fmt: skip
# The network, the scheduler, and whether it is saved as a pipeline.
MODELS = {
    "cifar": (CIFAR, dict(beta_schedule="linear"), False),
    "resnet": (
        SMALL | dict(
            block_out_channels=[16, 32, 32, 48], attention_head_dim=16,
            downsample_type="resnet", upsample_type="resnet",
            down_block_types=["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        ),
        dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        True,
    ),
    "heads": (
        SMALL | dict(
            down_block_types=["AttnDownBlock2D"] * 2, up_block_types=["UpBlock2D", "AttnUpBlock2D"],
            in_channels=1, out_channels=1,
        ),
        dict(beta_schedule="scaled_linear", num_train_timesteps=500, clip_sample=False),
        True,
    ),
    "classes": (
        SMALL | dict(num_class_embeds=5, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=16),
        dict(beta_schedule="sigmoid", prediction_type="sample", variance_type="fixed_large"),
        False,
    ),
    "freq_shift": (
        SMALL | dict(
            freq_shift=0, flip_sin_to_cos=True, add_attention=False, attention_head_dim=None, downsample_padding=0,
        ),
        dict(trained_betas=np.linspace(0.001, 0.06, 200).tolist(), num_train_timesteps=200, beta_schedule="linear"),
        False,
    ),
    "no_norm": (
        SMALL | dict(
            sample_size=[16, 16], freq_shift=1, flip_sin_to_cos=True, resnet_time_scale_shift="scale_shift",
            time_embedding_dim=40, layers_per_block=2, block_out_channels=[32, 32], norm_num_groups=32,
        ),
        dict(beta_schedule="linear", num_train_timesteps=1000, set_alpha_to_one=True),
        False,
    ),
    "no_blocks": (
        SMALL | dict(layers_per_block=0, block_out_channels=[16, 16, 16], downsample_type="resnet",
                     down_block_types=["AttnDownBlock2D", *BLOCKS[0]], up_block_types=[*BLOCKS[1], "UpBlock2D"]),
        dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        True,
    ),
}  # fmt: skip
OF_GOLDEN = ("resnet", "heads", "classes")
TRAINED = (
    SMALL | dict(block_out_channels=[32, 32], in_channels=1, out_channels=1),
    dict(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
)


def build(name):
    """The network of one of MODELS with seeded weights, and its scheduler."""
    unet, scheduler, _ = MODELS[name]
    network = UNet2DModel(**unet).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(array) for key, array in seeded.unet_weights(shapes).items()})
    kind = DDIMScheduler if "set_alpha_to_one" in scheduler else DDPMScheduler
    return network, kind(**scheduler), shapes


def outputs(network, scheduler, batch=2):
    """Outputs of the network at times from the first to the last, and DDIM samples from the same noise."""
    side = network.config.sample_size
    shape = (side if isinstance(side, int) else side[0], network.config.in_channels)
    last = scheduler.config.num_train_timesteps - 1
    times = np.array([0, 1, last // 3, last])
    labels = np.arange(len(times)) if network.config.num_class_embeds else None
    found = {"x": seeded.noise(len(times), *shape), "times": times}
    found["out"] = call(network, found["x"], times, labels)
    found["noise"] = seeded.noise(batch, *shape, seed=1)
    for num_steps in (5, 10):
        for spacing in ("trailing", "leading"):
            for clip in (False, True):
                drawn = sample(network, scheduler, found["noise"], num_steps, spacing, clip)
                found[f"{spacing}_{num_steps}_{'clip' if clip else 'noclip'}"] = drawn
    return found


@torch.no_grad()
def call(network, x, times, labels=None):
    """Outputs of the network."""
    condition = {} if labels is None else {"class_labels": torch.from_numpy(labels)}
    out = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(times), **condition).sample
    return out.numpy().transpose(0, 2, 3, 1)


def sample(network, scheduler, noise, num_steps, spacing, clip):
    """DDIM samples. The noise is computed from the clipped prediction."""
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    if config["beta_schedule"] == "sigmoid":  # DDIMScheduler does not know it
        config |= dict(trained_betas=scheduler.betas.tolist(), beta_schedule="linear")
    ddim = DDIMScheduler.from_config(config, timestep_spacing=spacing, clip_sample=clip)
    ddim.set_timesteps(num_steps)
    labels = np.arange(len(noise)) if network.config.num_class_embeds else None
    z = noise
    for t in ddim.timesteps:
        out = call(network, z, np.full(len(z), int(t)), labels)
        step = ddim.step(torch.from_numpy(out.copy()), t, torch.from_numpy(z), use_clipped_model_output=True)
        z = step.prev_sample.numpy()
    return z


def save(name, folder):
    """Save a model: a pipeline, or a network and a scheduler in the same folder."""
    network, scheduler, shapes = build(name)
    if MODELS[name][2]:
        DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    else:
        network.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    return network, scheduler, shapes


def train(folder, images, num_updates, batch=64):
    """Train the network of TRAINED as users of diffusers do, and write its pipeline."""
    torch.set_num_threads(1)  # on busy cores, several threads wait for each other
    torch.manual_seed(0)
    network, scheduler = UNet2DModel(**TRAINED[0]), DDPMScheduler(**TRAINED[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for _ in range(num_updates):
        x = images[torch.randint(len(images), (batch,))]
        noise, t = torch.randn_like(x), torch.randint(scheduler.config.num_train_timesteps, (batch,))
        out = network(scheduler.add_noise(x, noise, t), t).sample
        loss = torch.mean((out - scheduler.get_velocity(x, noise, t)) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    DDPMPipeline(unet=network.eval(), scheduler=scheduler).save_pretrained(folder)


def write_golden():
    """Write the golden numbers: configs and names as JSON, outputs in NumPy's format."""
    described, arrays = {}, {}
    for name in OF_GOLDEN:
        network, scheduler, shapes = build(name)
        described[name] = dict(unet=dict(network.config), scheduler=dict(scheduler.config), shapes=shapes)
        arrays |= {f"{name}_{key}": array for key, array in outputs(network, scheduler).items()}
    text = json.dumps(described, separators=(",", ":"))
    (GOLDEN / "diffusers.json").write_text(text.replace('},"', '},\n"') + "\n")
    np.savez_compressed(GOLDEN / "diffusers.npz", **arrays)


def draw(folder, noise):
    """Images in [0, 1] from noise [n, height, width, channels], by a pipeline as its README.md calls it."""
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    text = (folder / "README.md").read_text()
    num_steps = int(text.partition("num_inference_steps=")[2].split(",")[0].split(")")[0])
    pipeline_ddim.randn_tensor = lambda *_, **__: torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    options = dict(use_clipped_model_output=True) if "use_clipped_model_output=True" in text else {}
    return pipeline(batch_size=len(noise), num_inference_steps=num_steps, output_type="np", **options).images


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["golden", "model", "train", "pipeline"])
    parser.add_argument("--name", choices=MODELS)
    for name in ("folder", "noise", "images", "out"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--updates", type=int)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    match args.what:
        case "golden":
            write_golden()
        case "model":
            network, scheduler, _ = save(args.name, args.folder)
            np.savez(args.out, **outputs(network, scheduler))
        case "train":
            train(args.folder, np.load(args.images)["images"], args.updates)
        case "pipeline":
            np.savez(args.out, images=draw(args.folder, np.load(args.noise)["noise"]))


if __name__ == "__main__":
    main()
