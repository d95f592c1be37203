"""Folders of latents: written, resumed, read, and refused when they are damaged."""

import dataclasses

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from helpers.autoencoders import write_golden
from helpers.runs import call

from diffusion_distillation.data import ArraySource, encode, load_source
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.latents import AutoencoderInfo, from_uint8
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.runtime.files import as_path

IMAGES = np.random.default_rng(0).integers(0, 256, (19, 4, 6, 3), np.uint8)
LABELS = np.arange(19, dtype=np.int32) % 3
SOURCE = ArraySource(IMAGES, LABELS, 3, ("a", "b", "c"))
INFO = AutoencoderInfo(
    name="corners",
    fingerprint="0",
    image_channels=3,
    latent_channels=3,
    downsampling=2,
    scale=(1.0, 2.0, 3.0),
    shift=0.5,
)


def corners(images):
    """The mean is every second pixel, the standard deviation that of the neighbors, squared."""
    assert images.shape == (4, 4, 6, 3)
    return images[:, ::2, ::2], images[:, 1::2, 1::2] ** 2


def write(folder, encode_images=corners, source=SOURCE, info=INFO, **options):
    dataset = {"name": "helpers.own_parts:images", "args": {"side": 4}}
    manifest = encode.describe(source, dataset, info, autoencoder_path="path/of/corners", **options)
    encode.encode_dataset(source, encode_images, manifest, as_path(folder), batch_size=4)
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def expected(images):
    x = images.astype(np.float32) / 127.5 - 1
    return x[:, ::2, ::2].astype(np.float16), (x[:, 1::2, 1::2] ** 2).astype(np.float16)


@pytest.mark.parametrize("mirror", [False, True])
def test_latents_are_read_as_they_were_encoded(tmp_path, mirror):
    source = load_source("Latents", path=str(write(tmp_path / "latents", mirror=mirror)), randflip=mirror)
    assert (len(source), source.image_shape, source.latent_shape) == (19, (4, 6, 3), (2, 3, 3))
    assert (source.num_classes, source.class_names) == (3, ("a", "b", "c"))
    assert (source.autoencoder, source.autoencoder_path) == (INFO, "path/of/corners")
    assert source.images == {"name": "helpers.own_parts:images", "args": {"side": 4}}
    indices = np.array([18, 0, 7, 7, 3])
    examples = source[indices]
    np.testing.assert_array_equal(examples["label"], LABELS[indices])
    for part, images in enumerate((IMAGES, IMAGES[:, :, ::-1])[: 1 + mirror]):
        mean, std = expected(images[indices])
        np.testing.assert_array_equal(examples["mean"][:, part], mean)
        np.testing.assert_array_equal(examples["std"][:, part], std)
    assert examples["mean"].dtype == np.float16 and examples["mean"].shape == (5, 1 + mirror, 2, 3, 3)


def test_an_interrupted_encoding_resumes_and_ends_with_the_same_bytes(tmp_path):
    calls = []

    def interrupted(images):
        calls.append(images)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return corners(images)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "resumed", interrupted)
    with pytest.raises(InputError, match=r"are incomplete\. Run encode_data again"):
        load_source("Latents", path=str(tmp_path / "resumed"))
    before = len(calls) - 1
    write(tmp_path / "resumed", interrupted)
    assert len(calls) - 1 - before == 8 - before  # one call per shard of 2 or 3 images; the finished ones are kept
    assert contents(tmp_path / "resumed") == contents(write(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(info=dataclasses.replace(INFO, fingerprint="1")), "latents with autoencoder='0', not '1'"),
        (dict(source=ArraySource(IMAGES + 1, LABELS, 3, ("a", "b", "c"))), "latents with dataset='.*', not '"),
        (dict(mirror=True), "latents with parts=1, not 2"),
        (dict(dtype="bfloat16"), "latents with dtype='float32', not 'bfloat16'. Choose another --out"),
    ],
)
def test_latents_of_another_autoencoder_or_dataset_are_not_mixed(tmp_path, changes, message):
    before = contents(write(tmp_path / "latents"))
    with pytest.raises(InputError, match=message):
        write(tmp_path / "latents", **changes)
    assert contents(tmp_path / "latents") == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_shape(path):
    np.save(path, np.load(path)[1:])


def change_header(path):
    path.write_bytes(b"\0" + path.read_bytes()[1:])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("latents-00003-of-00008.npy", lambda path: path.unlink(), "There is no '.*latents-00003-of-00008.npy'"),
        ("latents-00003-of-00008.npy", truncate, "00003-of-00008.npy' is damaged: it has [0-9,]+ bytes instead of"),
        ("labels-00007-of-00008.npy", change_shape, r"labels-.*' is damaged \(it has int32\[2\] instead of int32\[3\]"),
        ("latents-00003-of-00008.npy", change_header, r"' is damaged \(the magic string is not correct"),
    ],
)
def test_a_damaged_shard_is_named_and_encoded_again(tmp_path, name, damage, message):
    before = contents(write(tmp_path))
    damage(tmp_path / name)
    with pytest.raises(InputError, match=message):
        load_source("Latents", path=str(tmp_path))
    write(tmp_path)
    assert contents(tmp_path) == before


