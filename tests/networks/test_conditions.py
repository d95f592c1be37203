"""A kind of condition that this package does not know is doubled for guidance, and dropped, as labels are."""

import jax.numpy as jnp
import numpy as np

from diffusion_distillation.networks.conditions import drop, no_condition
from diffusion_distillation.networks.model import Model

EMPTY = np.float32([[0.5, -0.5]])
TEXT = np.arange(6, dtype=np.float32).reshape(3, 1, 2)


class Reader:
    """A network that adds a text, the mean of tokens, and a label."""

    def __init__(self):
        self.no_condition = {"y": np.int32(-1), "text": {"tokens": EMPTY}}

    def init(self, rngs, x, logsnr, **condition):
        return {"params": {}}

    def apply(self, variables, x, logsnr, *, y, text):
        return x + (y.astype(jnp.float32) + text["tokens"].mean(axis=(1, 2)))[:, None, None, None]


def test_guidance_is_between_all_conditions_and_none(strict):
    z = np.zeros((3, 2, 2, 1), np.float32)
    condition = {"y": np.uint8([3, 1, 2]), "text": {"tokens": TEXT}, "guidance": np.float32([0.0, 1.0, -1.0])}
    found = Model(network=Reader(), mean_type="v").denoiser({}, condition)(z, np.float32(0.5)).v[:, 0, 0, 0]
    conditional, unconditional = np.float32([3, 1, 2]) + TEXT.mean(axis=(1, 2)), -1.0
    weight = condition["guidance"]
    np.testing.assert_allclose(found, (1 + weight) * conditional - weight * unconditional, rtol=1e-6)


def test_conditions_are_dropped_together_and_weights_are_kept(strict):
    condition = {"y": np.uint8([3, 1, 2]), "text": {"tokens": TEXT}, "guidance": np.float32([0.0, 1.0, 2.0])}
    found = drop(condition, no_condition(Reader()), jnp.array([False, True, False]))
    np.testing.assert_array_equal(found["y"], [3, -1, 2])
    np.testing.assert_array_equal(found["text"]["tokens"], [TEXT[0], EMPTY, TEXT[2]])
    np.testing.assert_array_equal(found["guidance"], condition["guidance"])
