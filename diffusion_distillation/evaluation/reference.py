"""What images are judged against: a dataset, images made by someone else, or published statistics.

Files of statistics are those of EDM and pytorch-fid (`mu`, `sigma`) and of ADM (which have images, `arr_0`, too).
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from ..data import ArraySource, Source, fingerprint, read_examples
from ..data.batches import prefetch
from ..data.cache import cached_arrays
from ..data.image_folder import SUFFIXES, find_images
from ..data.transforms import BrokenImageError, decode, has_color
from ..errors import InputError
from ..runtime.files import as_path, is_remote, retry, save_atomic, stat_hash
from ..runtime.hashing import sha256
from .extractor import Activations, FeatureExtractor
from .frechet import Statistics, frechet_distance, statistics
from .metrics import FeatureSet, collect_features, required_fields

MOST_IMAGES = 50_000  # of a dataset that are looked at; as for published FIDs
CHUNK = 1000  # images whose features are found at a time


class Reference(NamedTuple):
    """What a path or a dataset holds.

    Attributes:
      images: None if there are none.
      published: statistics that came with them or instead of them; None if there were none.
      features: the identity of the extractor that these are of; None for Inception's, as others publish them.
      name: for messages.
      content: something that is another if the content is.
    """

    images: Source | None
    published: Statistics | None
    features: str | None
    name: str
    content: str


class FolderSource:
    """A `Source` of the images in a folder and its subfolders, at their own size, in the order of their paths.

    `data.image_folder.find_images` finds them, and `data.transforms.decode` reads them: 8 bits, upright, no
    transparency. If all images are gray, they have one channel.

    Raises:
      InputError: for a folder without images or with a broken image; and, when an image is read, if its size is not
        that of the first image.
      RunError: if the machine or its storage keeps failing.
    """

    num_classes = 1

    def __init__(self, folder: Path):
        found = find_images(folder)
        self.files = [file for file in found if file.suffix.lower() in SUFFIXES]
        if not self.files:
            raise InputError(f"{str(folder)!r} has no images: files that end in {', '.join(SUFFIXES)}.")
        for path in found:
            if path.is_dir():
                raise InputError(f"{str(path)!r} is a folder that cannot be searched, or is named as images are.")
        if others := Counter(file.suffix for file in found if file.suffix.lower() not in SUFFIXES):
            counts = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common())
            logging.warning("%s: skipped images in formats that cannot be read: %s", folder, counts)
        of_any = prefetch(lambda number: self._read(number, has_color), range(len(self.files)))
        self.image_shape = (*self._read(0, _pixels).shape[:2], 3 if any(of_any) else 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        images, shape = [self._read(index, _pixels) for index in indices.tolist()], self.image_shape
        for index, image in zip(indices, images, strict=True):
            if image.shape[:2] != shape[:2]:
                raise InputError(
                    f"{str(self.files[index])!r} is of {image.shape[0]}x{image.shape[1]} pixels, and "
                    f"{str(self.files[0])!r} of {shape[0]}x{shape[1]}: give images of one size."
                )
        return {"image": np.stack(images)[..., : shape[2]], "label": np.zeros(len(images), np.int32)}

    def _read(self, index: int, read: Callable[[bytes], Any]) -> Any:
        file = self.files[index]
        try:
            return retry(lambda: read(file.read_bytes()), file)
        except (OSError, BrokenImageError) as error:
            raise InputError(f"{str(file)!r} cannot be read as an image ({error}).") from None


def _pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(decode(encoded))


class GraySource:
    """A `Source` of gray images, with as many channels as the images that they are compared with.

    Args:
      source: gray images, with 1 channel or 3 equal ones.
      channels: 1 or 3.
    """

    num_classes = 1

    def __init__(self, source: Source, channels: int):
        self._source = source
        self.image_shape = (*source.image_shape[:2], channels)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        examples = self._source[indices]
        return {**examples, "image": np.repeat(examples["image"][..., :1], self.image_shape[2], axis=-1)}


def convert_channels(reference: Reference, channels: int) -> Reference:
    """Convert a reference to 1 or 3 channels. A reference with color is never reduced to 1 channel."""
    images = reference.images
    if images is None or images.image_shape[2] == channels or (channels == 1 and _has_color(images)):
        return reference
    return reference._replace(images=GraySource(images, channels))


def _has_color(source: Source) -> bool:
    if isinstance(source, FolderSource):  # which have 3 channels only if one has color
        return source.image_shape[2] == 3
    read = (examples["image"] for examples in read_examples(source, np.arange(len(source))))
    return any((images != images[..., :1]).any() for images in read)


def dataset_reference(source: Source, dataset: ConfigDict) -> Reference:
    """A dataset as a reference: all its images, or 50,000 of them; `dataset` is the config's section."""
    return Reference(source, None, None, dataset.name, f"{len(source)} images, {fingerprint(source)}")


