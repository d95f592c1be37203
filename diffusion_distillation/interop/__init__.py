"""Load models of this package and of other projects.

`load` detects the kind of model at a path and calls its reader:

- a run of this package: `checkpoints`
- an archive of this package: `archive`
- a checkpoint of the paper's code: `published`
- a diffusers folder: `diffusers`

To add a kind, write a reader that returns `(params, metadata)` and call it from `load`. `arrays` has what readers
share, `torch_file` reads the tensors of PyTorch's files, and `download` copies a file or folder from a URL.
"""

from .load import copy_autoencoder as copy_autoencoder
from .load import from_checkpoint as from_checkpoint
from .load import load as load
from .load import load_autoencoder as load_autoencoder
from .load import local_path as local_path
from .load import model_version as model_version
from .load import read_autoencoder as read_autoencoder
from .load import sampled_model as sampled_model
