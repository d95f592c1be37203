r"""Encode a dataset into a folder of latents, to train latent diffusion models from.

    diffusion_distillation encode_data --config=folder_base --config.dataset.args.path=my_images \
        --config.dataset.args.image_size=256 --autoencoder=path/to/stable-diffusion/vae --out=runs/my_latents

Of the config, only the section `dataset` is used. --mirror also encodes the mirror image of each image; training with
randflip=True needs it. The same command resumes an interrupted one, and encodes damaged shards again. Then train with
dataset.name='Latents' and dataset.args.path=runs/my_latents. Latents take 4 bytes per number: those of ImageNet at
256x256, with 4 channels, 19.5 GiB, or 39.1 GiB with --mirror.

To encode with several processes, start each with --coordinator, --num_processes and --process_id, as for training. All
must see the same folder.
"""

from absl import flags

from diffusion_distillation import cli, interop
from diffusion_distillation import config as cfg
from diffusion_distillation.data import encode, load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import locked

CONFIG = cli.define_config()
AUTOENCODER = flags.DEFINE_string(
    "autoencoder",
    None,
    "An AutoencoderKL of diffusers: its folder, its pipeline's folder, a URL, or the name of a packaged one.",
    required=True,
)
OUT = flags.DEFINE_string("out", None, "The folder to write, here or in a bucket.", required=True)
MIRROR = flags.DEFINE_boolean("mirror", False, "Also encode the mirror image of each image.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per batch of a process.", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Type of the encoder's activations.")
PROCESSES = cli.ProcessFlags()
flags.mark_flag_as_required("config")


def main() -> None:
    out = as_path(OUT.value)
    dataset = cfg.dataset_of(CONFIG.value)
    if dataset["name"] == "Latents":
        raise InputError("--config names latents. Pass a config whose dataset has images.")
    PROCESSES.start(BATCH_SIZE.value, DTYPE.value, training=False)
    source = load_source(dataset["name"], **dataset["args"])
    encode_images, _, info = interop.load_autoencoder(AUTOENCODER.value, dtype=DTYPE.value)
    manifest = encode.describe(
        source,
        dataset,
        info,
        autoencoder_path=cfg.absolute_path(AUTOENCODER.value),
        mirror=MIRROR.value,
        dtype=DTYPE.value,
    )
    with locked(out):
        encode.encode_dataset(source, encode_images, manifest, out, batch_size=BATCH_SIZE.value)
    cli.saved(f"the latents of {cli.counted(len(source), 'image')} to {out}")


if __name__ == "__main__":
    cli.run(main)
