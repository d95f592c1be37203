"""A few training steps of a small config."""

import jax
import numpy as np
from flax import linen as nn

from diffusion_distillation import config as cfg
from diffusion_distillation.data import load_source, read_batches
from diffusion_distillation.methods import make_method
from diffusion_distillation.networks.model import Model
from diffusion_distillation.networks.unet import dropout, dropout_seeds
from diffusion_distillation.training.loop import make_runner
from diffusion_distillation.training.step import init_state

SOURCE = load_source("digits")


class Affine(nn.Module):
    """A network that compiles in no time. One of its parameters has the name of an embedding's, the other has not."""

    @nn.compact
    def __call__(self, z, logsnr, y=None, *, train=False, index=None):
        scale = self.param("dense0", nn.initializers.constant(0.3), (8, 8, 1))
        return z * scale + self.param("bias", nn.initializers.zeros, (1,))


class Dropping(nn.Module):
    """A network that drops out most of its output in training."""

    @nn.compact
    def __call__(self, z, logsnr, y=None, *, train=False, index=None):
        out = z * self.param("scale", nn.initializers.ones, ())
        return dropout(out, dropout_seeds(self.make_rng("dropout"), index), 0.9) if train else out


NETWORK = Affine()
AFFINE = {"dense0": np.full((8, 8, 1), 0.3, np.float32), "bias": np.zeros(1, np.float32)}


def make_config(*, distillation=None, randflip=False, train_num_steps=0, **train):
    config = cfg.defaults()
    config.dataset.name = "digits"
    config.dataset.args.randflip = randflip
    config.model.args.update(ch=32, emb_ch=32, ch_mult=(1,), num_res_blocks=0, attn_resolutions=(), num_heads=1)
    config.model.mean_type = "v"
    config.model.train_num_steps = train_num_steps
    config.train.update(
        dict(batch_size=16, learning_rate=1e-3, num_train_steps=100, ema_decay=0.9, adam_eps=1e-6) | train
    )
    if distillation is not None:
        config.distillation = dict(teacher_checkpoint_path="-", start_num_steps=8) | distillation
    return cfg.resolve(config)


def model_of(config, network=NETWORK):
    """The model of a config, with this network."""
    return Model(
        network=network,
        mean_type=config.model.mean_type,
        sigma_data=config.model.sigma_data,
        sigma_min=config.model.sigma_min,
    )


ADDIM = dict(teacher_step="addim")
# The `distillation` section of every method, for `make_config`.
METHODS = {
    "progressive": dict(),
    "adjusted": ADDIM,
    "heun": dict(teacher_step="heun"),
    "dpmpp_2m": dict(teacher_step="dpmpp_2m"),
    "factor 8": dict(start_num_steps=None, rungs=(64, 8, 1)),
    "tract": dict(method="tract", start_num_steps=None, rungs=(64, 8, 1)),
    "tract, adjusted": dict(method="tract", start_num_steps=None, rungs=(64, 8, 1), teacher_step_rungs=2, **ADDIM),
    "tract, heun": dict(
        method="tract", start_num_steps=None, rungs=(64, 8, 1), teacher_step_rungs=2, teacher_step="heun"
    ),
    "distillation": dict(method="consistency", start_num_steps=64, end_num_steps=4),
    "distillation, adjusted": dict(method="consistency", start_num_steps=64, **ADDIM),
    "training": dict(method="consistency", start_num_steps=64, end_num_steps=4, args=dict(kind="training")),
    "tuning": dict(method="consistency", start_num_steps=64, args=dict(kind="training", times="tuning", norm="norm")),
}

# Settings of `run` and fields of `train` that do not change the result.
WAYS = {
    "2 devices": dict(devices=2),
    "8 devices": dict(devices=8),
    "scan": dict(devices=4, scan=True),
    "pmap": dict(devices=1, parallel="pmap"),
    "pmap, 2 devices": dict(devices=2, parallel="pmap"),
    "pmap, scan": dict(devices=4, parallel="pmap", scan=True),
    "accumulation": dict(devices=1, microbatch_size=4),
    "accumulation, 4 devices": dict(devices=4, microbatch_size=8),
    "accumulation, pmap": dict(devices=2, parallel="pmap", microbatch_size=8),
    "remat": dict(devices=2, remat=True),
    "state sharded": dict(devices=8, shard="state"),
    "fully sharded": dict(devices=8, shard="all"),
    "all at once": dict(devices=4, shard="all", microbatch_size=8, remat=True, scan=True),
}


def run(config, num_steps=3, *, network=NETWORK, params=AFFINE, teacher=None, devices=1, scan=False, source=SOURCE):
    """The states after each step, or after the last one in a scan, and the losses of all steps."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    method = make_method(config)
    runner = make_runner(config, method, model_of(config, network), mesh, scan=scan)
    state, teacher = runner.place(init_state(config, method, params), teacher)
    batches = list(read_batches(source, 0, range(num_steps), config.train.batch_size))
    states, losses = [], []
    for chunk in [batches] if scan else ([batch] for batch in batches):
        state, metrics = runner.steps(state, jax.random.key(config.seed), teacher, chunk)
        states.append(jax.device_get(runner.collect(state)))
        losses += list(map(float, metrics["loss"]))
    return states, losses
