"""Functions that the scripts share."""

import os
import shlex

import pytest

from diffusion_distillation import cli
from diffusion_distillation.runtime.files import as_path


def next_distillation(workdir, config="digits_base", **overrides):
    """The flags of the command that `distill_commands` returns, by name; None if it returns none."""
    overrides = {f"config.{field}": value for field, value in overrides.items()}
    commands = cli.distill_commands({"config": config, **overrides}, as_path(workdir))
    if not commands:
        return None
    program, script, *flags = shlex.split(commands[0])
    assert (program, script, len(commands)) == ("diffusion_distillation", "distill", 1)
    return dict(flag.removeprefix("--").split("=", 1) for flag in flags)


@pytest.mark.parametrize(
    ("trained", "distilled"),
    [
        ("runs/digits/base", "runs/digits/ladder"),
        ("runs/digits/ladder", "runs/digits/ladder_ladder"),
        ("runs/big", "runs/big_ladder"),
        ("/", "/_ladder"),
        (".", os.path.join(os.path.dirname(os.getcwd()), os.path.basename(os.getcwd()) + "_ladder")),
    ],
)
def test_a_ladder_gets_a_folder_beside_its_teacher(trained, distilled):
    flags = next_distillation(trained)
    assert flags["config.distillation.teacher_checkpoint_path"] == str(as_path(trained))
    assert flags["workdir"] == distilled


def test_the_next_distillation_has_the_fields_that_both_configs_share():
    flags = next_distillation(
        "base", **{"train.seed": 3, "train.microbatch_size": 8, "model.args.ch": 64, "dataset.args": {}}
    )
    assert flags["config"] == "digits_distill"
    assert (flags["config.train.microbatch_size"], flags["config.model.args.ch"]) == ("8", "64")
    assert flags["config.dataset.args"] == "{}" and "config.train.seed" not in flags


def test_guided_models_are_followed_by_a_student_that_takes_weights():
    assert next_distillation("base", "digits_guided_base")["config"] == "digits_guided_student"
    assert next_distillation("base", "configs/digits_guided_base.py")["workdir"] == "student"


def test_no_distillation_follows_a_config_without_a_ladder_or_with_fields_that_its_ladder_refuses():
    assert next_distillation("base", "cifar_edm_base") is None
    assert next_distillation("base", "runs/digits/base/config.json") is None
    assert next_distillation("base", **{"model.eval_guidance": 0.5}) is None


def test_the_dtype_of_a_run_is_float32_unless_its_config_can_be_read(tmp_path):
    """The dtype selects flags for speed only, so a wrong one does no harm."""
    assert cli.dtype_of(tmp_path) == "float32"
    for text, dtype in {
        '{"model": {"dtype": "bfloat16"}}': "bfloat16",
        '{"config": {"model": {"dtype": "bfloat16"}}}': "bfloat16",  # of an archive
        '{"model": {"dtype": "float32"}, "autoencoder": {"dtype": "bfloat16"}}': "bfloat16",
        '{"model": {"dtype": "float32"}, "autoencoder": {"dtype": "float32"}}': "float32",
        '{"model": {"dtype": "float32"}, "autoencoder": 3}': "float32",
        '{"model": {}}': "float32",
        "[]": "float32",
        "{": "float32",
        "[" * 100_000: "float32",
    }.items():
        (tmp_path / "config.json").write_text(text)
        assert cli.dtype_of(tmp_path) == dtype
