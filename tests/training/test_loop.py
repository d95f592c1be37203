"""The training loop, in this process and with a network that compiles in no time."""

import json
import re
import shutil
import signal
import struct
import sys

import jax
import numpy as np
import pytest
from helpers import own_parts
from helpers.runs import ROOT
from helpers.small_runs import SOURCE, damage, make_config, stop_at
from tensorboardX.proto.event_pb2 import Event

from diffusion_distillation.checkpoints import load, newest_step
from diffusion_distillation.runtime import signals
from diffusion_distillation.runtime.devices import is_divided
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training import loop, monitor
from diffusion_distillation.training.checks import check_processes
from diffusion_distillation.training.loop import Decisions, train
from diffusion_distillation.training.monitor import memory_of


class EvaluatedSteps(list):
    """An on_eval that records the steps at which it is called."""

    def __call__(self, params, metadata, workdir):
        self.append(metadata.step)


def test_a_slow_run_prints_how_long_it_will_take_before_its_first_metrics(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "ESTIMATE_SECONDS", 0.0)
    train(make_config(log_loss_every_steps=20, substeps=2), tmp_path, SOURCE)
    lines = capsys.readouterr().out.splitlines()
    [(number, estimate)] = [(number, line) for number, line in enumerate(lines) if "updates left" in line]
    assert re.search(r": about 0:00:\d\d for the 1[0-9] updates left$", estimate)
    assert number < next(number for number, line in enumerate(lines) if "step 20/20" in line)


def test_the_speed_before_calls_of_another_length_is_logged(tmp_path):
    """On accelerators, metrics are read one call later."""
    speeds = {}
    section = make_config(num_train_steps=23, log_loss_every_steps=10).train
    watched = monitor.Monitor(
        as_path(tmp_path), section, 0, on_metrics=lambda step, values: speeds.update({step: values["images_per_sec"]})
    )
    for call in (range(0, 10), range(10, 20), range(20, 23)):
        watched.add(call, {name: np.ones(len(call)) for name in ("loss", "gradient_norm", "skipped", "learning_rate")})
        watched.look(unseen=1)
    watched.look(unseen=0)
    watched.close()
    assert list(speeds) == [10, 20, 23] and min(speeds.values()) > 0


def test_a_run_prints_its_plan_and_logs_its_metrics(tmp_path, capsys):
    """on_metrics, metrics.jsonl and TensorBoard's event files get the same metrics."""
    seen = {}
    train(make_config(), tmp_path, SOURCE, on_metrics=lambda step, values: seen.update({step: dict(values)}))
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*: 25 parameters, 64 images, 8 cpu devices", lines[0])
    assert lines[1].endswith("compiling the training step") and re.search(r"compiled and begun in \d+ s", lines[2])
    [estimate] = [line for line in lines if "updates left" in line]
    assert re.search(r": about 0:00:\d\d for the 15 updates left$", estimate)
    assert re.search(r"step 20/20  loss [\d.]+  [\d,]+ images/s  0:00:00 left$", lines[-1])
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [{"step": step} | values for step, values in seen.items()]
    assert list(seen) == [5, 10, 15, 20]
    assert read_events(tmp_path) == pytest.approx({(step, n): v for step, vs in seen.items() for n, v in vs.items()})


def test_settings_that_waste_a_run_are_named(tmp_path, caplog):
    train(make_config(), tmp_path / "one", SOURCE)
    [warning] = [record.message for record in caplog.records if "loop" in record.pathname]
    assert warning.endswith(
        "still has 12% of its initial parameters after 20 updates. Set config.train.ema_decay=0.891251 or less."
    )
    caplog.clear()
    train(make_config(ema_decay=0.5, learning_rate_warmup_steps=40), tmp_path / "other", SOURCE)
    [warning] = [record.message for record in caplog.records if "loop" in record.pathname]
    assert "warmup_steps=40 is longer than the run of 20 updates: the learning rate only reaches 50%" in warning


def test_a_run_of_one_update_logs_its_loss(tmp_path, capsys):
    train(make_config(num_train_steps=1), tmp_path, SOURCE)
    assert re.search(r"step 1/1  loss [\d.]+  [\d,]+ images/s  0:00:00 left", capsys.readouterr().out)


def read_events(folder):
    """The scalars of TensorBoard's event files. A record is a length, a checksum, the event, a checksum."""
    found = {}
    for path in folder.glob("events.out.tfevents.*"):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            content = content[16 + length :]
    return found


