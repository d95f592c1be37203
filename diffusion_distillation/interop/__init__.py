"""Models from elsewhere, and ours for elsewhere: by a path, whatever is there.

`load` knows what is at a path and calls the reader for it; adding a kind is a file with a reader and a line there.
"""

from .load import from_checkpoint as from_checkpoint
from .load import load as load
from .load import local_path as local_path
from .load import model_version as model_version
