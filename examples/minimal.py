"""Progressive distillation in one file: a teacher and a ladder of students on scikit-learn's digits.

    python examples/minimal.py [updates of the teacher] [updates per student]

Train a teacher with 64 sampling steps, then students with 32, 16, 8, 4, 2 and 1, each from the one before it, with
nothing but the package's pure functions, optax and a small network. Saves minimal.png: one row per model, and in each
column images from the same noise.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

from diffusion_distillation import diffusion, distillation, losses, sampling, schedules

TEACHER_STEPS = 64
BATCH_SIZE = 128
SCHEDULE = schedules.get_logsnr_schedule("cosine")


class Network(nn.Module):
    """A residual multilayer perceptron on all pixels, conditioned on log-SNR."""

    @nn.compact
    def __call__(self, z, logsnr):
        phases = jnp.arctan(jnp.exp(-logsnr / 2))[:, None] * 2.0 ** jnp.arange(6)
        time = nn.Dense(512)(jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1))
        h = nn.Dense(512)(z.reshape(len(z), -1))
        for _ in range(3):
            update = nn.swish(nn.Dense(512)(nn.swish(nn.LayerNorm()(h) + time)))
            h += nn.Dense(512, kernel_init=nn.initializers.zeros)(update)
        return nn.Dense(z[0].size, kernel_init=nn.initializers.zeros)(nn.LayerNorm()(h)).reshape(z.shape)


NETWORK = Network()
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1.0))  # times the learning rate of each update


def denoiser(params):
    """The network as a function from (z, logsnr) to a prediction of x, eps and v."""
    return diffusion.make_denoiser(lambda z, logsnr: NETWORK.apply({"params": params}, z, logsnr), "v")


def teacher_loss(params, key, x):
    """The diffusion loss at uniform times (Salimans & Ho 2022, algorithm 1)."""
    time_key, noise_key = jax.random.split(key)
    logsnr = SCHEDULE(jax.random.uniform(time_key, (len(x),), minval=1e-4))
    eps = jax.random.normal(noise_key, x.shape)
    z = diffusion.q_sample(x, eps, logsnr)
    return losses.training_loss(denoiser(params)(z, logsnr), losses.data_target(x, eps, logsnr), "snr_trunc").mean()


def student_loss(params, key, x, teacher_params, num_steps):
    """One step of the student does two of the teacher (Salimans & Ho 2022, algorithm 2)."""
    time_key, noise_key = jax.random.split(key)
    i = jax.random.randint(time_key, (len(x),), 0, num_steps)
    logsnr = SCHEDULE(SCHEDULE.grid_time(i, num_steps))
    z = diffusion.q_sample(x, jax.random.normal(noise_key, x.shape), logsnr)
    target = distillation.two_step_target(denoiser(teacher_params), z, i, num_steps, SCHEDULE)
    return losses.training_loss(denoiser(params)(z, logsnr), target, "snr_trunc").mean()


def make_update(loss):
    """A compiled optimizer update. The number of steps is traced, so one program serves the whole ladder."""

    @jax.jit
    def update(params, state, key, x, learning_rate, *args):
        value, grads = jax.value_and_grad(loss)(params, key, x, *args)
        updates, state = OPTIMIZER.update(grads, state)
        updates = jax.tree.map(lambda leaf: learning_rate * leaf, updates)
        return optax.apply_updates(params, updates), state, value

    return update


def train(name, update, params, images, num_updates, learning_rate, *args):
    """Train from these parameters, with a learning rate that falls linearly to 0; `args` go to the loss."""
    state = OPTIMIZER.init(params)
    rng = np.random.default_rng(0)
    for step in range(num_updates):
        x = images[rng.integers(len(images), size=BATCH_SIZE)]
        rate = learning_rate * (1 - step / num_updates)
        params, state, loss = update(params, state, jax.random.key(step), x, rate, *args)
        if (step + 1) % 500 == 0 or step + 1 == num_updates:
            print(f"{name}  update {step + 1:,}/{num_updates:,}  loss {loss:.4f}", flush=True)
    return params


@jax.jit
def generate(params, z, num_steps):
    return sampling.ddim(denoiser(params), z, SCHEDULE, num_steps)


def main(teacher_updates=8000, student_updates=2000):
    images = (load_digits().images[..., None] / 8 - 1).astype(np.float32)
    z = jax.random.normal(jax.random.key(1), (16, *images.shape[1:]))
    params = NETWORK.init(jax.random.key(0), z, jnp.zeros(len(z)))["params"]
    params = train("teacher", make_update(teacher_loss), params, images, teacher_updates, 1e-3)
    rows = {f"{n}-step teacher": generate(params, z, n) for n in (TEACHER_STEPS, 4, 1)}
    update = make_update(student_loss)
    for num_steps in (32, 16, 8, 4, 2, 1):
        params = train(f"{num_steps}-step student", update, params, images, student_updates, 3e-4, params, num_steps)
        rows[f"{num_steps}-step student"] = generate(params, z, num_steps)
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.75 * len(rows)))
    for axis, (name, x) in zip(axes, rows.items(), strict=True):
        axis.imshow(np.concatenate(list(x[..., 0]), axis=1), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig("minimal.png", bbox_inches="tight", dpi=150)
    print("Saved minimal.png")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
