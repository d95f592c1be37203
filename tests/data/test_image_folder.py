"""Folders of images: which files are found, which are skipped, and what is cached."""

import errno
import json
import logging
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers.runs import without_privileges
from PIL import Image

from diffusion_distillation.data import decoding, load_source, read_batches
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.runtime import files


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_image(seed, height=20, width=24):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def save(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    random_image(seed).save(path)
    return path


def everything(source):
    return source[np.arange(len(source))]


def bomb():
    """A PNG of a few bytes that declares 60,000x60,000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def make_bad_files(folder):
    """Save one file of each bad kind, and return their names."""
    folder.mkdir(exist_ok=True)
    png, jpeg, webp, bmp = (save(folder / f"source.{suffix}") for suffix in ("png", "jpg", "webp", "bmp"))
    data = {file.suffix: file.read_bytes() for file in (png, jpeg, webp, bmp)}
    for file in (png, jpeg, webp, bmp):
        file.unlink()
    flipped = bytearray(data[".png"])
    flipped[len(flipped) // 2] ^= 0x10
    written = {
        "truncated.jpg": data[".jpg"][: len(data[".jpg"]) // 2],
        "truncated.png": data[".png"][: len(data[".png"]) // 2],
        "truncated.webp": data[".webp"][: len(data[".webp"]) // 2],
        "truncated.bmp": data[".bmp"][: len(data[".bmp"]) // 2],
        "empty.png": b"",
        "one byte.jpeg": b"\xff",
        "header only.png": data[".png"][:33],
        "start only.jpg": b"\xff\xd8\xff\xe0",
        "bit flipped.png": bytes(flipped),
        "zeros.bmp": bytes(10_000),
        "text.png": b"these are not the pixels you are looking for",
        "page.jpg": b"<!doctype html><title>404</title>",
        "document.webp": b"%PDF-1.7\n",
        "archive.jpg": b"PK\x03\x04" + bytes(100),
        "bomb.png": bomb(),
        "photo.heic": b"\0\0\0\x18ftypheic" + bytes(100),
        "vector.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, content in written.items():
        (folder / name).write_bytes(content)
    (folder / "directory.jpg").mkdir()
    (folder / "dangling.jpg").symlink_to(folder / "nothing")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
    save(folder / "unreadable.png").chmod(0)
    return {
        *written, "directory.jpg", "dangling.jpg", "itself.png", "pipe.png", "socket.png", "unreadable.png",
    }  # fmt: skip


READ = """
import logging, numpy as np, sys
from diffusion_distillation.data import decoding, load_source
decoding.MAX_CACHED_BYTES = int(sys.argv[2])
source = load_source("ImageFolder", path=sys.argv[1], image_size=16, on_error=sys.argv[3])
np.save(sys.argv[4], source[np.arange(len(source))]["image"])
"""


def read_unprivileged(folder, in_memory, on_error, out):
    command = without_privileges(sys.executable, "-c", READ, str(folder), str(in_memory), on_error, str(out))
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("in_memory", [4 << 30, 0], ids=["decoded once", "decoded as it is read"])
def test_bad_files_are_named_and_skipped(tmp_path, in_memory):
    folder = tmp_path / "images"
    bad = make_bad_files(folder)
    good = [save(folder / "sub" / f"{seed}.png", seed) for seed in range(5)]
    assert len(bad) > 20 and "photo.heic" in bad
    done = read_unprivileged(folder, in_memory, "skip", tmp_path / "out.npy")
    assert done.returncode == 0, done.stderr
    assert f"{len(bad)} of {len(bad) + 5} images cannot be used" in done.stderr
    for name in bad:
        assert f"{folder / name}: " in done.stderr
    assert not any(str(path) in done.stderr for path in good)
    assert "Permission denied" in re.search(r"unreadable\.png: (.*)", done.stderr)[1]
    expected = [Image.open(path).crop((2, 0, 22, 20)).resize((16, 16), Image.Resampling.BILINEAR) for path in good]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack([np.asarray(image) for image in expected]))

    again = read_unprivileged(folder, in_memory, "skip", tmp_path / "out.npy")
    assert f"{len(bad)} of {len(bad) + 5} images cannot be used" in again.stderr  # from the cache
    strict = read_unprivileged(folder, in_memory, "raise", tmp_path / "out.npy")
    assert strict.returncode != 0
    assert "Repair or remove them, or set config.dataset.args.on_error='skip'" in strict.stderr


def test_images_are_found_in_subfolders_and_behind_links(tmp_path):
    """At any depth, with any case of the suffix. Circular links are followed once; hidden files are skipped."""
    folder = tmp_path / "images"
    names = ["a/b/c/deep.PNG", "a/first.jpg", "b.JPEG", "ü ñ.webp", "z.bmp"]
    for seed, name in enumerate(names):
        save(folder / name, seed)
    save(folder / ".hidden.png")
    save(folder / ".git" / "logo.png")
    (folder / "notes.txt").write_text("not an image")
    save(tmp_path / "elsewhere" / "linked.png", 9)
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    source = load_source("ImageFolder", path=str(folder), image_size=8)
    expected = sorted([*(folder / name for name in names), folder / "link" / "linked.png"])
    images = [
        np.asarray(Image.open(path).convert("RGB").crop((2, 0, 22, 20)).resize((8, 8), Image.Resampling.BILINEAR))
        for path in expected
    ]
    np.testing.assert_array_equal(everything(source)["image"], np.stack(images))
    assert source.image_shape == (8, 8, 3) and source.num_classes == 1


def test_folders_are_classes_in_alphabetical_order(tmp_path):
    for seed, name in enumerate(["dog/1.png", "cat/2.png", "cat/more/3.png", "ant/4.png"]):
        save(tmp_path / "images" / name, seed)
    source = load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8, class_conditional=True)
    assert source.num_classes == 3
    assert everything(source)["label"].tolist() == [0, 1, 1, 2]
    unconditional = load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8)
    assert unconditional.num_classes == 1 and everything(unconditional)["label"].tolist() == [0] * 4
    save(tmp_path / "images" / "outside.png")
    with pytest.raises(ValueError, match=r"outside.png' has no class: .* must be in a subfolder"):
        load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8, class_conditional=True)


@pytest.mark.parametrize("layout", ["stanford_cars/{}", "{0}/{0}"], ids=["torchvision", "kaggle"])
def test_stanford_cars_are_found_in_both_layouts(tmp_path, layout):
    parts = {part: tmp_path / "data" / layout.format(part) for part in ("cars_train", "cars_test")}
    files = [save(parts[part] / f"{n:05d}.jpg", n) for part in ("cars_train", "cars_test") for n in range(3)]
    save(tmp_path / "data" / "sample" / "advert.png")
    source = load_source("StanfordCars", path=str(tmp_path / "data"), image_size=8)
    images = [np.asarray(Image.open(file).resize((8, 8), Image.Resampling.BILINEAR)) for file in files]
    np.testing.assert_array_equal(everything(source)["image"], np.stack(images))
    with pytest.raises(ValueError, match=r"needs the labels that TFDS has. .*--dataset=cars196"):
        load_source("StanfordCars", path=str(tmp_path / "data"), image_size=8, class_conditional=True)
    shutil.rmtree(parts["cars_test"])
    with pytest.raises(ValueError, match=r"No images in a folder 'cars_test' in"):
        load_source("StanfordCars", path=str(tmp_path / "data"), image_size=8)


def test_folders_and_arguments_that_cannot_be_used_are_named(tmp_path):
    def load(name, **args):
        return load_source("ImageFolder", path=str(tmp_path / name), image_size=8, **args)

    with pytest.raises(ValueError, match=r"nowhere' is not a folder"):
        load("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No image in .*empty'.*other images found: none"):
        load("empty")
    (tmp_path / "others").mkdir()
    for name in ("a.heic", "b.heic", "c.svg"):
        (tmp_path / "others" / name).touch()
    with pytest.raises(ValueError, match=r"other images found: 2 \.heic, 1 \.svg"):
        load("others")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"no image can be used; 1 of 1 images cannot be used:\n  .*a\.png"):
        load("broken")
    with pytest.raises(ValueError, match=r"on_error='ignore' must be 'skip' or 'raise'"):
        load("others/..", on_error="ignore")
    with pytest.raises(ValueError, match=r"config.dataset.args.path is missing"):
        load_source("ImageFolder", image_size=8)


def test_decoding_is_announced_without_a_terminal_too(tmp_path, capsys):
    """Nothing is announced if nothing is decoded."""
    for seed in range(3):
        save(tmp_path / "cars" / f"{seed}.png", seed)
    for expected in ("cars: decoding 3 images\n", ""):
        load_source("ImageFolder", path=str(tmp_path / "cars"), image_size=8)
        assert capsys.readouterr().err == expected


def test_folders_are_decoded_once(tmp_path, cache, monkeypatch):
    """Everything that shapes the images has a cache entry of its own."""
    path = save(tmp_path / "images" / "a.png")
    load = {"dataset": "ImageFolder", "path": str(path.parent)}
    calls = []
    decode = decoding.Transform.__call__
    monkeypatch.setattr(decoding.Transform, "__call__", lambda *args: calls.append(args) or decode(*args))

    def read(**args):
        calls.clear()
        return everything(load_source(load["dataset"], path=load["path"], **args))["image"], len(calls)

    first, decoded = read(image_size=8)
    assert decoded == 1
    second, decoded = read(image_size=8)
    assert decoded == 0
    np.testing.assert_array_equal(first, second)
    assert read(image_size=10)[1] == read(image_size=8, crop=False)[1] == read(image_size=8, resize="area")[1] == 1
    assert len(list(cache.glob("images-*"))) == 4
    save(path, seed=1)
    os.utime(path, (0, 0))
    changed, decoded = read(image_size=8)
    assert decoded == 1 and not np.array_equal(changed, first)
    for file in cache.glob("*/images.npy"):  # as after a power failure
        file.write_bytes(file.read_bytes()[:-10])
    mended, decoded = read(image_size=8)
    assert decoded == 1
    np.testing.assert_array_equal(mended, changed)
    key = json.loads(next(cache.glob("*/key.json")).read_text())
    assert set(key) == {"images", "pillow", "transform", "version"}


def test_a_cache_that_cannot_be_written_gives_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "file" / "cache"))
    save(tmp_path / "images" / "a.png")
    with caplog.at_level(logging.WARNING):
        source = load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8)
    assert "cannot be cached" in caplog.text
    assert everything(source)["image"].shape == (1, 8, 8, 3)


def test_the_cache_is_in_the_users_cache_folder(tmp_path, monkeypatch):
    from diffusion_distillation.data.cache import cache_folder

    monkeypatch.delenv("DIFFUSION_DISTILLATION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "diffusion_distillation"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "diffusion_distillation"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError))
    with pytest.raises(InputError, match=r"no home folder .* Set DIFFUSION_DISTILLATION_CACHE"):
        cache_folder()


def test_large_folders_give_the_same_batches(tmp_path, monkeypatch):
    """Decoded on the fly or once, images are the same. A file that breaks later is named."""
    for seed in range(40):
        save(tmp_path / "images" / f"{seed:02d}.png", seed)
    (tmp_path / "images" / "05.png").write_bytes(b"broken")

    def load():
        return load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8)

    small = load()
    monkeypatch.setattr(decoding, "MAX_CACHED_BYTES", 0)
    large = load()
    assert isinstance(large, decoding.DecodingSource) and not isinstance(small, decoding.DecodingSource)
    assert len(small) == len(large) == 39
    batches = zip(read_batches(small, 0, range(4), 16), read_batches(large, 0, range(4), 16), strict=True)
    for of_small, of_large in batches:
        np.testing.assert_array_equal(of_small["image"], of_large["image"])
    (tmp_path / "images" / "07.png").write_bytes(b"broken later")
    with pytest.raises(ValueError, match=r"07\.png cannot be used: it is not a PNG"):
        for _ in read_batches(large, 0, range(4), 16):
            pass


def test_classes_that_look_like_splits_give_a_warning(tmp_path, caplog):
    for seed, name in enumerate(["Test/1.png", "train/2.png", "val/3.png"]):
        save(tmp_path / "images" / name, seed)
    load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8, class_conditional=True)
    assert "'Test', 'train', 'val', which are usually splits of a dataset. If so, train on one of them" in caplog.text
    caplog.clear()
    save(tmp_path / "images" / "cats" / "4.png")
    load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8, class_conditional=True)
    assert not caplog.text


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """`failing(error, times)` reads 10 images while reading 3.png fails that many times, and returns the result."""
    monkeypatch.setattr(files, "WAITS", (0, 0, 0))
    for seed in range(10):
        save(tmp_path / "images" / f"{seed}.png", seed)
    read = decoding.Transform.__call__

    def read_all(error, times):
        left, third = [error] * times, (tmp_path / "images" / "3.png").read_bytes()

        def fail(self, content):
            if content == third and left:
                raise left.pop()
            return read(self, content)

        monkeypatch.setattr(decoding.Transform, "__call__", fail)
        return len(load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8))

    return read_all


@pytest.mark.parametrize(
    "error", [MemoryError(), *(OSError(code, "") for code in (errno.EIO, errno.ESTALE, errno.EMFILE))]
)
def test_transient_errors_are_retried_and_no_image_is_lost(failing, error):
    assert failing(error, 3) == 10


def test_lasting_machine_errors_do_not_count_as_broken_images(failing, tmp_path):
    """Nothing is cached."""
    with pytest.raises(RunError, match=r"3\.png cannot be read now \(Input/output error\): the machine or its storage"):
        failing(OSError(errno.EIO, "Input/output error"), 4)
    assert failing(None, 0) == 10


def test_a_class_folder_that_cannot_be_searched_is_named(tmp_path, monkeypatch):
    save(tmp_path / "cats" / "a.png")
    (tmp_path / "lost+found").mkdir()
    scan = os.scandir

    def scandir(folder):
        if folder == tmp_path / "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"lost\+found' cannot be searched\. Make it readable"):
        load_source("ImageFolder", path=str(tmp_path), image_size=8, class_conditional=True)


def test_a_folder_that_cannot_be_searched_for_a_moment_is_searched_again(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAITS", (0,))
    save(tmp_path / "images" / "sub" / "a.png")
    scan, left = os.scandir, [OSError(errno.ESTALE, "Stale file handle")]

    def scandir(folder):
        if folder == tmp_path / "images" / "sub" and left:
            raise left.pop()
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert len(load_source("ImageFolder", path=str(tmp_path / "images"), image_size=8)) == 1 and not left
