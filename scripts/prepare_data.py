"""Download a dataset with TensorFlow Datasets (TFDS) and prepare it for training.

    pip install -e ".[prepare]"
    diffusion_distillation prepare_data --dataset=cifar10

The configs read cifar10, imagenet2012 (or imagenet_resized/64x64), lsun/bedroom, lsun/church_outdoor and cars196. Every
other image dataset of https://www.tensorflow.org/datasets/catalog works too. For imagenet2012, download its two tar
files yourself and put them into <data_dir>/downloads/manual first. Training needs no TensorFlow.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.data.tfds import data_folder
from diffusion_distillation.data.tfds_prepare import prepare_dataset

DATASET = flags.DEFINE_string("dataset", None, "Name in TFDS, such as cifar10 or lsun/bedroom.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets, as for training.",
)


def main() -> None:
    path = prepare_dataset(DATASET.value, data_folder(DATA_DIR.value))
    cli.saved(f"{DATASET.value} to {path}")


if __name__ == "__main__":
    cli.run(main)
