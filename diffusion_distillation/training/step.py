"""The training step: a pure function of the state, the teacher and a batch.

The method defines what is learned (`methods`). Each example's randomness follows from (seed, step, position in the
global batch), so it does not depend on how the batch is divided among devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ..diffusion import Denoiser, q_sample
from ..keys import fold_in, normal
from ..latents import Space, from_uint8
from ..methods import Denoisers, Method, Rung
from ..networks.conditions import condition_of, drop, no_condition
from ..networks.model import Model, train_schedule
from ..shapes import Array, Condition, Params
from .averages import averaging_decay, corrected_decay, update_average
from .optimizers import apply_gradients, learning_rate, make_optimizer

# uint8 `image`, [batch, height, width, channels]; or float16 `mean` and `std` of latents, [batch, parts, height, width,
# channels], of the image and, if there are two parts, of its mirror image; and int32 `label`, [batch], if any
TrainingBatch = dict[str, Array]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
      step: int32; updates done, including skipped ones.
      params: the parameters that the optimizer updates.
      ema_params: their running average, to sample with; None if the config keeps no average.
      opt_state: the optimizer's state.
      skipped: int32; updates skipped because the loss or the gradient was not finite.
      average: the running average that the method's target reads; None if it reads none.
    """

    step: Array
    params: Params
    ema_params: Params | None
    opt_state: optax.OptState
    skipped: Array
    average: Params | None = None

    @property
    def sampling_params(self) -> Params:
        """The parameters to sample with and to teach with."""
        return self.params if self.ema_params is None else self.ema_params


@flax.struct.dataclass
class Teacher:
    """The teacher of a student.

    Attributes:
      params: the teacher's sampling parameters.
      rung: the student's rung. It may be traced.
      model: the teacher's network and what its output means; None if it is the student's.
      guidance: the weight that the teacher is guided by, for a student that takes no weight itself; None for no
        guidance, or the student's weights.
      guidance_interval: the smallest and the largest log-SNR at which the teacher's guidance acts; None for all.
      dtype: the type of the parameters in training steps, such as 'bfloat16'; None to keep them as they are.
      starts_student: whether the student starts from the teacher's parameters.
    """

    params: Params
    rung: Rung
    model: Model | None = flax.struct.field(pytree_node=False, default=None)
    guidance: float | None = flax.struct.field(pytree_node=False, default=None)
    guidance_interval: tuple[float, float] | None = flax.struct.field(pytree_node=False, default=None)
    dtype: str | None = flax.struct.field(pytree_node=False, default=None)
    starts_student: bool = flax.struct.field(pytree_node=False, default=True)


def cast(teacher: Teacher | None) -> Teacher | None:
    """Return a teacher with its parameters in its `dtype`, as training steps take it."""
    if teacher is None or teacher.dtype is None:
        return teacher
    return teacher.replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(teacher.dtype)), teacher.params))


def init_state(config: Any, method: Method, params: Params) -> TrainState:
    """Return the state before the first update.

    Args:
      config: resolved.
      method: the training objective, which determines whether there is an `average`.
      params: the initial parameters. The state holds copies, since a step consumes its state.
    """

    def copy():
        return jax.tree.map(jnp.array, params)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=copy(),
        ema_params=copy() if averaging_decay(config.train) else None,
        opt_state=_optimizer(config).init(params),
        skipped=jnp.zeros((), jnp.int32),
        average=copy() if method.average_decay is not None else None,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """One update: `step(state, key, teacher, batch) -> (state, metrics)`.

    An update has two parts, so that a runner can pack the parameters between them (`packing`).

    Attributes:
      gradients: `gradients(state, key, teacher, batch) -> (loss, grads)`. The key is the run's, `seed_key(seed)`; the
        teacher is None in base training.
      update: `update(state, loss, grads) -> (state, metrics)`, for params, averages, moments and gradients in any tree
        of arrays. The metrics are the loss, the gradient's norm before it is clipped, the updates skipped so far and
        the learning rate.
    """

    gradients: Callable[[TrainState, Array, Teacher | None, TrainingBatch], tuple[Array, Params]]
    update: Callable[[TrainState, Array, Params], tuple[TrainState, Metrics]]

    def __call__(
        self, state: TrainState, key: Array, teacher: Teacher | None, batch: TrainingBatch
    ) -> tuple[TrainState, Metrics]:
        """Do one update."""
        loss, grads = self.gradients(state, key, teacher, batch)
        return self.update(state, loss, grads)


