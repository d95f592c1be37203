"""From a configuration to a network, its initial parameters and its denoiser.

`config` is any object with the attributes of a config's `model` section (`config.FIELDS['model']`).
"""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, Integer

from ..diffusion import Denoiser, make_denoiser, per_example
from ..errors import InputError
from ..keys import seed_key
from ..registry import look_up
from ..runtime.cpu import compiler_options
from ..runtime.devices import host_device
from ..schedules import Schedule, get_logsnr_schedule
from ..shapes import Array, Condition, Keys, Params
from .unet import UNet

NO_CLASS = -1  # the label of an image of no class in particular


@runtime_checkable
class Network(Protocol):
    """What is asked of a network: a Flax module that is called as `UNet` is has it. It must be hashable.

    One that takes the weight of guidance has its least and largest as an attribute, the config's
    model.args.guidance_range.
    """

    def init(self, rngs: Keys, x: Array, logsnr: Array, **condition: Array) -> Any:
        """Variables of which 'params' are the parameters."""

    def apply(self, variables: Any, x: Array, logsnr: Array, **kwargs: Any) -> Array:
        """The raw output.

        Keyword arguments are the condition (y, the labels, where there are classes, NO_CLASS among them if
        train.label_dropout is set; guidance, the weights, where the network has a guidance_range) and, in training,
        train=True, index, the position of each example in the global batch, and rngs={'dropout': key}.
        """


