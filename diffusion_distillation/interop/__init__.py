"""Models from elsewhere, and ours for elsewhere.

`load` detects the kind of model at a path and calls its reader:

- a run of ours: `checkpoints`
- an archive of ours: `archive`
- a checkpoint of the paper's code: `published`
- a diffusers folder: `diffusers`

To add a kind, write a reader that returns `(params, metadata)` and call it from `load`. `arrays` has what readers
share, `torch_file` reads the tensors of PyTorch's files, and `download` copies what is at a URL.
"""

from .load import from_checkpoint as from_checkpoint
from .load import load as load
from .load import local_path as local_path
from .load import model_version as model_version
