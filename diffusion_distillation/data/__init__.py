"""Datasets: sources of images with random access, and the batch of each training step."""

from .batches import read_batches as read_batches
from .batches import read_examples as read_examples
from .batches import stream_indices as stream_indices
from .fingerprint import fingerprint as fingerprint
from .source import ArraySource as ArraySource
from .source import Source as Source
from .sources import SOURCES as SOURCES
from .sources import load_source as load_source
