"""Make a network from a config, its initial parameters, and its denoiser.

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
from .dit import DiT
from .embedding import NO_CLASS as NO_CLASS
from .unet import UNet


@runtime_checkable
class Network(Protocol):
    """The interface of networks. Flax modules with the arguments of `UNet` have it. A network must be hashable.

    A network that takes a guidance weight as an input has the attribute `guidance_range`, the smallest and the largest
    weight. The config sets it as model.args.guidance_range.
    """

    def init(self, rngs: Keys, x: Array, logsnr: Array, **condition: Array) -> Any:
        """Return the initial variables, with the parameters as 'params'."""

    def apply(self, variables: Any, x: Array, logsnr: Array, **kwargs: Any) -> Array:
        """Return the raw output, `[batch, height, width, channels]`.

        Args:
          variables: `{'params': parameters}`.
          x: noisy images, `[batch, height, width, channels]`.
          logsnr: log-SNR of each image, `[batch]`.
          **kwargs: the condition: `y`, labels `[batch]`, if the dataset has classes, where NO_CLASS asks for the
            unconditional output; `guidance`, weights `[batch]`, if the network has a guidance_range. In training also
            `train=True`; `index`, the position of each example in the global batch; and `rngs={'dropout': key}`.
        """


# Classes of networks. All attributes but those of `SET_BY_CONFIG` are fields of a config's model.args.
NETWORKS = {"unet_iddpm": UNet, "dit": DiT}
SET_BY_CONFIG = ("num_classes", "out_ch", "dtype", "schedule", "parent", "name")  # these follow from other fields


def make_network(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> Network:
    """Make the network that a config names.

    Args:
      config: the `model` section of a config. Its name is a key of `NETWORKS`, or 'package.module:function' for a
        function of your own with the same arguments as this one. Your function defines the meaning of config.args.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.

    Raises:
      InputError: if the name is unknown, your function does not return a network for these images, or the network's
        options do not fit each other or the images.
    """
    make = look_up(config.name, NETWORKS, "model.name")
    if config.name not in NETWORKS:
        network = make(config, image_shape, num_classes)
        _check_network(network, config, image_shape, num_classes)
        return network
    height, width, channels = image_shape
    network = make(
        num_classes=num_classes,
        out_ch=_output_channels(config, channels),
        dtype=None if config.dtype == "float32" else jnp.dtype(config.dtype),
        schedule=train_schedule(config) if config.args.logsnr_input_type == "step" else None,
        **dict(config.args.items()),
    )
    network.validate(height, width)
    return network


def _check_network(network: Any, config: Any, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Check a user's network: trace a call as in training, without computing anything."""
    field = f"config.model.name={config.name!r}"
    if not isinstance(network, Network):
        raise InputError(
            f"{field} must return a Flax module, or an object with init and apply; it returned {network!r}."
        )

    def call(key):
        x, logsnr = _example_inputs(image_shape)
        index = jnp.zeros(1, jnp.int32)
        condition = _example_condition(network, num_classes)
        params = {"params": network.init(key, x, logsnr, **condition)["params"]}
        return network.apply(params, x, logsnr, train=True, index=index, rngs={"dropout": key}, **condition)

    try:
        output = jax.eval_shape(call, seed_key(0))
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"{field} cannot be called as network(x, logsnr, y, train=True, index=index) with images of shape "
            f"{image_shape} ({type(error).__name__}: {error})"
        ) from error
    expected = (1, *image_shape[:2], _output_channels(config, image_shape[2]))
    if output.shape != expected:
        raise InputError(
            f"{field} returns output of shape {output.shape} for x of shape {(1, *image_shape)}; with mean_type="
            f"{config.mean_type!r} it must be {expected}."
        )


def _output_channels(config: Any, channels: int) -> int:
    return 2 * channels if config.mean_type == "both" else channels


def init_params(network: Network, key: Keys, image_shape: tuple[int, int, int], num_classes: int) -> Params:
    """Return initial parameters, in float32, on JAX's default device.

    They are computed on the CPU if JAX may use it. A GPU's compiler takes five times as long for the hundreds of random
    arrays. The parameters are then the same, to rounding, on every kind of device.

    Args:
      network: from `make_network`.
      key: the random key.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.
    """

    def init(key, options=None):
        with jax.enable_x64(False):  # a user's network may leave the types of its parameters to JAX
            condition = _example_condition(network, num_classes)
            inputs = _example_inputs(image_shape)
            return jax.jit(network.init, compiler_options=options)(key, *inputs, **condition)["params"]

    if isinstance(key, jax.core.Tracer):
        return init(key)  # part of the caller's program, which has its own compiler options
    host = None if jax.default_backend() == "cpu" else host_device()
    if host is None:
        return init(key, compiler_options())
    with jax.default_device(host):
        params = init(key, compiler_options("cpu"))
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), params)


