"""The training step: a pure function of the state, the teacher and a batch.

Base training and distillation are one step with two targets. All its randomness is drawn for each example from
(seed, step, position in the global batch), so it does not depend on how the batch is spread over devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from ..diffusion import q_sample
from ..distillation import two_step_target
from ..losses import continuous_times, data_target, discrete_steps, training_loss
from ..model import network_denoiser, train_schedule
from ..sampling import normal
from ..shapes import Array, Params
from .optimizers import make_optimizer

Batch = dict[str, Array]
Metrics = dict[str, Array | list[Array]]  # of several steps, a list where each was a call of its own


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
      step: updates done, skipped ones included.
      params: what the optimizer works on.
      ema_params: their running average, with which samples are drawn; None where nothing is averaged.
      opt_state: of the optimizer.
      skipped: updates left out because they were not finite.
    """

    step: Array
    params: Params
    ema_params: Params | None
    opt_state: optax.OptState
    skipped: Array

    @property
    def sampling_params(self) -> Params:
        """The parameters to sample with and to teach with."""
        return self.params if self.ema_params is None else self.ema_params


class Teacher(NamedTuple):
    """What distillation learns from.

    Attributes:
      params: the teacher's sampling parameters.
      num_steps: number of sampling steps of its student, half its own.
    """

    params: Params
    num_steps: Array | int


def init_state(config: Any, params: Params) -> TrainState:
    """The state before the first step of training from a copy of these parameters; `config` is resolved."""
    params = jax.tree.map(jnp.array, params)  # a step uses up its state, and the parameters may be the teacher's too
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.array, params) if averaging_decay(config.train) else None,
        opt_state=_optimizer(config).init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


TrainStep = Callable[[TrainState, Array, Teacher | None, Batch], tuple[TrainState, Metrics]]


def make_train_step(config: Any, network: nn.Module, *, axis_name: str | None = None, num_shards: int = 1) -> TrainStep:
    """The training step of a resolved config.

    Args:
      config: resolved.
      network: called as `UNet` is.
      axis_name: of the pmap that the step runs in; its batch is then this device's part of the global batch.
      num_shards: among how many devices the batch that the step is given is divided. Each takes its part of every
        microbatch.

    Returns:
      `step(state, key, teacher, batch) -> (state, metrics)`. The key is the run's, `jax.random.key(seed)`; the teacher
      is None in base training; the batch holds uint8 `image` and, for a conditional network, int32 `label`. The metrics
      are the loss, the norm of the gradient before it is clipped, and the number of updates skipped so far. The
      config's seed is not read, and the teacher's num_steps may be traced: one compiled step serves every halving.
    """
    train = config.train
    loss = _make_loss(config, network)
    optimizer = _optimizer(config)
    decay = averaging_decay(train)
    num_microbatches = train.batch_size // train.microbatch_size if train.microbatch_size else 1

    def step(state, key, teacher, batch):
        keys = jax.random.split(jax.random.fold_in(key, state.step))
        rows = len(batch["image"])
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
        batch = {**batch, "index": first + jnp.arange(rows)}
        value, grads = _mean_over_microbatches(
            lambda part: jax.value_and_grad(loss)(state.params, teacher, keys, part),
            _microbatches(batch, num_microbatches, num_shards),
        )
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = (
            None if decay is None else optax.incremental_update(params, state.ema_params, 1 - decay(state.step))
        )
        new = TrainState(state.step + 1, params, ema_params, opt_state, state.skipped)
        gradient_norm = optax.tree.norm(grads)
        if train.enable_update_skip:
            kept = state._replace(step=state.step + 1, skipped=state.skipped + 1)
            finite = jnp.isfinite(value) & jnp.isfinite(gradient_norm)
            new = jax.tree.map(lambda new, kept: jnp.where(finite, new, kept), new, kept)
        return new, {"loss": value, "gradient_norm": gradient_norm, "skipped": new.skipped}

    return step


def _make_loss(config: Any, network: nn.Module) -> Callable[..., Array]:
    """`loss(params, teacher, keys, batch)`, the mean over the examples of a part of the global batch.

    `keys` are those of this step, for data and for dropout; `batch` also has `index`, the position of each example.
    """
    model = config.model
    schedule = train_schedule(model)

    def loss(params, teacher, keys, batch):
        data_key, dropout_key = keys
        condition, index = {"y": batch["label"]} if "label" in batch else {}, batch["index"]
        of_example = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 3))(index)
        x = preprocess(of_example[:, 0], batch["image"], flip=config.dataset.args.get("randflip", False))
        eps = normal(of_example[:, 1], x)

        num_steps = model.train_num_steps if teacher is None else teacher.num_steps
        if teacher is None and num_steps == 0:
            t = continuous_times(of_example[:, 2])
        else:
            i = discrete_steps(of_example[:, 2], num_steps)
            t = (i + 1) / num_steps
        logsnr = schedule(t)
        z = q_sample(x, eps, logsnr)
        if teacher is None:
            target = data_target(x, eps, logsnr)
        else:
            teach = network_denoiser(network, teacher.params, model.mean_type, condition)
            target = two_step_target(teach, z, i, num_steps, schedule)
        student = network_denoiser(
            network, params, model.mean_type, condition, train=True, index=index, rngs={"dropout": dropout_key}
        )
        return jnp.mean(training_loss(student(z, logsnr), target, model.mean_loss_weight_type))

    return loss


def _microbatches(batch: Batch, count: int, num_shards: int) -> Batch:
    """The batch in `count` parts, stacked; each has a share of every shard, so that no row changes its device."""

    def split(leaf):
        parts = leaf.reshape(num_shards, count, -1, *leaf.shape[1:]).swapaxes(0, 1)
        return parts.reshape(count, -1, *leaf.shape[1:])

    return jax.tree.map(split, batch)


def _mean_over_microbatches(gradients: Callable[[Batch], Any], parts: Batch) -> Any:
    """The mean of what `gradients` returns for each part, one part at a time."""
    first, rest = jax.tree.map(lambda leaf: leaf[0], parts), jax.tree.map(lambda leaf: leaf[1:], parts)
    count = len(parts["image"])
    if count == 1:
        return gradients(first)
    # XLA's CPU backend is many times slower at the gradients of convolutions inside a loop
    unroll = jax.default_backend() == "cpu"
    total, _ = jax.lax.scan(
        lambda total, part: (jax.tree.map(jnp.add, total, gradients(part)), None), gradients(first), rest, unroll=unroll
    )
    return jax.tree.map(lambda leaf: leaf / count, total)


def preprocess(keys: Array, image: Array, *, flip: bool) -> Array:
    """uint8 images as float32 in [-1, 1]; with `flip`, half of them mirrored left to right."""
    x = image.astype(jnp.float32) / 127.5 - 1
    if not flip:
        return x
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)


def averaging_decay(train: Any) -> Callable[[Array], Array] | None:
    """The decay of the running average at each step; None where the config averages nothing.

    The first step replaces the average by the new parameters, so that the initial ones leave no trace in it.
    """
    if train.ema_decay is None and train.avg_type == "aa":

        def arithmetic(step):
            since = step % train.avg_steps
            return since / (since + 1)

        return arithmetic
    decay = train.ema_decay
    if decay is None:
        decay = 1 - 1 / train.avg_steps if train.avg_type == "ema" else 0
    return (lambda step: jnp.where(step == 0, 0.0, decay)) if decay else None


def _optimizer(config: Any) -> optax.GradientTransformation:
    only_finetune_temb = "distillation" in config and config.distillation.only_finetune_temb
    return make_optimizer(config.train, only_finetune_temb=only_finetune_temb)
