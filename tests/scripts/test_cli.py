"""What the scripts share, in this process."""

import sys

import pytest
from helpers.runs import ROOT

from diffusion_distillation import cli


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
