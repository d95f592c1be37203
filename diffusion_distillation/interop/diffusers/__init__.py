"""Folders of Hugging Face diffusers, read and written without it."""

from .unet2d import OLDER as OLDER
from .unet2d import OURS as OURS
from .unet2d import PIPELINE as PIPELINE
from .unet2d import SCHEDULER as SCHEDULER
from .unet2d import UNET as UNET
from .unet2d import WEIGHTS as WEIGHTS
from .unet2d import is_diffusers as is_diffusers
from .unet2d import read as read
from .unet2d import write as write
