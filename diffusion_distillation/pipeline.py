"""From a checkpoint to images."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int, UInt8

from . import sampling
from .checkpoints import Metadata, load
from .devices import data_mesh, hold, spread
from .errors import InputError
from .model import eval_schedule, label_condition, make_network, network_denoiser
from .sampling import SAMPLERS
from .shapes import Array, Keys, Params


class Pipeline:
    """Draws images with the parameters of a run.

    Sample j depends on the key and on j alone: not on how many are drawn, in what batches, or on how many devices. Two
    pipelines given one key start from the same noise. Devices share the work the way the run was trained, by
    config.train.parallel; where several processes work together, all must draw, and each gets all images.

    Attributes:
      num_steps: sampling steps.
      image_shape: (height, width, channels).
      num_classes: 1 for an unconditional model.
    """

    def __init__(self, params: Params, metadata: Metadata, num_steps: int | None = None):
        model = metadata.config.model
        own_num_steps = metadata.num_steps or model.eval_sampling_num_steps
        self.num_steps = _check_num_steps(own_num_steps if num_steps is None else num_steps)
        self.image_shape = metadata.image_shape
        self.num_classes = metadata.num_classes
        self._sampler = metadata.config.sampler
        self._mesh, self._parallel = data_mesh(), metadata.config.train.parallel
        self._params = hold(params, self._mesh, self._parallel)
        self._settings = dict(
            network=make_network(model, metadata.image_shape, metadata.num_classes),
            num_classes=metadata.num_classes,
            mean_type=model.mean_type,
            schedule=eval_schedule(model),
            clip_x=model.eval_clip_denoised,
            logvar_type=model.logvar_type,
            image_shape=metadata.image_shape,
        )

    def sample(
        self,
        key: Keys,
        num_samples: int,
        labels: Int[Array, "num_samples"] | None = None,
        *,
        num_steps: int | None = None,
        sampler: str | None = None,
        batch_size: int = 256,
    ) -> UInt8[np.ndarray, "num_samples height width channels"]:
        """Draws images.

        Args:
          key: `jax.random.key(seed)`.
          num_samples: how many.
          labels: the class of each, for a class-conditional model; by default 0, 1, 2, ... in turn.
          num_steps: sampling steps; by default the pipeline's.
          sampler: 'ddim' or 'noisy'; by default the config's.
          batch_size: how many to draw at a time, over all devices.

        Returns:
          uint8 images, `[num_samples, height, width, channels]`.

        Raises:
          InputError: for an unknown sampler, a num_steps below 1, or labels that do not fit.
        """
        num_steps = self.num_steps if num_steps is None else _check_num_steps(num_steps)
        return self._draw(key, num_samples, labels, sampler, batch_size, num_steps=num_steps)

    def trajectory(
        self,
        key: Keys,
        num_samples: int,
        labels: Int[Array, "num_samples"] | None = None,
        *,
        sampler: str | None = None,
    ) -> UInt8[np.ndarray, "num_steps num_samples height width channels"]:
        """The x predicted at every step on the way to the images that `sample` draws, the noisiest first."""
        steps = self._draw(key, num_samples, labels, sampler, num_samples, trajectory=self.num_steps)
        return steps.swapaxes(0, 1)

    def _draw(
        self,
        key: Keys,
        num_samples: int,
        labels: Array | None,
        sampler: str | None,
        batch_size: int,
        *,
        num_steps: int | None = None,
        trajectory: int | None = None,
    ) -> np.ndarray:
        """Draws batch after batch; the arguments that follow are those of `_draw_rows`."""
        labels = self._labels(labels, num_samples)
        settings = {**self._settings, "sampler": self._known_sampler(sampler), "trajectory": trajectory}
        draw = _compiled(self._mesh, self._parallel, **settings)
        batch_size = min(batch_size, num_samples)
        batch_size += -batch_size % self._mesh.size
        batches = []
        for start in range(0, num_samples, batch_size):
            index = np.arange(start, start + batch_size, dtype=np.int32)  # the last batch may go beyond num_samples
            of_batch = np.resize(labels[start : start + batch_size], batch_size)
            batches.append(draw(self._params, (key, num_steps), (index, of_batch)))
        return np.concatenate(batches)[:num_samples]

    def _known_sampler(self, sampler: str | None) -> str:
        sampler = sampler or self._sampler
        if sampler not in SAMPLERS:
            raise InputError(f"Unknown sampler {sampler!r}; choose one of {list(SAMPLERS)}.")
        return sampler

    def _labels(self, labels: Array | None, num_samples: int) -> np.ndarray:
        if num_samples < 1:
            raise InputError(f"num_samples={num_samples} must be at least 1.")
        if labels is None:
            return np.arange(num_samples, dtype=np.int32) % self.num_classes
        labels = np.asarray(labels, np.int32)
        if self.num_classes == 1:
            raise InputError("This model is not class-conditional: leave the labels out.")
        if labels.shape != (num_samples,) or labels.min() < 0 or labels.max() >= self.num_classes:
            raise InputError(
                f"labels must be {num_samples} integers from 0 to {self.num_classes - 1}; got {labels.tolist()}."
            )
        return labels


def from_checkpoint(path: epath.PathLike, num_steps: int | None = None) -> Pipeline:
    """The pipeline of a run's newest checkpoint.

    Args:
      path: the run's folder, such as `runs/digits/ladder/steps_0004`.
      num_steps: sampling steps; by default those the student was distilled for, or the base model's
        eval_sampling_num_steps.

    Raises:
      InputError: if there is no checkpoint at the path, or num_steps is below 1.
    """
    return Pipeline(*load(path), num_steps)


def _check_num_steps(num_steps: int) -> int:
    if num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be at least 1.")
    return num_steps


@functools.lru_cache(maxsize=16)
def _compiled(mesh: Mesh, parallel: str, **settings) -> Callable[..., np.ndarray]:
    """One program for all pipelines of a kind, such as those of a ladder."""
    return spread(functools.partial(_draw_rows, **settings), mesh, parallel)


def _draw_rows(
    params, shared, rows, *,
    network, num_classes, mean_type, schedule, clip_x, logvar_type, image_shape, sampler, trajectory,
):  # fmt: skip
    """A batch of samples. The number of steps is traced; for a trajectory it is given there, as a constant."""
    (key, num_steps), (index, labels) = shared, rows
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
    z = jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys[:, 0])
    denoise = network_denoiser(network, params, mean_type, label_condition(labels, num_classes), clip_x=clip_x)
    if sampler == "ddim":
        draw = functools.partial(sampling.ddim, denoise, z, schedule)
    else:
        draw = functools.partial(sampling.ancestral, keys[:, 1], denoise, z, schedule, logvar_type=logvar_type)
    if trajectory is None:
        x = draw(num_steps=num_steps)
    else:
        x = draw(num_steps=trajectory, trajectory=True)[1].swapaxes(0, 1)
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)
