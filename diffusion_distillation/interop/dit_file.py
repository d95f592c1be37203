"""Read weight files of the original DiT and SiT: a `state_dict`, saved by PyTorch or as safetensors."""

import math

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ..checkpoints import Metadata
from ..config import model_of
from ..errors import InputError
from ..networks.model import make_network
from ..shapes import Params
from .arrays import read_safetensors
from .diffusers import dit
from .torch_file import read_tensors

PICKLES = (".pt", ".pth", ".bin")
SUFFIXES = (*PICKLES, ".safetensors")


def read(path: epath.Path, config: ConfigDict | None) -> tuple[Params, Metadata]:
    """Read a file of weights for the network of a config.

    The file does not say what the network predicts. A DiT needs a config with mean_type 'eps', the 'discrete' schedule
    and logsnr_input_type 'step'; a SiT one with mean_type 'flow', the 'flow' schedule, logsnr_input_type 'data_time'
    and time_scale 1. The file gives the channels, the classes and, if it stores the position embedding, the size of the
    images. A model with classes can be guided: the last row of its class table means no class.

    Args:
      path: the file. No code in it is run.
      config: the config of the model, resolved or not. Its network must be 'dit'.

    Raises:
      InputError: if there is no config, the file is not a DiT or SiT, or the weights do not fit the config's network.
    """
    if config is None:
        raise InputError(
            f"{str(path)!r} has weights and no config. Pass the model's config too: --config=my_dit.py, or "
            "from_checkpoint(path, config=...)."
        )
    resolved = model_of(config)
    if resolved.model.name != "dit":
        raise InputError(f"{str(path)!r}: config.model.name={resolved.model.name!r} must be 'dit' for such a file.")
    arrays = read_tensors(path.read_bytes(), str(path)) if path.suffix in PICKLES else read_safetensors(path)
    num_classes = _num_classes(arrays)
    with resolved.unlocked():
        resolved.train.label_dropout = dit.LABEL_DROPOUT if num_classes > 1 else 0.0
    metadata = Metadata(
        config=resolved, image_shape=_image_shape(arrays, resolved, path), num_classes=num_classes, num_steps=0
    )
    make_network(resolved.model, metadata.image_shape, metadata.num_classes)  # checks that the options fit each other
    return dit.to_params(arrays, metadata, str(path)), metadata


def _image_shape(arrays: dict[str, np.ndarray], config: ConfigDict, path: epath.Path) -> tuple[int, int, int]:
    kernel = arrays.get("x_embedder.proj.weight")
    if kernel is None or kernel.ndim != 4:
        raise InputError(f"{str(path)!r} is not a DiT or SiT of the original code: it has no x_embedder.proj.weight.")
    positions = arrays.get(dit.POSITIONS)
    if positions is not None and positions.ndim == 3:
        side = math.isqrt(positions.shape[1]) * config.model.args.patch_size
    elif (side := config.dataset.args.get("image_size")) is None:
        raise InputError(f"{str(path)!r} does not tell the size of the images. Set config.dataset.args.image_size.")
    return side, side, kernel.shape[1]


def _num_classes(arrays: dict[str, np.ndarray]) -> int:
    """The rows of the class table, but for the one for no class."""
    table = arrays.get("y_embedder.embedding_table.weight")
    return 1 if table is None or not table.ndim else max(len(table) - 1, 1)
