"""Measuring a set of samples, about a thousand at a time.

The features of each chunk are saved until all are done, so that an interrupted measurement resumes and gives the same
numbers.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from ..data import Source
from ..errors import InputError
from ..runtime import multihost
from ..runtime.files import save_atomic
from .extractor import Activations, FeatureExtractor, Uint8Images
from .features import make_extractor
from .metrics import (
    METRICS,
    Criterion,
    FeatureSet,
    MetricValues,
    collect_features,
    compute_metrics,
    sample_fields,
    select_metrics,
)
from .reference import Reference, reference_features
from .samples import SampleSet

NUM_KEPT_IMAGES = 64


class Evaluator(NamedTuple):
    """Metrics of one kind of features, against a reference.

    Attributes:
      features: the name of the features, as in a config or flag.
      extractor: computes the features.
      metrics: keys of `METRICS`.
      reference: returns the features of the reference, which are computed by the first call.
    """

    features: str
    extractor: FeatureExtractor
    metrics: tuple[str, ...]
    reference: Callable[[], FeatureSet]


class Measurement(NamedTuple):
    """The result of measuring a set of samples.

    Attributes:
      values: one per criterion.
      images_per_sec: samples generated per second, without compilation; samples that fill up a last batch count too.
      images: the first 64 samples.
    """

    values: MetricValues
    images_per_sec: float
    images: Uint8Images


def make_evaluators(
    features: Sequence[str],
    metrics: Sequence[str],
    num_samples: int,
    source: Source | None,
    reference: Reference,
    weights: str | None = None,
) -> list[Evaluator]:
    """Make an evaluator for each kind of features. Processes other than the main one get an empty list.

    Args:
      features: names, see `features.make_extractor`.
      metrics: names, see `metrics.select_metrics`. With several kinds of features, those without logits skip the
        metrics that need logits.
      num_samples: how many samples are to be measured.
      source: the dataset to train a classifier on; None if there is none.
      reference: what samples are compared with.
      weights: the file of Inception's weights; by default the file that `inception.load_inception` looks for.

    Raises:
      InputError: for unknown names, too few samples, or metrics that need what no features have.
    """
    metrics = select_metrics(metrics, num_samples)
    if not features:
        raise InputError("No features are named. Name at least one kind, such as 'pixels'.")
    evaluators: list[Evaluator] = []
    if not multihost.is_main():
        return evaluators
    images = source if reference.images is None else reference.images
    shape = {} if images is None else {"image_shape": tuple(images.image_shape)}
    for name in dict.fromkeys(features):
        extractor = make_extractor(name, source, weights, **shape)
        possible = tuple(
            metric for metric in metrics if extractor.has_logits or "logits" not in METRICS[metric].sample_fields
        )
        load_reference = functools.cache(functools.partial(reference_features, reference, extractor, possible))
        evaluators.append(Evaluator(name, extractor, possible, load_reference))
    for metric in metrics:
        if not any(metric in evaluator.metrics for evaluator in evaluators):
            raise InputError(
                f"Metric {metric!r} needs class logits, which --features={','.join(features)} does not have. Use "
                "--features=classifier or inception (config.eval.features in a config), or drop the metric."
            )
    return evaluators


def measure(
    samples: SampleSet, num_samples: int, evaluators: Sequence[Evaluator], folder: epath.Path
) -> Measurement | None:
    """Measure samples. All processes must call it, to generate samples; only the main one computes features.

    Args:
      samples: the samples.
      num_samples: how many of them.
      evaluators: the metrics to compute.
      folder: for the features of chunks that are done. It must belong to the same samples and evaluators.

    Returns:
      The measurement, or None in processes other than the main one.

    Raises:
      InputError: if a metric needs the classes of samples that have none.
    """
    fields = [sample_fields(evaluator.metrics) for evaluator in evaluators]
    labels = samples.labels(np.arange(num_samples))
    for metric in dict.fromkeys(metric for evaluator in evaluators for metric in evaluator.metrics):
        if labels is None and "labels" in METRICS[metric].sample_fields:
            raise InputError(
                f"The metric {metric!r} needs samples of a class-conditional model. Drop it from --metrics."
            )

    # Generate the chunks that are missing, and save their features.
    starts = range(0, num_samples, samples.chunk_size)
    chunks = [np.arange(start, min(start + samples.chunk_size, num_samples)) for start in starts]
    files = [folder / f"{index[0]:07d}-{index[-1]:07d}.npz" for index in chunks]
    done = multihost.on_main(lambda: [file.exists() for file in files])
    if not all(done):
        samples.compile()
    hide = None if multihost.is_main() else True  # None shows the bar on terminals only
    with tqdm(total=num_samples, unit=" images", leave=False, disable=hide) as bar:
        for index, file, is_done in zip(chunks, files, done, strict=True):
            if is_done:
                bar.update(len(index))
            else:
                _measure_chunk(samples, index, evaluators, file, bar.update)
    if not multihost.is_main():
        return None

    # Compute the metrics from all chunks.
    values: MetricValues = {}
    for number, evaluator in enumerate(evaluators):
        activations = (_load_activations(file, number) for file in files)
        measured = collect_features(activations, fields[number])._replace(labels=labels)
        computed = compute_metrics(evaluator.metrics, measured, evaluator.reference())
        values |= {Criterion(metric, evaluator.features): value for metric, value in computed.items()}
    seconds = sum(float(_load(file)["seconds"]) for file in files)
    num_generated = sum(-(-len(index) // samples.batch_size) * samples.batch_size for index in chunks)
    return Measurement(values, num_generated / seconds, _load(files[0])["images"])


def _measure_chunk(
    samples: SampleSet,
    index: np.ndarray,
    evaluators: Sequence[Evaluator],
    file: epath.Path,
    progress: Callable[[int], Any],
) -> None:
    """Generate the samples with these numbers, and save their features and the time that they took."""
    start = time.perf_counter()
    batches = []
    for batch in samples.images(index):
        batches.append(batch)
        progress(len(batch))
    seconds = time.perf_counter() - start
    if not multihost.is_main():
        return
    images = np.concatenate(batches)
    samples.save(index, images)
    arrays: dict[str, Any] = {"seconds": seconds}
    for number, evaluator in enumerate(evaluators):
        for name, part in evaluator.extractor(images)._asdict().items():
            if part is not None:
                arrays[f"{name}_{number}"] = part
    if index[0] == 0:
        arrays["images"] = images[:NUM_KEPT_IMAGES]
    save_atomic(file, lambda opened: np.savez(opened, **arrays), sync=False)


def _load(file: epath.Path) -> Any:
    return np.load(file.open("rb"))


def _load_activations(file: epath.Path, number: int) -> Activations:
    """Load what `_measure_chunk` saved of the evaluator with this number."""
    arrays = _load(file)
    logits = f"logits_{number}"
    return Activations(arrays[f"features_{number}"], arrays[logits] if logits in arrays.files else None)
