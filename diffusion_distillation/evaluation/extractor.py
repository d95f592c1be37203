"""The interface between feature extractors and metrics."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

Uint8Images = UInt8[np.ndarray, "n height width channels"]


class Activations(NamedTuple):
    """What a feature extractor returns: one row per image.

    Attributes:
      features: what images are compared by.
      logits: of the classes of a classifier; None if the extractor has none.
    """

    features: Float[np.ndarray, "n features"]
    logits: Float[np.ndarray, "n classes"] | None = None


@runtime_checkable
class FeatureExtractor(Protocol):
    """A function `extractor(images) -> Activations`. With several processes, only the main one calls it.

    Attributes:
      identity: a name for the computation, including its weights, under which features are cached. None for a
        function that may change unnoticed: its features are never cached.
      has_logits: whether the activations include logits.
    """

    identity: str | None
    has_logits: bool

    def __call__(self, images: Uint8Images) -> Activations:
        """Compute the activations of images of one size."""