@pytest.mark.parametrize("slow", [0.0, 1e9])
def test_metrics_are_read_at_most_one_call_late(tmp_path, monkeypatch, slow):
    """If calls are slow, all metrics are read before the next call."""
    unseen, most = [0], [0]
    add, check = monitor.Monitor.add, monitor.Health.check
    monkeypatch.setattr(loop, "SLOW", slow)

    def counting_add(self, call, metrics):
        unseen[0] += len(call)
        most[0] = max(most[0], unseen[0]) if call.start > 2 else 0  # the first calls tell how slow they are
        return add(self, call, metrics)

    def counting_check(self, metrics):
        unseen[0] -= len(metrics["loss"])
        check(self, metrics)

    monkeypatch.setattr(monitor.Monitor, "add", counting_add)
    monkeypatch.setattr(monitor.Health, "check", counting_check)
    train(make_config(), tmp_path, SOURCE)
    assert unseen[0] == 0 and most[0] == (2 if slow else 1)


@pytest.mark.parametrize("step", [10, 20])
def test_a_signal_saves_and_stops_and_the_run_resumes_to_the_same_end(tmp_path, step, capsys):
    """A signal at the last step skips the evaluation, which the next start makes up for."""
    train(make_config(), tmp_path / "undisturbed", SOURCE)
    evaluated = EvaluatedSteps()
    with pytest.raises(SystemExit) as stopped:
        train(make_config(), tmp_path / "run", SOURCE, on_eval=evaluated, on_metrics=stop_at(step))
    assert stopped.value.code == 128 + signal.SIGTERM and evaluated == []
    assert step <= load(tmp_path / "run")[1].step <= step + 2
    assert "run the same command again to resume" in capsys.readouterr().err
    train(make_config(), tmp_path / "run", SOURCE, on_eval=evaluated)
    assert evaluated == [20]
    one, other = load(tmp_path / "undisturbed")[0], load(tmp_path / "run")[0]
    jax.tree.map(np.testing.assert_array_equal, one, other)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("undisturbed", "run")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in logs]
    assert losses[0][-1] == pytest.approx(losses[1][-1])


def test_a_run_does_not_depend_on_jaxs_default_random_generator(tmp_path):
    train(make_config(), tmp_path / "one", SOURCE)
    jax.config.update("jax_default_prng_impl", "rbg")
    try:
        train(make_config(), tmp_path / "other", SOURCE)
    finally:
        jax.config.update("jax_default_prng_impl", "threefry2x32")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "one")[0], load(tmp_path / "other")[0])


def test_decisions_of_one_process_are_taken_at_once():
    decisions = Decisions()
    assert decisions.take(0, False, False) == (0, False)
    assert decisions.take(15, True, True) == (15, True)
    assert decisions.slow


def test_decisions_of_several_processes_are_taken_one_call_later(monkeypatch):
    """If calls are slow, decisions of that call are taken at once. All processes agree on that too."""
    others = iter([[0, 0, 0], [2, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]])

    def ask(values):
        answer = [max(pair) for pair in zip(values, next(others), strict=True)]
        return lambda: answer

    monkeypatch.setattr(loop.multihost, "all_max_async", ask)
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    decisions = Decisions()
    taken = [decisions.take(0, False, False) for _ in range(5)]
    assert taken == [(0, False), (0, False), (2, False), (0, False), (0, True)]
    assert decisions.slow is False


def test_memory_is_shown_where_the_device_reports_it():
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert memory_of(Device(None)) == memory_of(Device({})) == ""
    assert memory_of(Device({"peak_bytes_in_use": 31.23e9})) == "  31.2 GB"
    assert memory_of(Device({"peak_bytes_in_use": 31.23e9, "bytes_limit": 79e9})) == "  31.2 of 79.0 GB"


def test_processes_that_disagree_are_named(monkeypatch):
    config = make_config()
    check_processes(config, SOURCE)
    monkeypatch.setattr(loop.multihost, "all_gather", lambda values: [values, [63, *values[1:]]])
    with pytest.raises(ValueError, match=r"Process 0 reads 64 images of 8x8x1 in 1 class.*, process 1 reads 63 images"):
        check_processes(config, SOURCE)
    monkeypatch.undo()
    first = config.copy_and_resolve_references()
    with first.unlocked():
        first.train.learning_rate = 0.5
    monkeypatch.setattr(loop.multihost, "broadcast", lambda text: first.to_json())
    with pytest.raises(ValueError, match=r"config.train.learning_rate is 0.5 in process 0 and 0.01 in process 0: give"):
        check_processes(config, SOURCE)


