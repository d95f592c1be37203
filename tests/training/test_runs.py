import errno
import json
import logging
import os
from datetime import datetime

import pytest
from ml_collections import ConfigDict

from diffusion_distillation import config as cfg
from diffusion_distillation.errors import InputError
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import MetricsLog, forget_after, locked, open_run, read_inputs


def full_config():
    config = cfg.defaults()
    config.dataset.name = "digits"
    config.model.args.update(ch=32, emb_ch=32, ch_mult=(1,), num_res_blocks=0, attn_resolutions=(), num_heads=1)
    config.train.update(batch_size=16, learning_rate=1e-3, ema_decay=0.9)
    return config


def test_a_workdir_holds_a_run_of_one_config(tmp_path):
    config = cfg.resolve(full_config()).unlock()
    open_run(tmp_path / "new", config)
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == json.loads(config.to_json())
    config.train.substeps = 5  # the result does not depend on it
    config.eval.num_samples = 7
    open_run(tmp_path / "new", config)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["train"]["substeps"] == 5
    config.train.learning_rate = 0.2
    with pytest.raises(
        ValueError,
        match=r"another config: config.train.learning_rate is 0.001 there and 0.2 here\. Pass another --workdir, where "
        r"--config.train.init_from=\S+ continues .*\. Or add --change to continue this run",
    ):
        open_run(tmp_path / "new", config)


def test_a_change_is_recorded_if_the_state_still_fits(tmp_path):
    """Fields that would need another state cannot be changed."""
    config = full_config()

    def open_with(change=True, **fields):
        changed = cfg.resolve(config)
        with changed.unlocked():
            changed.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        open_run(tmp_path, changed, change=change)

    open_with()
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="--change"):
        open_with(change=False, train__num_train_steps=10)
    for fixed, message in (
        (dict(model__args__ch=64, model__args__dropout=0.5), "config.model.args.ch"),
        (dict(model__mean_type="v", train__num_train_steps=10), "config.model.mean_type"),
        (dict(dataset__name="CIFAR10"), "config.dataset.name"),
        (dict(train__optimizer="momentum"), "config.train.optimizer"),
        (dict(train__ema_decay=0.0), "whether an average is kept"),
    ):
        with pytest.raises(ValueError, match=f"cannot be changed in {message}.*: its state would not fit"):
            open_with(**fixed)
    assert (tmp_path / "config.json").read_text() == before
    assert not (tmp_path / "config_history.jsonl").exists()
    open_with(train__num_train_steps=10)
    for step in (5, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    open_with(train__num_train_steps=20, train__learning_rate=0.5, train__ema_decay=0.99, train__substeps=5)
    open_with(change=False, train__num_train_steps=20, train__learning_rate=0.5, train__ema_decay=0.99)
    first, second = (json.loads(line) for line in (tmp_path / "config_history.jsonl").read_text().splitlines())
    assert (first["step"], second["step"]) == (None, 10)
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])
    assert first["changes"] == [dict(field="train.num_train_steps", old=800_000, new=10)]
    assert {change["field"]: (change["old"], change["new"]) for change in second["changes"]} == {
        "train.num_train_steps": (10, 20),
        "train.learning_rate": (1e-3, 0.5),
        "train.ema_decay": (0.9, 0.99),
    }


def test_inputs_are_compared_by_content_and_not_by_path(tmp_path):
    config = full_config()

    def open_with(data, path, change=False):
        config.dataset.args = dict(path=path)
        open_run(tmp_path, cfg.resolve(config), change, dict(data=data))

    open_with("aa", "here")
    open_with("aa", "moved/elsewhere")
    with pytest.raises(InputError, match=r"the training data changed \(fingerprint aa there, bb here\).*--change"):
        open_with("bb", "moved/elsewhere")
    assert read_inputs(as_path(tmp_path)) == dict(data="aa")
    open_with("bb", "moved/elsewhere", change=True)
    open_with("bb", "moved/elsewhere")
    history = json.loads((tmp_path / "config_history.jsonl").read_text())
    assert history["changes"] == [dict(field="data", old="aa", new="bb")]


def test_a_run_without_recorded_inputs_is_compared_by_path(tmp_path):
    """As in runs of earlier versions."""
    config = full_config()
    config.dataset.args = dict(path="here")
    open_run(tmp_path, cfg.resolve(config))
    config.dataset.args = dict(path="elsewhere")
    with pytest.raises(InputError, match=r"config\.dataset\.args\.path is '/\S+here' there and '/\S+elsewhere' here"):
        open_run(tmp_path, cfg.resolve(config), inputs=dict(data="aa"))


def test_output_of_later_steps_is_removed(tmp_path):
    run = as_path(tmp_path)
    for name in ("samples/step_0000010.png", "samples/step_0000020.png", "samples/mine.png"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    for step in (10, 20):
        (run / "best" / "checkpoints" / str(step)).mkdir(parents=True)
    (run / "evaluations.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    forget_after(run, 10)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["mine.png", "step_0000010.png"]
    assert [path.name for path in (run / "best" / "checkpoints").iterdir()] == ["10"]
    assert (run / "evaluations.jsonl").read_text() == '{"step": 10}\n'


@pytest.mark.parametrize("content", ["", '{"seed": 0, "tra', "[]", "null"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config.json' cannot be read as JSON .* delete this file"):
        open_run(tmp_path, ConfigDict(dict(seed=0)))
    assert (tmp_path / "config.json").read_text() == content


def test_a_run_is_kept_in_a_bucket(bucket, caplog):
    config = cfg.resolve(full_config())
    with locked("gs://bucket/run"):
        open_run("gs://bucket/run", config)
        open_run("gs://bucket/run", config)
        for start in (0, 20):
            log = MetricsLog("gs://bucket/run", start)
            log.write(start + 20, {"loss": 0.5})
            log.write(start + 30, {"loss": 0.5})
    assert "a bucket has no locks" in caplog.text
    assert json.loads((bucket / "run" / "config.json").read_text()) == json.loads(config.to_json())
    lines = (bucket / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 40, 50]


def test_metrics_of_repeated_steps_are_replaced(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": 0.5})
    with open(log.path, "a") as file:
        file.write("\0\0\n")  # after a power failure
        file.write('{"step": 4')  # killed while writing
    MetricsLog(tmp_path, 20).write(30, {"loss": 0.25})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [{"step": step, "loss": loss} for step, loss in ((10, 0.5), (20, 0.5), (30, 0.25))]


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert "its file system has no locks" in caplog.text
