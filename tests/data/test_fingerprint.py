"""Two sources have the same fingerprint if, and only if, they hold the same data."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusion_distillation.data import ArraySource, decoding, fingerprint, load_source
from diffusion_distillation.evaluation.reference import dataset_reference

DIGITS = load_source("digits", class_conditional=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images, uncompressed, so that all are of the same size."""
    for number in range(6):
        file = tmp_path / "images" / ("cats" if number < 3 else "dogs") / f"{number}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, number)
    return tmp_path / "images"


def save(file, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(file)


def of_folder(path, **args):
    return fingerprint(load_source("ImageFolder", path=str(path), image_size=8, **args))


@pytest.fixture(params=[4 << 30, 0], ids=["decoded once", "decoded on the fly"])
def in_memory(request, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_CACHED_BYTES", request.param)


def test_a_copy_of_a_folder_has_the_same_fingerprint(tmp_path, folder, in_memory):
    """Paths and file times do not matter."""
    first = of_folder(folder, class_conditional=True)
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    os.utime(copy / "cats" / "1.bmp", (0, 0))
    assert of_folder(copy, class_conditional=True) == first


def replace_an_image(folder):
    """The new image has the same name, size and time."""
    file = folder / "dogs" / "4.bmp"
    status = file.stat()
    save(file, seed=7)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size


@pytest.mark.parametrize(
    "change",
    [
        replace_an_image,
        lambda folder: (folder / "cats" / "0.bmp").unlink(),
        lambda folder: save(folder / "cats" / "3.bmp", 3),
        lambda folder: (folder / "cats").rename(folder / "zebras"),
        lambda folder: (folder / "cats").rename(folder / "caps"),
        lambda folder: (folder / "cats" / "2.bmp").rename(folder / "dogs" / "2.bmp"),
        lambda folder: (folder / "cats" / "0.bmp").rename(folder / "cats" / "9.bmp"),
    ],
    ids=["image replaced", "image lost", "image added", "classes reordered", "class renamed", "label", "order"],
)
def test_a_folder_that_changes_has_another_fingerprint(folder, in_memory, change):
    before = of_folder(folder, class_conditional=True)
    change(folder)
    assert of_folder(folder, class_conditional=True) != before


def test_another_transform_changes_the_fingerprint(folder):
    assert len({of_folder(folder), of_folder(folder, crop=False), of_folder(folder, resize="area")}) == 3


def test_a_folders_fingerprint_is_computed_once(folder, in_memory, monkeypatch):
    first = of_folder(folder)
    monkeypatch.setattr(decoding.Transform, "__call__", lambda *_: pytest.fail("decoded again"))
    assert of_folder(folder) == first


def test_arrays_are_hashed_with_labels_and_names():
    images, labels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1), np.array([0, 1])
    first = fingerprint(ArraySource(images, labels, 2))
    assert fingerprint(ArraySource(images.copy(), labels, 2)) == first
    changed = images.copy()
    changed[1, 3, 3] += 1
    others = [
        ArraySource(changed, labels, 2),
        ArraySource(images[::-1], labels, 2),
        ArraySource(images.reshape(2, 2, 8, 1), labels, 2),
        ArraySource(images, labels[::-1], 2),
        ArraySource(images, labels, 1),
        ArraySource(images, labels, 2, ("a", "b")),
    ]
    assert len({first, *map(fingerprint, others)}) == 7
    assert fingerprint(ArraySource(images, labels, 1)) == fingerprint(ArraySource(images, labels[::-1], 1))


def test_built_in_datasets_have_class_names_and_fingerprints():
    assert DIGITS.class_names == tuple("0123456789")
    assert fingerprint(DIGITS) == fingerprint(load_source("digits", class_conditional=True))
    assert fingerprint(DIGITS) != fingerprint(load_source("digits"))
    some, more = (load_source("letters", num_images=count, image_size=8, class_conditional=True) for count in (26, 27))
    assert some.class_names[:3] == ("A", "B", "C")
    assert fingerprint(some) != fingerprint(more)


class Plain:
    """A user's source without a fingerprint. With `noise`, its images differ at every read."""

    image_shape, num_classes = (4, 4, 1), 1

    def __init__(self, level=0, noise=False, count=1000):
        self.level, self.noise, self.count, self.read = level, noise, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, indices):
        self.read += len(indices)
        images = np.full((len(indices), 4, 4, 1), self.level, np.uint8) + indices[:, None, None, None].astype(np.uint8)
        if self.noise:
            images = np.random.default_rng().integers(0, 256, images.shape, np.uint8)
        return {"image": images, "label": np.zeros(len(indices), np.int32)}


def test_a_users_source_is_hashed_once_by_some_examples():
    """Random examples are ignored. The source's own fingerprint has precedence."""
    plain = Plain()
    assert fingerprint(plain) == fingerprint(Plain())
    assert plain.read == 200
    assert fingerprint(plain) == fingerprint(Plain()) and plain.read == 200
    assert fingerprint(plain) != fingerprint(Plain(level=1))
    assert fingerprint(Plain(noise=True)) == fingerprint(Plain(noise=True)) != fingerprint(Plain(noise=True, count=999))
    plain.fingerprint, before = "version 3", plain.read
    three = fingerprint(plain)
    plain.fingerprint = "version 4"
    assert three != fingerprint(plain) and len(three) == 16 and plain.read == before


def test_a_large_tfds_dataset_is_hashed_by_some_examples(stand_ins, tmp_path, monkeypatch):
    """File times do not matter."""
    monkeypatch.setattr(decoding, "MAX_CACHED_BYTES", 0)
    copy = shutil.copytree(stand_ins, tmp_path / "copy", copy_function=shutil.copyfile)
    first, second = (load_source("CIFAR10", class_conditional=True, data_dir=str(place)) for place in (stand_ins, copy))
    assert len(first.class_names) == 10
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(first) != fingerprint(load_source("CIFAR10", data_dir=str(copy)))


def test_a_references_content_depends_on_its_images_alone(tmp_path, folder):
    """The path of the folder does not matter."""

    def content(path):
        source = load_source("ImageFolder", path=str(path), image_size=8)
        return dataset_reference(source, "ImageFolder").content

    first = content(folder)
    assert content(shutil.copytree(folder, tmp_path / "copy")) == first
    replace_an_image(folder)
    assert content(folder) != first