def test_a_finished_run_is_extended(tmp_path):
    """In its own folder with `change`, or in a new one with `init_from`; both end in the same parameters."""
    train(make_config(), tmp_path / "run", SOURCE)
    longer = dict(num_train_steps=30, learning_rate=1e-3)
    with pytest.raises(
        ValueError, match=r"num_train_steps is 20 there and 30 here; .*init_from=\S+run continues.*--change"
    ):
        train(make_config(**longer), tmp_path / "run", SOURCE)
    train(make_config(**longer, init_from=str(tmp_path / "run")), tmp_path / "new", SOURCE)
    before = load(tmp_path / "run")
    assert before[1].step == 20
    train(make_config(**longer), tmp_path / "run", SOURCE, change=True)
    for folder in ("run", "new"):
        params, metadata = load(tmp_path / folder)
        assert (metadata.step, metadata.config.train.num_train_steps) == (30, 30)
        jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path / "run")[0])
    assert np.any(params["Dense_0"]["kernel"] != before[0]["Dense_0"]["kernel"])
    history = json.loads((tmp_path / "run" / "config_history.jsonl").read_text())
    assert history["step"] == 20 and [change["field"] for change in history["changes"]] == [
        "train.num_train_steps", "train.learning_rate",
    ]  # fmt: skip
    train(make_config(**longer), tmp_path / "run", SOURCE)  # `change` is needed only once


def test_init_from_must_exist_and_leave_updates_to_do(tmp_path):
    train(make_config(), tmp_path / "run", SOURCE)
    messages = {"nowhere": "No checkpoint in", "run": "has done 20 updates, which .*=20 includes"}
    for source, message in messages.items():
        with pytest.raises(ValueError, match=message):
            train(make_config(init_from=str(tmp_path / source)), tmp_path / "new", SOURCE)
    assert not (tmp_path / "new").exists()


def test_init_from_takes_parameters_from_elsewhere_once(tmp_path):
    """The run starts at step 0 with a new state. Resuming does not load the parameters again."""
    train(make_config(), tmp_path / "run", SOURCE)
    given, asked = load(tmp_path / "run"), []

    def load_model(path):
        asked.append(path)
        return given

    config = make_config(init_from="elsewhere://model", learning_rate=0.0, num_train_steps=5, ema_decay=0.0)
    for _ in range(2):
        train(config, tmp_path / "new", SOURCE, load_model=load_model)
    assert asked == ["elsewhere://model"]
    params, metadata = load(tmp_path / "new")
    assert metadata.step == 5
    jax.tree.map(np.testing.assert_array_equal, params, given[0])
    other = make_config(init_from="elsewhere://model", num_train_steps=5)
    with other.unlocked():
        other.model.args.width = 4
    with pytest.raises(
        ValueError, match=r"init_from='elsewhere://model': config.model.args.width is 8 there and 4 here"
    ):
        train(other, tmp_path / "other", SOURCE, load_model=load_model)
    narrow = jax.tree.map(lambda leaf: leaf[..., :1], given[0])  # as if the user had edited the network
    with pytest.raises(ValueError, match=r"init_from='elsewhere://model' has another network: .* is \(.*\) there and"):
        train(config, tmp_path / "other", SOURCE, load_model=lambda path: (narrow, given[1]))
    assert not (tmp_path / "other").exists()


def test_a_run_resumes_with_a_config_that_lacks_newer_fields(tmp_path):
    train(make_config(), tmp_path, SOURCE)
    path = tmp_path / "config.json"
    earlier = json.loads(path.read_text())
    del earlier["train"]["init_from"], earlier["model"]["dtype"]
    path.write_text(json.dumps(earlier))
    train(make_config(), tmp_path, SOURCE)


def test_init_from_refuses_a_model_with_another_output(tmp_path):
    """The parameters alone would fit."""
    train(make_config(), tmp_path / "run", SOURCE)
    other = make_config(init_from=str(tmp_path / "run"), num_steps=30)
    with other.unlocked():
        other.model.mean_type = "eps"
    with pytest.raises(ValueError, match=r"config\.model\.mean_type is 'x' there and 'eps' here"):
        train(other, tmp_path / "new", SOURCE)
    assert not (tmp_path / "new").exists()


def test_training_does_not_resume_on_other_data(tmp_path):
    images, labels = (SOURCE[np.arange(64)][name] for name in ("image", "label"))
    config = make_config(num_train_steps=10, retain_checkpoint_every_steps=5)
    train(config, tmp_path, SOURCE)
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    with pytest.raises(ValueError, match="the training data changed"):
        train(config, tmp_path, own_parts.ArraySource(255 - images, labels, 1))
    named = own_parts.ArraySource(images, labels, 1)
    named.fingerprint = "version 2 of my images"
    with pytest.raises(ValueError, match="the training data changed"):
        train(config, tmp_path, named)


