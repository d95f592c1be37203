"""Ladders in this process: what devices hold, which teachers are accepted, and what a change keeps."""

import dataclasses
import gc
import json
import runpy
import shutil

import jax
import numpy as np
import pytest
from helpers import own_parts
from helpers.runs import ROOT
from helpers.small_runs import SOURCE, damage, ladder_of, make_config

from diffusion_distillation.checkpoints import Checkpoints, load
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.loop import train
from diffusion_distillation.training.runs import read_config, read_metrics


def bytes_on_first_device():
    """Bytes that this process has allocated."""
    gc.collect()
    device = jax.devices()[0]
    shards = [shard for array in jax.live_arrays() for shard in array.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def test_devices_hold_as_much_as_the_documented_table_says(tmp_path):
    """The second student too: the first teacher is freed."""
    base = make_config(num_train_steps=5)
    with base.unlocked():
        base.model.name, base.model.args = "helpers.own_parts:heavy", {}
        base.train.shard = "all"
    train(base, tmp_path / "base", SOURCE)
    config = ladder_of(base, tmp_path / "base")
    before, held = bytes_on_first_device(), {}

    def on_metrics(step, values):
        held[values["num_steps"]] = bytes_on_first_device() - before

    run_ladder(config, tmp_path / "ladder", SOURCE, on_metrics=on_metrics)
    table = runpy.run_path(str(ROOT / "scripts" / "benchmarks" / "memory.py"))
    gradients = 512 * 512 * 4 / 8  # which are freed after the step
    expected = table["bytes_per_device"](*table["training_state"](config, SOURCE.image_shape, 1), 8) - gradients
    assert expected == pytest.approx(4 * gradients, rel=1e-3)  # parameters, Adam's moments and the teacher
    for num_steps in (2, 1):
        assert held[num_steps] == pytest.approx(expected, rel=0.02)


def test_a_state_is_held_once_while_it_is_saved(tmp_path, monkeypatch):
    """Devices do not hold a packed state in another form too while it is saved or evaluated."""
    base = make_config(num_train_steps=5)
    with base.unlocked():
        base.model.name, base.model.args = "helpers.own_parts:heavy", {}
    held, others = [], {id(array): array for array in jax.live_arrays()}  # of earlier tests

    def measure(*_):
        gc.collect()
        arrays = [array for array in jax.live_arrays() if id(array) not in others]
        held.append(sum(array.nbytes for array in arrays if len(array.devices()) == 8))

    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, *state: (measure(), save(self, *state)))
    train(base, tmp_path, SOURCE, on_eval=measure)
    state = 4 * 512 * 512 * 4  # the parameters, their average and Adam's moments
    assert held == pytest.approx([state, state], rel=0.02)


def test_a_damaged_config_of_a_student_is_named_and_may_be_deleted(tmp_path):
    """The error names the file. Without the file, the student counts as one of the ladder's config."""
    train(make_config(num_train_steps=5), tmp_path / "base", SOURCE)
    config, ladder = ladder_of(make_config(num_train_steps=5), tmp_path / "base"), tmp_path / "ladder"
    run_ladder(config, ladder, SOURCE)
    path = ladder / "steps_0002" / "config.json"
    written = path.read_text()
    path.write_text("{")
    with pytest.raises(ValueError, match=r"steps_0002/config.json' cannot be read as JSON.*delete this file"):
        run_ladder(config, ladder, SOURCE)
    path.unlink()
    with pytest.raises(ValueError, match=r"steps_0002/config.json' is missing"):
        read_config(as_path(path.parent))
    run_ladder(config, ladder, SOURCE)
    assert path.read_text() == written


def test_a_teacher_that_students_cannot_learn_from_leaves_no_ladder(tmp_path):
    base = make_config(num_train_steps=5)
    train(base, tmp_path / "base", SOURCE)
    config = ladder_of(base, tmp_path / "base", **{"distillation.teacher_guidance": 1.0})
    with pytest.raises(ValueError, match=r"cannot be guided, which .*teacher_guidance=1.0 needs"):
        run_ladder(config, tmp_path / "ladder", SOURCE)
    assert not (tmp_path / "ladder").exists()


def test_a_changed_ladder_keeps_its_finished_students(tmp_path, capsys):
    """The other students are trained with the new config."""
    base, ladder = make_config(num_train_steps=5), tmp_path / "ladder"
    train(base, tmp_path / "base", SOURCE)
    run_ladder(ladder_of(base, tmp_path / "base"), ladder, SOURCE)
    shutil.rmtree(ladder / "steps_0001")
    first = load(ladder / "steps_0002")[0]
    changed = ladder_of(base, tmp_path / "base", **{"distillation.steps_per_iter": 10})
    with pytest.raises(ValueError, match="steps_per_iter is 5 there and 10 here"):
        run_ladder(changed, ladder, SOURCE)
    for change in (True, False):
        run_ladder(changed, ladder, SOURCE, change=change)
        assert [load(ladder / f"steps_000{n}")[1].step for n in (2, 1)] == [5, 10]
    jax.tree.map(np.testing.assert_array_equal, first, load(ladder / "steps_0002")[0])
    assert "steps_0001: finished, 10 updates" in capsys.readouterr().out


def test_a_ladder_whose_config_names_no_method_resumes(tmp_path):
    """As in earlier versions, which had one method."""
    base = make_config(num_train_steps=5)
    train(base, tmp_path / "base", SOURCE)
    config = ladder_of(base, tmp_path / "base")
    run_ladder(config, tmp_path / "ladder", SOURCE)
    for path in (tmp_path / "ladder").rglob("config.json"):
        earlier = json.loads(path.read_text())
        del earlier["distillation"]["method"]
        path.write_text(json.dumps(earlier))
    run_ladder(config, tmp_path / "ladder", SOURCE)


