"""Which students and which teacher the evaluation of a ladder accepts."""

import pytest
from helpers.small_runs import SOURCE, ladder_of, make_config

from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.evaluate import pipeline_loader
from diffusion_distillation.evaluation.ladders import check_finished, check_teacher_unchanged, teacher_guidance
from diffusion_distillation.evaluation.results import Entry
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.loop import train


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
    assert teacher_guidance(ladder_of(make_config(), "base"), Entry("teacher", "ddim", 64)) == {}
