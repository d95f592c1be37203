"""Measure how fast images are read, decoded and resized, in images/s.

    python scripts/benchmarks/data.py

from memory                32x32x3 arrays, as for CIFAR-10 and every dataset that is decoded once
PNG records               32x32x3 in array_record files, decoded when they are read
JPEG files                a folder of 256x256 JPEG files, decoded and resized to 64x64 when they are read
JPEG files, Pillow alone  the same files and size, in as many threads that only call Pillow

The images are random, with the detail of photographs, in a temporary folder.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import flags
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from diffusion_distillation import cli
from diffusion_distillation.data import ArraySource, Source, read_batches
from diffusion_distillation.data.batches import NUM_THREADS
from diffusion_distillation.data.decoding import DecodingSource, EncodedImages
from diffusion_distillation.data.image_folder import ImageFiles
from diffusion_distillation.data.transforms import Transform

FILES = flags.DEFINE_integer("files", 5000, "Number of JPEG files and of PNG records.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per training step.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 10, "Length of each measurement.", lower_bound=0)


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{NUM_THREADS} threads, batches of {BATCH_SIZE.value}")
    images = rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8)
    _show("from memory", _speed(ArraySource(images, np.zeros(len(images)), 1)))
    with tempfile.TemporaryDirectory() as folder:
        photos = [_photo(rng, 256) for _ in tqdm(range(FILES.value), "making images", disable=None)]
        records = Path(folder) / "images.array_record"
        _write_records(records, [photo.resize((32, 32)) for photo in photos])
        _show("PNG records", _speed(_decoded(PngRecords(records), Transform(32))))
        files = [Path(folder) / f"{number:05d}.jpg" for number in range(len(photos))]
        for file, photo in zip(files, photos, strict=True):
            photo.save(file, quality=90)
        ours = _speed(_decoded(ImageFiles(Path(folder), files), Transform(64)))
        alone = _speed_of_pillow(files, 64)
        _show("JPEG files", ours, f"{ours / alone:.0%} of Pillow alone")
        _show("JPEG files, Pillow alone", alone)


class PngRecords:
    """PNG images in an array_record file, as `decoding.EncodedImages`."""

    title, num_classes, class_names, trusted = "PNG records", 1, None, True

    def __init__(self, path: Path):
        self._records = ArrayRecordDataSource(str(path))
        self.key = self.listing = {"path": str(path)}

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """The record, for messages."""
        return f"record {index}"

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of an image and the label 0."""
        return self._records[index], 0


def _decoded(images: EncodedImages, transform: Transform) -> Source:
    return DecodingSource(images, transform, np.arange(len(images)))


def _photo(rng: np.random.Generator, size: int) -> Image.Image:
    """An image with detail at every scale, on which a JPEG decoder's time depends."""
    image = np.zeros((size, size, 3))
    for scale in (4, 16, 64, size):
        detail = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), np.uint8)).resize((size, size))
        image += np.asarray(detail) / scale**0.5
    return Image.fromarray(np.uint8(255 * (image - image.min()) / np.ptp(image)))


def _write_records(path: Path, images: list[Image.Image]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        writer.write(buffer.getvalue())
    writer.close()


def _speed(source: Source) -> float:
    """Images/s that training reads from a source."""
    with contextlib.closing(read_batches(source, 0, range(10**9), BATCH_SIZE.value)) as batches:
        return _count(lambda: len(next(batches)["image"]))


def _speed_of_pillow(files: list[Path], size: int) -> float:
    """Images/s that threads read with Pillow."""

    def load(file: Path) -> None:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))

    def load_batch() -> int:
        return len(list(threads.map(load, rng.choice(files, BATCH_SIZE.value))))

    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        return _count(load_batch)


def _count(read: Callable[[], int]) -> float:
    read()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS.value:
        count += read()
    return count / elapsed


def _show(name: str, images_per_sec: float, note: str = "") -> None:
    print(f"{name:<26}{images_per_sec:>12,.0f} images/s  {note}".rstrip(), flush=True)


if __name__ == "__main__":
    cli.run(main)
