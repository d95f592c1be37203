"""The checks that users run on their machines."""

import re

import pytest
from flax import linen as nn
from helpers.runs import call, run

from diffusion_distillation.networks import cpu_kernels, unet


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "onednn", "training"),
    [("float32", "false", True), ("bfloat16", "true", True), ("bfloat16", "true", False)],
)
def test_the_numerics_check_passes_with_any_flags(dtype, onednn, training, optimized):
    """Without gradients, oneDNN uses all instructions of the CPU."""
    flags = f"--xla_cpu_experimental_onednn_custom_call={onednn} --xla_cpu_prefer_vector_width=512"
    printed = run("checks/numerics", f"--dtype={dtype}", f"--training={training}", env={"XLA_FLAGS": flags})
    assert re.fullmatch(rf"JAX .* on cpu, {dtype}, XLA_FLAGS {flags}: correct\. Errors: .*\n", printed)
    assert ("gradients" in printed) == training


class Linear(unet.UNet):
    """A network that takes the options of a U-Net and compiles in no time."""

    @nn.compact
    def __call__(self, z, logsnr):
        return nn.Dense(3)(z)


def test_the_numerics_check_names_what_is_wrong(monkeypatch):
    convolution = cpu_kernels.convolution

    def wrong(x, *args, **kwargs):
        y = convolution(x, *args, **kwargs)
        return y * (1.001 if x.dtype == "float32" else 1)

    monkeypatch.setattr(cpu_kernels, "convolution", wrong)
    monkeypatch.setattr(unet, "UNet", Linear)
    error = call("checks/numerics", fails=True)
    assert re.search(r"wrong: a convolution and its gradients\. Errors", error) and "Traceback" not in error
