"""Datasets: sources of images with random access, and the batch of each training step."""

from .batches import batch_indices as batch_indices
from .batches import read_batch as read_batch
from .sources import SOURCES as SOURCES
from .sources import Source as Source
from .sources import load_source as load_source
