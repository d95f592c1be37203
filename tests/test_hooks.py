"""Hooks of the training scripts."""

import sys
import types

import pytest
from etils import epath
from ml_collections import ConfigDict

from diffusion_distillation import hooks
from diffusion_distillation.errors import InputError


def test_metrics_are_logged_to_wandb(tmp_path, monkeypatch):
    """A resumed run keeps its id, and each student has its own step axis. A stand-in replaces the package."""
    calls = []

    class Run:
        def define_metric(self, name, step_metric):
            assert name.count("*") == 1 and name.endswith("*")  # wandb accepts no other pattern
            calls.append((name, step_metric))

        def log(self, values):
            calls.append(values)

    def init(**settings):
        calls.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        log = hooks.wandb_hook("digits", epath.Path(tmp_path), ConfigDict(dict(seed=3)))
    first, second = calls
    assert first == second and first["resume"] == "allow" and first["config"] == {"seed": 3}
    log(10, {"loss": 0.5})
    log(20, {"loss": 0.25})
    assert calls[2:] == [("*", "step"), {"loss": 0.5, "step": 10}, {"loss": 0.25, "step": 20}]
    log(10, {"loss": 0.5, "num_steps": 4})
    assert calls[5] == ("steps_0004/*", "steps_0004/step") and calls[6]["steps_0004/loss"] == 0.5


def test_a_missing_wandb_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install -e ".\[wandb\]"'):
        hooks.wandb_hook("digits", epath.Path(tmp_path), ConfigDict())
