"""Networks whose parameters are divided among 8 devices: what they compute, and what a device holds meanwhile."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_distillation.networks.dit import DiT
from diffusion_distillation.networks.sharded import ShardedNetwork
from diffusion_distillation.runtime.devices import AXIS, abstract, data_mesh, put, replicated, shares

SHAPE = (8, 8, 8, 1)
# By default, XLA's CPU backend computes arrays as early as possible, and so gathers all layers at once.
MEMORY_FIRST = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
DIT = functools.partial(DiT, num_classes=1, out_ch=1, patch_size=4, hidden_size=64, num_heads=2)


class NotFlax:
    """A network with the interface of a Flax module."""

    def init(self, rngs, x, logsnr):
        return {"params": {"scale": jnp.full((8, 8, 1), 0.5)}}

    def apply(self, variables, x, logsnr, **kwargs):
        return x * variables["params"]["scale"]


def initial_params(network):
    """Initial parameters, none of them 0."""
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros(SHAPE), jnp.zeros(8))["params"]
    return jax.tree.map(lambda leaf: leaf + 0.02 * np.random.default_rng(0).standard_normal(leaf.shape), params)


def error(network, params, x, logsnr):
    return jnp.square(network.apply({"params": params}, x, logsnr) - 1).mean()


@pytest.mark.parametrize("network", [DIT(depth=1, remat=True), NotFlax()], ids=["flax", "other"])
def test_outputs_and_derivatives_are_those_of_the_whole_network(network):
    mesh = data_mesh()
    params, rng = initial_params(network), np.random.default_rng(1)
    x, logsnr = rng.standard_normal(SHAPE, np.float32), np.linspace(-5, 5, 8, dtype=np.float32)
    rows = NamedSharding(mesh, PartitionSpec(AXIS))

    def derivatives(network, shardings):
        """The gradient, and the derivative along x."""

        def call(params, x, logsnr):
            loss, gradient = jax.value_and_grad(functools.partial(error, network))(params, x, logsnr)
            _, along = jax.jvp(lambda x: network.apply({"params": params}, x, logsnr), (x,), (x,))
            return loss, gradient, along

        placed = put(params, shardings), *jax.device_put((x, logsnr), rows)
        return jax.jit(call, out_shardings=(replicated(mesh), shardings, rows))(*placed)

    whole = derivatives(network, jax.tree.map(lambda _: replicated(mesh), params))
    divided = derivatives(ShardedNetwork(network, mesh), shares(params, mesh))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(divided), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA has no such option")
def test_a_device_gathers_one_layer_at_a_time_and_again_in_the_backward_pass():
    """By the compiled programs of 2 and 6 blocks, whose weights are far larger than the activations."""
    mesh = data_mesh()
    rows = NamedSharding(mesh, PartitionSpec(AXIS))
    x, logsnr = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows) for shape in (SHAPE, SHAPE[:1]))

    def compiled(depth, transform):
        network = ShardedNetwork(DIT(depth=depth), mesh)
        params = jax.eval_shape(network.init, jax.random.key(0), x, logsnr)["params"]
        call = transform(functools.partial(error, network))
        program = jax.jit(call, compiler_options=MEMORY_FIRST).lower(abstract(params, shares(params, mesh)), x, logsnr)
        return program.compile(), params["block_0"]

    (shallow, block), (deep, _) = (compiled(depth, lambda call: call) for depth in (2, 6))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(block))
    grown = deep.memory_analysis().temp_size_in_bytes - shallow.memory_analysis().temp_size_in_bytes
    assert grown < size / 2  # of the 4 more blocks

    backward, _ = compiled(2, jax.grad)
    gathered = re.findall(r" = f32\[([\d,]+)\]\S* all-gather\(", backward.as_text())
    width = block["mlp0"]["kernel"].shape
    assert gathered.count(",".join(map(str, width))) == 4  # in 2 blocks, forward and backward
