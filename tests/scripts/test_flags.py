"""The command lines of scripts: help, bad flags, None, printed configs and dry runs."""

import contextlib
import json
import os
import re

import pytest
from helpers.runs import call, main

BASE = ["--config=configs/digits_base.py", "--config.train.batch_size=32"]
LADDER = ["--config=configs/digits_distill.py", "--config.distillation.teacher_checkpoint_path=runs/digits/base"]


def printed_config(script, *flags):
    """The output of --print_config."""
    return call(script, *flags, "--workdir=not/made", "--print_config")


def test_help_lists_flags_and_fields(capsys):
    assert main("train", *BASE, "--help") == 0
    shown = capsys.readouterr().out
    for line in ("Train a base model.", "  --workdir: ", "  --\\[no\\]dry_run: ", "  --coordinator: "):
        assert re.search(f"^{line}", shown, re.M), line
    assert re.search(r"^  --config.train.batch_size=32 +int, must be set$", shown, re.M)
    assert "config.distillation" not in shown
    assert main("train", "--help") == 0
    assert "Fields of --config with their defaults; add --config=... for its values (docs" in capsys.readouterr().out
    assert main("claims", "--help") == 0
    shown = capsys.readouterr().out
    assert "--config.train.num_train_steps=800000" in shown and "--ladder.distillation.end_num_steps=1" in shown


