"""From a model to images."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Integer, UInt8

from . import sampling
from .diffusion import Denoiser, Prediction
from .errors import InputError
from .keys import fold_in, threefry
from .networks.model import condition_of, eval_schedule, guidance_range, make_network, network_denoiser
from .runtime import multihost
from .runtime.devices import data_mesh, map_rows, replicate
from .sampling import SAMPLERS, check_key, check_num_steps, sampler_name
from .shapes import Array, Keys, Params

Guidance = Float[Array, "_"] | Float[Array, ""] | float

BATCH_SIZE = 256


@runtime_checkable
class ModelInfo(Protocol):
    """What a pipeline asks of a model besides its parameters; `checkpoints.Metadata` has it.

    Attributes:
      config: with the fields of a config's `model` section, `sampler`, `train.parallel` and `train.label_dropout`.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional network.
      num_steps: the sampling steps that a student was distilled for; 0 for a base model, which takes any number.
    """

    config: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    num_steps: int


class Pipeline:
    """Draws images with a model's parameters.

    Sample j depends on the key and on j alone: not on how many are drawn, in what batches, or on how many devices (but
    for a float's last digit). Two pipelines given one key start from the same noise. Devices share the work the way the
    run was trained, by config.train.parallel; where several processes work together, all must draw, and each gets all
    images.

    Attributes:
      num_steps: sampling steps.
      distilled_for: the sampling steps that a student was distilled for; 0 for a base model, which takes any number.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional model.
      class_names: one name per class; None if the classes have no names.
      can_be_guided: whether it takes weights of guidance other than 0.
    """

    def __init__(self, params: Params, metadata: ModelInfo, num_steps: int | None = None):
        config, model = metadata.config, metadata.config.model
        self.distilled_for = metadata.num_steps
        own_num_steps = self.distilled_for or model.eval_sampling_num_steps
        self.num_steps = own_num_steps if num_steps is None else num_steps
        check_num_steps(self.num_steps)
        self.image_shape = tuple(metadata.image_shape)
        self.num_classes = metadata.num_classes
        self.class_names = getattr(metadata, "class_names", None)
        self._sampler = sampler_name(config.sampler)
        self._clip, self._guidance = model.eval_clip_denoised, model.eval_guidance
        self.can_be_guided = can_be_guided(metadata)
        self._mesh, self._parallel = data_mesh(), config.train.parallel
        self._params = replicate(params, self._mesh, self._parallel)
        self._network = dict(
            network=make_network(model, self.image_shape, self.num_classes),
            mean_type=model.mean_type,
        )
        self._process = dict(schedule=eval_schedule(model), logvar_type=model.logvar_type)

    @property
    def params(self) -> Params:
        """A copy of the parameters, on the default device."""
        return self._params_of_no_device()

    def sample(
        self,
        key: Keys,
        num_samples: int,
        labels: Integer[Array, "_"] | None = None,
        *,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        clip: bool | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> UInt8[np.ndarray, "num_samples height width channels"]:
        """Draws images.

        Args:
          key: `jax.random.key(seed)`.
          num_samples: how many.
          labels: the class of each, for a class-conditional model; by default 0, 1, 2, ... in turn.
          guidance: the weight w of classifier-free guidance, one for all or one for each: what is drawn follows
            (1 + w) times what the model says under the label, less w times what it says without one. 0 is the label
            alone and -1 no label at all; where others have a scale s, as 7.5, w = s - 1. A student that was made for
            weights takes those of its range, in one call a step; any other model must have been trained with
            train.label_dropout, and is called with twice the batch. By default the config's model.eval_guidance.
          num_steps: sampling steps; by default the pipeline's. A student that was distilled for another number warns.
          sampler: 'ddim'; 'ancestral'; 'addim', DDIM adjusted for the variance that it loses, for
            undistilled models; 'renoise', for consistency models of one group; or 'stochastic', DDIM's steps of twice
            the length, each half undone by noise. By default the config's.
          eta: with 'ddim', the share of fresh noise at every step, from 0 (none) to 1; see `sampling.ddim_step`.
          clip: clip the x predicted at every step to [-1, 1]; by default the config's eval_clip_denoised.
          batch_size: how many to draw at a time, over all devices.

        Returns:
          uint8 images, `[num_samples, height, width, channels]`.

        Raises:
          InputError: for an unknown sampler, a number out of its range, eta with another sampler than 'ddim', or labels
            that do not fit.
        """
        options = dict(num_steps=num_steps, sampler=sampler, eta=eta, clip=clip, batch_size=batch_size)
        options["guidance"] = guidance
        return np.concatenate([to_uint8(x) for x in self.stream(key, _first(num_samples), labels, **options)])

    def stream(
        self, key: Keys, index: Int[np.ndarray, "n"], labels: Integer[Array, "_"] | None = None, **options: Any
    ) -> Iterator[np.ndarray]:
        """Draws any of a key's samples, batch after batch: more of them than memory holds.

        Args:
          key: `jax.random.key(seed)`.
          index: which samples; `sample` draws 0, 1, 2, ...
          labels: the class of each, for a class-conditional model; by default sample j is of class j % num_classes.
          **options: guidance, num_steps, sampler, eta, clip and batch_size, as for `sample`.

        Returns:
          An iterator over float32 images as from `from_noise`, batch_size of them at a time, fewer at last.

        Raises:
          InputError: as `sample`, before anything is drawn.
        """
        return self._draw(lambda rows: self._noise(key, index[rows]), index, labels, key, **options)

    def from_noise(
        self,
        z: Float[Array, "n height width channels"],
        labels: Integer[Array, "_"] | None = None,
        *,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        clip: bool | None = None,
        key: Keys | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Float[np.ndarray, "n height width channels"]:
        """Draws images from noise of one's own.

        Args:
          z: standard normal noise, `[n, height, width, channels]`.
          labels: as for `sample`.
          guidance: as for `sample`.
          num_steps: as for `sample`.
          sampler: as for `sample`.
          eta: as for `sample`.
          clip: as for `sample`.
          key: for the noise that samplers such as 'ancestral' add at every step; that of image j depends on the key
            and j.
          batch_size: as for `sample`.

        Returns:
          float32 images, the x that the sampler ends with: in [-1, 1], to rounding, where it clips, and where it does
          not also beyond. `to_uint8` makes pictures of them.

        Raises:
          InputError: as `sample`; and for z of another shape, or a key that is missing.
        """
        _check_images(z, self.image_shape)
        z = np.asarray(z, np.float32)
        options = dict(num_steps=num_steps, sampler=sampler, eta=eta, clip=clip, batch_size=batch_size)
        options["guidance"] = guidance
        return np.concatenate(list(self._draw(lambda rows: z[rows], _first(len(z)), labels, key, **options)))

    def trajectory(
        self, key: Keys, num_samples: int, labels: Integer[Array, "_"] | None = None, **options: Any
    ) -> UInt8[np.ndarray, "num_steps num_samples height width channels"]:
        """The x predicted at every step on the way to the images that `sample` draws, the noisiest first.

        Arguments and errors are those of `sample`.
        """
        index = _first(num_samples)
        batches = self._draw(lambda rows: self._noise(key, index[rows]), index, labels, key, trajectory=True, **options)
        return np.concatenate([to_uint8(steps) for steps in batches]).swapaxes(0, 1)

    def denoiser(
        self, labels: Integer[Array, "_"] | None = None, *, guidance: Guidance | None = None, clip: bool | None = None
    ) -> Denoiser:
        """The model as a `denoise(z, logsnr) -> Prediction(x, eps, v)`, for samplers and losses of one's own.

        It is a pytree too: as an argument of a jitted function its parameters are arguments, and not constants that
        are compiled into the program.

        Args:
          labels: the class of each image of z, for a class-conditional model; by default 0, 1, 2, ... in turn.
          guidance: as for `sample`; one for all, unless there are labels.
          clip: clip the predicted x to [-1, 1]; by default the config's eval_clip_denoised.

        Returns:
          `denoise`, which is compiled and works under `jax.jit`, `vmap`, `grad` and `pmap`. It raises an InputError
          for images of another shape than the model's, or of another number than the labels.
        """
        if labels is not None:
            labels = self._check_labels(labels, np.size(labels))
        guidance = self._check_guidance(guidance, () if labels is None else labels.shape)
        clip_x = self._clip if clip is None else clip
        settings = dict(image_shape=self.image_shape, num_classes=self.num_classes, clip_x=clip_x)
        apply = _compiled_denoiser(**settings, **self._network)
        return jax.tree_util.Partial(apply, self._params_of_no_device(), labels, guidance)

    def as_function(
        self, *, sampler: str | None = None, eta: float = 0.0, clip: bool | None = None
    ) -> tuple[Callable[..., jax.Array], Params]:
        """What `sample` computes as a pure function, for programs of one's own, and the parameters that it takes.

        Args:
          sampler: as for `sample`.
          eta: as for `sample`.
          clip: as for `sample`.

        Returns:
          `draw, params`. `draw(params, (key, num_steps), (z, index, condition))` gives float32 images x as `from_noise`
          does, for standard normal noise z, `[batch, height, width, channels]`, integers index, `[batch]`, and an
          integer num_steps, which may be traced. `start_noise(key, index, image_shape)` is the z of `sample`.
          Deterministic DDIM takes None for the key and the index. The condition has labels as 'y', `[batch]`, for a
          class-conditional model, and weights as 'guidance', `[batch]`, for one that is guided; else it is empty.

        Raises:
          InputError: for an unknown sampler, an eta out of its range, or eta with the 'ancestral' sampler.
        """
        settings = self._draw_settings(sampler, eta, clip)
        return functools.partial(_draw_rows, trajectory=None, **settings), self._params_of_no_device()

    def is_deterministic(self, *, sampler: str | None = None, eta: float = 0.0) -> bool:
        """Whether the noise that a sample starts from is all that it draws."""
        return not SAMPLERS[self._sampler if sampler is None else sampler_name(sampler)].needs_key(eta)

    def _draw_settings(self, sampler: str | None, eta: float, clip: bool | None) -> dict[str, Any]:
        """The settings of `_draw_rows`, with the config's where there is None."""
        sampler = self._sampler if sampler is None else sampler_name(sampler)
        _check_eta(sampler, eta)
        clip_x = self._clip if clip is None else clip
        return dict(sampler=sampler, eta=eta, clip_x=clip_x, **self._network, **self._process)

    def _draw(
        self,
        noise: Callable[[np.ndarray], np.ndarray],
        index: np.ndarray,
        labels: Array | None,
        key: Keys | None,
        *,
        guidance: Guidance | None = None,
        num_steps: int | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        clip: bool | None = None,
        batch_size: int = BATCH_SIZE,
        trajectory: bool = False,
    ) -> Iterator[np.ndarray]:
        """Checks its arguments, then draws batch after batch. `noise(rows)` is what samples index[rows] start from.

        A batch is x, `[batch, ...]`, or with `trajectory` every predicted x, `[batch, num_steps, ...]`.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} must be at least 1.")
        num_steps = self.num_steps if num_steps is None else num_steps
        check_num_steps(num_steps)
        index = np.asarray(index, np.int32)
        settings = self._draw_settings(sampler, eta, clip)
        if self.is_deterministic(sampler=sampler, eta=eta):
            key = None  # so that one program serves whether there is a key or not
        else:
            check_key(SAMPLERS[settings["sampler"]], key, eta)
        labels = index % self.num_classes if labels is None else self._check_labels(labels, len(index))
        guidance = self._check_guidance(guidance, index.shape)
        suits = not self.distilled_for or SAMPLERS[settings["sampler"]].suits(self.distilled_for, num_steps)
        if not suits and multihost.is_main():
            logging.warning(
                "This student was distilled for %d sampling steps and draws in %d: its images are worse for that.",
                self.distilled_for,
                num_steps,
            )
        draw = _compiled(self._mesh, self._parallel, trajectory=num_steps if trajectory else None, **settings)
        shared = (key, None if trajectory else num_steps)
        # Powers of two, so that a handful of programs draws any number of samples.
        size = min(batch_size, 1 << (len(index) - 1).bit_length())
        size += -size % self._mesh.size

        def batches():
            for start in range(0, len(index), batch_size):
                rows = np.arange(start, min(start + batch_size, len(index)))
                filled_up = np.resize(rows, size)  # every batch has the same shape
                of_rows = condition_of(
                    labels[filled_up], self.num_classes, None if guidance is None else guidance[filled_up]
                )
                yield draw(self._params, shared, (noise(filled_up), index[filled_up], of_rows))[: len(rows)]

        return batches()

    def _noise(self, key: Keys, index: np.ndarray) -> np.ndarray:
        return np.asarray(start_noise(key, index, self.image_shape))

    def _params_of_no_device(self) -> Params:
        """The parameters, to be used wherever the arrays are that they meet."""

        def unbound(leaf):
            held = np.asarray(leaf.addressable_shards[0].data)
            return jnp.asarray(held[0] if self._parallel == "pmap" else held)

        return jax.tree.map(unbound, self._params)

    def _check_labels(self, labels: Array, num_samples: int) -> np.ndarray:
        labels = np.asarray(labels)
        if self.num_classes == 1:
            raise InputError("This model is not class-conditional: leave the labels out.")
        got = np.array2string(labels, threshold=20, separator=", ")
        if labels.shape != (num_samples,):
            raise InputError(
                f"labels must be {num_samples} classes, one per image; got {labels.size}: {got}. For one class, "
                f"repeat it: np.full({num_samples}, 0)."
            )
        if not np.issubdtype(labels.dtype, np.integer) or np.any((labels < 0) | (labels >= self.num_classes)):
            raise InputError(f"labels must be classes from 0 to {self.num_classes - 1}; got {got}.")
        return labels.astype(np.int32)

    def _check_guidance(self, guidance: Guidance | None, shape: tuple[int, ...]) -> np.ndarray | None:
        """The weights in this shape; None for a network that takes none where none is wanted."""
        weights = np.asarray(self._guidance if guidance is None else guidance, np.float32)
        if weights.shape not in ((), shape):
            raise InputError(f"guidance must be one weight or {shape}; got an array of shape {weights.shape}.")
        allowed = guidance_range(self._network["network"])
        if allowed is None and not weights.any():
            return None
        given = f"guidance={weights}" if weights.ndim == 0 else f"guidance from {weights.min()} to {weights.max()}"
        low, high = (-1, np.inf) if allowed is None else allowed
        if not (np.all(weights >= low) and np.all(weights <= high)):
            made = "" if allowed is None else f" to {high}, which this student was made for"
            raise InputError(
                f"{given} must be from {low}{made}. In the convention x(none) + s (x(class) - x(none)), it is s - 1."
            )
        if not self.can_be_guided:
            raise InputError(
                f"{given} is for class-conditional models that were trained with train.label_dropout, as "
                "they know images of no class too. Leave it out."
            )
        return np.broadcast_to(weights, shape)


def can_be_guided(metadata: ModelInfo) -> bool:
    """Whether a model takes weights of guidance: as an input, or as it knows images of no class too."""
    takes = metadata.config.model.args.get("guidance_range") is not None
    return metadata.num_classes > 1 and (takes or metadata.config.train.label_dropout > 0)


def to_uint8(x: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Pixels from 0 to 255 for those from -1 to 1; what is beyond is clipped."""
    return np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def _first(num_samples: int) -> np.ndarray:
    if num_samples < 1:
        raise InputError(f"num_samples={num_samples} must be at least 1.")
    return np.arange(num_samples, dtype=np.int32)


def _check_eta(sampler: str, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta} must be from 0, deterministic, to 1.")
    if eta != 0 and "eta" not in SAMPLERS[sampler].options:
        raise InputError(
            f"eta={eta} is for the sampler 'ddim'; the sampler here is {sampler!r}. Leave one of them out."
        )


def _check_images(z: Array, image_shape: tuple[int, int, int]) -> None:
    if np.ndim(z) != 4 or np.shape(z)[1:] != image_shape or len(z) < 1:
        expected = ", ".join(map(str, ("n", *image_shape)))
        raise InputError(f"z must be noisy images of shape [{expected}], at least one; got {list(np.shape(z))}.")


def _keys(key: Keys, index: Array) -> Array:
    """Two keys for each sample: of the noise that it starts from, and of the noise of its steps."""
    return jax.vmap(lambda i: jax.random.split(fold_in(threefry(key), i)))(index)


@functools.partial(jax.jit, static_argnames="image_shape")
def start_noise(
    key: Keys, index: Int[Array, "n"], image_shape: tuple[int, int, int]
) -> Float[jax.Array, "n height width channels"]:
    """The standard normal noise that these samples of a key start from."""
    return jax.vmap(lambda key: jax.random.normal(key, image_shape, jnp.float32))(_keys(key, index)[:, 0])


@functools.lru_cache(maxsize=16)
def _compiled(mesh: Mesh, parallel: str, **settings) -> Callable[..., np.ndarray]:
    """One program for all pipelines of a kind, such as those of a ladder."""
    return map_rows(functools.partial(_draw_rows, **settings), mesh, parallel)


def _draw_rows(
    params, shared, rows, *,
    network, mean_type, clip_x, schedule, logvar_type, sampler, eta, trajectory,
):  # fmt: skip
    """A batch of samples. The number of steps is traced; for a trajectory it is given there, as a constant."""
    (key, num_steps), (z, index, condition) = shared, rows
    denoise = network_denoiser(network, params, mean_type, condition, clip_x=clip_x)
    step_keys = None if key is None else _keys(key, index)[:, 1]
    options = {"eta": eta, "logvar_type": logvar_type}
    draw = functools.partial(
        sampling.sample, sampler, denoise, z, schedule, key=step_keys,
        **{name: options[name] for name in SAMPLERS[sampler].options},
    )  # fmt: skip
    if trajectory is None:
        return draw(num_steps)
    return draw(trajectory, trajectory=True)[1].swapaxes(0, 1)


@functools.lru_cache(maxsize=16)
def _compiled_denoiser(**settings) -> Callable[..., Prediction]:
    """One program for all denoisers of a kind."""
    return jax.jit(functools.partial(_denoise, **settings))


def _denoise(params, labels, guidance, z, logsnr, *, network, num_classes, mean_type, clip_x, image_shape):
    _check_images(z, image_shape)
    if labels is None:
        labels = jnp.arange(len(z)) % num_classes
    elif len(labels) != len(z):
        raise InputError(f"The denoiser was made for {len(labels)} labels; got {len(z)} images.")
    guidance = None if guidance is None else jnp.broadcast_to(guidance, len(z))
    condition = condition_of(labels, num_classes, guidance)
    return network_denoiser(network, params, mean_type, condition, clip_x=clip_x)(z, logsnr)
