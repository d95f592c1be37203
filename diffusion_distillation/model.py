"""From a configuration to a network, its initial parameters and its denoiser.

`config` is any object with the attributes of a config's `model` section (`config.FIELDS['model']`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Int

from .diffusion import Denoiser, make_denoiser
from .schedules import Schedule, get_logsnr_schedule
from .shapes import Array, Condition, Keys, Params
from .unet import UNet


def make_network(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> UNet:
    """The network for images of this shape.

    Args:
      config: the `model` section of a config.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.

    Raises:
      InputError: if the network's options do not fit each other or the images, see `UNet.validate`.
    """
    height, width, channels = image_shape
    network = UNet(
        num_classes=num_classes,
        out_ch=2 * channels if config.mean_type == "both" else channels,
        dtype=None if config.dtype == "float32" else jnp.dtype(config.dtype),
        **dict(config.args.items()),
    )
    network.validate(height, width)
    return network


def init_params(network: nn.Module, key: Keys, image_shape: tuple[int, int, int], num_classes: int) -> Params:
    """Initial parameters, in float32."""
    x = jnp.zeros((1, *image_shape))
    condition = label_condition(jnp.zeros(1, jnp.int32), num_classes)
    return jax.jit(network.init)(key, x, jnp.zeros(1), **condition)["params"]


def label_condition(labels: Int[Array, "batch"], num_classes: int) -> Condition:
    """The condition that labels are; none for an unconditional network."""
    return {"y": labels} if num_classes > 1 else {}


def network_denoiser(
    network: nn.Module, params: Params, mean_type: str, condition: Condition, *, clip_x: bool = False, **kwargs
) -> Denoiser:
    """The denoiser of a network that is called as `UNet` is, under a condition.

    Args:
      network: its `apply` is called as `UNet.apply`.
      params: its parameters.
      mean_type: what its output is, see `diffusion.make_denoiser`.
      condition: for each example; empty for an unconditional network.
      clip_x: see `diffusion.make_denoiser`.
      **kwargs: go to its apply (train, index, rngs).
    """

    def model_fn(z, logsnr):
        return network.apply({"params": params}, z, logsnr, **condition, **kwargs)

    return make_denoiser(model_fn, mean_type, clip_x=clip_x)


def train_schedule(config: Any) -> Schedule:
    """The noise schedule of training."""
    return get_logsnr_schedule(**config.train_logsnr_schedule)


def eval_schedule(config: Any) -> Schedule:
    """The noise schedule of sampling."""
    return get_logsnr_schedule(**config.eval_logsnr_schedule)


def count_params(params: Params) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
