"""Write folders of latents; `latents.py` describes and reads them."""

import dataclasses
import datetime
import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from ..errors import InputError, RunError
from ..latents import AutoencoderInfo, Encode, from_uint8
from ..runtime import multihost
from ..runtime.console import show_progress
from ..runtime.files import retry, write_atomic
from ..runtime.hashing import sha256
from .batches import prefetch
from .fingerprint import fingerprint
from .latents import DTYPE, LABEL_DTYPE, MANIFEST, UNFINISHED_MANIFEST, Manifest
from .source import Source

MAX_SHARD_BYTES = 128 << 20
MIN_SHARDS = 8  # so that several processes have work with small datasets too
PROGRESS_EVERY = 2.0  # seconds


def describe(
    source: Source,
    dataset: dict[str, Any],
    autoencoder: AutoencoderInfo,
    *,
    autoencoder_path: str,
    mirror: bool = False,
    dtype: str = "float32",
) -> Manifest:
    """Describe the folder that `encode_dataset` will write.

    Args:
      source: the images.
      dataset: the `name` and the `args` by which a config names the images.
      autoencoder: its numbers and names.
      autoencoder_path: where it was read from.
      mirror: also encode the mirror image of each image.
      dtype: type of the encoder's activations.

    Raises:
      InputError: if the autoencoder does not take such images.
    """
    latent_shape = autoencoder.latent_shape(source.image_shape)
    parts = 2 if mirror else 1
    num_bytes = len(source) * parts * 2 * int(np.prod(latent_shape)) * DTYPE.itemsize
    return Manifest(
        num_examples=len(source),
        num_shards=max(min(MIN_SHARDS, len(source)), -(-num_bytes // MAX_SHARD_BYTES)),
        image_shape=tuple(map(int, source.image_shape)),
        latent_shape=latent_shape,
        parts=parts,
        num_classes=int(source.num_classes),
        class_names=getattr(source, "class_names", None),
        dataset={**dataset, "fingerprint": fingerprint(source)},
        autoencoder=autoencoder,
        autoencoder_path=autoencoder_path,
        dtype=dtype,
    )


def encode_dataset(source: Source, encode: Encode, manifest: Manifest, folder: epath.Path, *, batch_size: int) -> None:
    """Encode a dataset's images into a folder of latents. Every process must call this function.

    Each process encodes shards of its own. A shard appears once all of it is written. If this function is called again
    after an interruption, it encodes the shards that are missing or damaged. With the same devices and batch size, the
    folder then has the same bytes as without the interruption.

    Args:
      source: the images.
      encode: `encode(images) -> (mean, std)`, of `batch_size` images in [-1, 1], on the devices of this process.
      manifest: from `describe`.
      folder: created if it is missing. Only one run may work in it.
      batch_size: images that are encoded at a time.

    Raises:
      InputError: if the folder has latents of other images or another autoencoder.
      RunError: if a latent is too large for float16.
    """
    known = multihost.on_main(lambda: _begin(manifest, folder))
    process, num_processes = jax.process_index(), jax.process_count()
    own = range(process, manifest.num_shards, num_processes)
    hashes = {shard: _hash_if_sound(manifest, folder, shard) for shard in own}
    missing = [shard for shard in own if hashes[shard] is None or (known and known[shard] != hashes[shard])]
    progress = _Progress(manifest, [len(manifest.rows(shard)) for shard in missing])
    for shard in missing:
        hashes[shard] = _encode_shard(source, encode, manifest, folder, shard, batch_size, progress.add)
    multihost.barrier("all shards are encoded")
    multihost.on_main(lambda: _finish(manifest, folder, hashes))


def _begin(manifest: Manifest, folder: epath.Path) -> list[str]:
    """Check that a folder is new, or was begun with the same images and autoencoder.

    Returns:
      The hashes of its shards if the folder was complete before, else none.
    """
    for name in (MANIFEST, UNFINISHED_MANIFEST):
        if (folder / name).exists():
            present = Manifest.read(folder / name)
            _check_same(present, manifest, folder)
            return list(present.hashes)
    write_atomic(folder / UNFINISHED_MANIFEST, manifest.to_json())
    return []


def _check_same(present: Manifest, manifest: Manifest, folder: epath.Path) -> None:
    """Raise an InputError that names the first difference between a folder's manifest and another one."""
    before, now = (
        json.loads(one.to_json()) | {"autoencoder": one.autoencoder.fingerprint, "dataset": one.dataset["fingerprint"]}
        for one in (present, manifest)
    )
    for name in before.keys() - {"hashes", "autoencoder_path"}:
        if before[name] != now[name]:
            raise InputError(
                f"{str(folder)!r} has latents with {name}={before[name]!r}, not {now[name]!r}. Choose another --out, "
                "or delete this folder."
            )


def _finish(manifest: Manifest, folder: epath.Path, hashes: dict[int, str]) -> None:
    """Write the manifest, with the hashes of all shards. The shards of other processes are read for it."""

    def hash_of(shard: int) -> str:
        found = hashes.get(shard) or _hash_if_sound(manifest, folder, shard)
        if found is None:
            raise RunError(f"Shard {shard} in {str(folder)!r} is missing. All processes must see the same folder.")
        return found

    hashes_of_all = tuple(hash_of(shard) for shard in range(manifest.num_shards))
    write_atomic(folder / MANIFEST, dataclasses.replace(manifest, hashes=hashes_of_all).to_json())
    (folder / UNFINISHED_MANIFEST).unlink(missing_ok=True)


def _hash_if_sound(manifest: Manifest, folder: epath.Path, shard: int) -> str | None:
    """The hash of a shard's files; None if one of them is missing or truncated."""
    try:
        manifest.open_shard(folder, shard)
    except InputError:
        return None
    files = manifest.labels_file(folder, shard), manifest.latents_file(folder, shard)
    return sha256([retry(file.read_bytes, file) for file in files], 16)


def _encode_shard(
    source: Source,
    encode: Encode,
    manifest: Manifest,
    folder: epath.Path,
    shard: int,
    batch_size: int,
    on_images: Callable[[int], None],
) -> str:
    """Encode a shard and write its files, the latents last. Returns their hash."""
    rows = manifest.rows(shard)
    latents = np.empty((len(rows), *manifest.example_shape), DTYPE)
    labels = np.empty(len(rows), LABEL_DTYPE)
    done = 0
    for examples in _batches(source, rows, batch_size):
        images = examples["image"]
        end = done + len(images)
        labels[done:end] = examples["label"]
        for part, view in enumerate((images, images[:, :, ::-1])[: manifest.parts]):
            moments = np.stack(_encode_padded(encode, view, batch_size), axis=1)
            _check_range(moments, rows[done])
            latents[done:end, part] = moments
        done = end
        on_images(len(images))
    contents = [_npy_bytes(labels), _npy_bytes(latents)]
    write_atomic(manifest.labels_file(folder, shard), contents[0])
    write_atomic(manifest.latents_file(folder, shard), contents[1])
    return sha256(contents, 16)


def _batches(source: Source, rows: range, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """The examples of a shard, read ahead by threads. The last batch may be smaller."""

    def read(number: int) -> dict[str, np.ndarray]:
        return source[np.array(rows[number * batch_size : (number + 1) * batch_size])]

    return iter(prefetch(read, range(-(-len(rows) // batch_size))))


def _encode_padded(encode: Encode, images: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The mean and the standard deviation of up to a batch of images, computed by the program for a whole batch."""
    padded = np.zeros((batch_size, *images.shape[1:]), np.uint8)
    padded[: len(images)] = images
    return [np.asarray(array)[: len(images)] for array in encode(from_uint8(padded))]


def _check_range(moments: np.ndarray, first: int) -> None:
    """Raise a RunError if latents do not fit float16."""
    largest = np.abs(moments).max()
    most = float(np.finfo(DTYPE).max)
    if not largest <= most:  # also if it is not a number
        raise RunError(
            f"The latents of images {first:,} to {first + len(moments) - 1:,} reach {largest:.4g}; float16 holds up to "
            f"{most:,.0f}. If the autoencoder computes in 16 bits, use --dtype=float32; else its "
            "latents cannot be stored."
        )


def _npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class _Progress:
    """The progress line of the main process, about its own shards.

    Args:
      manifest: of the folder.
      missing: the images of each shard to encode.
    """

    def __init__(self, manifest: Manifest, missing: list[int]):
        self._total = sum(missing)
        self._bytes_per_image = int(np.prod(manifest.example_shape)) * DTYPE.itemsize
        self._done = 0
        self._began = self._shown = None
        kept = manifest.num_examples - self._total
        several = f"process 0 of {jax.process_count()}: " if jax.process_count() > 1 else ""
        finished = f"{kept:,} are encoded already, " if kept and not several else ""
        multihost.print_on_main(f"{several}{finished}{self._total:,} images to encode, {self._size(self._total)}")

    def add(self, num_images: int) -> None:
        """Count images, and print the line if it is due. The first images, with compilation, do not count for speed."""
        self._done += num_images
        now = time.monotonic()
        if self._began is None:
            self._began = self._shown = now
            self._first = self._done
        last = self._done == self._total
        if not multihost.is_main() or (now - self._shown < PROGRESS_EVERY and not last):
            return
        self._shown = now
        speed = (self._done - self._first) / max(now - self._began, 1e-9)
        left = datetime.timedelta(seconds=round((self._total - self._done) / speed)) if speed else "?"
        show_progress(
            f"encoded {self._done:,}/{self._total:,} images  {speed:,.0f} images/s  {left} left  "
            f"{self._size(self._done)}",
            last=last,
        )

    def _size(self, num_images: int) -> str:
        size = num_images * self._bytes_per_image
        return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
