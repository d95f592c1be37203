"""Check whether JAX computes correctly on this machine, with the installed versions and flags. It takes about a minute.

    python scripts/checks/numerics.py
    python scripts/checks/numerics.py --dtype=bfloat16
    python scripts/checks/numerics.py --dtype=bfloat16 --notraining

Run it on a new accelerator or after an update: compilers have returned wrong sums before (jax issues 39103, 39257 and
40412, on CPU). It compiles the parts of training and sampling for these devices, and compares their results with
float64 on the CPU, one operation at a time, which no compiler has fused. The script prints one line. The exit status is
1 if a relative error exceeds its bound. With --notraining, it computes no gradients, and oneDNN may use AMX
instructions, as in sampling.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffusion_distillation import cli, sampling
from diffusion_distillation.diffusion import make_denoiser
from diffusion_distillation.distillation import several_step_target
from diffusion_distillation.errors import RunError
from diffusion_distillation.networks import cpu_kernels, layers
from diffusion_distillation.networks.unet import UNet
from diffusion_distillation.runtime.cpu import compiler_options, set_cpu_flags
from diffusion_distillation.schedules import get_logsnr_schedule
from diffusion_distillation.shapes import Array, Params

DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the activations.")
TRAINING = flags.DEFINE_bool("training", True, "Check gradients too, with the instructions that training uses.")

BATCH, SIDE = 4, 16
SCHEDULE = get_logsnr_schedule("cosine", logsnr_min=-20.0, logsnr_max=20.0)
# Largest relative errors: in float32 on CPUs, and elsewhere, where products are rounded to bfloat16 or tf32 by default.
BOUNDS = {
    "the network's output": (1e-5, 2e-2),
    "the gradients of its parameters": (1e-4, 5e-2),
    "the distillation target": (1e-4, 5e-2),
    "the gradients of group normalization": (1e-4, 2e-2),
    "a convolution and its gradients": (1e-5, 2e-2),
    "attention and its gradients": (1e-5, 2e-2),
    "a sample in 64 steps": (1e-4, 5e-2),
}


def main() -> None:
    set_cpu_flags(DTYPE.value, training=TRAINING.value)
    exact = jax.default_backend() == "cpu" and DTYPE.value == "float32"
    dtype = None if DTYPE.value == "float32" else jnp.bfloat16
    inputs = make_inputs()
    # Compile like a training step.
    static = ("dtype", "training")
    compiled = jax.jit(compute, static_argnames=static, compiler_options=compiler_options())
    found = compiled(inputs, dtype=dtype, training=TRAINING.value)
    jax.config.update("jax_disable_most_optimizations", True)  # single operations compile sooner
    with jax.enable_x64(), jax.default_device(jax.devices("cpu")[0]), jax.disable_jit():
        expected = compute(jax.tree.map(np.float64, inputs), dtype=jnp.float64, training=TRAINING.value)
    errors = {name: error(found[name], expected[name]) for name in BOUNDS if name in expected}
    bounds = {name: BOUNDS[name][not exact] for name in errors}
    wrong = [name for name, bound in bounds.items() if not errors[name] <= bound]
    figures = "; ".join(f"{name} {errors[name]:.0e} (at most {bound:.0e})" for name, bound in bounds.items())
    flags_set = os.environ.get("XLA_FLAGS", "").strip() or "none"
    where = f"JAX {jax.__version__} on {jax.devices()[0].device_kind}, {DTYPE.value}, XLA_FLAGS {flags_set}"
    if wrong:
        raise RunError(f"{where}: wrong: {', '.join(wrong)}. Errors: {figures}.")
    print(f"{where}: correct. Errors: {figures}.")


def make_inputs() -> dict[str, Any]:
    """Parameters and images in float32, the same on every machine."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, SIDE, SIDE, 3), np.float32)
    logsnr = np.linspace(-4, 4, BATCH, dtype=np.float32)
    shapes = jax.eval_shape(make_network(None).init, jax.random.key(0), x, logsnr)["params"]
    student, teacher = (
        jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes) for _ in range(2)
    )
    h, kernel, weighed, films = (
        (mean + spread * rng.standard_normal(shape)).astype(jnp.bfloat16).astype(np.float32)  # exact in bfloat16
        for mean, spread, shape in (
            (3, 1, (BATCH, SIDE, SIDE, 64)),
            (0, 0.05, (3, 3, 64, 64)),
            (0, 1, (BATCH, SIDE, SIDE, 64)),
            (0, 0.5, (2, BATCH, 64)),
        )
    )
    return dict(x=x, logsnr=logsnr, student=student, teacher=teacher, h=h, kernel=kernel, weighed=weighed, films=films)


