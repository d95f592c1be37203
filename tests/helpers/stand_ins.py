"""Write small datasets with the names and features of the datasets in configs, prepared by TFDS itself.

    python tests/helpers/stand_ins.py DATA_DIR

Images are random, in the datasets' formats and of several shapes. This runs in its own process, as it needs TensorFlow.

Another dataset, tiny_cifar10, is prepared by name, as users do it. Its content is in DATA_DIR/written.npz.
"""

import io
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_distillation.data.tfds_prepare import prepare_dataset

SPLITS = {
    "cifar10": {"train": 48, "test": 8},
    "imagenet2012": {"train": 40},
    "imagenet_resized/64x64": {"train": 40},
    "lsun/bedroom": {"train": 40},
    "lsun/church_outdoor": {"train": 40},
    "cars196": {"train": 24, "test": 16},
}


def example(features, rng, number):
    """A random example. Its images are arrays or encoded files, as TFDS takes them."""
    values = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            height, width, _ = (side or int(rng.integers(40, 90)) for side in feature.shape)
            image = rng.integers(0, 256, (height, width, 3), np.uint8)
            if feature.shape[0] is None:
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "JPEG", quality=95)
                values[name] = buffer.getvalue()
            else:
                values[name] = image
        elif isinstance(feature, tfds.features.ClassLabel):
            values[name] = int(rng.integers(feature.num_classes))
        elif isinstance(feature, tfds.features.BBoxFeature):
            values[name] = tfds.features.BBox(0.0, 0.0, 0.5, 0.5)
        else:
            values[name] = f"example {number}"
    return values


def write(name, splits, data_dir):
    real = tfds.builder(name, data_dir=data_dir)
    dataset, _, config = name.partition("/")
    rng = np.random.default_rng(len(name))

    class StandIn(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = real.version
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=real.version)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=real.info.features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split, count) for split, count in splits.items()}

        def _generate_examples(self, split, count):
            for number in range(count):
                yield f"{split} {number}", example(real.info.features, rng, number)

    StandIn.name = dataset
    StandIn(config=config or None, data_dir=data_dir, file_format="array_record").download_and_prepare()


class TinyCifar10(tfds.core.GeneratorBasedBuilder):
    """A dataset that TFDS finds by name, with the features of CIFAR-10."""

    VERSION = tfds.core.Version("1.0.0")
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = np.arange(64) % 10

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.builder("cifar10").info.features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            yield number, {"id": str(number), "image": image, "label": int(label)}


def main(data_dir):
    prepare_dataset("tiny_cifar10", data_dir)
    np.savez(data_dir / "written.npz", images=TinyCifar10.images, labels=TinyCifar10.labels)
    for name, splits in SPLITS.items():
        write(name, splits, data_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
