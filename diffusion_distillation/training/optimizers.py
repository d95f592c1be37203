"""The optimizer of a config's `train` section, in optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..shapes import Array, Params

EMBEDDING_LAYERS = ("dense0", "dense1", "class_emb", "guidance0", "guidance1", "temb_proj")


def make_optimizer(train: Any, *, only_finetune_temb: bool = False) -> optax.GradientTransformation:
    """Clip by global norm, then Adam or momentum, then decoupled weight decay and the learning rate.

    Args:
      train: the `train` section of a resolved config.
      only_finetune_temb: update the layers of the embedding alone (`EMBEDDING_LAYERS`).
    """
    rule = {
        "adam": lambda: optax.scale_by_adam(train.adam_beta1, train.adam_beta2, train.adam_eps),
        "momentum": lambda: optax.trace(train.optimizer_beta),
        "nesterov": lambda: optax.trace(train.optimizer_beta, nesterov=True),
    }[train.optimizer]()
    optimizer = optax.chain(
        optax.clip_by_global_norm(train.grad_clip) if train.grad_clip else optax.identity(),
        rule,
        optax.add_decayed_weights(train.weight_decay) if train.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(learning_rate(train)),
    )
    if only_finetune_temb:
        optimizer = optax.partition({"embedding": optimizer, "rest": optax.set_to_zero()}, _embedding_or_rest)

    def update(grads, state, params=None):
        with jax.enable_x64(False):  # else optax computes powers of decays in float64 if a user enables it
            return optimizer.update(grads, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def learning_rate(train: Any) -> optax.Schedule:
    """The learning rate of each update: a linear warm-up times, if asked for, a linear anneal from the start to 0."""
    warmup = train.learning_rate_warmup_steps
    anneal = train.learning_rate_anneal_steps or train.num_train_steps

    def schedule(step):
        rate = train.learning_rate
        if warmup:
            rate *= jnp.minimum((step + 1) / warmup, 1)
        if train.learning_rate_anneal_type == "linear":
            rate *= jnp.maximum(1 - step / anneal, 0)
        return rate

    return schedule


def at_step(opt_state: optax.OptState, step: Array) -> optax.OptState:
    """The optimizer's state with the learning rate at this step, and all else as it is.

    A step that is skipped leaves the moments and their count alone, but the learning rate goes on.
    """

    def of_learning_rate(path, _):
        return getattr(path[-1], "tuple_name", None) == optax.ScaleByScheduleState.__name__

    return optax.tree.set(opt_state, of_learning_rate, count=step)


def _embedding_or_rest(params: Params) -> Params:
    def label(path, _):
        return "embedding" if any(part.key in EMBEDDING_LAYERS for part in path) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)
