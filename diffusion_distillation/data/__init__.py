"""Datasets: sources of images with random access, and the batch of each training step."""

from .batches import read_batches as read_batches
from .batches import read_examples as read_examples
from .batches import stream_indices as stream_indices
from .datasets import DATASETS as DATASETS
from .datasets import arguments_of as arguments_of
from .datasets import load_source as load_source
from .fingerprint import fingerprint as fingerprint
from .source import ArraySource as ArraySource
from .source import Source as Source
