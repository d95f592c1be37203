"""Downloads a dataset with TensorFlow Datasets (TFDS) and prepares it for training: once, with TensorFlow installed.

    pip install -e ".[prepare]"
    python scripts/prepare_data.py --dataset=cifar10

The configs read cifar10, imagenet2012 (or imagenet_resized/64x64), lsun/bedroom, lsun/church_outdoor and cars196; any
other dataset of images in https://www.tensorflow.org/datasets/catalog works too. imagenet2012 cannot be downloaded by a
program: put its two tar files into <data_dir>/downloads/manual first. Training then needs no TensorFlow.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.data.tfds import data_folder
from diffusion_distillation.data.tfds_prepare import prepare_dataset

DATASET = flags.DEFINE_string("dataset", None, "The name in TFDS, such as cifar10 or lsun/bedroom.", required=True)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where it is kept; by default $TFDS_DATA_DIR or ~/tensorflow_datasets, where training looks."
)


def main() -> None:
    """Runs the script."""
    path = prepare_dataset(DATASET.value, data_folder(DATA_DIR.value))
    print(f"{DATASET.value}: prepared in {path}")


if __name__ == "__main__":
    cli.run(main)
