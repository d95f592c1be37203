"""Checkpoints: the train state of a run on disk, checked when it is written and when it is read.

- `store`: save and restore checkpoints, load the parameters of a run.
- `metadata`: the part of a checkpoint that is not arrays.
- `integrity`: how damage is detected.
"""

from .integrity import params_hash as params_hash
from .metadata import AUTOENCODER as AUTOENCODER
from .metadata import FORMAT_VERSION as FORMAT_VERSION
from .metadata import Metadata as Metadata
from .metadata import NewerFormatError as NewerFormatError
from .metadata import abstract_params as abstract_params
from .store import BEST as BEST
from .store import Checkpoints as Checkpoints
from .store import check_path as check_path
from .store import load as load
from .store import newest_step as newest_step
from .store import restore_from as restore_from
from .store import warn_if_unfinished as warn_if_unfinished
