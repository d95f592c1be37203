"""What a feature extractor is to the metrics."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

Images = UInt8[np.ndarray, "n height width channels"]


class Activations(NamedTuple):
    """What is seen of some images, a row an image.

    Attributes:
      features: what they are compared by.
      logits: of the classes of a classifier; None where there are none.
    """

    features: Float[np.ndarray, "n features"]
    logits: Float[np.ndarray, "n classes"] | None = None


@runtime_checkable
class FeatureExtractor(Protocol):
    """`extractor(images) -> Activations`. Where several processes work together, the main one alone calls it.

    Attributes:
      identity: a name for what it computes, weights and all, under which that may be kept; None if that is unknown.
      has_logits: whether there are logits.
    """

    identity: str | None
    has_logits: bool

    def __call__(self, images: Images) -> Activations:
        """What is seen of these images."""
