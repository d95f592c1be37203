"""From a model's parameters to images.

A model diffuses x, which is images or their latents (`latents.Space`).
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Integer, Shaped, UInt8

from . import sampling
from .diffusion import Denoiser, Prediction
from .errors import InputError
from .keys import fold_in, threefry
from .latents import Space, from_uint8, pixels
from .latents import to_uint8 as to_uint8
from .networks.autoencoder import load_space
from .networks.conditions import condition_of
from .networks.model import Model, check_guidance_interval, eval_schedule, make_model
from .networks.sharded import sharded
from .runtime import multihost
from .runtime.devices import data_mesh, is_divided, map_rows, replicate
from .sampling import SAMPLERS, Sampler, check_key, check_num_steps, sampler_name
from .schedules import Schedule
from .shapes import Array, DataArray, Keys, Params

DECODED_PIXELS = 2**24  # of the decoded images that a device holds at once: 256 of 256x256
Guidance = Float[Array, "_"] | Float[Array, ""] | float


@runtime_checkable
class ModelInfo(Protocol):
    """What a pipeline needs to know of a model besides its parameters; `checkpoints.Metadata` has these attributes.

    It may also have `class_names`, and `autoencoder` and `autoencoder_path` for a model of latents.

    Attributes:
      config: has a config's `model` section, `sampler`, `train.parallel` and `train.label_dropout`.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.
      num_steps: sampling steps that a student was distilled for; 0 for a base model, which has no such number.
    """

    config: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    num_steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to sample. The methods of `Pipeline` take these fields as keyword arguments.

    A pipeline's defaults come from the model's config. In a call, a field that is omitted or None keeps its default.

    Attributes:
      num_steps: sampling steps, at least 1. By default the number that a student was distilled for, or the config's
        model.eval_sampling_num_steps. A student warns if the number does not suit it.
      sampler: a name in `sampling.SAMPLERS`: 'ddim'; 'ancestral'; for undistilled models, 'heun' (two network
        evaluations per step), 'dpmpp_2m' and 'addim' (DDIM adjusted for the variance that it loses); 'renoise', for
        consistency models of one group; 'stochastic' (steps of twice the length, half undone by noise). By default
        the config's.
      eta: with 'ddim', the share of fresh noise at every step, from 0, the default, to 1; see `sampling.ddim_step`.
      clip: whether to clip the x predicted at every step to [-1, 1], for models of pixels. By default the config's
        model.eval_clip_denoised.
      guidance: weight w of classifier-free guidance, one for all images or one per image: (1 + w) times the prediction
        with the label, minus w times the prediction without. 0 is the label alone, -1 no label. In the convention
        x(none) + s (x(class) - x(none)), w is s - 1. A student that was made for guidance weights takes those of its
        range, with one network evaluation per step. Any other model must have been trained with train.label_dropout,
        and is evaluated on twice the batch. By default the config's model.eval_guidance.
      guidance_interval: the smallest and the largest log-SNR at which guidance acts; elsewhere the weight is 0. A paper
        that states the interval in sigma means the log-SNRs -2 log(sigma) (Kynkäänniemi et al. 2024, arXiv
        2404.07724). (-inf, inf) for all. By default the config's model.eval_guidance_interval.
      batch_size: images per batch, over all devices, at least 1; default 256.

    Raises:
      InputError: for an unknown sampler, a number out of its range, or eta with a sampler that does not take it.

    >>> SamplingOptions(num_steps=4, sampler="noisy").sampler  # the published name of 'ancestral'
    'ancestral'
    """

    num_steps: int
    sampler: str = "ddim"
    eta: float = 0.0
    clip: bool = True
    guidance: Guidance = 0.0
    guidance_interval: tuple[float, float] | None = None
    batch_size: int = 256

    def __post_init__(self):
        check_num_steps(self.num_steps)
        object.__setattr__(self, "sampler", sampler_name(self.sampler))
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta={self.eta} must be from 0 (deterministic) to 1.")
        if self.eta != 0 and "eta" not in SAMPLERS[self.sampler].options:
            takes_eta = [name for name, sampler in SAMPLERS.items() if "eta" in sampler.options]
            raise InputError(
                f"The sampler {self.sampler!r} does not take eta={self.eta}. Omit eta, or choose one of {takes_eta}."
            )
        if self.guidance_interval is not None:
            check_guidance_interval(self.guidance_interval)
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if self.batch_size < 1:
            raise InputError(f"batch_size={self.batch_size} must be at least 1.")

    def override(self, options: dict[str, Any]) -> "SamplingOptions":
        """Return these options with those in `options` that are not None.

        >>> SamplingOptions(num_steps=4).override(dict(num_steps=None, eta=0.5)).num_steps
        4
        """
        return dataclasses.replace(self, **{name: value for name, value in options.items() if value is not None})

    @property
    def is_deterministic(self) -> bool:
        """Whether the starting noise alone determines the sample."""
        return not SAMPLERS[self.sampler].needs_key(self.eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PureSampler:
    """A model's sampler as a pure function of parameters and noise, from `Pipeline.pure_sampler`.

    Pipelines whose samplers are equal share their compiled programs.
    """

    model: Model
    num_classes: int
    schedule: Schedule
    logvar_type: str
    sampler: Sampler
    eta: float
    clip: bool
    guidance_interval: tuple[float, float] | None

    def __call__(
        self,
        params: Params,
        z: DataArray,
        *,
        num_steps: Any,
        key: Keys | None = None,
        labels: Integer[Array, "batch"] | None = None,
        guidance: Float[Array, "batch"] | None = None,
        trajectory: bool = False,
    ) -> Any:
        """Return x, `[batch, height, width, channels]`, float32; with `trajectory`, `(x, xs)`.

        Args:
          params: the model's parameters.
          z: standard normal noise, `[batch, height, width, channels]`.
          num_steps: sampling steps; may be traced, unless `trajectory` is set.
          key: random key for the noise of the steps, one for all examples or one each, such as `step_keys` makes;
            deterministic samplers ignore it.
          labels: the class of each image, for a class-conditional model.
          guidance: the guidance weight of each image; None for no guidance.
          trajectory: also return the predicted x of every step; default False.
        """
        condition = condition_of(labels if self.num_classes > 1 else None, guidance)
        denoise = self.model.denoiser(params, condition, clip_x=self.clip, guidance_interval=self.guidance_interval)
        options = {"eta": self.eta, "logvar_type": self.logvar_type, "sigma_min": self.model.sigma_of_x}
        options = {name: options[name] for name in self.sampler.options}
        return sampling.sample(
            self.sampler, denoise, z, self.schedule, num_steps, key=key, trajectory=trajectory, **options
        )


class Pipeline:
    """Generates images with a model's parameters.

    Sample j depends on the key and on j alone: not on the number of samples, the batch size or the number of devices,
    up to the last digit of a float. Two pipelines with the same key start from the same noise. Devices share the work
    as in training, by config.train.parallel. If several processes work together, all of them must call the same
    methods, and each one gets all images. Parameters that are divided among the devices, as `load(path, shard='all')`
    returns them, stay divided: the devices gather them layer by layer.

    Attributes:
      defaults: the `SamplingOptions` of calls that do not override them.
      num_steps: the default number of sampling steps.
      distilled_for: sampling steps that a student was distilled for; 0 for a base model, which has no such number.
      space: what the model diffuses, x; `space.shape` is its (height, width, channels).
      image_shape: (height, width, channels) of the images.
      num_classes: 1 for an unconditional model.
      class_names: one name per class; None if the classes have no names.
      can_be_guided: whether the model takes guidance weights other than 0.
    """

    def __init__(self, params: Params, metadata: ModelInfo, num_steps: int | None = None):
        config = metadata.config
        self.distilled_for = metadata.num_steps
        self.space = space_of(metadata)
        self.image_shape = self.space.image_shape
        self.num_classes = metadata.num_classes
        self.class_names = getattr(metadata, "class_names", None)
        self.can_be_guided = can_be_guided(metadata)
        self.defaults = SamplingOptions(
            num_steps=(self.distilled_for or config.model.eval_sampling_num_steps) if num_steps is None else num_steps,
            sampler=config.sampler,
            clip=config.model.eval_clip_denoised,
            guidance=config.model.eval_guidance,
            guidance_interval=config.model.eval_guidance_interval,
        )
        self._model = make_model(config.model, self.space.shape, self.num_classes)
        self._process = dict(schedule=eval_schedule(config.model), logvar_type=config.model.logvar_type)
        self._mesh = data_mesh()
        self._divided = is_divided(params)
        if self._divided:
            self._model = sharded(self._model, self._mesh)
        self._parallel = "jit" if self._divided else config.train.parallel
        self._params = params if self._divided else replicate(params, self._mesh, self._parallel)

    @property
    def num_steps(self) -> int:
        """The default number of sampling steps."""
        return self.defaults.num_steps

    @property
    def params(self) -> Params:
        """A copy of the parameters, on the default device; divided parameters as they are."""
        return self._unplaced_params()

    def sample(
        self, key: Keys, num_samples: int, labels: Integer[Array, "_"] | None = None, **options: Any
    ) -> UInt8[np.ndarray, "num_samples height width channels"]:
        """Generate images.

        Args:
          key: `jax.random.key(seed)`.
          num_samples: number of images, at least 1.
          labels: the class of each image, for a class-conditional model; by default 0, 1, 2, ... in turn.
          **options: see `SamplingOptions`: num_steps, sampler, eta, clip, guidance, guidance_interval, batch_size.

        Returns:
          uint8 images, `[num_samples, height, width, channels]`.

        Raises:
          InputError: for options that are out of range or do not fit the model, or labels that do not fit.
        """
        batches = self.stream(key, _first(num_samples), labels, **options)
        return np.concatenate([self.to_uint8(x) for x in batches])

    def stream(
        self, key: Keys, index: Int[np.ndarray, "n"], labels: Integer[Array, "_"] | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """Generate any of a key's samples batch by batch, also more of them than fit in memory.

        Args:
          key: `jax.random.key(seed)`.
          index: which samples to generate; `sample` generates 0, 1, 2, ...
          labels: the class of each image, for a class-conditional model; by default sample j has class j % num_classes.
          **options: see `SamplingOptions`.

        Returns:
          An iterator over x as from `from_noise`, in batches of batch_size; the last may be smaller. `to_uint8`
          converts a batch to images.

        Raises:
          InputError: see `sample`; before any image is generated.
        """
        return self._batches(lambda rows: self._noise(key, index[rows]), index, labels, key, self._options(options))

    def from_noise(
        self,
        z: Float[Array, "n height width channels"],
        labels: Integer[Array, "_"] | None = None,
        *,
        key: Keys | None = None,
        **options: Any,
    ) -> Float[np.ndarray, "n height width channels"]:
        """Generate x from noise of your own: images, or latents for `decode`.

        Args:
          z: standard normal noise, `[n, height, width, channels]`, of the shape `space.shape`.
          labels: the class of each image, for a class-conditional model; by default 0, 1, 2, ... in turn.
          key: random key for samplers that add noise at every step. The noise of image j depends on the key and on j.
          **options: see `SamplingOptions`.

        Returns:
          x, float32 of the shape of z; images are in [-1, 1] up to rounding if x is clipped. `to_uint8` converts x to
          images of pixels.

        Raises:
          InputError: see `sample`; also for z of another shape, or a missing key.
        """
        _check_noise(z, self.space.shape)
        z = np.asarray(z, np.float32)
        batches = self._batches(lambda rows: z[rows], _first(len(z)), labels, key, self._options(options))
        return np.concatenate(list(batches))

    def trajectory(
        self, key: Keys, num_samples: int, labels: Integer[Array, "_"] | None = None, **options: Any
    ) -> UInt8[np.ndarray, "num_steps num_samples height width channels"]:
        """Return the x predicted at every step on the way to the images of `sample`, the first step first.

        Args:
          key: `jax.random.key(seed)`.
          num_samples: number of images, at least 1.
          labels: the class of each image, for a class-conditional model; by default 0, 1, 2, ... in turn.
          **options: see `SamplingOptions`.

        Raises:
          InputError: see `sample`.
        """
        index = _first(num_samples)
        options = self._options(options)
        batches = self._batches(
            lambda rows: self._noise(key, index[rows]), index, labels, key, options, trajectory=True
        )
        steps = [self.to_uint8(xs.reshape(-1, *self.space.shape)) for xs in batches]
        return np.concatenate(steps).reshape(num_samples, -1, *self.image_shape).swapaxes(0, 1)

    def decode(self, x: Float[Array, "n x_height x_width x_channels"]) -> Float[np.ndarray, "n height width channels"]:
        """Return the images of x, float32, about in [-1, 1] and not clipped; for a model of pixels, x itself.

        An autoencoder computes batches of its own, and images with a side above 1024 in tiles; see
        `networks.autoencoder.make_functions`. Its first call reads it.

        Args:
          x: `[n, *space.shape]`, such as `from_noise` returns. Latents may also have other sides.
        """
        if self.space.is_pixels:
            return np.asarray(x)
        height, width, _ = self.image_shape
        rows = max(1, DECODED_PIXELS // (height * width))
        starts = range(0, len(x), rows)
        return np.concatenate([np.asarray(self.space.decode(jnp.asarray(x[i : i + rows]))) for i in starts])

    def encode(
        self, images: Shaped[Array, "n height width channels"]
    ) -> Float[np.ndarray, "n x_height x_width x_channels"]:
        """Return the x of images. For a model of latents, encode the images to their mean latents.

        Args:
          images: uint8, or float in [-1, 1], `[n, height, width, channels]`.
        """
        images = jnp.asarray(images)
        return np.asarray(self.space.encode(from_uint8(images) if images.dtype == jnp.uint8 else images))

    def to_uint8(
        self, x: Float[Array, "n x_height x_width x_channels"]
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Return the images of x as uint8 pixels, 0 to 255; see `decode`."""
        return to_uint8(self.decode(x))

    def denoiser(
        self,
        labels: Integer[Array, "_"] | None = None,
        *,
        guidance: Guidance | None = None,
        guidance_interval: tuple[float, float] | None = None,
        clip: bool | None = None,
    ) -> Denoiser:
        """Return the model as a `denoise(z, logsnr) -> Prediction(x, eps, v)`, for samplers and losses of your own.

        The denoiser is also a pytree. As an argument of a jitted function, its parameters are arguments of the program
        and not constants that are compiled into it.

        Args:
          labels: the class of each image of z, for a class-conditional model; by default 0, 1, 2, ... in turn.
          guidance: see `SamplingOptions`; one weight for all images, unless there are labels.
          guidance_interval: see `SamplingOptions`.
          clip: see `SamplingOptions`.

        Returns:
          `denoise`, which is compiled and works under `jax.jit`, `vmap`, `grad` and `pmap`. It raises an InputError if
          the images do not have the model's shape, or are not as many as the labels.
        """
        options = self._options(dict(guidance=guidance, guidance_interval=guidance_interval, clip=clip))
        if labels is not None:
            labels = self._check_labels(labels, np.size(labels))
        weights = self._check_guidance(options.guidance, () if labels is None else labels.shape)
        denoise = _compiled_denoiser(
            model=self._model,
            shape=self.space.shape,
            num_classes=self.num_classes,
            clip_x=options.clip,
            guidance_interval=options.guidance_interval,
        )
        return jax.tree_util.Partial(denoise, self._unplaced_params(), labels, weights)

    def pure_sampler(
        self,
        *,
        sampler: str | None = None,
        eta: float | None = None,
        clip: bool | None = None,
        guidance_interval: tuple[float, float] | None = None,
    ) -> tuple[PureSampler, Params]:
        """Return the sampler as a pure function for programs of your own, and the parameters.

        Args:
          sampler: see `SamplingOptions`.
          eta: see `SamplingOptions`.
          clip: see `SamplingOptions`.
          guidance_interval: see `SamplingOptions`.

        Returns:
          `(fn, params)`. `fn(params, z, *, key, num_steps, labels, guidance)` returns x as `from_noise` does; see
          `PureSampler`. With z = start_noise(key, index, space.shape) and key = step_keys(key, index), it returns the
          same samples as `sample`.

        Raises:
          InputError: see `SamplingOptions`.
        """
        options = self._options(dict(sampler=sampler, eta=eta, clip=clip, guidance_interval=guidance_interval))
        return self._pure_sampler(options), self._unplaced_params()

    def is_deterministic(self, *, sampler: str | None = None, eta: float | None = None) -> bool:
        """Return whether the starting noise alone determines a sample. For the arguments, see `SamplingOptions`."""
        return self._options(dict(sampler=sampler, eta=eta)).is_deterministic

    def _options(self, options: dict[str, Any]) -> SamplingOptions:
        options = self.defaults.override(options)
        low, _ = self._model.guidance_range or (0, 0)
        if options.guidance_interval is not None and low > 0:
            raise InputError(
                f"guidance_interval={options.guidance_interval} needs a model that takes the weight 0; this student's "
                f"weights are at least {low}. Omit guidance_interval."
            )
        check_clip(options.clip, self.space, "clip")
        return options

    def _pure_sampler(self, options: SamplingOptions) -> PureSampler:
        return PureSampler(
            model=self._model,
            num_classes=self.num_classes,
            sampler=SAMPLERS[options.sampler],
            eta=options.eta,
            clip=options.clip,
            guidance_interval=options.guidance_interval,
            **self._process,
        )

    def _batches(
        self,
        noise: Callable[[np.ndarray], np.ndarray],
        index: np.ndarray,
        labels: Array | None,
        key: Keys | None,
        options: SamplingOptions,
        *,
        trajectory: bool = False,
    ) -> Iterator[np.ndarray]:
        """Check the arguments, then generate batch by batch. `noise(rows)` is the noise of samples index[rows].

        A batch is x, `[batch, ...]`, or with `trajectory` the predicted x of every step, `[batch, num_steps, ...]`.
        """
        # Check.
        index = np.asarray(index, np.int32)
        check_key(SAMPLERS[options.sampler], key, options.eta)
        if options.is_deterministic:
            key = None  # one program serves calls with and without a key
        labels = index % self.num_classes if labels is None else self._check_labels(labels, len(index))
        guidance = self._check_guidance(options.guidance, index.shape)
        self._warn_unless_suited(options)

        # Compile. A batch has a power of two rows, so that a few programs serve any number of samples.
        num_steps = options.num_steps
        run = _compiled(self._mesh, self._parallel, self._pure_sampler(options), num_steps if trajectory else None)
        shared = (key, None if trajectory else num_steps)
        size = min(options.batch_size, 1 << (len(index) - 1).bit_length())
        size += -size % self._mesh.size

        # Generate.
        def generate():
            for start in range(0, len(index), options.batch_size):
                rows = np.arange(start, min(start + options.batch_size, len(index)))
                padded = np.resize(rows, size)
                condition = (
                    None if self.num_classes == 1 else labels[padded],
                    None if guidance is None else guidance[padded],
                )
                yield run(self._params, shared, (noise(padded), index[padded], *condition))[: len(rows)]

        return generate()

    def _warn_unless_suited(self, options: SamplingOptions) -> None:
        """Warn if a student is sampled in a number of steps, or by a sampler, that it was not distilled for."""
        sampler = SAMPLERS[options.sampler]
        if not self.distilled_for or sampler.suits(self.distilled_for, options.num_steps) or not multihost.is_main():
            return
        if sampler.jumps == ():
            logging.warning("This model was distilled for DDIM steps; sampling with %s reduces quality.", sampler.title)
            return
        logging.warning(
            "This model was distilled for %s; sampling with %d reduces quality.",
            "1 sampling step" if self.distilled_for == 1 else f"{self.distilled_for} sampling steps",
            options.num_steps,
        )

    def _noise(self, key: Keys, index: np.ndarray) -> np.ndarray:
        return np.asarray(start_noise(key, index, self.space.shape))

    def _unplaced_params(self) -> Params:
        """Return the parameters bound to no device, so that a program can use them wherever its other arrays are."""
        if self._divided:
            return self._params

        def unplaced(leaf):
            local = np.asarray(leaf.addressable_shards[0].data)
            return jnp.asarray(local[0] if self._parallel == "pmap" else local)

        return jax.tree.map(unplaced, self._params)

    def _check_labels(self, labels: Array, num_samples: int) -> np.ndarray:
        labels = np.asarray(labels)
        if self.num_classes == 1:
            raise InputError("This model is not class-conditional. Omit the labels.")
        text = np.array2string(labels, threshold=20, separator=", ")
        if labels.shape != (num_samples,):
            raise InputError(
                f"labels must be {num_samples} classes, one per image; got {labels.size}: {text}. For one class, "
                f"repeat it: np.full({num_samples}, 0)."
            )
        if not np.issubdtype(labels.dtype, np.integer) or np.any((labels < 0) | (labels >= self.num_classes)):
            raise InputError(f"labels must be classes from 0 to {self.num_classes - 1}; got {text}.")
        return labels.astype(np.int32)

    def _check_guidance(self, guidance: Guidance, shape: tuple[int, ...]) -> np.ndarray | None:
        """Return the weights in this shape; None if all are 0 and the network does not take weights itself."""
        weights = np.asarray(guidance, np.float32)
        if weights.shape not in ((), shape):
            raise InputError(f"guidance must be one weight or {shape}; got an array of shape {weights.shape}.")
        allowed = self._model.guidance_range
        if allowed is None and not weights.any():
            return None
        text = f"guidance={weights}" if weights.ndim == 0 else f"guidance from {weights.min()} to {weights.max()}"
        low, high = (-1, np.inf) if allowed is None else allowed
        if not (np.all(weights >= low) and np.all(weights <= high)):  # True for NaN too
            expected = f"at least {low}" if allowed is None else f"from {low} to {high}, the range of this student"
            raise InputError(
                f"{text} must be {expected}. In the convention x(none) + s (x(class) - x(none)), it is s - 1."
            )
        if not self.can_be_guided:
            raise InputError(
                f"{text} needs a model with an output without a class, which this model lacks. Train a "
                "class-conditional model with config.train.label_dropout=0.1, or omit guidance."
            )
        return np.broadcast_to(weights, shape)


def can_be_guided(metadata: ModelInfo) -> bool:
    """Return whether a model takes guidance weights: as an input, or because it was trained with label dropout."""
    takes_weights = metadata.config.model.args.get("guidance_range") is not None
    return metadata.num_classes > 1 and (takes_weights or metadata.config.train.label_dropout > 0)


def space_of(metadata: ModelInfo) -> Space:
    """Return the space that a model works in. An autoencoder is read when it is first needed."""
    image_shape = tuple(metadata.image_shape)
    info = getattr(metadata, "autoencoder", None)
    if info is None:
        return pixels(image_shape)
    return load_space(metadata.autoencoder_path, metadata.config.autoencoder.dtype, info, image_shape)


def check_clip(clip: bool, space: Space, field: str) -> None:
    """Raise an InputError if x is clipped to [-1, 1] in a space where it is not bounded.

    Args:
      clip: whether x is clipped.
      space: of the model.
      field: what sets `clip`, for the message.
    """
    if clip and not space.is_pixels:
        raise InputError(
            f"{field}=True clips x to [-1, 1], and latents of the autoencoder {space.name!r} go beyond. Set "
            f"{field}=False."
        )


@functools.partial(jax.jit, static_argnames="shape")
def start_noise(
    key: Keys, index: Int[Array, "n"], shape: tuple[int, int, int]
) -> Float[jax.Array, "n height width channels"]:
    """Return the standard normal noise that samples of a key start from, one per example.

    Args:
      key: `jax.random.key(seed)`.
      index: which samples.
      shape: (height, width, channels) of what is diffused.

    >>> start_noise(jax.random.key(0), np.arange(4, dtype=np.int32), (8, 8, 1)).shape
    (4, 8, 8, 1)
    """
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(_sample_keys(key, index)[:, 0])


def step_keys(key: Keys, index: Int[Array, "n"]) -> Keys:
    """Return the keys of the noise that samplers add at every step, one per sample of a key.

    Args:
      key: `jax.random.key(seed)`.
      index: which samples.

    >>> step_keys(jax.random.key(0), np.arange(4, dtype=np.int32)).shape
    (4,)
    """
    return _sample_keys(key, index)[:, 1]


def _sample_keys(key: Keys, index: Array) -> Keys:
    """Return two keys per sample: for the noise that it starts from, and for the noise of its steps."""
    return jax.vmap(lambda i: jax.random.split(fold_in(threefry(key), i)))(index)


def _first(num_samples: int) -> np.ndarray:
    if num_samples < 1:
        raise InputError(f"num_samples={num_samples} must be at least 1.")
    return np.arange(num_samples, dtype=np.int32)


def _check_noise(z: Array, shape: tuple[int, int, int]) -> None:
    if np.ndim(z) != 4 or np.shape(z)[1:] != shape or len(z) < 1:
        expected = ", ".join(map(str, ("n", *shape)))
        raise InputError(f"z must be noisy images of shape [{expected}], at least one; got {list(np.shape(z))}.")


@functools.lru_cache(maxsize=16)
def _compiled(
    mesh: Mesh, parallel: str, sampler: PureSampler, trajectory_steps: int | None
) -> Callable[..., np.ndarray]:
    """Compile one program for all pipelines with equal samplers, such as those of a ladder."""
    fn = functools.partial(_sample_rows, sampler=sampler, trajectory_steps=trajectory_steps)
    return map_rows(fn, mesh, parallel)


def _sample_rows(params, shared, rows, *, sampler: PureSampler, trajectory_steps: int | None) -> jax.Array:
    """Generate a batch. The number of steps is traced, but for trajectories a constant."""
    key, num_steps = shared
    z, index, labels, guidance = rows
    keys = None if key is None else step_keys(key, index)
    generate = functools.partial(sampler, params, z, key=keys, labels=labels, guidance=guidance)
    if trajectory_steps is None:
        return generate(num_steps=num_steps)
    _, xs = generate(num_steps=trajectory_steps, trajectory=True)
    return xs.swapaxes(0, 1)


@functools.lru_cache(maxsize=16)
def _compiled_denoiser(**settings) -> Callable[..., Prediction]:
    """Compile one program for all denoisers with these settings."""
    return jax.jit(functools.partial(_denoise, **settings))


def _denoise(
    params, labels, guidance, z, logsnr, *, model, shape, num_classes, clip_x, guidance_interval
):  # fmt: skip
    _check_noise(z, shape)
    if labels is None:
        labels = jnp.arange(len(z)) % num_classes
    elif len(labels) != len(z):
        raise InputError(f"This denoiser was made for {len(labels)} labels; got {len(z)} images.")
    guidance = None if guidance is None else jnp.broadcast_to(guidance, len(z))
    condition = condition_of(labels if num_classes > 1 else None, guidance)
    return model.denoiser(params, condition, clip_x=clip_x, guidance_interval=guidance_interval)(z, logsnr)
