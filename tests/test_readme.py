import re
from pathlib import Path

import numpy as np
import pytest
from running import run

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_functions_work_as_shown():
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "two_step_target" in block]
    names = {}
    exec(block, names)
    assert names["x"].shape == (16, 32, 32, 3)
    assert names["loss"].shape == (16,) and np.all(np.isfinite(names["loss"]))


def test_the_paths_are_there():
    for path in re.findall(r"(?:scripts|configs|tests|docs)/[\w./]+\w", README):
        assert (Path(__file__).parents[1] / path).exists(), path


@pytest.mark.slow
def test_the_table_of_bytes_is_what_the_script_prints():
    assert run("count_bytes") in README
