"""The scripts as a user runs them, on the digits with a very small network."""

import base64
import io
import json
import re
import shlex
import signal

import jax
import numpy as np
import pytest
import sklearn.datasets
from helpers.runs import AFFINE, OWN_PARTS, TINY, assert_same, call, run, run_together, start, steps_saved, wait_until
from PIL import Image

from diffusion_distillation import from_checkpoint
from diffusion_distillation.checkpoints import load
from diffusion_distillation.evaluation.metrics import format_number

BASE = ["--config=configs/digits_base.py", *TINY, "--config.train.num_train_steps=20"]
LADDER = [
    "--config=configs/digits_distill.py",
    *TINY,
    "--config.distillation.start_num_steps=4",
    "--config.distillation.stages={}",
    "--config.distillation.steps_per_iter=40",
    "--config.eval.num_samples=64",
    "--config.eval.batch_size=64",
    "--config.eval.teacher_num_steps=(4,2,1)",
    "--config.eval.ancestral_num_steps=(2,)",
]


def distilling(teacher, workdir, *flags):
    """The arguments for `run` to distill."""
    teacher = f"--config.distillation.teacher_checkpoint_path={teacher}"
    return "distill", *LADDER, teacher, f"--workdir={workdir}", *flags


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished base run and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    return workdir, run("train", *BASE, f"--workdir={workdir}")


@pytest.fixture(scope="module")
def ladder(base):
    """A finished ladder and what it printed."""
    workdir = base[0].with_name("ladder")
    return workdir, run(*distilling(base[0], workdir))


def test_the_next_command_after_training_distills_and_may_skip_the_report(tmp_path):
    data = "--config.dataset.args={}"
    printed = call("train", *BASE, *AFFINE, data, f"--workdir={tmp_path / 'base'}")
    sample, distill = [line.removeprefix("Next: ") for line in printed.splitlines() if line.startswith("Next: ")]
    assert sample.startswith("diffusion_distillation sample --checkpoint=")
    program, script, *flags = shlex.split(distill)
    assert (program, script) == ("diffusion_distillation", "distill")
    assert {AFFINE[0], data, "--config=configs/digits_distill.py", f"--workdir={tmp_path / 'ladder'}"} <= set(flags)
    assert not [flag for flag in flags if flag.startswith("--config.train")]
    fast = [
        "--config.distillation.start_num_steps=4",
        "--config.distillation.stages={}",
        "--config.distillation.steps_per_iter=2",
        "--config.train.batch_size=32",
    ]
    printed = call(script, *flags, *fast, "--noreport")
    assert "Next: diffusion_distillation sample" in printed and "Next: diffusion_distillation report" in printed
    assert not (tmp_path / "ladder" / "report").exists()


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_prints_logs_and_samples(base):
    workdir, printed = base
    assert re.search(r"step 20/20  loss [\d.]+  [\d,]+ images/s  0:00:00 left", printed)
    metrics = metrics_of(workdir)
    assert [line["step"] for line in metrics] == [10, 20]
    assert metrics[1]["loss"] < metrics[0]["loss"]
    assert set(metrics[0]) == {"step", "loss", "gradient_norm", "skipped", "learning_rate", "images_per_sec"}
    assert json.loads((workdir / "config.json").read_text())["train"]["num_train_steps"] == 20
    assert size_of(workdir / "samples" / "step_0000020.png")[0] > 300


def size_of(picture):
    with Image.open(picture) as image:
        return image.size


