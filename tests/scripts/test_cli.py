"""What the scripts share, in this process."""

import sys
import types

import pytest
from etils import epath
from helpers.runs import ROOT
from ml_collections import ConfigDict

from diffusion_distillation import cli
from diffusion_distillation.errors import InputError


def test_metrics_go_to_wandb(tmp_path, monkeypatch):
    """With a stand-in for the package: a run that is taken up goes on, and students have steps of their own."""
    calls = []

    class Run:
        def define_metric(self, name, step_metric):
            assert name.count("*") == 1 and name.endswith("*")  # as the package wants it
            calls.append((name, step_metric))

        def log(self, values):
            calls.append(values)

    def init(**settings):
        calls.append(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        log = cli._to_wandb("digits", epath.Path(tmp_path), ConfigDict(dict(seed=3)))
    one, other = calls
    assert one == other and one["resume"] == "allow" and one["config"] == {"seed": 3}
    log(10, {"loss": 0.5})
    log(20, {"loss": 0.25})
    assert calls[2:] == [("*", "step"), {"loss": 0.5, "step": 10}, {"loss": 0.25, "step": 20}]
    log(10, {"loss": 0.5, "num_steps": 4})
    assert calls[5] == ("steps_0004/*", "steps_0004/step") and calls[6]["steps_0004/loss"] == 0.5


def test_wandb_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'pip install -e ".\[wandb\]"'):
        cli._to_wandb("digits", epath.Path(tmp_path), ConfigDict())


@pytest.mark.parametrize(
    ("started_as", "argv", "anew"),
    [
        (["python", "-X", "dev", "scripts/train.py", "--a=1", "--b"], ["scripts/train.py", "--a=1", "--b"], True),
        (["python", "-m", "pytest", "tests"], ["scripts/train.py", "--a=1"], False),
        (["python", "-c", "..."], ["scripts/train.py", "--a=1", "--b", "--c"], False),
        (["python", "-"], ["-"], False),
    ],
)
def test_only_a_program_of_its_own_starts_anew(monkeypatch, started_as, argv, anew):
    """And not one that runs a script within it."""
    calls = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cli.os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(sys, "orig_argv", started_as)
    monkeypatch.setattr(sys, "argv", argv)
    cli._start_anew({})
    assert not calls
    cli._start_anew({"SAID": "so"})
    environment = {**cli.os.environ, "SAID": "so", cli.STARTED_ANEW: "1"}
    assert calls == [(sys.executable, [sys.executable, *started_as[1:]], environment)] * anew
    monkeypatch.setenv(cli.STARTED_ANEW, "1")  # though the variables did not come through
    cli._start_anew({"SAID": "so"})
    assert len(calls) == anew


def test_dtype_of_a_run(tmp_path):
    """What is not there, or not a run's, is float32, which is right but for speed."""
    assert cli.dtype_of(tmp_path) == "float32"
    for text, dtype in {
        '{"model": {"dtype": "bfloat16"}}': "bfloat16",
        '{"model": {}}': "float32",
        "[]": "float32",
        "{": "float32",
        "[" * 100_000: "float32",
    }.items():
        (tmp_path / "config.json").write_text(text)
        assert cli.dtype_of(tmp_path) == dtype