def extended(params: Params, initial: Params) -> Params:
    """Return parameters, filled up with initial ones for the layers that they lack.

    A student that takes a guidance weight has more layers than its teacher, and starts from the teacher's parameters.

    Args:
      params: the teacher's parameters.
      initial: initial parameters of the student's network.
    """
    return unflatten_dict({**flatten_dict(initial), **flatten_dict(params)})


def guidance_range(network: Network) -> tuple[float, float] | None:
    """Return the smallest and the largest guidance weight that a network takes as an input; None if it takes none."""
    return getattr(network, "guidance_range", None)


def condition_of(
    labels: Integer[Array, "batch"] | None, num_classes: int, guidance: Float[Array, "batch"] | None = None
) -> Condition:
    """Return the condition of a network: its inputs besides z and logsnr, by argument name.

    Args:
      labels: integers, `[batch]`. Ignored if the network is unconditional.
      num_classes: 1 for an unconditional network.
      guidance: guidance weights, `[batch]`. Default: None, no guidance.
    """
    condition = {"y": labels} if num_classes > 1 else {}
    return condition if guidance is None else {**condition, "guidance": guidance}


def _example_condition(network: Network, num_classes: int) -> Condition:
    guidance = None if guidance_range(network) is None else jnp.zeros(1, jnp.float32)
    return condition_of(jnp.zeros(1, jnp.int32), num_classes, guidance)


def _example_inputs(image_shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """A batch of one image, and its log-SNR."""
    return jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros(1, jnp.float32)


def network_denoiser(
    network: Network, params: Params, mean_type: str, condition: Condition, *, clip_x: bool = False, **kwargs: Any
) -> Denoiser:
    """Make the denoiser of a network under a condition.

    If the condition has a guidance weight w and the network does not take one as an input, the denoiser uses
    classifier-free guidance (Ho & Salimans 2022, equation 6): (1 + w) conditional - w unconditional. The combination of
    raw outputs is also the combination of the x, eps and v that they imply. w = 0 is the conditional network without
    guidance. For a guidance scale s, such as 7.5, w is s - 1. The network is called once, with twice the batch. x is
    clipped after the combination.

    Args:
      network: from `make_network`.
      params: the network's parameters.
      mean_type: what the network predicts; see `diffusion.make_denoiser`.
      condition: from `condition_of`; empty for an unconditional network.
      clip_x: whether to clip x to [-1, 1]; see `diffusion.make_denoiser`.
      **kwargs: further arguments of the network's `apply`: train, index, rngs.
    """

    def call(z, logsnr, **condition):
        return network.apply({"params": params}, z, logsnr, **condition, **kwargs)

    def guided(z, logsnr):
        batch = z.shape[0]
        y = jnp.asarray(condition["y"]).astype(jnp.int32)
        # Put the two rows of an image next to each other, so that devices that share the batch exchange no rows.
        y = jnp.stack([y, jnp.full_like(y, NO_CLASS)], axis=1).reshape(2 * batch)
        logsnr = jnp.broadcast_to(logsnr, (batch,))
        outputs = call(jnp.repeat(z, 2, axis=0), jnp.repeat(logsnr, 2), y=y)
        conditional, unconditional = jnp.moveaxis(outputs.reshape(batch, 2, *outputs.shape[1:]), 1, 0)
        weight = per_example(condition["guidance"], conditional).astype(conditional.dtype)
        return (1 + weight) * conditional - weight * unconditional

    if "guidance" in condition and guidance_range(network) is None:
        model_fn = guided
    else:
        model_fn = functools.partial(call, **condition)
    return make_denoiser(model_fn, mean_type, clip_x=clip_x)


def train_schedule(config: Any) -> Schedule:
    """Return the noise schedule of training."""
    return get_logsnr_schedule(**config.train_logsnr_schedule)


def eval_schedule(config: Any) -> Schedule:
    """Return the noise schedule of sampling."""
    return get_logsnr_schedule(**config.eval_logsnr_schedule)


def count_params(params: Params) -> int:
    """Count the parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