@pytest.mark.slow
def test_four_devices_train_like_one(base, tmp_path):
    printed = run("train", *BASE, f"--workdir={tmp_path}", devices=4)
    assert "1 cpu device" in base[1] and "4 cpu devices" in printed
    assert_same(base[0], tmp_path, atol=1e-5)
    losses = [[line["loss"] for line in metrics_of(workdir)] for workdir in (base[0], tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # losses use the parameters, not their average


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_parameters(base):
    """It resumes from a checkpoint half way."""
    workdir = base[0].with_name("resumed")
    flags = [*BASE, f"--workdir={workdir}", "--config.train.checkpoint_every_secs=0", "--config.train.substeps=5"]
    run("train", *flags)
    steps = sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    assert steps == [15, 20]
    (workdir / "checkpoints" / "20").rename(workdir / "20")
    assert "resuming at step 15" in run("train", *flags)
    assert_same(base[0], workdir)
    assert [line["step"] for line in metrics_of(workdir)] == [10, 20]


@pytest.mark.slow
def test_distilling_trains_every_student_once(ladder):
    workdir, printed = ladder
    assert re.search(r"steps_0002  step 40/40 .*\n(.*\n)*steps_0001  step 40/40", printed)
    for num_steps in (2, 1):
        _, metadata = load(workdir / f"steps_{num_steps:04d}")
        assert (metadata.num_steps, metadata.step) == (num_steps, 40)
        assert metadata.config.train.ema_decay == 0
        assert (workdir / f"steps_{num_steps:04d}" / "samples" / "step_0000040.png").exists()
    assert "steps_0001: finished, 40 updates" in run(*distilling(workdir.with_name("base"), workdir))


@pytest.mark.slow
def test_a_report_has_every_model_in_table_and_pictures(ladder):
    report = ladder[0] / "report"
    table = json.loads((report / "evaluation.json").read_text())
    rows = [(row["model"], row["sampler"], row["num_steps"]) for row in table["rows"]]
    assert rows == [
        *(("teacher", "ddim", n) for n in (4, 2, 1)),
        ("teacher", "ancestral", 2),
        *(("student", "ddim", n) for n in (2, 1)),
    ]
    samples = {row: np.load(report / "samples" / "{}_{}_{}.npz".format(*row))["arr_0"] for row in rows}
    for row, of_row in zip(table["rows"], samples.values(), strict=True):
        assert row["images_per_sec"] > 0
        found = {(value["metric"], value["features"]): value["value"] for value in row["values"]}
        assert found["frechet", "pixels"] == pytest.approx(distance_to_digits(of_row), rel=1e-5)
        assert 1 <= found["is", "classifier"] <= 10
    drawn = from_checkpoint(ladder[0] / "steps_0002").sample(jax.random.key(0), 64)
    assert np.abs(drawn.astype(int) - samples["student", "ddim", 2]).max() <= 1  # other devices round otherwise
    page = (report / "index.html").read_text()
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"image/png;base64,([^\"]+)", page)
    ]
    assert len(pictures) == len(list(report.glob("*.png"))) == 8 and all(min(it.size) > 150 for it in pictures)
    cells = re.findall("<td>(.*?)</td>", page)
    for row in table["rows"]:
        assert all(any(format_number(value["value"]) in cell for cell in cells) for value in row["values"])


def distance_to_digits(images):
    """The Fréchet distance of pixels to all digits, from the eigenvalues of the product of both covariances."""
    digits = sklearn.datasets.load_digits().images * (255 / 16)
    (mean_a, a), (mean_b, b) = (
        (rows.mean(axis=0), np.cov(rows, rowvar=False))
        for rows in (np.round(set_of_images).reshape(-1, 64) / 127.5 - 1 for set_of_images in (images, digits))
    )
    roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0))
    return np.sum((mean_a - mean_b) ** 2) + np.trace(a) + np.trace(b) - 2 * roots.sum()


@pytest.mark.slow
def test_an_interrupted_ladder_ends_in_the_same_parameters(tmp_path):
    """It is killed during the first student, stopped during the second, and resumed each time."""
    base, whole, workdir = (tmp_path / name for name in ("base", "whole", "interrupted"))
    few = [*AFFINE, "--config.eval.features=('pixels',)", "--config.eval.metrics=('fid',)"]
    train = ["train", *BASE, *AFFINE, f"--workdir={base}"]
    run_together([train, distilling(base, whole, *few)], env=OWN_PARTS)
    often = [*few, "--config.train.checkpoint_every_secs=0", "--config.train.substeps=5"]
    for number, student in ((signal.SIGKILL, "steps_0002"), (signal.SIGTERM, "steps_0001")):
        process = start(*distilling(base, workdir, *often), env=OWN_PARTS)
        wait_until(lambda: steps_saved(workdir / student), process)  # noqa: B023
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number
            assert "run the same command again to resume" in error
        assert 0 < load(workdir / student)[1].step < 40
    assert "resuming at step" in run(*distilling(base, workdir, *often), env=OWN_PARTS)
    for student in ("steps_0002", "steps_0001"):
        assert_same(whole / student, workdir / student)


