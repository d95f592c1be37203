"""Checkpoints: the train state of a run on disk, checked when it is written and when it is read."""

from .store import FORMAT_VERSION as FORMAT_VERSION
from .store import Checkpoints as Checkpoints
from .store import Metadata as Metadata
from .store import abstract_params as abstract_params
from .store import check_path as check_path
from .store import load as load
from .store import newest_step as newest_step
from .store import params_hash as params_hash
from .store import restore_from as restore_from
