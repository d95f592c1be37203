"""Make a model from a config: a network and what its output means, its initial parameters, and its denoiser.

`config` is any object with the attributes of a config's `model` section (`config.FIELDS['model']`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ..diffusion import Denoiser, make_denoiser, per_example
from ..errors import InputError
from ..keys import seed_key
from ..registry import look_up
from ..runtime.cpu import compiler_options
from ..runtime.devices import host_device
from ..schedules import Schedule, get_logsnr_schedule
from ..shapes import Array, Condition, Keys, Params
from .conditions import condition_of as condition_of
from .conditions import no_condition, with_unconditional
from .dit import DiT
from .embedding import NO_CLASS as NO_CLASS
from .embedding import is_interval
from .unet import UNet

LEAST_LOGSNR_OF_EPS = -25.0  # below, alpha is less than 4e-6, and float32 keeps nothing of x = (z - sigma eps) / alpha


@runtime_checkable
class Network(Protocol):
    """The interface of networks. Flax modules with the arguments of `UNet` have it. A network must be hashable.

    A network that takes a guidance weight as an input has the attribute `guidance_range`, the smallest and the largest
    weight. The config sets it as model.args.guidance_range. A network with other conditions than labels and this weight
    has the attribute `no_condition`; see `conditions.no_condition`.
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


def matching(params: Params, initial: Params) -> Params:
    """Return initial parameters, with those of another model wherever both have an array of one name and shape.

    So a student starts from its teacher. It may have layers that the teacher lacks, such as those of a guidance weight,
    and lack others.

    Args:
      params: the other model's parameters.
      initial: initial parameters of the network.

    >>> matching({"a": jnp.ones(2), "b": jnp.ones(3)}, {"a": jnp.zeros(2), "b": jnp.zeros(4), "c": jnp.zeros(1)})
    {'a': Array([1., 1.], dtype=float32), 'b': Array([0., 0., 0., 0.], ...), 'c': Array([0.], dtype=float32)}
    """
    others = flatten_dict(params)

    def fits(path, leaf):
        return path in others and np.shape(others[path]) == np.shape(leaf)

    flat = flatten_dict(initial)
    return unflatten_dict({path: others[path] if fits(path, leaf) else leaf for path, leaf in flat.items()})


def guidance_range(network: Network) -> tuple[float, float] | None:
    """Return the smallest and the largest guidance weight that a network takes as an input; None if it takes none."""
    return getattr(network, "guidance_range", None)


def _example_condition(network: Network, num_classes: int) -> Condition:
    guidance = None if guidance_range(network) is None else jnp.zeros(1, jnp.float32)
    return condition_of(None if num_classes == 1 else jnp.zeros(1, jnp.int32), guidance)


