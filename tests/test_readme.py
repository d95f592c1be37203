import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from running import ROOT, run

from diffusion_distillation import config

README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "docs" / "from_one_gpu_to_a_pod.md").read_text()
LAUNCH = "".join(path.read_text() for path in sorted((ROOT / "scripts" / "launch").iterdir()))


def test_the_functions_work_as_shown():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    functions, edm = ([block for block in blocks if name in block] for name in ("two_step_target", "edm_denoiser"))
    names = {}
    exec(*functions, names)
    assert names["x"].shape == (16, 32, 32, 3)
    assert names["loss"].shape == (16,) and np.all(np.isfinite(names["loss"]))
    exec(*edm, names)
    found = names["denoise"](names["z"], np.full(16, 1.0))
    alpha, _ = names["diffusion"].alpha_sigma(1.0)
    np.testing.assert_allclose(found.x, alpha * names["z"], rtol=1e-4, atol=1e-5)  # x of Gaussian data, as is known
    np.testing.assert_allclose(np.std(names["x"]), np.cos(np.pi / 16) ** 8, rtol=0.01)  # of 8 DDIM steps


def test_the_paths_are_there():
    for path in re.findall(r"(?:scripts|configs|tests|docs)/[\w./]+\w", PAGES + LAUNCH):
        assert (ROOT / path).exists(), path


def names(fields, prefix=""):
    """The dotted names of the fields of a config."""
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from names(value, f"{prefix}{name}.")


def test_the_fields_are_there():
    commands = re.findall(r"--config=(\S+)((?:.*\\\n)*.*)", PAGES)
    assert len(commands) > 5
    for path, flags in commands:
        fields = config.load(ROOT / path)
        config.add_missing(fields)
        for name in re.findall(r"--config\.([\w.]+)=", flags):
            assert name in names(fields) or name.startswith("dataset.args."), name
    for name in re.findall(r"`((?:train|model)\.[\w.]+)", PAGES):
        assert name in names(config.defaults()), name


@pytest.mark.slow
def test_the_table_of_bytes_is_what_the_script_prints():
    assert run("benchmarks/memory") in README