@pytest.mark.parametrize("done", ["finished", "half-way"])
def test_a_ladder_does_not_resume_with_a_retrained_teacher(tmp_path, done):
    """The new teacher has the path of the old one. The students would have two different teachers."""
    base, ladder = make_config(num_train_steps=5), tmp_path / "ladder"
    train(base, tmp_path / "base", SOURCE)
    run_ladder(ladder_of(base, tmp_path / "base"), ladder, SOURCE)
    if done == "half-way":
        shutil.rmtree(ladder / "steps_0001")
    longer = make_config(num_train_steps=10)
    train(longer, tmp_path / "base", SOURCE, change=True)
    again = ladder_of(longer, tmp_path / "base", **{"train.num_train_steps": 5})
    with pytest.raises(ValueError, match=r"the teacher changed \(fingerprint \w+ there, \w+ here\).* --change"):
        run_ladder(again, ladder, SOURCE)
    for change in (True, False):
        run_ladder(again, ladder, SOURCE, change=change)


def test_a_student_does_not_resume_with_a_retrained_student_as_its_teacher(tmp_path, caplog):
    """A finished student stays, and a warning names it."""
    base, ladder = make_config(num_train_steps=5), tmp_path / "ladder"
    train(base, tmp_path / "base", SOURCE)
    config = ladder_of(base, tmp_path / "base", **{"train.retain_checkpoint_every_steps": 5, "train.substeps": 1})
    with config.unlocked():
        config.distillation.steps_per_iter = 10
    run_ladder(config, ladder, SOURCE)
    shutil.rmtree(ladder / "steps_0002")
    run_ladder(config, ladder, SOURCE)  # a run is a function of its config, so this is the same student
    assert "another teacher" not in caplog.text
    shutil.rmtree(ladder / "steps_0002")
    (ladder / "config.json").unlink()
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.distillation.stages = {"2": {"learning_rate": 0.5}}
    run_ladder(other, ladder, SOURCE)
    assert "steps_0001 was distilled from another teacher" in caplog.text
    shutil.rmtree(ladder / "steps_0001" / "checkpoints" / "10")
    with pytest.raises(ValueError, match=r"steps_0001' holds a run with other inputs: the teacher changed"):
        run_ladder(other, ladder, SOURCE)


def test_a_ladder_resumes_where_its_teacher_was_moved_to(tmp_path):
    base, ladder = make_config(num_train_steps=5), tmp_path / "ladder"
    train(base, tmp_path / "base", SOURCE)
    run_ladder(ladder_of(base, tmp_path / "base"), ladder, SOURCE)
    (tmp_path / "base").rename(tmp_path / "moved")
    run_ladder(ladder_of(base, tmp_path / "moved"), ladder, SOURCE)
    assert len((ladder / "environment.jsonl").read_text().splitlines()) == 2


def test_an_unfinished_teacher_is_named_in_a_warning(tmp_path, caplog):
    base = make_config(num_train_steps=5)
    train(base, tmp_path / "base", SOURCE)

    def load_model(path):
        params, metadata = load(path)
        return params, dataclasses.replace(metadata, step=3)

    run_ladder(ladder_of(base, tmp_path / "base"), tmp_path / "ladder", SOURCE, load_model=load_model)
    assert "is not finished: it has done 3 of 5 updates" in caplog.text


def test_the_teacher_is_loaded_once(tmp_path):
    """A ladder loads it for its checks and for the first student. Later students learn from students."""
    base, loaded = make_config(num_train_steps=5), []
    train(base, tmp_path / "base", SOURCE)

    def load_model(path):
        loaded.append(path)
        return load(path)

    run_ladder(ladder_of(base, tmp_path / "base"), tmp_path / "ladder", SOURCE, load_model=load_model)
    assert loaded == [str(tmp_path / "base")]


def test_a_finished_student_with_a_damaged_last_checkpoint_is_trained_to_its_end_again(tmp_path, caplog):
    """It resumes from the checkpoint before, ends in the same parameters, and so remains the next student's teacher."""
    base, ladder = make_config(num_train_steps=5), tmp_path / "ladder"
    train(base, tmp_path / "base", SOURCE)
    often = {"distillation.steps_per_iter": 10, "train.substeps": 5, "train.retain_checkpoint_every_steps": 5}
    config = ladder_of(base, tmp_path / "base", **often)
    run_ladder(config, ladder, SOURCE)
    expected = load(ladder / "steps_0002")[0]
    damage(ladder / "steps_0002" / "checkpoints" / "10")
    run_ladder(config, ladder, SOURCE)
    assert "10 is damaged" in caplog.text and "Using step 5 instead" in caplog.text
    params, metadata = load(ladder / "steps_0002")
    assert metadata.step == 10
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert "another teacher" not in caplog.text


def test_an_edited_method_is_compiled_anew(tmp_path, monkeypatch):
    """A session may reload the module that a config names."""
    base = make_config(num_train_steps=5)
    train(base, tmp_path / "base", SOURCE)
    config = ladder_of(base, tmp_path / "base", **{"distillation.method": "helpers.own_parts:tract"})
    run_ladder(config, tmp_path / "one", SOURCE)
    original = own_parts.tract

    def edited(config, schedule):
        method = original(config, schedule)
        return method._replace(loss=lambda prediction, target, times: 0 * method.loss(prediction, target, times))

    monkeypatch.setattr(own_parts, "tract", edited)
    run_ladder(config, tmp_path / "other", SOURCE)
    one, other = (read_metrics(as_path(tmp_path / name / "steps_0002"))[0]["loss"] for name in ("one", "other"))
    assert one > 0 and other == 0