def make_train_step(
    config: Any,
    method: Method,
    model: Model,
    *,
    space: Space | None = None,
    axis_name: str | None = None,
    num_shards: int = 1,
) -> TrainStep:
    """Make the training step of a config.

    The step does not read the config's seed, and the teacher's rung may be traced, so one compiled step serves every
    student of a ladder.

    Args:
      config: resolved.
      method: the training objective.
      model: the student, from `make_model`.
      space: what is diffused; None for pixels.
      axis_name: the axis of the pmap that the step runs in; its batch is then one device's part of the global batch.
      num_shards: the number of devices that share the batch. Each takes an equal part of every microbatch.
    """
    return TrainStep(
        gradients=_make_gradients(config, method, model, space, axis_name, num_shards),
        update=_make_update(config, method),
    )


def _make_gradients(
    config: Any, method: Method, model: Model, space: Space | None, axis_name: str | None, num_shards: int
) -> Callable[[TrainState, Array, Teacher | None, TrainingBatch], tuple[Array, Params]]:
    """`TrainStep.gradients`."""
    train = config.train
    num_microbatches = train.batch_size // train.microbatch_size if train.microbatch_size else 1
    loss_and_gradient = jax.value_and_grad(_make_loss(config, method, model, space))

    def gradients(state, key, teacher, batch):
        keys = jax.random.split(jax.random.fold_in(key, state.step))
        rows = num_rows(batch)
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
        batch = {**batch, "index": first + jnp.arange(rows, dtype=jnp.int32)}
        mean = _mean_over_microbatches(
            lambda part: loss_and_gradient(state.params, state, teacher, keys, part),
            _microbatches(batch, num_microbatches, num_shards),
        )
        return mean if axis_name is None else jax.lax.pmean(mean, axis_name)

    return gradients


def _make_update(config: Any, method: Method) -> Callable[[TrainState, Array, Params], tuple[TrainState, Metrics]]:
    """`TrainStep.update`."""
    optimizer = _optimizer(config)
    learning_rate_at = learning_rate(config.train)
    ema_decay = averaging_decay(config.train)

    def update(state, loss, grads):
        # The optimizer's step.
        rate = jnp.asarray(learning_rate_at(state.step), jnp.float32)
        params, opt_state = apply_gradients(optimizer, rate, grads, state.opt_state, state.params)

        # The averages, which begin at the first update that is not skipped.
        num_updates = state.step - state.skipped
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = update_average(state.ema_params, params, ema_decay(num_updates))
        average = state.average
        if method.average_decay is not None:
            average = update_average(state.average, params, corrected_decay(method.average_decay, num_updates))
        new = TrainState(state.step + 1, params, ema_params, opt_state, state.skipped, average)

        # If the update is not finite, keep everything but the step as it was.
        gradient_norm = optax.tree.norm(grads)
        if config.train.enable_update_skip:
            kept = state._replace(step=state.step + 1, skipped=state.skipped + 1)
            finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
            new = jax.tree.map(lambda new, kept: jnp.where(finite, new, kept), new, kept)
        metrics = {"loss": loss, "gradient_norm": gradient_norm, "skipped": new.skipped, "learning_rate": rate}
        return new, metrics

    return update


def _make_loss(config: Any, method: Method, model: Model, space: Space | None) -> Callable[..., Array]:
    """`loss(params, state, teacher, keys, batch)`, the mean over the examples of a part of the global batch.

    `keys` are this step's, for data and for dropout; `batch` also has `index`, the position of each example.
    """
    schedule = train_schedule(config.model)
    read_x = preprocess if space is None or space.is_pixels else functools.partial(sample_latents, space)
    make_condition = _make_condition(config, model)

    def loss(params, state, teacher, keys, batch):
        # Noisy images z at the times of the method.
        data_key, dropout_key = keys
        index = batch["index"]
        example_keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 4))(index)
        x = read_x(example_keys[:, 0], batch, flip=config.dataset.args.get("randflip", False))
        eps = normal(example_keys[:, 1], x)
        times = method.times(example_keys[:, 2], state.step, None if teacher is None else teacher.rung)
        logsnr = schedule(times.t)
        z = q_sample(x, eps, logsnr)

        # The networks, under the conditions of the examples.
        condition = make_condition(example_keys[:, 3], batch.get("label"))
        training = dict(train=True, index=index, rngs={"dropout": dropout_key})
        student = model.denoiser(params, condition, **training)
        denoisers = Denoisers(
            teacher=None if teacher is None else _teacher_denoiser(teacher, model, condition, len(index)),
            student=model.denoiser(jax.lax.stop_gradient(params), condition, **training),
            average=None if state.average is None else model.denoiser(state.average, condition),
        )

        # What the student predicts, and what it should predict.
        target = method.target(denoisers, x, eps, z, times)
        return jnp.mean(method.loss(student(z, logsnr), target, times))

    return loss


