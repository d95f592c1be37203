"""Samples are drawn, a thousand at a time, and measured by evaluators: features and metrics against a reference.

What was seen of a thousand samples is kept in a folder until all are done, so that a measurement that was killed goes
on where it was and ends in the same numbers.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from tqdm import tqdm

from ..data import Source
from ..errors import InputError
from ..pipeline import Pipeline, to_uint8
from ..runtime import multihost
from ..runtime.files import save_atomic
from ..shapes import Keys
from .extractor import Activations, FeatureExtractor, Images
from .features import make_extractor
from .metrics import (
    Criterion,
    FeatureSet,
    MetricValues,
    collect_features,
    compute_metrics,
    required_fields,
    select_metrics,
)
from .reference import Reference, reference_features

CHUNK = 1000  # samples that are kept together, about
SHOWN = 64  # of which the images are kept


class SampleSet(NamedTuple):
    """Where images come from.

    Attributes:
      images: those of these numbers, in order, batch after batch.
      piece: how many are best asked for at a time.
      batch_size: how many are drawn at a time; the last batch is filled up.
      prepare: what is to be done before any time is taken.
      labels: returns the classes of the images with these numbers; None if the classes are not known.
      keep: is given the images and their numbers in the main process, after the time is taken.
    """

    images: Callable[[np.ndarray], Iterator[Images]]
    piece: int = CHUNK
    batch_size: int = 1
    prepare: Callable[[], Any] = lambda: None
    labels: Callable[[np.ndarray], np.ndarray | None] = lambda index: None
    keep: Callable[[np.ndarray, Images], Any] = lambda index, images: None


class Evaluator(NamedTuple):
    """Metrics of one kind of features.

    Attributes:
      features: the name of the features, as in a flag or config.
      extractor: of the features.
      metrics: keys of `METRICS`.
      reference: gives what the metrics need of the reference, found once.
    """

    features: str
    extractor: FeatureExtractor
    metrics: tuple[str, ...]
    reference: Callable[[], FeatureSet]


class Measurement(NamedTuple):
    """What was measured of samples.

    Attributes:
      values: one per criterion.
      images_per_sec: images drawn per second, including those that fill up the last batch, without compilation.
      images: the first 64 samples.
    """

    values: MetricValues
    images_per_sec: float
    images: Images


def make_evaluators(
    features: Sequence[str],
    metrics: Sequence[str],
    num_samples: int,
    source: Source | None,
    reference: Reference,
    weights: str | None = None,
) -> list[Evaluator]:
    """Evaluators for each kind of features. The main process alone gets them, as it alone looks at images.

    Args:
      features: names, see `features.make_extractor`.
      metrics: names that `metrics.select` knows. With several kinds of features, those without logits skip
        the metrics that need logits.
      num_samples: how many are to be measured.
      source: the dataset that a classifier is trained on.
      reference: what samples are judged against.
      weights: the file of Inception's.

    Raises:
      InputError: for unknown names, too few samples, or metrics that the features or the reference cannot give.
    """
    metrics = select_metrics(metrics, num_samples)
    if not features:
        raise InputError("No features are named: give one kind at least, such as 'pixels'.")
    evaluators: list[Evaluator] = []
    if not multihost.is_main():
        return evaluators
    for name in dict.fromkeys(features):
        shown = source if reference.images is None else reference.images
        shape = {} if shown is None else {"image_shape": tuple(shown.image_shape)}
        extractor = make_extractor(name, source, weights, **shape)
        possible = tuple(of for of in metrics if extractor.has_logits or "logits" not in required_fields([of]))
        found = functools.cache(functools.partial(reference_features, reference, extractor, possible))
        evaluators.append(Evaluator(name, extractor, possible, found))
    for metric in metrics:
        if not any(metric in evaluator.metrics for evaluator in evaluators):
            raise InputError(
                f"Metric {metric!r} needs class logits, which --features={','.join(features)} does not have. Use "
                "--features=classifier or inception (config.eval.features in a config), or drop the metric."
            )
    return evaluators


def measure(
    draw: SampleSet, num_images: int, evaluators: Sequence[Evaluator], folder: epath.Path
) -> Measurement | None:
    """Measures images. All processes draw; the main one alone looks at them, and gets the result.

    Args:
      draw: gives the images of these numbers.
      num_images: how many; each is counted once.
      evaluators: what they are measured by.
      folder: for what is to be kept until all are done. What it holds must be of the same images and evaluators.

    Raises:
      InputError: if the metrics need the classes of the images, and they are not known.
    """
    fields = [required_fields(evaluator.metrics) for evaluator in evaluators]
    labels = draw.labels(np.arange(num_images))
    if labels is None and any("labels" in of_evaluator for of_evaluator in fields):
        raise InputError("The metric 'accuracy' is for samples of class-conditional models: leave it out.")
    indices = [np.arange(start, min(start + draw.piece, num_images)) for start in range(0, num_images, draw.piece)]
    pieces = [folder / f"{index[0]:07d}-{index[-1]:07d}.npz" for index in indices]
    there = multihost.on_main(lambda: [path.exists() for path in pieces])
    if not all(there):
        draw.prepare()
    quiet = None if multihost.is_main() else True  # None: unless on a terminal
    with tqdm(total=num_images, unit=" images", leave=False, disable=quiet) as bar:
        for index, path, done in zip(indices, pieces, there, strict=True):
            if done:
                bar.update(len(index))
            else:
                _measure_piece(draw, index, evaluators, path, bar.update)
    if not multihost.is_main():
        return None
    values: MetricValues = {}
    for number, evaluator in enumerate(evaluators):
        seen = (_read(path, number) for path in pieces)
        observed = collect_features(seen, fields[number])._replace(labels=labels)
        found = compute_metrics(evaluator.metrics, observed, evaluator.reference())
        values |= {Criterion(metric, evaluator.features): value for metric, value in found.items()}
    seconds = sum(float(_load(path)["seconds"]) for path in pieces)
    drawn = sum(-(-len(index) // draw.batch_size) * draw.batch_size for index in indices)
    return Measurement(values, drawn / seconds, _load(pieces[0])["images"])


def generated_samples(pipeline: Pipeline, key: Keys, *, batch_size: int, first: int = 0, **options: Any) -> SampleSet:
    """Draws a pipeline's samples.

    Args:
      pipeline: of the model.
      key: the same one gives the same noise to every pipeline and sampler.
      batch_size: how many at a time, over all devices.
      first: the number of the first sample.
      **options: guidance, num_steps, sampler, eta and clip of `Pipeline.sample`.
    """

    def labels(index):
        return None if pipeline.num_classes == 1 else (first + index) % pipeline.num_classes

    def images(index, **options):
        filled_up = np.resize(index, max(len(index), batch_size))  # so that a short batch needs no program of its own
        numbers = (first + filled_up).astype(np.int32)
        for x in pipeline.stream(key, numbers, labels(filled_up), batch_size=batch_size, **options):
            yield to_uint8(x)[: len(index)]

    def compile_it():  # a program serves every number of steps; a student would warn of any but its own
        list(images(np.arange(1), **{**options, "num_steps": pipeline.distilled_for or 1}))

    piece = batch_size * max(1, CHUNK // batch_size)
    return SampleSet(functools.partial(images, **options), piece, batch_size, compile_it, labels)


def stored_samples(source: Source) -> SampleSet:
    """'Draws' images that are there already."""
    return SampleSet(lambda index: iter([source[index]["image"]]))


def _measure_piece(
    draw: SampleSet,
    index: np.ndarray,
    evaluators: Sequence[Evaluator],
    path: epath.Path,
    progress: Callable[[int], Any],
) -> None:
    """Draws samples of these numbers, and keeps what is seen of them."""
    begun = time.perf_counter()
    images = []
    for batch in draw.images(index):
        images.append(batch)
        progress(len(batch))
    seconds = time.perf_counter() - begun
    if not multihost.is_main():
        return
    images = np.concatenate(images)
    draw.keep(index, images)
    arrays: dict[str, Any] = {"seconds": seconds}
    for number, evaluator in enumerate(evaluators):
        for name, part in evaluator.extractor(images)._asdict().items():
            if part is not None:
                arrays[f"{name}_{number}"] = part
    if index[0] == 0:
        arrays["images"] = images[:SHOWN]
    save_atomic(path, lambda file: np.savez(file, **arrays), sync=False)


def _load(path: epath.Path) -> Any:
    return np.load(path.open("rb"))


def _read(path: epath.Path, number: int) -> Activations:
    arrays = _load(path)
    logits = f"logits_{number}"
    return Activations(arrays[f"features_{number}"], arrays[logits] if logits in arrays.files else None)