def unet_iddpm(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> UNet:
    """The U-Net of the `model` section of a config; raises an InputError if its options do not fit, see `UNet`."""
    height, width, channels = image_shape
    network = UNet(
        num_classes=num_classes,
        out_ch=_output_channels(config, channels),
        dtype=None if config.dtype == "float32" else jnp.dtype(config.dtype),
        schedule=train_schedule(config) if config.args.logsnr_input_type == "step" else None,
        **dict(config.args.items()),
    )
    network.validate(height, width)
    return network


NETWORKS = {"unet_iddpm": unet_iddpm}


def make_network(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> Network:
    """The network that config.name names, for images of this shape.

    Args:
      config: the `model` section of a config. Its name is a key of `NETWORKS`, or 'package.module:function' of a
        function that takes the arguments of this one, and may have what it likes in config.args.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.

    Raises:
      InputError: if the name is not known or what it names is no network for these images, or if the network's options
        do not fit each other or the images.
    """
    make = look_up(config.name, NETWORKS, "model.name")
    network = make(config, image_shape, num_classes)
    if config.name not in NETWORKS:
        _check_network(network, config, image_shape, num_classes)
    return network


def _check_network(network: Any, config: Any, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Calls the network as training does, without computing anything."""
    field = f"config.model.name={config.name!r}"
    if not isinstance(network, Network):
        raise InputError(f"{field} must return a Flax module, or what has its init and apply; it returned {network!r}.")

    def call(key):
        x, logsnr, index = *_zeros(image_shape), jnp.zeros(1, jnp.int32)
        condition = _some_condition(network, num_classes)
        params = {"params": network.init(key, x, logsnr, **condition)["params"]}
        return network.apply(params, x, logsnr, train=True, index=index, rngs={"dropout": key}, **condition)

    try:
        output = jax.eval_shape(call, seed_key(0))
    except Exception as error:  # whatever another's code may raise
        raise InputError(
            f"{field} cannot be called as network(x, logsnr, y, train=True, index=index) is, on images of shape "
            f"{image_shape} ({type(error).__name__}: {error})"
        ) from error
    expected = (1, *image_shape[:2], _output_channels(config, image_shape[2]))
    if output.shape != expected:
        raise InputError(
            f"{field} gives output of shape {output.shape} for x of {(1, *image_shape)}; with mean_type="
            f"{config.mean_type!r} it must be {expected}."
        )


def _output_channels(config: Any, channels: int) -> int:
    return 2 * channels if config.mean_type == "both" else channels


def init_params(network: Network, key: Keys, image_shape: tuple[int, int, int], num_classes: int) -> Params:
    """Initial parameters, in float32, on JAX's default device.

    They are drawn on the CPU, where there is one: to compile hundreds of draws, one for each array, takes a GPU's
    compiler five times as long. So they are also the same wherever a run begins, to rounding.
    """

    def draw(key, options=None):
        with jax.enable_x64(False):  # a user's network may leave the types of its parameters to JAX
            condition = _some_condition(network, num_classes)
            return jax.jit(network.init, compiler_options=options)(key, *_zeros(image_shape), **condition)["params"]

    if isinstance(key, jax.core.Tracer):
        return draw(key)  # within another program, whose options they are
    host = None if jax.default_backend() == "cpu" else host_device()
    if host is None:
        return draw(key, compiler_options())
    with jax.default_device(host):
        params = draw(key, compiler_options("cpu"))
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)


def extended(params: Params, initial: Params) -> Params:
    """Parameters, and the initial ones of what a network has besides: a guided student starts from such a teacher's."""
    return unflatten_dict({**flatten_dict(initial), **flatten_dict(params)})


def guidance_range(network: Network) -> tuple[float, float] | None:
    """The least and the largest weight of guidance that a network takes as an input; None if it takes none."""
    return getattr(network, "guidance_range", None)


def condition_of(
    labels: Integer[Array, "batch"] | None, num_classes: int, guidance: Float[Array, "batch"] | None = None
) -> Condition:
    """What a network is told: labels, unless it is unconditional and may do without them, and a weight of guidance."""
    told = {"y": labels} if num_classes > 1 else {}
    return told if guidance is None else {**told, "guidance": guidance}


def _some_condition(network: Network, num_classes: int) -> Condition:
    guidance = None if guidance_range(network) is None else jnp.zeros(1, jnp.float32)
    return condition_of(jnp.zeros(1, jnp.int32), num_classes, guidance)


def _zeros(image_shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """An image and its log-SNR."""
    return jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros(1, jnp.float32)


def network_denoiser(
    network: Network, params: Params, mean_type: str, condition: Condition, *, clip_x: bool = False, **kwargs: Any
) -> Denoiser:
    """The denoiser of a network that is called as `UNet` is, under a condition.

    A condition with a weight of guidance w, for a network that does not take it, is classifier-free guidance (Ho &
    Salimans 2022): (1 + w) times what the network says under the labels, less w times what it says without. It is the
    same combination of x, eps, v and the raw outputs. w = 0 is the network under its labels; where the literature has
    a scale s, as 7.5, w = s - 1. The network is called once, with twice the batch; x is clipped after.

    Args:
      network: its `apply` is called as `UNet.apply`.
      params: its parameters.
      mean_type: what its output is, see `diffusion.make_denoiser`.
      condition: for each example, see `condition_of`; empty for an unconditional network.
      clip_x: see `diffusion.make_denoiser`.
      **kwargs: go to its apply (train, index, rngs).
    """

    def call(z, logsnr, **condition):
        return network.apply({"params": params}, z, logsnr, **condition, **kwargs)

    def guided(z, logsnr):
        batch, y, weight = z.shape[0], jnp.asarray(condition["y"]).astype(jnp.int32), condition["guidance"]
        # in pairs, one after the other: devices that share the rows need not exchange any
        y = jnp.stack([y, jnp.full_like(y, NO_CLASS)], axis=1).reshape(2 * batch)
        logsnr = jnp.broadcast_to(logsnr, (batch,))
        outputs = call(jnp.repeat(z, 2, axis=0), jnp.repeat(logsnr, 2), y=y)
        told, untold = jnp.moveaxis(outputs.reshape(batch, 2, *outputs.shape[1:]), 1, 0)
        weight = per_example(weight, told).astype(told.dtype)
        return (1 + weight) * told - weight * untold

    if "guidance" in condition and guidance_range(network) is None:
        model_fn = guided
    else:
        model_fn = functools.partial(call, **condition)
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