def _example_inputs(image_shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """A batch of one image, and its log-SNR."""
    return jnp.zeros((1, *image_shape), jnp.float32), jnp.zeros(1, jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A network and what its output means.

    Attributes:
      network: from `make_network`.
      mean_type: what the network outputs; see `diffusion.make_denoiser`.
      sigma_data: standard deviation of the data, for the mean types 'edm' and 'consistency'; default 0.5.
      sigma_min: least noise, for the mean type 'consistency'; default 0.002.
      guidance_channels: how many channels classifier-free guidance acts on, counted from the first; the others are
        those of the prediction with the label. Default: None, all of them.

    >>> class Zero:
    ...     def init(self, rngs, x, logsnr, **condition):
    ...         return {"params": {}}
    ...     def apply(self, variables, x, logsnr, **kwargs):
    ...         return jnp.zeros_like(x)
    >>> denoise = Model(network=Zero(), mean_type="v").denoiser(params={}, condition={})
    >>> denoise(jnp.ones((1, 1, 1, 1)), 0.0).x.round(4)  # alpha z
    Array([[[[0.7071]]]], dtype=float32)
    """

    network: Network
    mean_type: str
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    guidance_channels: int | None = None

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The smallest and the largest guidance weight that the network takes as an input; None if it takes none."""
        return guidance_range(self.network)

    @property
    def sigma_of_x(self) -> float:
        """The noise in the predicted x, as sigma / alpha: sigma_min for the mean type 'consistency', 0 for others."""
        return self.sigma_min if self.mean_type == "consistency" else 0.0

    def denoiser(
        self,
        params: Params,
        condition: Condition,
        *,
        clip_x: bool = False,
        guidance_interval: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> Denoiser:
        """Make the denoiser of the model under a condition.

        If the condition has a guidance weight w and the network does not take one as an input, the denoiser uses
        classifier-free guidance (Ho & Salimans 2022, equation 6): (1 + w) conditional - w unconditional. The
        combination of raw outputs is also the combination of the x, eps and v that they imply. w = 0 is the conditional
        network without guidance. For a guidance scale s, such as 7.5, w is s - 1. The network is called once, with
        twice the batch. x is clipped after the combination.

        Args:
          params: the network's parameters.
          condition: from `condition_of`; empty for an unconditional network.
          clip_x: whether to clip x to [-1, 1]; see `diffusion.make_denoiser`.
          guidance_interval: the smallest and the largest log-SNR at which guidance acts; at any other, w is 0
            (Kynkäänniemi et al. 2024, arXiv 2404.07724, who state it in EDM's sigma: the log-SNR is -2 log sigma).
            Default: None, guidance acts everywhere.
          **kwargs: further arguments of the network's `apply`: train, index, rngs.
        """

        def call(z, logsnr, **condition):
            return self.network.apply({"params": params}, z, logsnr, **condition, **kwargs)

        def weights(logsnr):
            if guidance_interval is None:
                return condition["guidance"]
            low, high = guidance_interval
            return jnp.where((low <= logsnr) & (logsnr <= high), condition["guidance"], 0)

        def guided(z, logsnr):
            batch, channels = z.shape[0], z.shape[-1]
            doubled = {name: entry for name, entry in condition.items() if name != "guidance"}
            doubled = with_unconditional(doubled, no_condition(self.network))
            outputs = call(jnp.repeat(z, 2, axis=0), jnp.repeat(logsnr, 2), **doubled)
            conditional, unconditional = jnp.moveaxis(outputs.reshape(batch, 2, *outputs.shape[1:]), 1, 0)
            weight = per_example(weights(logsnr), conditional).astype(conditional.dtype)
            if self.guidance_channels is not None:
                channel = np.arange(conditional.shape[-1]) % channels  # mean_type 'both' stacks two images
                weight = jnp.where(channel < self.guidance_channels, weight, 0)
            return (1 + weight) * conditional - weight * unconditional

        def unguided(z, logsnr):
            if "guidance" in condition:
                return call(z, logsnr, **{**condition, "guidance": weights(logsnr)})
            return call(z, logsnr, **condition)

        model_fn = guided if "guidance" in condition and self.guidance_range is None else unguided
        return make_denoiser(
            model_fn, self.mean_type, clip_x=clip_x, sigma_data=self.sigma_data, sigma_min=self.sigma_min
        )


def make_model(config: Any, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """Make the model that a config describes.

    Args:
      config: the `model` section of a config.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional model.

    Raises:
      InputError: see `make_network` and `check_mean_type`; also for more guidance channels than there are.
    """
    for name in ("train_logsnr_schedule", "eval_logsnr_schedule"):
        check_mean_type(config.mean_type, get_logsnr_schedule(**config[name]), "The network", f"config.model.{name}")
    channels = config.guidance_channels
    if channels is not None and not 1 <= channels <= image_shape[2]:
        raise InputError(
            f"config.model.guidance_channels={channels} must be from 1 to the {image_shape[2]} channels of the images, "
            "or None for all of them."
        )
    return Model(
        network=make_network(config, image_shape, num_classes),
        mean_type=config.mean_type,
        sigma_data=config.sigma_data,
        sigma_min=config.sigma_min,
        guidance_channels=channels,
    )


def check_mean_type(mean_type: str, schedule: Schedule, what: str, field: str) -> None:
    """Raise an InputError if a network with this output says nothing about x at t = 1 of a schedule.

    With 'eps', x = (z - sigma eps) / alpha divides by alpha, which is 0 where z is pure noise.

    Args:
      mean_type: what the network outputs.
      schedule: the noise schedule.
      what: begins the message: which network.
      field: the config field that holds the schedule, for the message.
    """
    if mean_type != "eps":
        return
    with jax.ensure_compile_time_eval():
        logsnr = float(schedule(1.0))
    if logsnr < LEAST_LOGSNR_OF_EPS:
        raise InputError(
            f"{what} has mean_type='eps', which does not determine x where z is pure noise: the log-SNR at t = 1 of "
            f"{field}={schedule!r} is {logsnr:.1f}, and must be at least {LEAST_LOGSNR_OF_EPS:.0f}. Use mean_type='v' "
            "or 'flow', or another schedule."
        )


def check_guidance_interval(interval: Sequence[Any]) -> None:
    """Raise an InputError unless these are the smallest and the largest log-SNR at which guidance acts.

    >>> check_guidance_interval((-4.0, 3.0))
    """
    if not is_interval(interval):
        raise InputError(
            f"guidance_interval={interval} must be the smallest and the largest log-SNR at which guidance acts, such "
            "as (-4.0, 3.0). The log-SNR of a sigma is -2 log(sigma)."
        )


def train_schedule(config: Any) -> Schedule:
    """Return the noise schedule of training."""
    return get_logsnr_schedule(**config.train_logsnr_schedule)


def eval_schedule(config: Any) -> Schedule:
    """Return the noise schedule of sampling."""
    return get_logsnr_schedule(**config.eval_logsnr_schedule)


def count_params(params: Params) -> int:
    """Count the parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
