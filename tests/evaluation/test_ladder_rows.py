"""Which students and which teacher the evaluation of a ladder accepts."""

import json
import math

import pytest
from helpers.runs import call
from helpers.small_runs import SOURCE, ladder_of, make_config

from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.evaluate import pipeline_loader
from diffusion_distillation.evaluation.ladders import (
    check_finished,
    check_teacher_unchanged,
    ladder_runs,
    other_runs,
    teacher_guidance,
)
from diffusion_distillation.evaluation.results import Entry
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.loop import train


@pytest.mark.parametrize(
    ("start", "rungs", "ddim", "ancestral"),
    [
        (1024, (), [256, 64, 16, 8, 4, 2, 1], [256, 64, 16]),
        (64, (), [64, 16, 8, 4, 2, 1], [64, 16]),
        (32, (), [32, 16, 8, 4, 2, 1], [16]),
        (4, (), [4, 2, 1], []),
        (None, (100, 10, 5), [100, 64, 16, 10, 5], [64, 16]),
    ],
)
def test_a_teacher_is_measured_with_no_more_steps_than_its_ladder_starts_with(start, rungs, ddim, ancestral):
    ladder = ladder_of(make_config(), "base", **{"distillation.start_num_steps": start, "distillation.rungs": rungs})
    of_teacher = [entry for entry in ladder_runs(ladder, as_path("ladder")) if entry.model == "teacher"]
    assert [entry.num_steps for entry in of_teacher if entry.sampler == "ddim"] == ddim
    assert [entry.num_steps for entry in of_teacher if entry.sampler == "ancestral"] == ancestral


@pytest.fixture
def ladder(tmp_path):
    """A finished ladder in `ladder`, and its base config."""
    base = make_config(num_train_steps=5)
    train(base, tmp_path / "base", SOURCE)
    run_ladder(ladder_of(base, tmp_path / "base"), tmp_path / "ladder", SOURCE)
    return base


def test_finished_students_stay_finished_when_the_number_of_updates_changes(tmp_path, ladder):
    longer = ladder_of(ladder, tmp_path / "base", **{"distillation.steps_per_iter": 10})
    run_ladder(longer, tmp_path / "ladder", SOURCE, change=True)
    check_finished(longer, as_path(tmp_path / "ladder"))


def test_students_are_not_measured_with_a_retrained_teacher(tmp_path, ladder):
    config, workdir = ladder_of(ladder, tmp_path / "base"), as_path(tmp_path / "ladder")
    check_teacher_unchanged(config, workdir, pipeline_loader(config))
    train(make_config(num_train_steps=10), tmp_path / "base", SOURCE, change=True)
    with pytest.raises(
        InputError, match=r"The teacher '.*base' changed after the students .* Restore the old teacher, distill"
    ):
        check_teacher_unchanged(config, workdir, pipeline_loader(config))


def test_the_teacher_alone_is_sampled_with_the_guidance_of_its_students_targets():
    changes = {"distillation.teacher_guidance": 1.0, "distillation.teacher_guidance_interval": (-4.0, 3.0)}
    config = ladder_of(make_config(), "base", **changes)
    options = {"guidance": 1.0, "guidance_interval": (-4.0, 3.0)}
    assert teacher_guidance(config, Entry("teacher", "ddim", 64)) == options
    assert teacher_guidance(config, Entry("student", "ddim", 4)) == {}
    everywhere = ladder_of(make_config(), "base", **{"distillation.teacher_guidance": 1.0})
    assert teacher_guidance(everywhere, Entry("teacher", "ddim", 64))["guidance_interval"] == (-math.inf, math.inf)
    assert teacher_guidance(ladder_of(make_config(), "base"), Entry("teacher", "ddim", 64)) == {}


def test_other_models_are_measured_beside_a_ladder(tmp_path, ladder):
    flags = ["--num_samples=8", f"--out={tmp_path / 'e.json'}", f"--others={tmp_path / 'base'}"]
    table = call("evaluate", f"--checkpoint={tmp_path / 'ladder'}", *flags, "--others_num_steps=1,3")
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert [(row["model"], row["num_steps"]) for row in rows[-4:]] == [
        ("student", 2), ("student", 1), ("base", 1), ("base", 3),
    ]  # fmt: skip
    assert "| base | DDIM | 3 |" in table
    error = call("evaluate", f"--checkpoint={tmp_path / 'base'}", *flags, fails=True)
    assert "needs a ladder's folder as --checkpoint" in error


def test_other_models_need_the_ladders_image_shape_and_a_name_of_their_own(tmp_path, ladder):
    open_pipeline = pipeline_loader(ladder)
    paths = [str(tmp_path / "base")]
    [entry] = other_runs(paths, (), SOURCE.image_shape, open_pipeline)
    assert entry == Entry("base", "ddim", ladder.model.eval_sampling_num_steps)
    with pytest.raises(InputError, match="the ladder's are"):
        other_runs(paths, (), (64, 64, 3), open_pipeline)
    with pytest.raises(InputError, match="would be the second model named 'base'"):
        other_runs(2 * paths, (), SOURCE.image_shape, open_pipeline)
