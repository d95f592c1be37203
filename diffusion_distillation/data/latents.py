"""Folders of latents: a dataset's images, encoded once, for training latent diffusion models.

`encode.py` writes such a folder, and `latent_folder` reads it:

- `latents.json`: what the folder holds; see `Manifest`. It is written last.
- `latents-00000-of-00008.npy`, ...: the latents, float16, `[rows, parts, 2, height, width, channels]`. The parts are
  the image and, if it was encoded too, its mirror image. Of each part, the mean of the latents comes first, then their
  standard deviation. Latents are neither shifted nor scaled.
- `labels-00000-of-00008.npy`, ...: the labels, int32, `[rows]`.

The latents of an example are one range of bytes, so an example costs one read. Local files are mapped into memory, and
files in buckets are read by range requests. Neither needs TensorFlow.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import fsspec
import numpy as np
from etils import epath
from jaxtyping import Int

from ..errors import InputError
from ..latents import AutoencoderInfo, Shape
from ..runtime.files import as_path, is_remote, read_json, retry, tuples_for_lists
from ..runtime.hashing import sha256

FORMAT_VERSION = 1
MANIFEST = "latents.json"
UNFINISHED_MANIFEST = "encoding.json"  # while the folder is being written
DTYPE = np.dtype("<f2")
LABEL_DTYPE = np.dtype("<i4")
MAX_HEADER_BYTES = 2**10  # of a .npy file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of latents holds.

    Attributes:
      num_examples: images of the dataset.
      num_shards: files that the latents are divided into, evenly.
      image_shape: (height, width, channels) of the images.
      latent_shape: (height, width, channels) of their latents.
      parts: 1, or 2 if mirror images were encoded too.
      num_classes: 1 if the dataset has no labels.
      class_names: one name per class; None if the classes have no names.
      dataset: the `name` and `args` of the images in a config, and their `fingerprint`.
      autoencoder: numbers and names of the autoencoder.
      autoencoder_path: where it was read from.
      dtype: type of the encoder's activations.
      hashes: one per shard, of its two files. Empty while the folder is being written.
    """

    num_examples: int
    num_shards: int
    image_shape: Shape
    latent_shape: Shape
    parts: int
    num_classes: int
    class_names: tuple[str, ...] | None
    dataset: Mapping[str, Any]
    autoencoder: AutoencoderInfo
    autoencoder_path: str
    dtype: str
    hashes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The content of latents.json."""
        return json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, path: epath.Path) -> "Manifest":
        """Read a manifest. Raises an InputError if it is damaged or of a newer version."""
        values = tuples_for_lists(read_json(path))
        try:
            version = values.pop("format_version")
            if version > FORMAT_VERSION:
                raise InputError(
                    f"{str(path)!r} has format {version}. This version of diffusion_distillation reads formats up to "
                    f"{FORMAT_VERSION}. Upgrade the package."
                )
            return cls(autoencoder=AutoencoderInfo(**values.pop("autoencoder")), **values)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{str(path)!r} is damaged, or was not written by encode_data ({error!r}).") from None

    @property
    def example_shape(self) -> tuple[int, ...]:
        """(parts, 2, height, width, channels): the latents of an example."""
        return self.parts, 2, *self.latent_shape

    def rows(self, shard: int) -> range:
        """The examples of a shard."""
        bounds = [number * self.num_examples // self.num_shards for number in (shard, shard + 1)]
        return range(*bounds)

    def latents_file(self, folder: epath.Path, shard: int) -> epath.Path:
        """The path of the latents of a shard."""
        return folder / f"latents-{shard:05d}-of-{self.num_shards:05d}.npy"

    def labels_file(self, folder: epath.Path, shard: int) -> epath.Path:
        """The path of the labels of a shard."""
        return folder / f"labels-{shard:05d}-of-{self.num_shards:05d}.npy"

    def open_shard(self, folder: epath.Path, shard: int) -> tuple["Rows", "Rows"]:
        """Open the latents and the labels of a shard.

        Raises:
          InputError: if a file is missing, truncated, or of another shape or type.
        """
        count = len(self.rows(shard))
        latents = Rows(self.latents_file(folder, shard), (count, *self.example_shape), DTYPE)
        return latents, Rows(self.labels_file(folder, shard), (count,), LABEL_DTYPE)


class Rows:
    """Random access to the rows of an array in a .npy file, here or in a bucket.

    Args:
      path: the file.
      shape: of the whole array.
      dtype: of the array.

    Raises:
      InputError: if there is no such file, or it is not of this shape, type and length.
    """

    def __init__(self, path: epath.Path, shape: tuple[int, ...], dtype: np.dtype):
        self._shape = shape
        self._dtype = dtype
        try:
            with path.open("rb") as file:
                self._start = self._check_header(file)
            length = path.stat().length
        except (FileNotFoundError, IsADirectoryError):
            raise InputError(f"There is no {str(path)!r}. {REMEDY}") from None
        except (EOFError, ValueError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error}). {REMEDY}") from None
        expected = self._start + int(np.prod(shape)) * dtype.itemsize
        if length != expected:
            raise InputError(f"{str(path)!r} is damaged: it has {length:,} bytes instead of {expected:,}. {REMEDY}")
        self._path = path
        if is_remote(path):
            self._files, self._name = fsspec.core.url_to_fs(str(path))
        else:  # without the subclass, whose indexing is slower
            self._array = np.asarray(np.memmap(path, dtype, "r", self._start, shape))

    def __getitem__(self, rows: Int[np.ndarray, "n"]) -> np.ndarray:
        """Return some rows, as an array."""
        if not is_remote(self._path):
            return self._array[rows]
        size = int(np.prod(self._shape[1:])) * self._dtype.itemsize
        starts = [self._start + size * row for row in rows.tolist()]
        ends = [start + size for start in starts]
        names = [self._name] * len(starts)
        parts = retry(lambda: self._files.cat_ranges(names, starts, ends, on_error="raise"), self._path)
        return np.frombuffer(b"".join(parts), self._dtype).reshape(len(rows), *self._shape[1:])

    def all(self) -> np.ndarray:
        """Return all rows, read at once."""
        content = retry(self._path.read_bytes, self._path)
        return np.frombuffer(content, self._dtype, offset=self._start).reshape(self._shape)

    def _check_header(self, file: BinaryIO) -> int:
        """Check the header of a .npy file, and return its length in bytes."""
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it has another version of the .npy format")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
        if (shape, by_columns, dtype) != (self._shape, False, self._dtype):
            raise ValueError(f"it has {dtype}{list(shape)} instead of {self._dtype}{list(self._shape)}")
        return file.tell()


REMEDY = "Run encode_data again: it encodes what is missing."


class LatentSource:
    """The latents of a dataset's images.

    Attributes:
      image_shape: (height, width, channels) of the images.
      latent_shape: (height, width, channels) of their latents.
      num_classes: 1 if the dataset has no labels.
      class_names: one name per class; None if the classes have no names.
      fingerprint: changes when the latents or the labels do.
      autoencoder: numbers and names of the autoencoder.
      autoencoder_path: where it was read from when the images were encoded.
      images: `name` and `args` of the images in a config.

    Args:
      folder: of the latents.

    Raises:
      InputError: if the folder is incomplete or damaged.
    """

    def __init__(self, folder: epath.Path):
        manifest = _read_manifest(folder)
        self.image_shape = manifest.image_shape
        self.latent_shape = manifest.latent_shape
        self.num_classes = manifest.num_classes
        self.class_names = manifest.class_names
        self.fingerprint = _fingerprint(manifest)
        self.autoencoder = manifest.autoencoder
        self.autoencoder_path = manifest.autoencoder_path
        self.images = {"name": manifest.dataset["name"], "args": dict(manifest.dataset["args"])}
        shards = [manifest.open_shard(folder, shard) for shard in range(manifest.num_shards)]
        self._shards = [latents for latents, _ in shards]
        self._labels = np.concatenate([labels.all() for _, labels in shards])
        self._starts = np.array([manifest.rows(shard).start for shard in range(manifest.num_shards)])
        self._example_shape = manifest.example_shape

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, indices: Int[np.ndarray, "n"]) -> dict[str, np.ndarray]:
        """Return the examples at these indices; several threads may call it at a time.

        Returns:
          float16 `mean` and `std`, `[n, parts, height, width, channels]`, neither shifted nor scaled, and int32
          `label`, `[n]`. There are 2 parts, the image's and its mirror image's, if both were encoded, else 1.
        """
        latents = np.empty((len(indices), *self._example_shape), DTYPE)
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        for shard in np.unique(shards):
            chosen = shards == shard
            latents[chosen] = self._shards[shard][indices[chosen] - self._starts[shard]]
        return {"mean": latents[:, :, 0], "std": latents[:, :, 1], "label": self._labels[indices]}


def latent_folder(path: str) -> LatentSource:
    """Open a folder of latents, which the command `encode_data` wrote.

    Args:
      path: the folder of latents, here or in a bucket.

    Raises:
      InputError: if there is no such folder, or a file in it is missing or damaged.
    """
    return LatentSource(as_path(path))


def _read_manifest(folder: epath.Path) -> Manifest:
    if (folder / MANIFEST).exists():
        return Manifest.read(folder / MANIFEST)
    if (folder / UNFINISHED_MANIFEST).exists():
        raise InputError(f"The latents in {str(folder)!r} are incomplete. {REMEDY}")
    raise InputError(
        f"There is no {str(folder / MANIFEST)!r}. Pass a folder of latents, which the command 'encode_data' writes."
    )


def _fingerprint(manifest: Manifest) -> str:
    about = [manifest.hashes, manifest.num_classes, manifest.class_names, manifest.autoencoder.fingerprint]
    return sha256([json.dumps(about)], 16)
