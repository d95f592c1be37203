"""A method, networks, sources and features as users write them. Configs and flags name them."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_distillation.data import ArraySource
from diffusion_distillation.distillation import two_stage_target
from diffusion_distillation.losses import training_loss
from diffusion_distillation.methods import Method, Rung


class GroupTimes(NamedTuple):
    """Times of a grid in groups: one step of the teacher, then the rest of the group in one step."""

    t: Any
    one_step: Any
    rest: Any


def tract(config, schedule):
    """A small TRACT (Berthelot et al. 2023): one step for each group of teacher steps, learned from the own average."""

    def times(keys, update, rung):
        size = rung.teacher_num_steps // rung.num_steps
        group = jax.vmap(lambda key: jax.random.randint(key, (), 0, rung.num_steps))(keys)
        place = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 1, size + 1))(keys)
        grid = rung.teacher_num_steps
        return GroupTimes((group * size + place) / grid, 1 / grid, (place - 1) / grid)

    def target(denoisers, x, eps, z, times):
        first, second = denoisers.teacher, denoisers.average
        return two_stage_target(first, second, z, times.t, times.one_step, times.rest, schedule)

    def loss(prediction, target, times):
        return training_loss(prediction, target, "snr_trunc")

    return Method(times, target, loss, rungs=(Rung(8, 2), Rung(2, 1)), average_decay=0.5)


def broken(config, schedule, *, part: Literal["times", "target", "loss", "pair"]):
    """`tract` with one function that returns something of another shape."""
    method = tract(config, schedule)
    functions = {
        "times": lambda keys, update, rung: method.times(keys, update, rung)._replace(t=jnp.float32(0.5)),
        "target": lambda denoisers, x, eps, z, times: method.target(denoisers, x, eps, z, times).x,
        "loss": lambda prediction, target, times: jnp.mean(method.loss(prediction, target, times)),
        "pair": lambda prediction, target, times: 2 * (method.loss(prediction, target, times),),
    }
    return method._replace(**{part if part != "pair" else "loss": functions[part]})


class Affine(nn.Module):
    """A network that compiles in no time."""

    width: int
    outputs: int = 1  # images of the output
    num_classes: int = 1
    guidance_range: Any = None

    @nn.compact
    def __call__(self, x, logsnr, y=None, *, guidance=None, train=False, index=None):
        """Called as `UNet` is."""
        if self.num_classes > 1:  # the one-hot vector of no class is zero
            classes = nn.Dense(1, use_bias=False, name="class_emb")(jax.nn.one_hot(y, self.num_classes))
            x += classes[:, None, None]
        if guidance is not None:
            x += self.param("guidance1", nn.initializers.zeros, ()) * guidance[:, None, None, None]
        return nn.Dense(self.outputs * x.shape[-1])(nn.tanh(nn.Dense(self.width)(x)))


def affine(config, image_shape, num_classes):
    """Make the network of a config whose model.args are those of `Affine`."""
    outputs = 2 if config.mean_type == "both" else 1
    return Affine(config.args.width, outputs, num_classes, config.args.get("guidance_range"))


class Heavy(nn.Module):
    """A network with many parameters that computes little."""

    @nn.compact
    def __call__(self, x, logsnr, y=None, *, train=False, index=None):
        """Called as `UNet` is."""
        return x * jnp.mean(self.param("table", nn.initializers.ones, (512, 512)))


def heavy(config, image_shape, num_classes):
    """Make the network `Heavy`."""
    return Heavy()


def stripes(length, side=8):
    """Images with a bright column."""
    labels = np.arange(length) % side
    images = np.zeros((length, side, side, 1), np.uint8)
    images[np.arange(length), :, labels] = 255
    return ArraySource(images, labels, num_classes=1)


def nothing(*_, **__):
    """A function that returns none of the parts that configs name."""


def brightness_std(images):
    """A user's features and logits, which are equal: the standard deviation of each channel."""
    features = images.std(axis=(2, 3))
    return features, features
