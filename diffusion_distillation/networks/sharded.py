"""A network whose parameters are divided among devices, which gather them layer by layer (fully sharded data parallel).

The devices divide the batch as usual. A layer's parameters are gathered where the layer reads them, and again in the
backward pass, so no device holds more than a few layers' parameters besides its share of all of them (Rajbhandari et
al. 2020, arXiv 1910.02054, stage 3).
"""

import dataclasses
from typing import Any, TypeVar

import flax.struct
import jax
from flax import linen as nn
from flax.core import meta
from jax.custom_derivatives import linear_call
from jax.sharding import Mesh

from ..runtime.devices import divided, replicated
from ..shapes import Array, Keys

Model = TypeVar("Model")

LINEAR_LAYERS = (nn.Conv, nn.Dense, nn.DenseGeneral, nn.Embed)


def sharded(model: Model, mesh: Mesh) -> Model:
    """Return a `model.Model` for parameters that are divided among the devices of a mesh."""
    return dataclasses.replace(model, network=ShardedNetwork(model.network, mesh))


@dataclasses.dataclass(frozen=True)
class ShardedNetwork:
    """A network for parameters that are divided among the devices of a mesh as `devices.divided` divides them.

    Attributes:
      network: a Flax module. Another network works too, but gathers all its parameters at once.
      mesh: the mesh of the programs that call the network.
    """

    network: Any
    mesh: Mesh

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)  # guidance_range, ...

    def init(self, rngs: Keys, x: Array, logsnr: Array, **condition: Array) -> Any:
        """See `model.Network`."""
        return self.network.init(rngs, x, logsnr, **condition)

    def apply(self, variables: Any, x: Array, logsnr: Array, **kwargs: Any) -> Array:
        """See `model.Network`."""
        boxed = jax.tree.map(lambda leaf: _Divided(leaf, self.mesh), variables)
        if not isinstance(self.network, nn.Module):
            return self.network.apply(meta.unbox(boxed), x, logsnr, **kwargs)
        with nn.intercept_methods(_checkpoint_linear_layers()):
            return self.network.apply(boxed, x, logsnr, **kwargs)


@flax.struct.dataclass
class _Divided(meta.AxisMetadata):
    """A divided parameter, which Flax unboxes in the layer that reads it."""

    value: Any
    mesh: Mesh = flax.struct.field(pytree_node=False)

    def unbox(self) -> Array:
        return gather(self.value, self.mesh)

    def replace_boxed(self, value: Any) -> "_Divided":
        return self.replace(value=value)

    def add_axis(self, index: int, params: Any) -> "_Divided":
        return self

    def remove_axis(self, index: int, params: Any) -> "_Divided":
        return self


def gather(leaf: Array, mesh: Mesh) -> Array:
    """Return a divided array whole on every device. Its gradient is divided as the array is (a reduce-scatter)."""
    share = divided(leaf, mesh)

    def whole(_, leaf):
        return jax.lax.with_sharding_constraint(leaf, replicated(mesh))

    def part(_, gradient):
        return jax.lax.with_sharding_constraint(gradient, share)

    return linear_call(whole, part, (), leaf)


def _checkpoint_linear_layers() -> nn.module.Interceptor:
    """An interceptor that keeps the divided parameters of linear layers for the backward pass, not the gathered ones.

    A linear layer's gradient needs its input and its parameters, but not its output, so nothing is computed again.
    """
    inside = False

    def intercept(call, args, kwargs, context):
        nonlocal inside
        if inside or context.method_name != "__call__" or not isinstance(context.module, LINEAR_LAYERS):
            return call(*args, **kwargs)
        inside = True
        try:
            return nn.remat(lambda layer, *args: layer(*args, **kwargs))(context.module, *args)
        finally:
            inside = False

    return intercept
