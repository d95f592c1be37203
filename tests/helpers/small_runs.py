"""Configs of small runs and ladders: a network that compiles in no time, on 64 small images."""

import signal

from diffusion_distillation import config as cfg
from helpers import own_parts

SOURCE = own_parts.stripes(64)


def make_config(**train):
    """The resolved config of a base model with 20 updates, and with these fields in its `train` section."""
    config = cfg.defaults()
    config.dataset.name = "helpers.own_parts:stripes"
    config.dataset.args = dict(length=64)
    config.model.name = "helpers.own_parts:affine"
    config.model.args = dict(width=8)
    fields = dict(
        batch_size=16, learning_rate=1e-2, num_train_steps=20, ema_decay=0.9, log_loss_every_steps=5, substeps=5
    )
    config.train.update(fields | train)
    return cfg.resolve(config)


def ladder_of(base, teacher, **changes):
    """The resolved config of two halvings of a base model, 5 updates each, with these fields changed."""
    config = cfg.distillation_of(cfg.ConfigDict(base.to_dict()))
    config.distillation.update(dict(teacher_checkpoint_path=str(teacher), start_num_steps=4, steps_per_iter=5))
    config.update_from_flattened_dict(changes)
    return cfg.resolve(config)


def damage(checkpoint):
    """Truncate the largest file of a checkpoint, which holds arrays."""
    files = [path for path in (checkpoint / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])


def stop_at(step, number=signal.SIGTERM):
    """An on_metrics that sends a signal to this process at a step."""

    def hook(at, values):
        if at == step:
            signal.raise_signal(number)

    return hook
