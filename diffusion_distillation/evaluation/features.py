"""What images are compared by: features, and logits where they come from a classifier.

`pixels`, a `classifier` of the dataset's own classes, Inception's, which published figures are of; or a function of
one's own, named as 'package.module:function', from uint8 images `[n, height, width, channels]` to a float array
`[n, features]` or a pair of these, features and logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..data import Source
from ..data.transforms import area_weights
from ..errors import InputError
from ..registry import look_up
from .classifier import train_classifier
from .extractor import Activations, FeatureExtractor, Images
from .inception import load_inception

MOST_PIXELS = 16  # a side: a covariance of more features than some hundreds takes long, and many images


class _Function(NamedTuple):
    """An extractor of a function."""

    function: Callable[[np.ndarray], Activations]
    identity: str | None
    has_logits: bool = False

    def __call__(self, images: np.ndarray) -> Activations:
        return self.function(images)


def pixels(images: Images) -> Float[np.ndarray, "n features"]:
    """The pixels themselves, in [-1, 1]; of larger images, means over an even grid of 16 rows and columns.

    Fit for small images of one kind, such as digits. It sees shapes and colours, not texture: compare models of one
    dataset with it, not with published FIDs.
    """
    _, height, width, _ = images.shape
    if max(height, width) > MOST_PIXELS:
        rows, columns = (area_weights(side, min(side, MOST_PIXELS)) for side in (height, width))
        images = np.einsum("rh,nhwc,sw->nrsc", rows, images.astype(np.float32), columns, optimize=True)
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def _pixels(source: Source | None, weights: str | None) -> FeatureExtractor:
    return _Function(lambda images: Activations(pixels(images)), f"pixels of {MOST_PIXELS} a side at most")


def _inception(source: Source | None, weights: str | None) -> FeatureExtractor:
    return load_inception(weights)


def _classifier(source: Source | None, weights: str | None) -> FeatureExtractor:
    if source is None:
        raise InputError("The classifier is trained on a dataset: give a checkpoint or a --config that names one.")
    classify, identity = train_classifier(source)
    return _Function(lambda images: Activations(*classify(images)), identity, has_logits=True)


EXTRACTORS: dict[str, Callable[[Source | None, str | None], FeatureExtractor]] = {
    "pixels": _pixels,
    "classifier": _classifier,
    "inception": _inception,
}


def make_extractor(
    name: str, source: Source | None, weights: str | None = None, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> FeatureExtractor:
    """The extractor that a config or a flag names.

    Args:
      name: a key of `EXTRACTORS`, or 'package.module:function' for a function of one's own.
      source: the dataset; the classifier is trained on it.
      weights: the file of Inception's; by default where `load_inception` looks.
      image_shape: of the images that a function of one's own is tried with.

    Raises:
      InputError: for a name that is not known, or what an extractor lacks: labels, or a file of weights.
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name](source, weights)
    return _own(name, look_up(name, EXTRACTORS, "eval.features"), image_shape)


def _own(name: str, function: Callable[[np.ndarray], Any], image_shape: tuple[int, int, int]) -> FeatureExtractor:
    def extract(images):
        try:
            found = function(images)
        except Exception as error:  # whatever the user's code does
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"{name!r}, called with images {list(images.shape)}, gave {what}") from error
        extracted = Activations(*found) if isinstance(found, tuple) else Activations(found)
        for part in extracted:
            if part is not None and (np.ndim(part) != 2 or len(part) != len(images)):
                raise InputError(
                    f"{name!r} must return a row of features for each image, [{len(images)}, features], or a pair of "
                    f"these and logits; an array is of shape {list(np.shape(part))}."
                )
        return Activations(*(None if part is None else np.asarray(part) for part in extracted))

    probe = extract(np.zeros((2, *image_shape), np.uint8))
    return _Function(extract, None, probe.logits is not None)
