"""The training step: a pure function of the state, the teacher and a batch.

What is learned is the method's business (`methods`). All randomness of a step is drawn for each example from
(seed, step, position in the global batch), so it does not depend on how the batch is spread over devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ..diffusion import q_sample
from ..keys import normal
from ..methods import Denoisers, Method, Rung, make_method
from ..networks.layers import computed_once
from ..networks.model import NO_CLASS, Network, guidance_range, network_denoiser, train_schedule
from ..shapes import Array, Condition, Params
from .optimizers import at_step, learning_rate, make_optimizer
from .packing import is_packed, pack, unpack

MOST_OF_FIRST = 0.1  # the weight of an average's first parameters above which samples are visibly worse

Batch = dict[str, Array]
Metrics = dict[str, Array]


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
      step: updates done, skipped ones included.
      params: what the optimizer works on. These, and all that has their structure, may be packed (`packing`).
      ema_params: their running average, with which samples are drawn; None where nothing is averaged.
      opt_state: of the optimizer.
      skipped: updates left out because they were not finite.
      average: the average that the method's target reads; None where it reads none.
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
    """What distillation learns from.

    Attributes:
      params: the teacher's sampling parameters.
      rung: its student's place in the ladder.
      network: its network, where that is not its student's: a guided student's teacher takes no weight of guidance.
    """

    params: Params
    rung: Rung
    network: Network | None = flax.struct.field(pytree_node=False, default=None)


def init_state(config: Any, params: Params) -> TrainState:
    """The state before the first step of training from a copy of these parameters; `config` is resolved."""

    def copy():  # a step uses up its state, and the parameters may be the teacher's too
        return jax.tree.map(jnp.array, params)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=copy(),
        ema_params=copy() if averaging_decay(config.train) else None,
        opt_state=_optimizer(config).init(params),
        skipped=jnp.zeros((), jnp.int32),
        average=copy() if make_method(config).average_decay is not None else None,
    )


TrainStep = Callable[[TrainState, Array, Teacher | None, Batch], tuple[TrainState, Metrics]]


def make_train_step(config: Any, network: Network, *, axis_name: str | None = None, num_shards: int = 1) -> TrainStep:
    """The training step of a resolved config.

    Args:
      config: resolved.
      network: called as `UNet` is.
      axis_name: of the pmap that the step runs in; its batch is then this device's part of the global batch.
      num_shards: among how many devices the batch that the step is given is divided. Each takes its part of every
        microbatch.

    Returns:
      `step(state, key, teacher, batch) -> (state, metrics)`. The key is the run's, `seed_key(seed)`; the teacher is
      None in base training; the batch holds uint8 `image` and, for a conditional network, int32 `label`. The metrics
      are the loss, the norm of the gradient before it is clipped, the updates skipped so far, and the learning rate.
      The seed is not read, and the teacher's rung may be traced: one compiled step serves every student.
    """
    train, method = config.train, make_method(config)
    loss = _make_loss(config, network, method)
    optimizer = _optimizer(config)
    decay = averaging_decay(train)
    num_microbatches = train.batch_size // train.microbatch_size if train.microbatch_size else 1

    def step(state, key, teacher, batch):
        keys = jax.random.split(jax.random.fold_in(key, state.step))
        rows = len(batch["image"])
        first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
        batch = {**batch, "index": first + jnp.arange(rows, dtype=jnp.int32)}
        unpacked = state._replace(params=_unpacked(state.params), average=_unpacked(state.average))

        def gradients(part):
            value, grads = jax.value_and_grad(loss)(unpacked.params, unpacked, teacher, keys, part)
            return value, pack(grads) if is_packed(state.params) else grads

        value, grads = _mean_over_microbatches(gradients, _microbatches(batch, num_microbatches, num_shards))
        if axis_name is not None:
            value, grads = jax.lax.pmean((value, grads), axis_name)
        counted = state.step - state.skipped  # an average starts at the first update that is not skipped
        opt_state = at_step(state.opt_state, state.step)
        updates, _ = optimizer.update(grads, opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # or else XLA on CPU reads the old moments for both, and copies them first, to write the new ones in their place
        params, opt_state = computed_once((params, opt_state))
        _, opt_state = optimizer.update(grads, opt_state, state.params)
        new = TrainState(
            step=state.step + 1,
            params=params,
            ema_params=None if decay is None else _averaged(state.ema_params, params, decay(counted)),
            opt_state=opt_state,
            skipped=state.skipped,
            average=(
                None
                if method.average_decay is None
                else _averaged(state.average, params, corrected_decay(method.average_decay, counted))
            ),
        )
        gradient_norm = optax.tree.norm(grads)
        if train.enable_update_skip:
            kept = state._replace(step=state.step + 1, skipped=state.skipped + 1)
            finite = jnp.isfinite(value) & jnp.isfinite(gradient_norm)
            new = jax.tree.map(lambda new, kept: jnp.where(finite, new, kept), new, kept)
        return new, {
            "loss": value,
            "gradient_norm": gradient_norm,
            "skipped": new.skipped,
            "learning_rate": jnp.asarray(learning_rate(train)(state.step), jnp.float32),
        }

    return step


def _unpacked(params: Params | None) -> Params | None:
    """As the networks take them; what is sliced is written once, and not read from the whole at each use."""
    return jax.tree.map(computed_once, unpack(params)) if is_packed(params) else params


def _make_loss(config: Any, network: Network, method: Method) -> Callable[..., Array]:
    """`loss(params, state, teacher, keys, batch)`, the mean over the examples of a part of the global batch.

    `keys` are those of this step, for data and for dropout; `batch` also has `index`, the position of each example.
    """
    model = config.model
    schedule, tell = train_schedule(model), _make_condition(config, network)

    def loss(params, state, teacher, keys, batch):
        data_key, dropout_key = keys
        index = batch["index"]
        of_example = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(data_key, i), 4))(index)
        x = preprocess(of_example[:, 0], batch["image"], flip=config.dataset.args.get("randflip", False))
        eps = normal(of_example[:, 1], x)
        times = method.times(of_example[:, 2], state.step, None if teacher is None else teacher.rung)
        logsnr = schedule(times.t)
        z = q_sample(x, eps, logsnr)

        condition = tell(of_example[:, 3], batch.get("label"))

        def denoiser(params: Params, of: Network = network, **kwargs):
            return network_denoiser(of, params, model.mean_type, condition, **kwargs)

        in_training = dict(train=True, index=index, rngs={"dropout": dropout_key})
        student = denoiser(params, **in_training)
        denoisers = Denoisers(
            teacher=None if teacher is None else denoiser(teacher.params, teacher.network or network),
            student=denoiser(jax.lax.stop_gradient(params), **in_training),
            average=None if state.average is None else denoiser(state.average),
        )
        target = method.target(denoisers, x, eps, z, times)
        return jnp.mean(method.loss(student(z, logsnr), target, times))

    return loss


def _make_condition(config: Any, network: Network) -> Callable[[Array, Array | None], Condition]:
    """`condition(keys, labels)`, what the networks are told of each example.

    A share of train.label_dropout of the labels is left out; a network that takes weights of guidance gets one that is
    uniform in its range (Meng et al. 2023, section 3.1).
    """
    dropped, weights = config.train.label_dropout, guidance_range(network)

    def condition(keys, labels):
        if dropped and labels is not None:
            labels = labels.astype(jnp.int32)  # NO_CLASS is negative
            drops = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(dropped)))(keys)
            labels = jnp.where(drops, NO_CLASS, labels)
        if weights is None:
            return {} if labels is None else {"y": labels}
        low, high = weights
        guidance = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32, low, high))
        return {"y": labels, "guidance": guidance(keys)}

    return condition


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
    mirrored = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(0.5)))(keys)
    return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)


def _averaged(average: Params, params: Params, decay: Array) -> Params:
    return optax.incremental_update(params, average, 1 - decay)


def corrected_decay(decay: float, step: Array) -> Array:
    """The decay of a running average at each step that weighs n parameters as decay^(n-1), ..., decay, 1 do.

    So the weights sum to one from the first step on, which replaces the initial parameters.
    """
    decay = jnp.float32(decay)
    return decay * (1 - decay**step) / (1 - decay ** (step + 1))


def averaging_decay(train: Any) -> Callable[[Array], Array] | None:
    """The decay of the running average at each step, without skipped ones; None if the config keeps no average.

    The first step replaces the average by the new parameters, so that the initial ones leave no trace in it.
    """
    if train.ema_decay is None and train.avg_type == "aa":

        def arithmetic(step):
            since = step % train.avg_steps
            return since / (since + 1)

        return arithmetic
    decay = _constant_decay(train)
    return (lambda step: jnp.where(step == 0, 0.0, jnp.float32(decay))) if decay else None


def _constant_decay(train: Any) -> float:
    """The decay of an exponential average; 0 if the config keeps none."""
    if train.ema_decay is not None:
        return train.ema_decay
    return 1 - 1 / train.avg_steps if train.avg_type == "ema" else 0.0


def doubts(train: Any) -> list[str]:
    """Warn of settings in a config's `train` section that are allowed but waste the run, one sentence per setting."""
    found, updates, decay = [], train.num_train_steps, _constant_decay(train)
    if (warmup := train.learning_rate_warmup_steps) > updates:
        found.append(
            f"config.train.learning_rate_warmup_steps={warmup} is longer than the run of {updates:,} updates: the "
            f"learning rate only reaches {updates / warmup:.0%} of config.train.learning_rate. Set a shorter warm-up."
        )
    if (weight := decay**updates) > MOST_OF_FIRST:
        found.append(
            f"The parameter average for sampling, with decay {decay:g}, still has {weight:.0%} of its first "
            f"parameters after {updates:,} updates. Set config.train.ema_decay={MOST_OF_FIRST ** (1 / updates):.6f} or "
            "less."
        )
    return found


def trains_embedding_only(config: Any) -> bool:
    """Whether a student's other layers stay as the teacher's are."""
    return "distillation" in config and config.distillation.only_finetune_temb


def _optimizer(config: Any) -> optax.GradientTransformation:
    return make_optimizer(config.train, only_finetune_temb=trains_embedding_only(config))
