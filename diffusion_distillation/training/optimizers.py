"""The optimizer and the learning rate of a config's `train` section, in optax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..shapes import Array, Params

# Layers that only embed what networks are conditioned on: log-SNR, a class, a guidance weight.
EMBEDDING_LAYERS = ("dense0", "dense1", "class_emb", "guidance0", "guidance1", "temb_proj", "adaln", "adaln_out")


def make_optimizer(train: Any, *, only_finetune_temb: bool = False) -> optax.GradientTransformation:
    """Clip by global norm, then Adam or momentum, then decoupled weight decay.

    The training step multiplies the updates by the learning rate. It depends on the step of the run, which counts
    skipped updates too, while the optimizer sees only those that are not skipped.

    Args:
      train: the `train` section of a resolved config.
      only_finetune_temb: update only the layers of the time embedding (`EMBEDDING_LAYERS`).

    Returns:
      A transformation of gradients into the change of the parameters at a learning rate of 1. It works on any tree of
      arrays; with `only_finetune_temb`, on trees of named layers.
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
        # Downhill. `optax.scale(-1.0)` would do, but this keeps a count, unused, that checkpoints of format 1 have.
        optax.scale_by_schedule(lambda count: -1.0),
    )
    if only_finetune_temb:
        optimizer = optax.partition({"embedding": optimizer, "rest": optax.set_to_zero()}, _embedding_or_rest)

    def update(grads, state, params=None):
        with jax.enable_x64(False):  # else optax computes powers of decays in float64 if a user enables it
            return optimizer.update(grads, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def apply_gradients(
    optimizer: optax.GradientTransformation, rate: Array, grads: Params, opt_state: optax.OptState, params: Params
) -> tuple[Params, optax.OptState]:
    """Return parameters and optimizer state after the optimizer's step, times the learning rate.

    Args:
      optimizer: from `make_optimizer`.
      rate: the learning rate, float32.
      grads: gradients.
      opt_state: the optimizer's state.
      params: the parameters.
    """
    updates, opt_state = optimizer.update(grads, opt_state, params)
    updates = jax.tree.map(lambda leaf: rate.astype(leaf.dtype) * leaf, updates)
    return optax.apply_updates(params, updates), opt_state


def learning_rate(train: Any) -> optax.Schedule:
    """Return the learning rate as a function of the step, which is 0 for the first update.

    It is `train.learning_rate`, times a linear warm-up over `learning_rate_warmup_steps`, times, if
    `learning_rate_anneal_type` is 'linear', a linear decay from 1 at step 0 to 0 at `learning_rate_anneal_steps`.
    """
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


def _embedding_or_rest(params: Params) -> Params:
    def label(path, _):
        return "embedding" if any(part.key in EMBEDDING_LAYERS for part in path) else "rest"

    return jax.tree_util.tree_map_with_path(label, params)
