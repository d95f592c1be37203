"""Datasets that TFDS itself has prepared, with TensorFlow in another process."""

import io
import subprocess
import sys

import lmdb
import numpy as np
import pytest
from PIL import Image

from diffusion_distillation.data import decoding, load_source, read_batches
from diffusion_distillation.data.tfds import TfdsRecords
from diffusion_distillation.data.transforms import Transform


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch, stand_ins):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(stand_ins))


def everything(source):
    return source[np.arange(len(source))]


@pytest.mark.parametrize("in_memory", [4 << 30, 0], ids=["decoded once", "decoded as it is read"])
def test_examples_are_read_as_they_were_written(stand_ins, monkeypatch, in_memory):
    monkeypatch.setattr(decoding, "MAX_CACHED_BYTES", in_memory)
    source = load_source("TFDS", name="tiny_cifar10", image_size=32, label_key="label")
    assert (len(source), source.image_shape, source.num_classes) == (64, (32, 32, 3), 10)
    written, read = np.load(stand_ins / "written.npz"), everything(source)
    order, order_read = (np.lexsort(images.reshape(64, -1).T) for images in (written["images"], read["image"]))
    np.testing.assert_array_equal(read["image"][order_read], written["images"][order])
    np.testing.assert_array_equal(read["label"][order_read], written["labels"][order])


def test_tensorflow_is_not_loaded():
    code = (
        "import sys; from diffusion_distillation.data import load_source, read_batches; "
        "source = load_source('CIFAR10', class_conditional=True); next(read_batches(source, 0, range(1), 4)); "
        "assert 'tensorflow' not in sys.modules, 'TensorFlow was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("CIFAR10", {}, (48, 32, 1)),
        ("CIFAR10", {"class_conditional": True, "randflip": True}, (48, 32, 10)),
        ("ImageNet", {"image_size": 16, "class_conditional": True}, (40, 16, 1000)),
        ("ImageNet", {"image_size": 64, "class_conditional": False, "pre_shrunk": True}, (40, 64, 1)),
        ("LSUN", {"subset": "bedroom", "image_size": 32}, (40, 32, 1)),
        ("LSUN", {"subset": "church", "image_size": 32}, (40, 32, 1)),
        ("StanfordCars", {"image_size": 16, "class_conditional": True}, (40, 16, 196)),
        ("TFDS", {"name": "cars196", "split": "train[:50%]+test", "image_size": 8}, (28, 8, 1)),
    ],
)
def test_datasets_have_their_shapes_and_classes(name, args, expected):
    source = load_source(name, **args)
    length, size, num_classes = expected
    assert (len(source), source.image_shape, source.num_classes) == (length, (size, size, 3), num_classes)
    batch = everything(source)
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert batch["label"].max() < num_classes
    assert len(np.unique(batch["label"])) > 1 or num_classes == 1


@pytest.mark.parametrize(
    ("name", "args", "records", "transform"),
    [
        ("ImageNet", {"image_size": 16}, ("imagenet2012", "train"), Transform(16, crop=True, resize="area")),
        ("LSUN", {"subset": "bedroom", "image_size": 16}, ("lsun/bedroom", "train"), Transform(16, crop=True)),
        ("StanfordCars", {"image_size": 16}, ("cars196", "train+test"), Transform(16, crop=False)),
    ],
)
def test_preprocessing_is_the_papers(name, args, records, transform):
    records = TfdsRecords(*records, None, None)
    images = everything(load_source(name, **args))["image"]
    for index in range(5):
        np.testing.assert_array_equal(images[index], transform(records.read(index)[0]))


def test_large_datasets_give_the_same_batches(monkeypatch):
    small = load_source("ImageNet", image_size=16)
    monkeypatch.setattr(decoding, "MAX_CACHED_BYTES", 0)
    large = load_source("ImageNet", image_size=16)
    assert isinstance(large, decoding.DecodingSource)
    for of_small, of_large in zip(*(read_batches(s, 0, range(4), 16) for s in (small, large)), strict=True):
        np.testing.assert_array_equal(of_small["image"], of_large["image"])
        np.testing.assert_array_equal(of_small["label"], of_large["label"])


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("TFDS", {"name": "mnist", "image_size": 8}, r"'mnist' is not prepared in '.*tensorflow_datasets.*'"),
        ("TFDS", {"name": "mnist", "image_size": 8}, r"  diffusion_distillation prepare_data --dataset=mnist\n"),
        (
            "CIFAR10",
            {"data_dir": "/nowhere"},
            r"not prepared in '/nowhere'(.*\n)*.*prepare_data --dataset=cifar10 --data_dir=/nowhere",
        ),
        ("TFDS", {"name": "cifar10", "split": "val", "image_size": 8}, r"Split 'val' .* splits are train, test"),
        ("TFDS", {"name": "cifar10", "label_key": "id", "image_size": 8}, r"label_key='id' .* it has \['label'\]"),
        ("TFDS", {"name": "cifar10", "imagesize": 8}, r"no config.dataset.args.imagesize. Did you mean 'image_size'"),
        ("LSUN", {"subset": "tower", "image_size": 8}, r"subset='tower' must be one of \['bedroom', 'church'\]"),
        ("ImageNet", {"image_size": 48, "pre_shrunk": True}, r"pre_shrunk must be 8, 16, 32 or 64"),
        ("ImageNet", {}, r"config.dataset.args.image_size is missing: dataset 'ImageNet' needs it"),
    ],
)
def test_missing_data_and_wrong_arguments_are_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        load_source(name, **args)


PREPARE = """
import sys
import numpy as np, tensorflow_datasets as tfds
from diffusion_distillation.data import load_source
from diffusion_distillation.data.tfds_prepare import prepare_dataset
from tensorflow_datasets.image.lsun import Lsun

tfds.dataset_builders.store_as_tfds_dataset(
    name="records", version="1.0.0", data_dir=sys.argv[1], file_format="tfrecord",
    features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 1))}),
    split_datasets={"train": [(0, {"image": np.zeros((8, 8, 1), np.uint8)})]},
)
for build in (
    lambda: prepare_dataset("no_such_dataset", sys.argv[1]),
    lambda: prepare_dataset("imagenet2012", sys.argv[1]),
    lambda: load_source("TFDS", name="records", image_size=8, data_dir=sys.argv[1]),
):
    try:
        build()
    except ValueError as error:
        print(type(error).__name__, error)

Lsun._split_generators = lambda self, dl_manager: {  # without a download
    "train": self._generate_examples(sys.argv[2], "church_outdoor_train_lmdb")
}
prepare_dataset("lsun/church_outdoor", sys.argv[1])
"""


def test_preparation_names_what_it_lacks_and_reads_lsuns_database(tmp_path):
    """Also with a dataset in a format without random access."""
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    with lmdb.open(str(tmp_path / "church_outdoor_train_lmdb")) as database, database.begin(write=True) as transaction:
        for number in range(3):
            transaction.put(f"key{number}".encode(), buffer.getvalue())
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "out"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "InputError TFDS has no dataset 'no_such_dataset'" in done.stdout
    assert "InputError imagenet2012 cannot be prepared" in done.stdout and "manual" in done.stdout
    assert "is prepared as tfrecord, which has no random access" in done.stdout
    source = load_source("LSUN", subset="church", image_size=12, data_dir=str(tmp_path / "out"))
    assert len(source) == 3
    np.testing.assert_array_equal(everything(source)["image"][0], Transform(12)(buffer.getvalue()))
