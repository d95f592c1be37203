"""What samples are compared with: a dataset, images from elsewhere, or published statistics.

Files with statistics have the format of EDM and pytorch-fid (`mu`, `sigma`) and of ADM (with images, `arr_0`, as well).
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..data import ArraySource, Source, fingerprint, load_source
from ..errors import InputError
from ..runtime.files import as_path, is_remote, save_atomic, stat_hash
from .dataset_features import CHUNK_SIZE, extract_features
from .extractor import Activations, FeatureExtractor
from .frechet import Statistics
from .metrics import INCEPTION, FeatureSet, collect_features, reference_fields
from .sources import FolderSource, GraySource, source_has_color


class Reference(NamedTuple):
    """Images, statistics, or both.

    Attributes:
      images: None if there are only statistics.
      statistics: published mean and covariance; None if there are only images.
      extractor_identity: of the features that `statistics` belong to; None for Inception's, as others publish them.
      name: for messages.
      content: a text that changes when the content does.
    """

    images: Source | None
    statistics: Statistics | None
    extractor_identity: str | None
    name: str
    content: str


def reference_images(config: ConfigDict, source: Source | None = None) -> tuple[Source, str]:
    """Return the images that samples of a config's models are compared with, and the name of their dataset.

    If `config.eval.dataset` is set, they are the images of that dataset. Otherwise they are the training images, or the
    images that were encoded if the training data are latents.

    Args:
      config: resolved.
      source: the training data, if they are loaded already.

    Raises:
      InputError: see `data.load_source`.
    """
    named = config.eval.dataset
    if not named:
        source = source or load_source(config.dataset.name, **config.dataset.args)
        named = getattr(source, "images", None)
    if not named:
        return source, config.dataset.name
    return load_source(named["name"], **named.get("args", {})), named["name"]


def dataset_reference(source: Source, name: str) -> Reference:
    """Make a reference of a dataset: all its images, or 50,000 of them.

    Args:
      source: the images.
      name: of the dataset.
    """
    return Reference(
        images=source,
        statistics=None,
        extractor_identity=None,
        name=name,
        content=f"{len(source)} images, {fingerprint(source)}",
    )


def load_reference(path: epath.PathLike) -> Reference:
    """Load a reference from a path.

    Args:
      path: a folder of images, an .npy of uint8 images, or an .npz with `images` or `arr_0`, `mu` and `sigma`, or both.

    Raises:
      InputError: if the path does not exist or has other content.
    """
    path = as_path(path)
    if is_remote(path) and path.is_dir():
        raise InputError(
            f"{str(path)!r}: a folder of images must be local. Copy the folder, or give an .npz or an .npy."
        )
    if path.is_dir():
        folder = FolderSource(Path(path))
        return Reference(
            images=folder,
            statistics=None,
            extractor_identity=None,
            name=str(path),
            content=stat_hash(folder.files),
        )
    if not path.exists():
        raise InputError(f"There is no {str(path)!r}. Give a folder of images, an .npz or an .npy.")
    arrays = _load_arrays(path)
    images = arrays.get("images", arrays.get("arr_0"))
    statistics = _published_statistics(arrays, path)
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3)):
        raise InputError(
            f"{str(path)!r}: images must be uint8 [n, height, width, 1 or 3]; these are {images.dtype} "
            f"{list(images.shape)}."
        )
    return Reference(
        images=None if images is None else ArraySource(images, np.zeros(len(images)), 1),
        statistics=statistics,
        extractor_identity=str(arrays["features"]) if "features" in arrays else None,
        name=str(path),
        content=stat_hash([path]),
    )


def _load_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Load the arrays of an .npz that a reference may have, or an .npy as `images`."""
    try:
        loaded = np.load(path.open("rb"), allow_pickle=False)
        with contextlib.nullcontext({"images": loaded}) if isinstance(loaded, np.ndarray) else loaded as file:
            names = sorted(file)
            arrays = {name: file[name] for name in ("images", "arr_0", "mu", "sigma", "features") if name in file}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read as an .npz or an .npy ({error}).") from None
    if not {"images", "arr_0"} & arrays.keys() and not {"mu", "sigma"} <= arrays.keys():
        raise InputError(f"{str(path)!r} has {names}, and neither 'images', 'arr_0' nor both 'mu' and 'sigma'.")
    return arrays


def _published_statistics(arrays: dict[str, np.ndarray], path: epath.Path) -> Statistics | None:
    if "mu" not in arrays or "sigma" not in arrays:
        return None
    mean = np.asarray(arrays["mu"], np.float64)
    covariance = np.asarray(arrays["sigma"], np.float64)
    if covariance.shape != 2 * mean.shape:
        raise InputError(
            f"{str(path)!r}: mu has shape {list(mean.shape)} and sigma {list(covariance.shape)}. They must have shapes "
            "[features] and [features, features]."
        )
    return Statistics(mean, covariance)


def save_statistics(path: epath.PathLike, statistics: Statistics, extractor: FeatureExtractor) -> None:
    """Save statistics as an .npz with `mu` and `sigma`, as other projects read them, and the extractor's identity."""
    arrays = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "features": np.array(extractor.identity or "of one's own"),
    }
    save_atomic(as_path(path), lambda file: np.savez_compressed(file, **arrays))


def convert_channels(reference: Reference, channels: int) -> Reference:
    """Convert gray images to 1 or 3 channels. Images with color keep their 3 channels."""
    images = reference.images
    if images is None or images.image_shape[2] == channels or (channels == 1 and source_has_color(images)):
        return reference
    return reference._replace(images=GraySource(images, channels))


def reference_features(reference: Reference, extractor: FeatureExtractor, metrics: Sequence[str]) -> FeatureSet:
    """Collect the features of a reference that metrics need. Features of images are cached on disk.

    Args:
      reference: the images or statistics.
      extractor: computes the features of images.
      metrics: keys of `METRICS`.

    Raises:
      InputError: if the reference does not have what the metrics need.
    """
    needed = reference_fields(metrics)
    if not needed:
        return FeatureSet()
    statistics = reference.statistics if _has_features_of(reference, extractor) else None
    missing = needed if statistics is None else needed - {"statistics"}
    if not missing:
        return FeatureSet(statistics=statistics)
    if reference.images is None:
        impossible = [name for name in metrics if reference_fields([name]) & missing]
        content = "statistics of other features" if "statistics" in missing else "statistics, and no images"
        raise InputError(f"{reference.name} has {content}: {', '.join(impossible)} cannot be computed against it.")
    features = collect_features(_in_chunks(extract_features(reference.images, extractor)), missing)
    return features if statistics is None else features._replace(statistics=statistics)


def _has_features_of(reference: Reference, extractor: FeatureExtractor) -> bool:
    """Whether a reference has statistics of this extractor's features."""
    if reference.statistics is None:
        return False
    if reference.extractor_identity is not None:
        return reference.extractor_identity == extractor.identity
    return (extractor.identity or "").startswith(INCEPTION)


def _in_chunks(activations: Activations) -> Iterator[Activations]:
    """Yield a thousand rows at a time."""
    for start in range(0, len(activations.features), CHUNK_SIZE):
        yield Activations(*(None if part is None else part[start : start + CHUNK_SIZE] for part in activations))