def make_network(dtype: Any) -> UNet:
    """A U-Net with every kind of layer."""
    return UNet(
        num_classes=1, ch=32, emb_ch=64, out_ch=3, ch_mult=(1, 2), num_res_blocks=0, attn_resolutions=(8,),
        num_heads=2, dropout=0.0, logsnr_input_type="inv_cos", resblock_resample=True, dtype=dtype,
    )  # fmt: skip


def compute(inputs: dict[str, Any], *, dtype: Any, training: bool) -> dict[str, Any]:
    """Compute everything that is compared."""
    x, logsnr = inputs["x"], inputs["logsnr"]
    network = make_network(dtype)

    def v_of(params: Params, z: Array, logsnr: Array) -> Array:
        return network.apply({"params": params}, z, logsnr)

    if dtype == jnp.float64:
        v_of = in_steps(v_of, inputs["student"], x, logsnr)

    def denoiser(params: Params):
        return make_denoiser(lambda z, logsnr: v_of(params, z, jnp.broadcast_to(logsnr, BATCH)), "v")

    steps = jnp.arange(BATCH)
    results = {
        "the network's output": v_of(inputs["student"], x, logsnr),
        "the distillation target": several_step_target(denoiser(inputs["teacher"]), x, steps, BATCH, 2, SCHEDULE).v,
        "a sample in 64 steps": sampling.ddim(denoiser(inputs["student"]), x, SCHEDULE, 64),
    }
    if training:
        gradients = jax.grad(lambda params: jnp.mean(jnp.square(v_of(params, x, logsnr) - x)))
        results["the gradients of its parameters"] = gradients(inputs["student"])
        results |= compute_gradients_of_layers(inputs, dtype)
    return results


def compute_gradients_of_layers(inputs: dict[str, Any], dtype: Any) -> dict[str, Any]:
    """Compute the layers that are rewritten for some devices, and their gradients."""
    h, kernel, weighed, films = (inputs[name] for name in ("h", "kernel", "weighed", "films"))
    norm = layers.GroupNorm(32, dtype, jax.nn.swish)
    weights, activations = {"scale": 1 + films[0][0], "bias": films[0][1]}, h.astype(dtype or h.dtype)

    def normalized(weights, h, films):
        return jnp.sum(norm.apply({"params": weights}, h, films) * weighed)

    def convolved(h, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return cpu_kernels.convolution(h, kernel.astype(h.dtype), (1, 1), "SAME", dimension_numbers=dimensions)

    def attended(*parts):
        return layers.attention(*(part.reshape(BATCH, SIDE**2, 2, -1) for part in parts)).reshape(h.shape)

    convolution, pull = jax.vjp(convolved, activations, kernel)
    attention, pull_attention = jax.vjp(attended, weighed.astype(activations.dtype), activations - 3, activations)
    return {
        "the gradients of group normalization": jax.grad(normalized, (0, 1, 2))(weights, activations, tuple(films)),
        "a convolution and its gradients": (convolution, pull(weighed.astype(convolution.dtype))),
        "attention and its gradients": (attention, pull_attention(weighed.astype(attention.dtype))),
    }


def in_steps(fn: Callable[..., Array], *args: Any) -> Callable[..., Array]:
    """The function as a list of its operations, which takes less time than running its Python code in float64."""
    operations = jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(fn)(*args))
    return lambda *args: operations(*jax.tree.leaves(args))[0]


def error(found: Any, expected: Any) -> float:
    """The relative distance of two trees; for tuples, the largest of their parts."""
    if isinstance(found, tuple):
        return max(map(error, found, expected))
    a, b = (
        np.concatenate([np.ravel(np.float64(leaf)) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected)
    )
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == "__main__":
    cli.run(main)
