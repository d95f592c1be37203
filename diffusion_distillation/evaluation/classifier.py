"""A small classifier of a dataset's own classes, to compare images by where photographs' features say nothing.

Its features are the last layer before the logits. It is trained once on a dataset, in seconds on small ones, and kept.
"""

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ..checkpoints import params_hash
from ..data import Source, read_examples
from ..data.cache import cached_arrays
from ..errors import InputError
from ..keys import seed_key
from ..runtime.hashing import sha256

MOST_IMAGES, MOST_BYTES = 50_000, 2**30
HELD_OUT = 0.1
UPDATES, BATCH_SIZE, LEARNING_RATE = 500, 128, 2e-3
FEATURES = 64
ROWS = 256  # classified at a time

Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Classifier(nn.Module):
    """Convolutions that halve the image until 4 pixels a side are left, and a hidden layer, whose output is `features`.

    Attributes:
      num_classes: of the logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features `[n, 64]` and logits `[n, num_classes]` of images in [-1, 1]."""
        width = 32
        h = nn.relu(nn.Conv(width, (3, 3))(x))
        while max(h.shape[1:3]) > 4:
            width = min(2 * width, 128)
            h = nn.relu(nn.Conv(width, (3, 3), strides=2)(h))
        features = nn.relu(nn.Dense(FEATURES)(h.reshape(len(h), -1)))
        return features, nn.Dense(self.num_classes)(features)


def train_classifier(source: Source) -> tuple[Classify, str]:
    """A classifier of a dataset, trained on nine tenths of its images, or of a gigabyte of them, or as it was kept.

    Returns:
      A function from uint8 images to features and logits, float32, and a name for it, weights and all.

    Raises:
      InputError: for a dataset without labels.
    """
    most = min(MOST_IMAGES, max(1000, MOST_BYTES // math.prod(source.image_shape)))
    order = np.random.default_rng(0).permutation(len(source))[:most]
    examples = list(read_examples(source, order))
    images, labels = (np.concatenate([piece[name] for piece in examples]) for name in ("image", "label"))
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise InputError("features='classifier' needs a dataset with labels of two classes or more; this one has none.")
    network = Classifier(num_classes)
    key = {"images": sha256([images, labels]), "training": [UPDATES, BATCH_SIZE, LEARNING_RATE, FEATURES], "version": 1}

    def make():
        variables = _train(network, images, labels)
        return {name: np.asarray(leaf) for name, leaf in flatten_dict(variables, sep=".").items()}

    variables = unflatten_dict(
        {name: jnp.asarray(leaf) for name, leaf in cached_arrays("classifier", key, make).items()}, sep="."
    )
    classify = functools.partial(_in_rows, jax.jit(functools.partial(_classify, network)), variables)
    return classify, f"classifier {params_hash(variables)}"


def _in_rows(apply: Callable[..., Any], variables: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of any number of images, by one program."""
    filled = np.resize(images, (len(images) + -len(images) % ROWS, *images.shape[1:]))
    found = [apply(variables, filled[start : start + ROWS]) for start in range(0, len(filled), ROWS)]
    return tuple(np.concatenate(part)[: len(images)] for part in zip(*found, strict=True))


def _classify(network: Classifier, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return network.apply(variables, images.astype(jnp.float32) / 127.5 - 1)


def _train(network: Classifier, images: np.ndarray, labels: np.ndarray) -> Any:
    """The variables after training; says how many of the held-out images they get right."""
    held_out = int(HELD_OUT * len(images))
    test, train = np.split(np.arange(len(images)), [held_out])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, UPDATES))

    def loss(variables, images, labels):
        logits = _classify(network, variables, images)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(variables, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(variables, images, labels), state)
        return optax.apply_updates(variables, updates), state

    variables = jax.jit(network.init)(seed_key(0), jnp.zeros((1, *images.shape[1:]), jnp.float32))
    state, rng = optimizer.init(variables), np.random.default_rng(0)
    for _ in range(UPDATES):
        rows = rng.choice(train, min(BATCH_SIZE, len(train)), replace=False)
        variables, state = update(variables, state, images[rows], labels[rows])
    if held_out:
        _, logits = _in_rows(jax.jit(functools.partial(_classify, network)), variables, images[test])
        right = np.mean(np.argmax(logits, axis=1) == labels[test])
        logging.info("A classifier was trained: %.1f%% of %d held-out images are right.", 100 * right, held_out)
    return variables
