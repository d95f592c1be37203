"""A small classifier of a dataset's own classes, for images that Inception, trained on photographs, cannot judge.

Its features are the last layer before the logits. It is trained once per dataset, in seconds on small ones, and cached.
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
from ..latents import from_uint8
from ..runtime.hashing import sha256

MAX_IMAGES = 50_000  # of the dataset, for training and testing
MAX_BYTES = 2**30
TEST_SHARE = 0.1
NUM_UPDATES = 500
TRAIN_BATCH_SIZE = 128
LEARNING_RATE = 2e-3
NUM_FEATURES = 64
BATCH_SIZE = 256  # images classified at a time

Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Classifier(nn.Module):
    """Convolutions that halve the image down to 4x4 pixels or less, then a hidden layer, whose output is `features`.

    Attributes:
      num_classes: the number of logits.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return features `[n, 64]` and logits `[n, num_classes]` of images in [-1, 1]."""
        width = 32
        h = nn.relu(nn.Conv(width, (3, 3))(x))
        while max(h.shape[1:3]) > 4:
            width = min(2 * width, 128)
            h = nn.relu(nn.Conv(width, (3, 3), strides=2)(h))
        features = nn.relu(nn.Dense(NUM_FEATURES)(h.reshape(len(h), -1)))
        return features, nn.Dense(self.num_classes)(features)


def train_classifier(source: Source) -> tuple[Classify, str]:
    """Train a classifier on a dataset, or load it from the cache.

    It is trained on nine tenths of up to 50,000 images, or of the images that fit into a gigabyte.

    Args:
      source: a dataset with labels.

    Returns:
      A function from uint8 images to float32 features and logits, and an identity for the function and its weights.

    Raises:
      InputError: for a dataset without labels.
    """
    num_images = min(MAX_IMAGES, max(1000, MAX_BYTES // math.prod(source.image_shape)))
    order = np.random.default_rng(0).permutation(len(source))[:num_images]
    examples = list(read_examples(source, order))
    images = np.concatenate([batch["image"] for batch in examples])
    labels = np.concatenate([batch["label"] for batch in examples])
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise InputError("--features=classifier needs a dataset with labels of at least 2 classes; this one has none.")
    network = Classifier(num_classes)
    key = {
        "images": sha256([images, labels]),
        "training": [NUM_UPDATES, TRAIN_BATCH_SIZE, LEARNING_RATE, NUM_FEATURES],
        "version": 1,
    }

    def train():
        variables = _train(network, images, labels)
        return {name: np.asarray(leaf) for name, leaf in flatten_dict(variables, sep=".").items()}

    arrays = cached_arrays("classifier", key, train)
    variables = unflatten_dict({name: jnp.asarray(leaf) for name, leaf in arrays.items()}, sep=".")
    classify = functools.partial(_in_batches, jax.jit(functools.partial(_classify, network)), variables)
    return classify, f"classifier {params_hash(variables)}"


def _in_batches(apply: Callable[..., Any], variables: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply one program to any number of images."""
    filled_up = np.resize(images, (len(images) + -len(images) % BATCH_SIZE, *images.shape[1:]))
    starts = range(0, len(filled_up), BATCH_SIZE)
    results = [apply(variables, filled_up[start : start + BATCH_SIZE]) for start in starts]
    return tuple(np.concatenate(part)[: len(images)] for part in zip(*results, strict=True))


def _classify(network: Classifier, variables: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return network.apply(variables, from_uint8(images))


def _train(network: Classifier, images: np.ndarray, labels: np.ndarray) -> Any:
    """Return the trained variables, and log their accuracy on held-out images."""
    num_test = int(TEST_SHARE * len(images))
    test, train = np.split(np.arange(len(images)), [num_test])
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, NUM_UPDATES))

    def loss(variables, images, labels):
        logits = _classify(network, variables, images)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(variables, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(variables, images, labels), state)
        return optax.apply_updates(variables, updates), state

    variables = jax.jit(network.init)(seed_key(0), jnp.zeros((1, *images.shape[1:]), jnp.float32))
    state = optimizer.init(variables)
    rng = np.random.default_rng(0)
    for _ in range(NUM_UPDATES):
        rows = rng.choice(train, min(TRAIN_BATCH_SIZE, len(train)), replace=False)
        variables, state = update(variables, state, images[rows], labels[rows])
    if num_test:
        _, logits = _in_batches(jax.jit(functools.partial(_classify, network)), variables, images[test])
        accuracy = np.mean(np.argmax(logits, axis=1) == labels[test])
        logging.info("Trained a classifier: %.1f%% of %d held-out images are correct.", 100 * accuracy, num_test)
    return variables