def load_reference(path: epath.PathLike) -> Reference:
    """A folder of images, an .npy of uint8 images, or an .npz: `images` or `arr_0`, `mu` and `sigma`, or both.

    Raises:
      InputError: if it is not there or holds something else.
    """
    path = as_path(path)
    if is_remote(path) and path.is_dir():
        raise InputError(
            f"{str(path)!r}: a folder of images must be local. Copy the folder, or give an .npz or an .npy."
        )
    if path.is_dir():
        pictures = FolderSource(Path(path))
        return Reference(pictures, None, None, str(path), stat_hash(pictures.files))
    if not path.exists():
        raise InputError(f"There is no {str(path)!r}. Give a folder of images, an .npz or an .npy.")
    try:
        loaded = np.load(path.open("rb"), allow_pickle=False)
        with contextlib.nullcontext({"images": loaded}) if isinstance(loaded, np.ndarray) else loaded as file:
            arrays = {name: file[name] for name in ("images", "arr_0", "mu", "sigma", "features") if name in file}
            there = sorted(file)
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read as an .npz or an .npy ({error}).") from None
    images, published = arrays.get("images", arrays.get("arr_0")), None
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3)):
        raise InputError(
            f"{str(path)!r}: images must be uint8 [n, height, width, 1 or 3]; these are {images.dtype} "
            f"{list(images.shape)}."
        )
    if "mu" in arrays and "sigma" in arrays:
        published = Statistics(*(np.asarray(arrays[name], np.float64) for name in ("mu", "sigma")))
        if published.covariance.shape != 2 * published.mean.shape:
            raise InputError(
                f"{str(path)!r}: mu {list(published.mean.shape)} and sigma {list(published.covariance.shape)} are no "
                "mean and covariance."
            )
    if images is None and published is None:
        raise InputError(f"{str(path)!r} has {there}, and neither 'images', 'arr_0' nor both 'mu' and 'sigma'.")
    source = None if images is None else ArraySource(images, np.zeros(len(images)), 1)
    features = str(arrays["features"]) if "features" in arrays else None
    return Reference(source, published, features, str(path), stat_hash([path]))


def reference_features(reference: Reference, extractor: FeatureExtractor, metrics: Sequence[str]) -> FeatureSet:
    """What these metrics need of a reference. What was found of its images is kept for the next time.

    Raises:
      InputError: if the reference does not have it.
    """
    fields = required_fields(metrics, of_reference=True)
    if not fields:
        return FeatureSet()
    published = reference.published if _is_of(reference, extractor) else None
    to_find = fields - {"statistics"} if published is not None else fields
    if not to_find:
        return FeatureSet(published)
    if reference.images is None:
        lacking = [name for name in metrics if required_fields([name], of_reference=True) & to_find]
        what = "statistics of other features" if "statistics" in to_find else "statistics, and no images"
        raise InputError(f"{reference.name} has {what}: {', '.join(lacking)} cannot be computed against it.")
    found = collect_features(_in_pieces(extract_features(reference.images, extractor)), to_find)
    return found if published is None else found._replace(statistics=published)


def reference_indices(source: Source) -> np.ndarray:
    """The images of a dataset to measure against: all, in their order, or 50,000 of them."""
    return np.sort(np.random.default_rng(0).permutation(len(source))[:MOST_IMAGES])


def extract_features(source: Source, extractor: FeatureExtractor) -> Activations:
    """Features and logits of a dataset's images, in the order of `reference_indices`, cached on disk."""
    indices = reference_indices(source)

    def make() -> dict[str, np.ndarray]:
        pieces = [extractor(images) for images in _pieces(source, indices)]
        found = {name: [getattr(piece, name) for piece in pieces] for name in Activations._fields}
        return {name: np.concatenate(parts) for name, parts in found.items() if parts[0] is not None}

    if extractor.identity is None:
        kept = make()
    else:
        digest = sha256(map(np.ascontiguousarray, _pieces(source, indices)))
        kept = cached_arrays("features", {"images": digest, "features": extractor.identity, "version": 1}, make)
    return Activations(kept["features"], kept.get("logits"))


def halves_distance(source: Source, extractor: FeatureExtractor) -> float:
    """Frechet distance between two halves of a dataset: a level to hold the distance of samples against."""
    features = extract_features(source, extractor).features
    halves = np.array_split(features[np.random.default_rng(0).permutation(len(features))], 2)
    return frechet_distance(*(statistics([half]) for half in halves))


def nearest(
    images: np.ndarray, source: Source, extractor: FeatureExtractor, k: int
) -> UInt8[np.ndarray, "n k height width channels"]:
    """The k images of a dataset that are nearest to each of these in the features."""
    from sklearn.neighbors import NearestNeighbors  # scikit-learn takes a second to import

    there = extract_features(source, extractor).features
    search = NearestNeighbors(n_neighbors=min(k, len(there)), algorithm="brute").fit(there)
    _, neighbours = search.kneighbors(extractor(images).features)
    found = source[reference_indices(source)[neighbours.ravel()]]["image"]
    return found.reshape(*neighbours.shape, *found.shape[1:])


def save_statistics(path: epath.PathLike, found: Statistics, extractor: FeatureExtractor) -> None:
    """Writes `mu` and `sigma` as others read them, and the `features` that they are of."""
    arrays = dict(mu=found.mean, sigma=found.covariance, features=np.array(extractor.identity or "of one's own"))
    save_atomic(as_path(path), lambda file: np.savez_compressed(file, **arrays))


def _is_of(reference: Reference, extractor: FeatureExtractor) -> bool:
    """Whether the statistics of a reference are of this extractor's features."""
    if reference.published is None:
        return False
    if reference.features is not None:
        return reference.features == extractor.identity
    return (extractor.identity or "").startswith("inception")


def _in_pieces(found: Activations) -> Iterator[Activations]:
    """A thousand rows at a time."""
    for start in range(0, len(found.features), CHUNK):
        yield Activations(*(None if part is None else part[start : start + CHUNK] for part in found))


def _pieces(source: Source, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The images, a thousand at a time."""
    pieces: list[np.ndarray] = []
    for examples in read_examples(source, indices):
        pieces.append(examples["image"])
        if sum(map(len, pieces)) >= CHUNK:
            yield np.concatenate(pieces)
            pieces = []
    if pieces:
        yield np.concatenate(pieces)