def _teacher_denoiser(teacher: Teacher, student: Model, condition: Condition, batch: int) -> Denoiser:
    """The teacher under the student's condition and, if it is guided at one weight, under this weight."""
    model = teacher.model or student
    if teacher.guidance is not None:
        condition = {**condition, "guidance": jnp.full(batch, teacher.guidance, jnp.float32)}
    return model.denoiser(teacher.params, condition, guidance_interval=teacher.guidance_interval)


def _make_condition(config: Any, model: Model) -> Callable[[Array, Array | None], Condition]:
    """`condition(keys, labels)`, what the networks are conditioned on.

    It is dropped for a share `train.label_dropout` of the examples, except for guidance weights. A network that takes
    such a weight gets one that is uniform in its range (Meng et al. 2023, section 3.1).
    """
    dropout = config.train.label_dropout
    weights = model.guidance_range

    def condition(keys, labels):
        guidance = None
        if weights is not None:
            low, high = weights
            sample = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32, low, high))
            guidance = sample(keys)
        found = condition_of(labels, guidance)
        if not dropout:
            return found
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(dropout)))(keys)
        return drop(found, no_condition(model.network), dropped)

    return condition


def _microbatches(batch: TrainingBatch, count: int, num_shards: int) -> TrainingBatch:
    """The batch in `count` parts, stacked; each takes an equal share of every shard, so no row changes its device."""

    def split(leaf):
        parts = leaf.reshape(num_shards, count, -1, *leaf.shape[1:]).swapaxes(0, 1)
        return parts.reshape(count, -1, *leaf.shape[1:])

    return jax.tree.map(split, batch)


def _mean_over_microbatches(gradients: Callable[[TrainingBatch], Any], parts: TrainingBatch) -> Any:
    """The mean of `gradients(part)` over the parts, one part at a time."""
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    rest = jax.tree.map(lambda leaf: leaf[1:], parts)
    count = num_rows(parts)
    if count == 1:
        return gradients(first)
    # XLA's CPU backend computes the gradients of convolutions inside a loop many times slower than outside of it.
    unroll = jax.default_backend() == "cpu"
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradients(part)), None), gradients(first), rest, unroll=unroll
    )
    return jax.tree.map(lambda leaf: leaf / count, total)


def num_rows(batch: TrainingBatch) -> int:
    """The length of the first axis of a batch."""
    return len(next(iter(batch.values())))


def preprocess(keys: Array, batch: TrainingBatch, *, flip: bool) -> Array:
    """Convert uint8 images to float32 in [-1, 1].

    Args:
      keys: one key per image, `[batch]`.
      batch: has `image`, uint8, `[batch, height, width, channels]`.
      flip: mirror half of the images, chosen by their keys, left to right.

    >>> image = jnp.array([0, 255], jnp.uint8).reshape(1, 1, 2, 1)
    >>> preprocess(jax.random.split(jax.random.key(0), 1), {"image": image}, flip=False).ravel()
    Array([-1.,  1.], dtype=float32)
    """
    x = from_uint8(batch["image"])
    return jnp.where(_mirrored(keys)[:, None, None, None], x[:, :, ::-1], x) if flip else x


def sample_latents(space: Space, keys: Array, batch: TrainingBatch, *, flip: bool) -> Array:
    """Sample the x of images from the normal distributions of their latents, in float32.

    Args:
      space: of the latents.
      keys: one key per image, `[batch]`. It determines the noise.
      batch: has `mean` and `std`, float16, `[batch, parts, height, width, channels]`, unscaled.
      flip: take the second part, the mirror image's, for half of the images, chosen as by `preprocess`.
    """
    part = _mirrored(keys).astype(jnp.int32) if flip else jnp.zeros(len(keys), jnp.int32)

    def chosen(name):
        return jnp.take_along_axis(batch[name], part[:, None, None, None, None], axis=1)[:, 0].astype(jnp.float32)

    mean = chosen("mean")
    return space.sample(mean, chosen("std"), normal(fold_in(keys, 1), mean))


def _mirrored(keys: Array) -> Array:
    """Half of the images, by their keys."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(0.5)))(keys)


def trains_embedding_only(config: Any) -> bool:
    """Whether a student keeps its teacher's layers, except those of the time embedding."""
    return "distillation" in config and config.distillation.only_finetune_temb


def _optimizer(config: Any) -> optax.GradientTransformation:
    return make_optimizer(config.train, only_finetune_temb=trains_embedding_only(config))