def test_a_shard_with_other_numbers_is_encoded_again(tmp_path):
    before = contents(write(tmp_path))
    shard = tmp_path / "latents-00003-of-00008.npy"
    np.save(shard, np.load(shard) + np.float16(1))
    write(tmp_path)
    assert contents(tmp_path) == before


def test_latents_beyond_float16_are_an_error(tmp_path):
    with pytest.raises(RunError, match=r"The latents of images 0 to 1 reach 7e\+04; float16 holds up to 65,504"):
        write(tmp_path, lambda images: [np.full((4, 2, 3, 3), 7e4, np.float32)] * 2)
    with pytest.raises(RunError, match="reach nan"):
        write(tmp_path, lambda images: [np.full((4, 2, 3, 3), np.nan, np.float32)] * 2)


def test_the_fingerprint_changes_with_the_latents(tmp_path):
    def fingerprint(name, **options):
        return load_source("Latents", path=str(write(tmp_path / name, **options))).fingerprint

    first = fingerprint("a")
    assert fingerprint("b") == first
    assert first not in {fingerprint("c", mirror=True), fingerprint("d", encode_images=lambda x: corners(x / 2))}


def test_images_that_the_autoencoder_does_not_take_are_refused(tmp_path):
    with pytest.raises(InputError, match="The images have 1 channels"):
        write(tmp_path, source=ArraySource(IMAGES[..., :1], LABELS, 3))
    with pytest.raises(InputError, match=r"There is no .*latents.json'\. Pass a folder of latents"):
        load_source("Latents", path=str(tmp_path))


class Bucket(DirFileSystem):
    """A folder that stands in for the file system gs://. It counts the bytes of range requests."""

    protocol = "gs"
    cachable = False
    root = None
    bytes_read = 0

    def __init__(self, **_):
        super().__init__(path=str(self.root), fs=fsspec.filesystem("file"))

    def cat_ranges(self, paths, starts, ends, **kwargs):
        """Read ranges."""
        Bucket.bytes_read += sum(ends) - sum(starts)
        return super().cat_ranges(paths, starts, ends, **kwargs)


def test_a_folder_in_a_bucket_is_read_by_ranges(tmp_path, bucket, monkeypatch):
    monkeypatch.setattr(Bucket, "root", bucket.parent)
    fsspec.register_implementation("gs", Bucket, clobber=True)
    local = load_source("Latents", path=str(write(tmp_path / "local")))
    remote = load_source("Latents", path=write("gs://bucket/latents"))
    indices = np.array([18, 0, 7, 7, 3])
    Bucket.bytes_read = 0
    for name, array in remote[indices].items():
        np.testing.assert_array_equal(array, local[indices][name])
    assert Bucket.bytes_read == 5 * 2 * (2 * 3 * 3) * 2  # 5 examples, mean and std, float16


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A folder of latents that the script wrote, on all devices."""
    folder = tmp_path_factory.mktemp("encoded")
    vae = write_golden(folder / "vae")
    options = ["--config.dataset.args.num_images=50", "--config.dataset.args.image_size=8", "--mirror"]
    flags = ["--config=configs/letters_base.py", *options, "--batch_size=16", f"--autoencoder={vae}"]
    printed = call("encode_data", *flags, f"--out={folder / 'latents'}")
    assert "encoded 50/50 images" in printed
    return folder, flags


def test_eight_devices_encode_like_one(encoded, monkeypatch):
    folder, _ = encoded
    source = load_source("Latents", path=str(folder / "latents"))
    images = load_source(source.images["name"], **source.images["args"])[np.arange(len(source))]
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    encode_images, _, info = autoencoder.load(folder / "vae")
    assert source.autoencoder == info and source.autoencoder_path == str(folder / "vae")
    examples = source[np.arange(len(source))]
    x = from_uint8(images["image"])
    for part, view in enumerate((x, x[:, :, ::-1])):
        for name, array in zip(("mean", "std"), encode_images(view), strict=True):
            np.testing.assert_allclose(examples[name][:, part], array, rtol=1e-3, atol=1e-5)


def test_the_script_checks_what_it_encoded_when_it_runs_again(encoded):
    folder, flags = encoded
    before = contents(folder / "latents")
    printed = call("encode_data", *flags, f"--out={folder / 'latents'}")
    assert "50 are encoded already, 0 images to encode" in printed
    assert contents(folder / "latents") == before | {".lock": contents(folder / "latents")[".lock"]}


def test_latents_are_no_images_to_encode(encoded, tmp_path):
    folder, _ = encoded
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        f"get_config = lambda: ConfigDict(dict(dataset=dict(name='Latents', args=dict(path='{folder}/latents'))))"
    )
    flags = [f"--config={tmp_path}/config.py", f"--autoencoder={folder}/vae", f"--out={tmp_path}/out"]
    assert "--config names latents" in call("encode_data", *flags, fails=True)