@pytest.mark.slow
def test_a_class_conditional_model_trains_in_bfloat16(tmp_path):
    flags = ["--config.dataset.args.class_conditional=True", "--config.dataset.args.randflip=True"]
    flags += ["--config.model.dtype=bfloat16", f"--workdir={tmp_path / 'base'}"]
    run("train", *BASE, *flags)
    pipeline = from_checkpoint(tmp_path / "base")
    assert pipeline.num_classes == 10
    assert pipeline.sample(jax.random.key(0), 12).std() > 10


@pytest.mark.slow
def test_bad_input_of_training_is_named_before_anything_is_written(base, tmp_path):
    workdir = f"--workdir={tmp_path / 'new'}"
    for flags, message in {
        (*BASE, workdir, "--config.train.batch_size=30"): "batch_size=30 must be divisible by the number of devices, 8",
        (*BASE, f"--workdir={base[0]}", "--config.seed=5"): "another config: config.seed is 0 there and 5 here",
        (*BASE, workdir, "--config.train.learning_rat=1"): "config.train.learning_rat. Did you mean 'learning_rate'?",
        (*BASE, workdir, "--config.dataset.name=digit"): "config.dataset.name='digit'. Did you mean 'digits'?",
        (*BASE, workdir, "--config.model.args.ch=48"): "ch=48 .* a multiple of 32",
        (
            *BASE,
            workdir,
            "--config.trian.seed=1",
        ): "Unknown field of --config: 'trian' Did you mean \"train\"",
        (
            "--config=configs/digit_base.py",
            workdir,
        ): "There is no config 'configs/digit_base.py'.* Did you mean 'configs/digits_base.py'",
        (*LADDER, workdir): "This config has a config.distillation section. Use the command 'distill'",
    }.items():
        error = call("train", *flags, fails=True)
        assert re.search(message, error) and "Traceback" not in error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_bad_input_of_distillation_is_named_before_anything_is_written(base, ladder, tmp_path):
    teacher, workdir = base[0], tmp_path / "new"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, message in {
        (tmp_path / "nowhere", workdir): "No checkpoint in .*nowhere': there is no such folder",
        (tmp_path / "empty", workdir): "a run's folder contains 'checkpoints'; this one contains nothing",
        (tmp_path / "file", workdir): "cannot be read as a msgpack file of flax",
        (ladder[0], workdir): "it holds the students of a ladder. Choose one of its folders: steps_0001, steps_0002",
        (teacher, workdir, "--config.distillation.teacher_guidance=1.0"): "teacher .* cannot be guided, which .* needs",
        (teacher, workdir, "--config.dataset.args.class_conditional=True"): "classes is 1 in the teacher and 10 here",
        (ladder[0] / "steps_0002", workdir): "trained for 2 sampling steps: set .*start_num_steps=2",
        (teacher, ladder[0], "--config.seed=1"): "holds a run with another config: config.seed is 0 there and 1 here",
    }.items():
        error = call(*distilling(*arguments), fails=True)
        assert re.search(message, error) and "Traceback" not in error
    assert not workdir.exists()


def test_bad_input_is_one_line_and_status_2(tmp_path):
    process = start("train", *BASE, f"--workdir={tmp_path / 'new'}", "--config.train.batch_size=30", devices=4)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 2 and re.fullmatch(".*: reading the data, digits\n", printed)
    assert re.fullmatch("error: config.train.batch_size=30 must be divisible by .* devices, 4: .*\n", error)
