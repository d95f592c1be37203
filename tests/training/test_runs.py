import errno
import json
import logging
import os

import pytest
from ml_collections import ConfigDict

from diffusion_distillation.training.runs import MetricsLog, locked, open_run


def test_a_workdir_is_of_one_config(tmp_path):
    config = ConfigDict(dict(seed=0, train=dict(learning_rate=0.1, substeps=10), eval=dict(num_samples=3)))
    open_run(tmp_path / "new", config)
    assert json.loads((tmp_path / "new" / "config.json").read_text()) == config.to_dict()
    config.train.substeps = 5  # does not shape the result
    config.eval.num_samples = 7
    open_run(tmp_path / "new", config)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["train"]["substeps"] == 5
    config.train.learning_rate = 0.2
    with pytest.raises(
        ValueError, match=r"another config: config.train.learning_rate is 0.1 there and 0.2 here\. Give"
    ):
        open_run(tmp_path / "new", config)


def test_metrics_of_steps_that_are_done_again_go(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 4')  # killed while it wrote
    MetricsLog(tmp_path, 20).write(30, {"loss": 0.25})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [{"step": step, "loss": loss} for step, loss in ((10, 0.5), (20, 0.5), (30, 0.25))]


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with caplog.at_level(logging.WARNING), locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert "its file system has no locks" in caplog.text
