"""Read and write folders in the format of Hugging Face diffusers 0.42, without diffusers.

- `folder`: a pipeline or a model as a whole.
- `unet2d`: the config of the U-Net, both ways.
- `dit`: the config and the weights of diffusion transformers; also those of the original code.
- `autoencoder`: the autoencoder of a latent diffusion model.
- `scheduler`: the noise schedule, both ways.
- `weights`: the files, names and layout of the weights, both ways.

To add another network, write a file like `dit` and add an entry to `folder.READERS`.
"""

from . import autoencoder as autoencoder
from .folder import METADATA as METADATA
from .folder import PIPELINE as PIPELINE
from .folder import is_diffusers as is_diffusers
from .folder import read as read
from .folder import write as write
from .scheduler import SCHEDULER as SCHEDULER
from .unet2d import UNET as UNET
from .weights import OLD_NAMES as OLD_NAMES
from .weights import WEIGHTS as WEIGHTS
