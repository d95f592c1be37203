"""What diffusers makes of diffusion transformers with seeded weights.

It runs where PyTorch and diffusers are (make peer), and the tests run it. By hand, it writes the golden numbers anew:

    .venv-peer/bin/python tests/peers/dit_peer.py golden
    .venv-peer/bin/python tests/peers/dit_peer.py model --name=heads --folder=heads --out=heads.npz
    .venv-peer/bin/python tests/peers/dit_peer.py pipeline --folder=pipeline --out=images.npz

`model` writes the transformer and the scheduler of one of MODELS as a folder, without an autoencoder, and its outputs.
`pipeline` writes the noise and the images of the `DiTPipeline` in a folder, with and without guidance. If there is no
folder, it makes a small one. All arrays have channels last.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import autoencoder_peer
import numpy as np
import seeded
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.pipelines.dit import pipeline_dit

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
    patch_size=2, num_embeds_ada_norm=10,
)  # fmt: skip
MODELS = {
    "latents": SMALL,
    "pixels": SMALL | dict(in_channels=3, out_channels=None, patch_size=4, num_embeds_ada_norm=2),
    "patches_of_1": SMALL | dict(in_channels=1, out_channels=1, patch_size=1, sample_size=4),
    "heads": SMALL | dict(num_attention_heads=6, attention_head_dim=12, num_layers=3),
    "epsilon": SMALL | dict(num_attention_heads=1, attention_head_dim=64, norm_eps=1e-2),
    "deep": SMALL | dict(num_layers=6, in_channels=16, out_channels=32),
}
SCHEDULER = dict(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
TIMES = np.array([0, 1, 333, 999])
NUM_STEPS = 5
SCALE = 4.0  # of guidance


def build(name):
    """The network of one of MODELS, with seeded weights, and the shapes of these."""
    network = DiTTransformer2DModel(**MODELS[name]).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(array) for key, array in seeded.dit_weights(shapes).items()})
    return network, shapes


def outputs(network):
    """The outputs at a few times, the last one without a class, and DDIM's samples with and without guidance."""
    config = network.config
    shape = config.sample_size, config.in_channels
    found = {"x": seeded.noise(len(TIMES), *shape), "times": TIMES, "labels": np.array([0, 1, 0, -1])}
    found["out"] = call(network, found["x"], TIMES, found["labels"])
    found["noise"] = seeded.noise(2, *shape, seed=1)
    found["sample"] = sample(network, found["noise"], 1.0)
    found["guided"] = sample(network, found["noise"], SCALE)
    return found


@torch.no_grad()
def call(network, x, times, labels):
    """The outputs without variances. Label -1 stands for no class."""
    labels = torch.from_numpy(np.where(labels < 0, network.config.num_embeds_ada_norm, labels))
    out = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(times), labels).sample
    return out.numpy().transpose(0, 2, 3, 1)[..., : x.shape[-1]]


def sample(network, noise, scale):
    """DDIM's samples of classes 0 and 1, with classifier-free guidance of this scale."""
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(NUM_STEPS)
    z = noise
    for t in scheduler.timesteps:
        times = np.full(len(z), int(t))
        conditional = call(network, z, times, np.arange(len(z)))
        unconditional = call(network, z, times, np.full(len(z), -1))
        out = unconditional + scale * (conditional - unconditional)
        z = scheduler.step(torch.from_numpy(out), t, torch.from_numpy(z)).prev_sample.numpy()
    return z


def save(name, folder):
    """Write the folder of a model. Returns its network."""
    network, _ = build(name)
    network.save_pretrained(folder / "transformer")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DiTPipeline", "id2label": {}}
    (folder / "model_index.json").write_text(json.dumps(index))
    return network


def make_pipeline(folder):
    """Write a DiTPipeline of 1000 classes, of which some have two names."""
    transformer = DiTTransformer2DModel(**SMALL | dict(num_embeds_ada_norm=1000)).eval()
    vae = AutoencoderKL(**autoencoder_peer.MODELS["sd1"][0]).eval()
    for network, weights in ((transformer, seeded.dit_weights), (vae, seeded.unet_weights)):
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        network.load_state_dict({key: torch.from_numpy(array) for key, array in weights(shapes).items()})
    names = {label: f"name {label}, other {label}" for label in range(1000)}
    DiTPipeline(transformer, vae, DDIMScheduler(**SCHEDULER), id2label=names).save_pretrained(folder)


def pipeline_images(folder, noise, num_steps, scale):
    """The images of a pipeline from noise, of the first classes, 0 to 1."""
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(noise.transpose(0, 3, 1, 2).copy())
    labels = list(range(len(noise)))
    with mock.patch.object(pipeline_dit, "randn_tensor", lambda *args, **kwargs: noise):
        drawn = pipeline(labels, num_inference_steps=num_steps, guidance_scale=scale, output_type="np")
    return drawn.images


def write_golden():
    """The golden numbers of the tests: configs and shapes in JSON, outputs in NumPy's format."""
    described, arrays = {}, {}
    for name in MODELS:
        network, shapes = build(name)
        scheduler = dict(DDIMScheduler(**SCHEDULER).config)
        described[name] = dict(transformer=dict(network.config), scheduler=scheduler, shapes=shapes)
        arrays |= {f"{name}_{key}": array for key, array in outputs(network).items()}
    text = json.dumps(described, separators=(",", ":"))
    (GOLDEN / "dit.json").write_text(text.replace('},"', '},\n"') + "\n")
    np.savez_compressed(GOLDEN / "dit.npz", **arrays)


def main():
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["golden", "model", "pipeline"])
    parser.add_argument("--name", choices=MODELS)
    for name in ("folder", "out"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    if args.what == "golden":
        write_golden()
    elif args.what == "pipeline":
        if not args.folder.exists():
            make_pipeline(args.folder)
        noise = seeded.noise(2, SMALL["sample_size"], SMALL["in_channels"], seed=1)
        images = {f"scale_{scale}": pipeline_images(args.folder, noise, NUM_STEPS, scale) for scale in (1.0, SCALE)}
        np.savez(args.out, noise=noise, **images)
    else:
        np.savez(args.out, **outputs(save(args.name, args.folder)))


if __name__ == "__main__":
    main()