def test_help_may_be_cut_off(monkeypatch):
    """`| head` closes the pipe early."""
    reader, writer = os.pipe()
    os.close(reader)
    closed = open(writer, "w")  # noqa: SIM115
    monkeypatch.setattr("sys.stdout", closed)
    assert main("train", "--help") == 0
    with contextlib.suppress(BrokenPipeError):
        closed.close()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
        (["--config.train.num_train_steps=abc"], "flag --config.train.num_train_steps=abc: invalid literal for int"),
        (["--config.model=3"], "Failed to parse '3' as a ConfigDict"),
        (["--config.trian.seed=3"], "Unknown field of --config: 'trian'"),
        (["--workdir=not/made", "extra"], "Unexpected argument 'extra': write flags as --name=value."),
        ([], "--workdir is missing."),
        (
            ["--config=configs/digts_base.py"],
            "There is no config 'configs/digts_base.py'. Give a file, or the name of one of the package's configs, "
            "such as digits_base. Did you mean 'configs/digits_base.py'?",
        ),
        (["--config=digts_base"], "There is no config 'digts_base'"),
        (["--config=old/digits_base.py"], "Did you mean 'digits_base'?"),
        (["--config=configs/digts_base.py", "--help"], "There is no config"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(capsys, flags, message):
    assert main("train", *BASE, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.endswith(" --help lists all flags.\n") and error.count("\n") == 1
    assert message in error


def test_a_broken_config_file_is_named(capsys, tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}['a']\n")
    assert main("train", f"--config={tmp_path}/mine.py", "--workdir=not/made") == 2
    assert f"KeyError in {tmp_path}/mine.py:2: 'a'" in capsys.readouterr().err


def test_fields_may_be_none():
    """Fields of any type, and sections, then count as unset."""
    config = json.loads(printed_config("train", *BASE, "--config.train.ema_decay=None"))
    assert config["train"]["ema_decay"] is None
    flags = ["start_num_steps=None", "rungs=(64,8,2)", "stages.1=None", "stages.2.updates_factor=0.5"]
    config = json.loads(printed_config("distill", *LADDER, *(f"--config.distillation.{flag}" for flag in flags)))
    assert config["distillation"]["start_num_steps"] is None
    assert config["distillation"]["stages"] == {"2": {"steps_per_iter": 60}}


def test_a_config_has_a_name():
    by_name = ["--config=digits_base", *BASE[1:]]
    assert printed_config("train", *by_name) == printed_config("train", *BASE)


def test_an_old_name_of_a_field_overrides_the_file():
    config = json.loads(printed_config("train", *BASE, "--config.train.num_steps=5"))
    assert config["train"]["num_train_steps"] == 5 and "num_steps" not in config["train"]


def test_a_method_set_on_the_command_line_has_its_own_options():
    consistency = ["--config=configs/digits_consistency.py", LADDER[1]]
    flags = ["--config.distillation.method=tract", "--config.distillation.tract.self_teacher_decay=0"]
    config = json.loads(printed_config("distill", *consistency, *flags, "--config.distillation.end_num_steps=1"))
    assert config["distillation"]["args"] == {"self_teacher_decay": 0.0}
    config = json.loads(printed_config("distill", *consistency, "--config.distillation.args.huber=1"))
    assert config["distillation"]["args"]["huber"] == 1.0 and config["distillation"]["args"]["first_grid"] == 16


def test_a_dataset_set_on_the_command_line_has_only_arguments_that_it_takes():
    """The file's other arguments are dropped. Those on the command line are not."""
    flags = ["--config=folder_base", "--config.dataset.name=Latents", "--config.dataset.args.path=/latents"]
    config = json.loads(printed_config("train", *flags))
    assert config["dataset"] == {"name": "Latents", "args": {"path": "/latents", "randflip": True}}
    config = json.loads(printed_config("train", *flags, "--config.dataset.args.image_size=8"))
    assert config["dataset"]["args"]["image_size"] == 8  # refused when the data are read


@pytest.mark.parametrize(("script", "flags"), [("train", BASE), ("distill", LADDER)])
def test_a_printed_config_can_be_passed_to_the_script(script, flags, tmp_path):
    printed = printed_config(script, *flags)
    (tmp_path / "config.json").write_text(printed)
    again = f"--config={tmp_path}/config.json"
    assert printed_config(script, again) == printed
    changed = json.loads(printed_config(script, again, "--config.model.args.ch_mult=1,2", "--config.train.ema_decay=0"))
    assert changed["model"]["args"]["ch_mult"] == [1, 2] and changed["train"]["ema_decay"] == 0


def test_a_dry_run_prints_its_plan_and_writes_nothing(tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    printed = call("train", *BASE, workdir, "--config.train.num_train_steps=100", "--dry_run")
    for line in (
        "100 updates of 32 images",
        "1,797 images of 8x8, 1 channel, no classes; a batch can be read",
        "8 cpu devices.*, 4 images of each batch per device",
        r"3\.6 MB on each device for 178,721 parameters",
        r"warning: .*still has 61% of its initial parameters.*config.train.ema_decay=0.977237",
    ):
        assert re.search(line.replace("(s)", r"\(s\)"), printed), (line, printed)
    assert "batch_size=30 must be divisible" in call(
        "train", *BASE, workdir, "--config.train.batch_size=30", "--dry_run", fails=True
    )
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_ladder_reads_the_teacher(tmp_path):
    """The teacher is the model that comes with the package, a 4-step student."""
    flags = ["--config=configs/digits_guided_distill.py", "--config.distillation.teacher_checkpoint_path=digits"]
    flags += ["--config.distillation.rungs=None", "--config.distillation.stages=None", f"--workdir={tmp_path}/ladder"]
    flags += ["--config.eval.features=('pixels',)", "--config.eval.metrics=('fid',)", "--dry_run"]
    printed = call("distill", *flags, "--config.distillation.start_num_steps=4")
    assert "2 students" in printed and "200,865 parameters" in printed and "10 classes" in printed
    error = call("distill", *flags, "--config.distillation.start_num_steps=8", fails=True)
    assert "was trained for 4 sampling steps" in error
    weights = "--config.model.args.guidance_range=(0.0, 3.0)"
    error = call("distill", *flags, "--config.distillation.start_num_steps=4", weights, fails=True)
    assert "takes guidance weights from 0.0 to 4.0: set config.model.args.guidance_range=(0.0, 4.0)" in error
    assert not list(tmp_path.iterdir())


def test_a_list_is_separated_by_commas_and_checked(capsys):
    """In every script."""
    flags = ["--config=configs/digits_base.py", "--ladder=configs/digits_distill.py", "--workdir=x"]
    assert main("claims", "--outputs=v,z", *flags) == 2
    assert "'z' is unknown. Known: eps, x, v, both, flow, edm." in capsys.readouterr().err
