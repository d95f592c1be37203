"""The features that images are compared by, and logits if they come from a classifier.

`EXTRACTORS` has the names that configs and flags use. A config can also name a function of your own as
'package.module:function'. It takes uint8 images `[n, height, width, channels]`, and returns a float array
`[n, features]`, or a pair of such arrays: features and logits.
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
from .extractor import Activations, FeatureExtractor, Uint8Images
from .inception import load_inception

MAX_PIXELS = 16  # per side; covariances of many more features are slow, and need many more images


class FunctionExtractor(NamedTuple):
    """A function as a `FeatureExtractor`.

    Attributes:
      function: computes activations of uint8 images.
      identity: see `FeatureExtractor`.
      has_logits: see `FeatureExtractor`.
    """

    function: Callable[[np.ndarray], Activations]
    identity: str | None
    has_logits: bool = False

    def __call__(self, images: np.ndarray) -> Activations:
        """Call the function."""
        return self.function(images)


def pixels(images: Uint8Images) -> Float[np.ndarray, "n features"]:
    """Return the pixels in [-1, 1], averaged over a grid of 16 rows and columns if there are more.

    Pixels show shapes and colors, not texture. Use them for small images of one kind, such as digits, and compare only
    models of one dataset.

    Args:
      images: uint8, `[n, height, width, channels]`.

    >>> pixels(np.full((2, 64, 64, 3), 255, np.uint8)).shape
    (2, 768)
    """
    _, height, width, _ = images.shape
    if max(height, width) > MAX_PIXELS:
        rows, columns = (area_weights(side, min(side, MAX_PIXELS)) for side in (height, width))
        images = np.einsum("rh,nhwc,sw->nrsc", rows, images.astype(np.float32), columns, optimize=True)
    return images.reshape(len(images), -1).astype(np.float64) / 127.5 - 1


def _pixels(source: Source | None, weights: str | None) -> FeatureExtractor:
    return FunctionExtractor(lambda images: Activations(pixels(images)), f"pixels of {MAX_PIXELS} a side at most")


def _inception(source: Source | None, weights: str | None) -> FeatureExtractor:
    return load_inception(weights)


def _classifier(source: Source | None, weights: str | None) -> FeatureExtractor:
    if source is None:
        raise InputError("The classifier is trained on a dataset. Give a --checkpoint, or a --config that names one.")
    classify, identity = train_classifier(source)
    return FunctionExtractor(lambda images: Activations(*classify(images)), identity, has_logits=True)


EXTRACTORS: dict[str, Callable[[Source | None, str | None], FeatureExtractor]] = {
    "pixels": _pixels,
    "classifier": _classifier,
    "inception": _inception,
}


def make_extractor(
    name: str, source: Source | None, weights: str | None = None, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> FeatureExtractor:
    """Make the extractor that a config or flag names.

    Args:
      name: a key of `EXTRACTORS`, or 'package.module:function' for a function of your own.
      source: the dataset to train the classifier on; None if there is none.
      weights: the file of Inception's weights; by default the file that `inception.load_inception` looks for.
      image_shape: (height, width, channels) of two black images that a function of your own is tried with.

    Raises:
      InputError: for an unknown name, a dataset without labels, a missing file of weights, or a function of your own
        that fails or returns other shapes.

    >>> make_extractor("pixels", source=None).identity
    'pixels of 16 a side at most'
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name](source, weights)
    return _function_extractor(name, look_up(name, EXTRACTORS, "eval.features"), image_shape)


def _function_extractor(
    name: str, function: Callable[[np.ndarray], Any], image_shape: tuple[int, int, int]
) -> FeatureExtractor:
    """Wrap a user's function, and check what it returns."""

    def extract(images):
        try:
            result = function(images)
        except Exception as error:  # the user's code may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise InputError(f"{name!r}, called with images {list(images.shape)}, raised {reason}") from error
        activations = Activations(*result) if isinstance(result, tuple) else Activations(result)
        for part in activations:
            if part is not None and (np.ndim(part) != 2 or len(part) != len(images)):
                raise InputError(
                    f"{name!r} must return one row of features per image, [{len(images)}, features], or a pair of "
                    f"features and logits; one of its arrays has shape {list(np.shape(part))}."
                )
        return Activations(*(None if part is None else np.asarray(part) for part in activations))

    trial = extract(np.zeros((2, *image_shape), np.uint8))
    return FunctionExtractor(extract, None, trial.logits is not None)
