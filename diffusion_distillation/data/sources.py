"""The datasets that a config can name. Adding one is a function that returns a `Source`, and a line in SOURCES."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean
from .folder import image_folder
from .prepared import cifar10, imagenet, lsun, prepared, stanford_cars
from .source import ArraySource, Source


def digits(class_conditional: bool = False) -> ArraySource:
    """The 1,797 handwritten digits that come with scikit-learn (UCI test set): 8x8, grey, 17 levels, 10 classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return ArraySource(images, data.target, 10 if class_conditional else 1)


SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "CIFAR10": cifar10,
    "ImageNet": imagenet,
    "LSUN": lsun,
    "StanfordCars": stanford_cars,
    "TFDS": prepared,
    "ImageFolder": image_folder,
}


def load_source(dataset: str, /, **args: Any) -> Source:
    """The source that a config's `dataset` section names.

    Args:
      dataset: a key of `SOURCES`.
      **args: arguments of the source. `randflip` is not the source's; the training step reads it.

    Raises:
      InputError: for an unknown name or argument, a missing argument, or data that are not there.
    """
    if dataset not in SOURCES:
        raise InputError(f"Unknown dataset config.dataset.name={dataset!r}; choose one of {sorted(SOURCES)}.")
    args.pop("randflip", None)
    known = inspect.signature(SOURCES[dataset]).parameters
    for name in args:
        if name not in known:
            raise InputError(f"Dataset {dataset!r} has no config.dataset.args.{name}.{did_you_mean(name, known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and args.get(name) is None:
            raise InputError(f"config.dataset.args.{name} is missing: dataset {dataset!r} needs it.")
    return SOURCES[dataset](**args)
