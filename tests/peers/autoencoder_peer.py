"""What diffusers' AutoencoderKL makes of images and latents, with seeded weights.

It runs where PyTorch and diffusers are (make peer), and the tests run it. By hand it writes the golden numbers anew:

    .venv-peer/bin/python tests/peers/autoencoder_peer.py golden
    .venv-peer/bin/python tests/peers/autoencoder_peer.py model --name=sd1 --folder=sd1 --out=sd1.npz

`model` writes the folder of one of MODELS, and its results, `folder` the results of a
folder. All arrays have channels last.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import seeded
import torch
from diffusers import AutoencoderKL

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = dict(block_out_channels=[8, 16], layers_per_block=2, norm_num_groups=4, sample_size=16)
FOUR = dict(block_out_channels=[32, 32, 64, 64], layers_per_block=2, norm_num_groups=8, sample_size=64)
FULL = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, sample_size=256)
NO_QUANT = dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305)


def levels(count):
    """The block types of as many levels."""
    return dict(down_block_types=["DownEncoderBlock2D"] * count, up_block_types=["UpDecoderBlock2D"] * count)


# Of each: its config, and the height and width of the images.
MODELS = {
    "sd1": (SMALL | levels(2) | dict(scaling_factor=0.18215), (16, 16)),
    "sd3": (SMALL | levels(2) | NO_QUANT | dict(shift_factor=0.0609), (16, 16)),
    "no_attention": (SMALL | levels(2) | dict(mid_block_add_attention=False, latent_channels=8), (8, 24)),
    "levels": (SMALL | levels(4) | dict(block_out_channels=[8, 8, 16, 8], layers_per_block=1), (32, 16)),
    "one_level": (SMALL | levels(1) | dict(block_out_channels=[12], use_quant_conv=False), (6, 10)),
    "attention": (
        SMALL | dict(
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], layers_per_block=1, latent_channels=3,
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"], in_channels=1, out_channels=1,
            force_upcast=False, use_post_quant_conv=False,
        ),
        (16, 12),
    ),
    "wide": (FOUR | levels(4), (64, 96)),  # its convolutions have CPU versions of ours
    "sd1_full": (FULL | levels(4), (128, 128)),
}  # fmt: skip
OF_GOLDEN = ("sd1", "sd3", "no_attention", "levels", "one_level", "attention")


def build(name):
    """The autoencoder with seeded weights, and their shapes."""
    network = AutoencoderKL(**MODELS[name][0]).eval()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.from_numpy(array) for key, array in seeded.unet_weights(shapes).items()})
    return network, shapes


@torch.no_grad()
def results(network, size, batch=2):
    """The latents of random images, and the images of random latents."""
    rng = np.random.default_rng(0)
    factor = 2 ** (len(network.config.block_out_channels) - 1)
    images = rng.uniform(-1, 1, (batch, *size, network.config.in_channels)).astype(np.float32)
    shape = (batch, size[0] // factor, size[1] // factor, network.config.latent_channels)
    latents = rng.standard_normal(shape, np.float32)
    posterior = network.encode(channels_first(images)).latent_dist
    decoded = network.decode(channels_first(latents)).sample
    arrays = {"mean": posterior.mean, "std": posterior.std, "decoded": decoded}
    found = {name: array.numpy().transpose(0, 2, 3, 1) for name, array in arrays.items()}
    return {"images": images, "latents": latents, **found}


def channels_first(array):
    """A tensor of an array with channels last."""
    return torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def write_golden():
    """The golden numbers of the tests: configs and names in JSON, results in NumPy's format."""
    described, arrays = {}, {}
    for name in OF_GOLDEN:
        network, shapes = build(name)
        config = {key: value for key, value in network.config.items() if not key.startswith("_")}
        described[name] = dict(config=config, shapes=shapes)
        arrays |= {f"{name}_{key}": array for key, array in results(network, MODELS[name][1]).items()}
    text = json.dumps(described, separators=(",", ":"))
    (GOLDEN / "autoencoder.json").write_text(text.replace('},"', '},\n"') + "\n")
    np.savez_compressed(GOLDEN / "autoencoder.npz", **arrays)


def main():
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["golden", "model", "folder"])
    parser.add_argument("--name", choices=MODELS)
    for name in ("folder", "out"):
        parser.add_argument(f"--{name}", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.what == "golden":
        write_golden()
    elif args.what == "folder":
        network = AutoencoderKL.from_pretrained(args.folder).eval()
        np.savez(args.out, **results(network, [network.config.sample_size] * 2))
    else:
        network, _ = build(args.name)
        network.save_pretrained(args.folder)
        np.savez(args.out, **results(network, MODELS[args.name][1]))


if __name__ == "__main__":
    main()
