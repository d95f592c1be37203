"""Sets of samples to measure: a pipeline's, generated as they are needed, or images that exist already."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..data import Source
from ..pipeline import Pipeline
from ..shapes import Keys
from .extractor import Uint8Images

CHUNK_SIZE = 1000  # samples whose features are saved together, about


class SampleSet(NamedTuple):
    """Numbered samples.

    Attributes:
      images: returns the samples with these numbers, in order, batch after batch.
      chunk_size: how many samples to ask for at a time.
      batch_size: how many samples are generated at a time; the last batch is filled up.
      compile: compiles the sampler, so that compilation is not part of the measured time.
      labels: returns the classes of the samples with these numbers; None if the classes are unknown.
      save: called with the numbers and images of each chunk in the main process, outside of the measured time.
    """

    images: Callable[[np.ndarray], Iterator[Uint8Images]]
    chunk_size: int = CHUNK_SIZE
    batch_size: int = 1
    compile: Callable[[], Any] = lambda: None
    labels: Callable[[np.ndarray], np.ndarray | None] = lambda index: None
    save: Callable[[np.ndarray, Uint8Images], Any] = lambda index, images: None


def generated_samples(pipeline: Pipeline, key: Keys, *, batch_size: int, first: int = 0, **options: Any) -> SampleSet:
    """Return the samples of a pipeline, which are generated as they are asked for.

    Args:
      pipeline: the model.
      key: of the noise. With the same key, all pipelines and samplers start from the same noise.
      batch_size: samples per batch, over all devices.
      first: the number of the first sample, which determines its noise and class.
      **options: guidance, num_steps, sampler, eta and clip of `Pipeline.sample`.
    """

    def labels(index):
        return None if pipeline.num_classes == 1 else (first + index) % pipeline.num_classes

    def images(index, **options):
        filled_up = np.resize(
            index, max(len(index), batch_size)
        )  # fill up a short batch, which would need another program
        numbers = (first + filled_up).astype(np.int32)
        for x in pipeline.stream(key, numbers, labels(filled_up), batch_size=batch_size, **options):
            yield pipeline.to_uint8(x)[: len(index)]

    def compile_sampler():
        # One program serves every number of steps. A student warns about any number but its own.
        list(images(np.arange(1), **{**options, "num_steps": pipeline.distilled_for or 1}))

    return SampleSet(
        images=functools.partial(images, **options),
        chunk_size=batch_size * max(1, CHUNK_SIZE // batch_size),
        batch_size=batch_size,
        compile=compile_sampler,
        labels=labels,
    )


def stored_samples(source: Source) -> SampleSet:
    """Return images that exist already as samples."""
    return SampleSet(lambda index: iter([source[index]["image"]]))
