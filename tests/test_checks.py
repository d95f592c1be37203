"""The checks that users run on their machines."""

import re

import pytest
from running import call, run

from diffusion_distillation import layers, sampling


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "onednn"), [("float32", "false"), ("bfloat16", "true")])
def test_numerics(dtype, onednn, optimized):
    flags = f"--xla_cpu_experimental_onednn_custom_call={onednn}"
    printed = run("checks/numerics", f"--dtype={dtype}", env={"XLA_FLAGS": flags})
    assert re.fullmatch(rf"JAX .* on cpu, {dtype}, XLA_FLAGS {flags}: right\. Errors: .*\n", printed)


def test_wrong_numerics(monkeypatch):
    convolution = layers.convolution

    def wrong(x, *args, **kwargs):
        y = convolution(x, *args, **kwargs)
        return y * (1.001 if x.dtype == "float32" else 1)

    monkeypatch.setattr(layers, "convolution", wrong)
    monkeypatch.setattr(sampling, "ddim", lambda denoise, z, *_: z)  # which takes the longest
    error = call("checks/numerics", fails=True)
    assert re.search(r"wrong are .*the gradients of a convolution", error) and "Traceback" not in error
