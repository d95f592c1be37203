"""Measuring generated samples."""

import jax
import numpy as np
import pytest

from diffusion_distillation.evaluation.extractor import Activations
from diffusion_distillation.evaluation.measure import Evaluator, measure
from diffusion_distillation.evaluation.metrics import Criterion, FeatureSet
from diffusion_distillation.evaluation.samples import generated_samples
from diffusion_distillation.latents import pixels
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.runtime.files import as_path


class ThreeClasses(Pipeline):
    """A pipeline of three classes, whose images show the number of their class."""

    num_classes, distilled_for, space = 3, 0, pixels((2, 2, 1))

    def __init__(self):
        pass

    def stream(self, key, index, labels, *, batch_size, **options):
        for start in range(0, len(index), batch_size):
            yield np.tile(labels[start : start + batch_size, None, None, None] / 127.5 - 1, (1, 2, 2, 1))


class ClassExtractor:
    """Features whose logits show the class."""

    identity, has_logits = "seen", True

    def __call__(self, images):
        return Activations(np.zeros((len(images), 1)), np.eye(3)[images[:, 0, 0, 0]])


@pytest.mark.parametrize("first", [0, 20])
def test_accuracy_uses_the_labels_of_each_set_of_samples(first, tmp_path):
    """With 20 samples and 3 classes, the second set starts with another class than the first."""
    evaluator = Evaluator("seen", ClassExtractor(), ("accuracy",), FeatureSet)
    samples = generated_samples(ThreeClasses(), jax.random.key(0), batch_size=8, first=first)
    np.testing.assert_array_equal(samples.labels(np.arange(4)), (first + np.arange(4)) % 3)
    measurement = measure(samples, 20, [evaluator], as_path(tmp_path))
    assert measurement.values[Criterion("accuracy", "seen")].value == 1.0