def test_a_finished_run_with_a_damaged_last_checkpoint_counts_as_unfinished(tmp_path, capsys):
    """So its inputs are checked again, and it resumes from the checkpoint before."""
    config = make_config(num_train_steps=10, retain_checkpoint_every_steps=5)
    train(config, tmp_path, SOURCE)
    expected = load(tmp_path)[0]
    other = own_parts.ArraySource(255 - SOURCE[np.arange(64)]["image"], np.zeros(64), 1)
    train(config, tmp_path, other)  # a finished run does not read its data
    damage(tmp_path / "checkpoints" / "10")
    with pytest.raises(ValueError, match="the training data changed"):
        train(config, tmp_path, other)
    train(config, tmp_path, SOURCE)
    assert "resuming at step 5" in capsys.readouterr().out
    params, metadata = load(tmp_path)
    assert metadata.step == 10
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_resuming_at_an_earlier_checkpoint_removes_later_output(tmp_path):
    """Otherwise, samples of the abandoned updates would pass for those of the new ones."""
    config = make_config(retain_checkpoint_every_steps=10, eval_every_steps=10)

    def on_eval(params, metadata, workdir):
        grid = workdir / "samples" / f"step_{metadata.step:07d}.png"
        grid.parent.mkdir(exist_ok=True)
        if not grid.exists():
            grid.write_text(metadata.config.to_json())

    train(config, tmp_path, SOURCE, on_eval=on_eval)
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    with config.unlocked():
        config.train.learning_rate = 0.5
    train(config, tmp_path, SOURCE, on_eval=on_eval, change=True)
    rates = [
        json.loads(grid.read_text())["train"]["learning_rate"] for grid in sorted((tmp_path / "samples").iterdir())
    ]
    assert rates == [1e-2, 0.5]


def test_a_start_is_recorded_with_its_environment(tmp_path):
    config = make_config(num_train_steps=10, retain_checkpoint_every_steps=5)
    train(config, tmp_path, SOURCE)
    train(config, tmp_path, SOURCE)  # a finished run does not start
    shutil.rmtree(tmp_path / "checkpoints" / "10")
    train(config, tmp_path, SOURCE)
    first, second = map(json.loads, (tmp_path / "environment.jsonl").read_text().splitlines())
    assert first["versions"]["jax"] == jax.__version__ and first["devices"] == {"kind": "cpu", "count": 8}
    assert first["time"] <= second["time"] and first["command"]
    assert (first["commit"] is not None) == (ROOT / ".git").exists()


class Kept(dict):
    """An on_eval that keeps its parameters, by step."""

    def __call__(self, params, metadata, workdir):
        self[metadata.step] = params


@pytest.mark.parametrize("how", [dict(), dict(shard="all")], ids=["packed", "sharded"])
def test_a_hook_may_keep_the_parameters(tmp_path, how):
    """The parameters of every evaluation last, though the next step uses up the state."""
    kept = Kept()
    train(make_config(eval_every_steps=5, **how), tmp_path, SOURCE, on_eval=kept)
    assert list(kept) == [5, 10, 15, 20]
    assert np.any(kept[5]["Dense_0"]["kernel"] != kept[20]["Dense_0"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, kept[20], load(tmp_path)[0])
    as_trained = load(tmp_path, shard=None)[0]
    assert is_divided(as_trained) == is_divided(kept[20]) == ("shard" in how)
    jax.tree.map(np.testing.assert_array_equal, kept[20], as_trained)


def test_ctrl_c_saves_and_raises(tmp_path):
    """In a notebook, the run stops with KeyboardInterrupt and restores the signal handlers and streams."""
    before = [signal.getsignal(number) for number in signals.SIGNALS], sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt):
        train(make_config(), tmp_path, SOURCE, on_metrics=stop_at(10, signal.SIGINT))
    assert load(tmp_path)[1].step >= 10
    assert ([signal.getsignal(number) for number in signals.SIGNALS], sys.stdout, sys.stderr) == before


def test_a_second_ctrl_c_raises_at_once(tmp_path):
    stop = stop_at(10, signal.SIGINT)

    def twice(*at):
        stop(*at)
        stop(*at)

    with pytest.raises(KeyboardInterrupt):
        train(make_config(), tmp_path, SOURCE, on_metrics=twice)
    assert newest_step(as_path(tmp_path)) is None


def test_other_signals_are_left_alone(monkeypatch):
    """This includes signals with Python handlers, while a script stops for SIGTERM."""
    exits, came = [], []
    monkeypatch.setattr(signals.multihost, "exit_now", exits.append)
    earlier = signal.signal(signal.SIGUSR1, lambda *_: came.append("USR1"))
    try:
        with signals.exit_on_signals():
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert exits == [128 + signal.SIGTERM] and came == ["USR1"]
