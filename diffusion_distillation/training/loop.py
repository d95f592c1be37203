"""The training loop, one for base models and students."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from ..checkpoints import (
    Checkpoints,
    Metadata,
    abstract_params,
    check_path,
    load,
    newest_step,
    params_hash,
    restore_from,
)
from ..config import PATHS
from ..data import Source, fingerprint, read_batches
from ..errors import DivergedError, InputError
from ..keys import seed_key
from ..methods import find_method
from ..networks.model import Network, count_params, extended, init_params, make_network
from ..runtime import multihost
from ..runtime.console import safe_output, show_progress
from ..runtime.devices import abstract, data_mesh, describe_devices, host_device, to_host
from ..runtime.files import as_path, is_remote
from ..runtime.multihost import print_on_main
from ..runtime.signals import RESUME_HINT, Interrupt, stopped
from ..shapes import Params
from .compatibility import check_same_model
from .runner import CallMetrics, Runner, begin, check_batch_size, make_runner, state_shardings
from .runs import MetricsLog, differences, forget_after, locked, open_run, record_environment
from .step import Batch, Teacher, TrainState, doubts, init_state

MOST_BAD_STEPS = 100
LAST = ("skipped", "learning_rate")  # metrics of which not the mean is shown, but what they have come to
SLOW = 2.0  # seconds that a call of the devices takes from which on none is queued behind it
OnEval = Callable[[Params, Metadata, epath.Path], None]
OnMetrics = Callable[[int, Mapping[str, float]], None]
Load = Callable[[epath.PathLike], tuple[Params, Metadata]]


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    *,
    teacher: Teacher | None = None,
    on_eval: OnEval | None = None,
    on_metrics: OnMetrics | None = None,
    change: bool = False,
    load_model: Load = load,
) -> None:
    """Trains for config.train.num_train_steps updates, from the newest checkpoint in the workdir if there is one.

    Args:
      config: resolved; for a student, that of its rung (`config.rung_config`).
      workdir: the run's folder.
      source: the images.
      teacher: for a student, which starts from the teacher's parameters.
      on_eval: called as `on_eval(params, metadata, workdir)` every eval_every_steps and at the end, in every process;
        and when a run that was stopped meanwhile resumes, so it should check for itself whether all is done. The
        parameters are NumPy arrays, which it may keep.
      on_metrics: called as `on_metrics(step, values)` with what is written to metrics.jsonl, in the main process.
      change: continue a run that had another config, other data or another teacher, see `runs.open_run`.
      load_model: gives the parameters and the metadata at train.init_from, where that is no run of ours.

    Raises:
      InputError: if the workdir's run has another config, other data or another teacher, or if a batch or a network
        does not fit the devices or the images. It is raised before anything is compiled.
      KeyboardInterrupt: after SIGINT, such as Ctrl-C or a notebook's stop button, once the state is saved; call `train`
        again to resume. A second SIGINT raises it at once.
      SystemExit: after SIGTERM, likewise, with the status 128 + SIGTERM.
    """
    workdir = as_path(workdir)
    metadata, network, mesh, initial = prepare(config, workdir, source, teacher=teacher, load_model=load_model)
    with safe_output(), locked(workdir):
        finished = multihost.on_main(lambda: (newest_step(workdir) or 0) >= config.train.num_train_steps)
        # What is finished learns nothing any more: its record stays.
        open_run(workdir, config, change, {} if finished else inputs_of(source, teacher and teacher.params))
        if not finished:
            record_environment(workdir)
        runner = _runner(_what_shapes_a_step(config), find_method(config), network, mesh)
        with Checkpoints(workdir, config.train.retain_checkpoint_every_steps) as checkpoints:
            run = _Run(metadata, workdir, mesh, source, teacher, initial, on_eval, on_metrics, runner, checkpoints)
            _resume(run)


class Prepared(NamedTuple):
    """What a run starts with.

    Attributes:
      metadata: of its checkpoints.
      network: the network to train.
      mesh: the mesh of all devices.
      initial: returns the initial parameters.
    """

    metadata: Metadata
    network: Network
    mesh: Mesh
    initial: Callable[[], Params]


def prepare(
    config: ConfigDict,
    workdir: epath.Path,
    source: Source,
    *,
    teacher: Teacher | None = None,
    load_model: Load = load,
) -> Prepared:
    """Check all that can be checked before a run's folder is created. Arguments and errors are those of `train`."""
    mesh = data_mesh()
    check_path(workdir)
    check_processes(config, source)
    if config.train.label_dropout and source.num_classes == 1:
        raise InputError(
            f"config.train.label_dropout={config.train.label_dropout} leaves out labels, and the dataset has one "
            "class: set config.dataset.args.class_conditional=True."
        )
    if (newest_step(workdir) or 0) < config.train.num_train_steps:
        check_batch_size(config.train, mesh)
    network = make_network(config.model, source.image_shape, source.num_classes)
    num_steps = int(teacher.rung.num_steps) if teacher else 0
    names = getattr(source, "class_names", None)
    metadata = Metadata(
        config=config,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        num_steps=num_steps,
        class_names=names,
    )
    begun = multihost.on_main(lambda: newest_step(workdir) is not None)
    initial = _initial_params(metadata, network, teacher, load_model, begun=begun)
    return Prepared(metadata, network, mesh, initial)


class _Run(NamedTuple):
    """What a run consists of, from its first step to its last."""

    metadata: Metadata
    workdir: epath.Path
    mesh: Mesh
    source: Source
    teacher: Teacher | None
    initial: Callable[[], Params]
    on_eval: OnEval | None
    on_metrics: OnMetrics | None
    runner: Runner
    checkpoints: Checkpoints

    @property
    def call_length(self) -> int:
        """The updates of a call of the devices."""
        return self.metadata.config.train.substeps if self.runner.in_one_call else 1

    def evaluate(self, state: TrainState, step: int) -> None:
        """Shows what the model has learned, to whom asked for it."""
        if self.on_eval is not None:
            # Hooks may keep the parameters, and the next step uses up the state: copy them.
            params = to_host(self.runner.collect(state.sampling_params))
            self.on_eval(params, dataclasses.replace(self.metadata, step=step), self.workdir)


def inputs_of(source: Source, teacher: Params | None = None) -> dict[str, str]:
    """The fingerprints of what a run learns from, see `runs.INPUTS`."""
    return {"data": fingerprint(source), **({} if teacher is None else {"teacher": params_hash(teacher)})}


def check_processes(config: ConfigDict, source: Source) -> None:
    """Raises an InputError that names the difference, if processes have another config or other data than the first."""
    theirs, ours = json.loads(multihost.broadcast(config.to_json())), json.loads(config.to_json())
    paths = {f"{section}.{name}" for section, name in PATHS}
    named = "; ".join(
        f"config.{field} is {of_first!r} in process 0 and {of_ours!r} in process {jax.process_index()}"
        for field, of_first, of_ours in differences(theirs, ours)
        if field not in paths  # hosts may have the same files in other places
    )
    content = int(fingerprint(source)[:7], 16)  # as many digits as fit an int32
    data = multihost.all_gather([len(source), *source.image_shape, source.num_classes, content])
    other = next((process for process, of_process in enumerate(data) if of_process != data[0]), None)
    if other is not None:
        of_first, of_other = (
            f"{length:,} images of {height}x{width}x{channels} in {classes} class(es), fingerprint {content:07x}"
            for length, height, width, channels, classes, content in (data[0], data[other])
        )
        raise InputError(
            f"Process 0 reads {of_first}, process {other} reads {of_other}: give all of them the same data."
        )
    if multihost.all_max([bool(named)])[0]:
        raise InputError(f"{named or 'The processes have different configs'}: give all of them the same command.")


def _initial_params(
    metadata: Metadata, network: Network, teacher: Teacher | None, load_model: Load, *, begun: bool
) -> Callable[[], Params]:
    """Gives the parameters that a run begins with, unless it goes on from a whole state.

    Raises:
      InputError: if it is to go on from train.init_from, and there is nothing, nothing left to do, or another network.
    """
    init_from, num_steps = metadata.config.train.init_from, metadata.config.train.num_train_steps
    key = seed_key(metadata.config.seed)

    def anew() -> Params:
        with jax.default_device(host_device()):  # not where kernels may be chosen by trial meanwhile
            return init_params(network, key, metadata.image_shape, metadata.num_classes)

    if teacher is not None:
        return lambda: teacher.params if teacher.network is None else extended(teacher.params, anew())
    if init_from is None or begun:
        return anew
    params, theirs = load_model(init_from)
    check_same_model(f"No model can start from config.train.init_from={init_from!r}", "there", theirs, metadata)
    if _is_run(init_from):
        if theirs.step >= num_steps:
            raise InputError(
                f"config.train.init_from={init_from!r} has done {theirs.step:,} updates, which "
                f"config.train.num_train_steps={num_steps:,} includes. Set config.train.num_train_steps to more."
            )
        return anew
    here, there = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (abstract_params(metadata), params)
    )
    if here != there:
        name = next(name for name in {**here, **there} if here.get(name) != there.get(name))
        raise InputError(
            f"config.train.init_from={init_from!r} is of another network: {name} is {there.get(name, 'missing')} "
            f"there and {here.get(name, 'missing')} here."
        )
    return lambda: params


def _is_run(path: str) -> bool:
    """Whether there is a whole state, to go on from, and not parameters alone."""
    return multihost.on_main(lambda: "://" not in path.removeprefix("gs://") and newest_step(as_path(path)) is not None)


def _resume(run: _Run) -> None:
    """Takes the run up where it stopped, or begins it, and goes on to the end."""
    config = run.metadata.config
    like = jax.eval_shape(functools.partial(init_state, config), abstract_params(run.metadata))
    shardings = state_shardings(like, run.mesh, shard=config.train.shard_state)
    with Interrupt() as interrupt:
        params, images, where = count_params(like.params), len(run.source), describe_devices(run.mesh)
        print_on_main(f"{run.workdir}: {params:,} parameters, {images:,} images, {where}")
        like = abstract(like, shardings)
        state = run.checkpoints.restore(like)
        if state is None and config.train.init_from is not None and _is_run(config.train.init_from):
            state = restore_from(config.train.init_from, like)
            run.checkpoints.save(state, run.metadata)  # from now on it does not depend on the other run
        step = 0 if state is None else int(state.step)
        multihost.on_main(functools.partial(forget_after, run.workdir, step))
        finished = step >= config.train.num_train_steps
        placed = None if state is None else run.runner.place(state, None if finished else run.teacher)
        del state  # or it would be there twice, as saved and as placed
        if step:
            print_on_main(
                f"{run.workdir}: {f'finished, {step:,} steps' if finished else f'going on from step {step:,}'}"
            )
        if finished or _due(range(max(step - run.call_length, 0), step), config.train.eval_every_steps):
            run.evaluate(placed[0], step)  # unless that is done; the run may have been stopped before it was
        if not finished:
            _go_on(run, like, placed, step, interrupt)


def _compile_and_begin(run: _Run, compile: Callable[[], None]) -> tuple[TrainState, Teacher | None]:
    """The state before the first step, placed, and the teacher; its parameters are drawn while `compile` compiles."""
    with ThreadPoolExecutor(1) as other:
        initial = other.submit(run.initial)
        compile()
    return run.runner.place(begin(run.metadata.config, initial.result(), run.mesh), run.teacher)


def _go_on(
    run: _Run,
    like: TrainState,
    placed: tuple[TrainState, Teacher | None] | None,
    step: int,
    interrupt: Interrupt,
) -> None:
    """The loop itself: from a step to the last, with all that is to be seen and kept on the way.

    Each round gives the devices one call more, and then looks at what the call before it brought; so the devices always
    have work, and are never far ahead of what is known of them.

    Args:
      run: what it is.
      like: the shapes of its state, as it is saved.
      placed: the state after `step` updates, and the teacher, as the runner wants them; None to begin.
      step: updates done.
      interrupt: tells of signals.
    """
    metadata, workdir, source, runner, checkpoints = run.metadata, run.workdir, run.source, run.runner, run.checkpoints
    train, key = metadata.config.train, seed_key(metadata.config.seed)
    length = run.call_length
    monitor, decisions = Monitor(run, step), Decisions()
    process = jax.process_index(), jax.process_count()
    ahead = read_batches(
        source, metadata.config.seed, range(step, train.num_train_steps), train.batch_size, process=process
    )
    saved_at, save_when_due = time.monotonic(), False

    def next_call() -> tuple[range, list[Batch]]:
        call = range(step, min((step // length + 1) * length, train.num_train_steps))
        return call, list(itertools.islice(ahead, len(call)))

    for doubt in doubts(train) if multihost.is_main() else ():
        logging.warning("%s: %s", workdir, doubt)
    print_on_main(f"{workdir}: compiling the training step")
    with contextlib.closing(ahead), contextlib.closing(monitor):
        call, batches = next_call()
        compile = functools.partial(runner.compile, like, key, run.teacher, batches)
        if placed is None:
            placed = _compile_and_begin(run, compile)
        else:
            compile()
        state, teacher = placed
        while step < train.num_train_steps:
            began = time.monotonic()
            state, metrics = runner.steps(state, key, teacher, batches)
            interrupt.nothing_to_save = False
            compiled = monitor.sent(call, metrics)
            done, step, last = call, call.stop, call.stop == train.num_train_steps
            call, batches = next_call()  # while the devices are at work
            monitor.look(unseen=0 if decisions.slow else 1)

            overdue = multihost.is_main() and time.monotonic() - saved_at > train.checkpoint_every_secs
            slow = not compiled and time.monotonic() - began > SLOW
            stop, overdue = decisions.take(interrupt.received, overdue, slow)
            save_when_due |= overdue
            to_evaluate = run.on_eval is not None and (last or _due(done, train.eval_every_steps))
            to_save = _due(done, train.retain_checkpoint_every_steps) or (save_when_due and step % train.substeps == 0)
            if last or stop or to_evaluate or to_save:
                monitor.look(unseen=0)
                if train.enable_update_skip or monitor.health.is_good:
                    checkpoints.save(runner.collect(state), metadata)
                elif last:  # the parameters are spoiled
                    raise DivergedError(
                        f"{workdir}: the last updates were not finite; the checkpoint before them is kept."
                    )
                saved_at, save_when_due = time.monotonic(), False
                decisions.forget()
            if last or to_evaluate:
                checkpoints.wait()
                interrupt.nothing_to_save = True  # a signal that comes now ends the process at once
                [stop] = multihost.all_max([interrupt.received])
            if stop:
                checkpoints.wait()
                saved = checkpoints.latest_step() or 0
                print(f"{workdir}: saved at step {saved:,}; {RESUME_HINT}", file=sys.stderr, flush=True)
                raise stopped(stop)
            if to_evaluate:
                with monitor.progress.paused():
                    run.evaluate(state, step)


class Decisions:
    """What all processes do together, by what each of them wishes.

    Where they are several, the answer to what they wished a call ago is taken, which is there by now, so that nothing
    waits for the devices; unless a call takes long anyway.

    Attributes:
      slow: whether the devices should be waited for after every call.
    """

    def __init__(self):
        self.slow = False
        self._asked: deque[Callable[[], list[int]]] = deque()

    def take(self, stop: int, save: bool, slow: bool) -> tuple[int, bool]:
        """The number of the signal to stop for, or 0, and whether to save; the arguments are this process's wishes."""
        self._asked.append(multihost.all_max_async([stop, save, slow]))
        to_wait = 0 if self.slow or jax.process_count() == 1 else 1
        answers = [self._asked.popleft()() for _ in range(len(self._asked) - to_wait)]
        if not answers:
            return 0, False
        stop, save, slow = map(max, zip(*answers, strict=True))
        self.slow = bool(slow)
        return stop, bool(save)

    def forget(self) -> None:
        """Leaves out what was asked and not answered yet: it is done."""
        self._asked.clear()


class Monitor:
    """What is seen of a run: its metrics, whether it is well, and how fast it is.

    Metrics stay on the devices until they are looked at; looking waits for the devices.
    """

    def __init__(self, run: _Run, step: int):
        self._run, self._train, self._began = run, run.metadata.config.train, time.monotonic()
        self._log = MetricsLog(run.workdir, step) if multihost.is_main() else None
        self._events = _event_files(run.workdir, step) if multihost.is_main() else None
        self._sent: deque[tuple[range, CallMetrics]] = deque()
        self._seen: list[CallMetrics] = []
        self._compiled: set[int] = set()  # numbers of steps in a call
        self._timed = False
        self.health = Health(step)
        self.progress = Progress(run.workdir.name, step, self._train.num_train_steps, self._train.batch_size)

    def sent(self, call: range, metrics: CallMetrics) -> bool:
        """Takes the metrics of steps that the devices have been given.

        Returns:
          Whether these are the first so many in a call; this waits for them, as their time says nothing of speed: they
          were compiled, or are fewer than their program is for.
        """
        self._sent.append((call, metrics))
        if len(call) in self._compiled:
            return False
        jax.block_until_ready(metrics)
        if not self._compiled:
            print_on_main(f"{self._run.workdir}: compiled and begun in {time.monotonic() - self._began:.0f} s")
        self._compiled.add(len(call))
        self.progress.restart(call.stop)
        return True

    def look(self, *, unseen: int) -> None:
        """Looks at all metrics but those of the last `unseen` calls, and shows and writes them where it is time to.

        Raises:
          DivergedError: if no update was finite for 100 steps.
        """
        while len(self._sent) > unseen:
            call, metrics = self._sent.popleft()
            self._seen.append(jax.device_get(metrics))
            self.health.check(self._seen[-1], self._run.workdir)
            if call.stop == self._train.num_train_steps or _due(call, self._train.log_loss_every_steps):
                self._write(call.stop)

    def close(self) -> None:
        """Writes what is left to write."""
        if self._events is not None:
            self._events.close()

    def _write(self, step: int) -> None:
        values = _means(self._seen)
        values["images_per_sec"] = self.progress.show(step, values["loss"])
        left = self._train.num_train_steps - step
        if self._run.teacher is None and left and not self._timed:  # a ladder prints one estimate for all its students
            seconds = round(left * self._train.batch_size / values["images_per_sec"])
            print_on_main(
                f"{self.progress.name}: about {datetime.timedelta(seconds=seconds)} for the {left:,} updates left"
            )
        self._timed = True
        self._seen.clear()
        if not multihost.is_main():
            return
        self._log.write(step, values)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._run.on_metrics is not None:
            self._run.on_metrics(step, values)


def _event_files(workdir: epath.Path, step: int) -> SummaryWriter:
    """A writer of TensorBoard's files, which take back what an earlier process wrote of later steps."""
    return SummaryWriter(os.fspath(workdir), purge_step=step + 1, write_to_disk=not is_remote(workdir))


class Health:
    """Whether updates are finite. A run is stopped when none was for 100 steps.

    Args:
      step: updates done before the first that is watched.
    """

    def __init__(self, step: int):
        self._checked = step
        self._bad_since: int | None = None

    @property
    def is_good(self) -> bool:
        """Whether the last update that was checked was finite."""
        return self._bad_since is None

    def check(self, metrics: CallMetrics, workdir: epath.Path) -> None:
        """Looks at the metrics of the next steps; raises DivergedError after 100 without a finite update."""
        for loss, norm in zip(metrics["loss"], metrics["gradient_norm"], strict=True):
            self._checked += 1
            if np.isfinite(loss) and np.isfinite(norm):
                self._bad_since = None
            elif self._bad_since is None:
                self._bad_since = self._checked
            if not self.is_good and self._checked - self._bad_since + 1 >= MOST_BAD_STEPS:
                raise DivergedError(
                    f"{workdir}: no update was finite for {MOST_BAD_STEPS} steps, from step {self._bad_since:,} "
                    "on. The last checkpoint before it is kept. Try a smaller config.train.learning_rate, in "
                    "another --workdir."
                )


class Progress:
    """The progress line: step, loss, images/s, time left."""

    def __init__(self, name: str, step: int, total: int, batch_size: int):
        self.name, self.total, self.batch_size = name, total, batch_size
        self.restart(step)
        self._begun = self.step, self.time

    def restart(self, step: int) -> None:
        """Measures speed from here on."""
        self.step, self.time = step, time.monotonic()

    def show(self, step: int, loss: float) -> float:
        """Prints the line and returns the images a second since the last one."""
        now = time.monotonic()
        if step == self.step:  # nothing came after the first steps, which took longer
            self.step, self.time = self._begun
        per_second = (step - self.step) / max(now - self.time, 1e-9)
        self.restart(step)
        left = datetime.timedelta(seconds=round((self.total - step) / per_second))
        line = (
            f"{self.name}  step {step:,}/{self.total:,}  loss {loss:.4g}  "
            f"{per_second * self.batch_size:,.0f} images/s  {left} left{memory_of(jax.local_devices()[0])}"
        )
        if multihost.is_main():
            show_progress(line, last=step == self.total)
        return per_second * self.batch_size

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the speed."""
        start = time.monotonic()
        yield
        self.time += time.monotonic() - start


def memory_of(device: Any) -> str:
    """The most memory of a device that has been in use, as the progress line has it; nothing where it does not tell."""
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return ""
    limit = f" of {stats['bytes_limit'] / 1e9:.1f}" if "bytes_limit" in stats else ""
    return f"  {stats['peak_bytes_in_use'] / 1e9:.1f}{limit} GB"


def _due(call: range, interval: int) -> bool:
    """Whether a multiple of the interval has been reached within the call; an interval of 0 is never."""
    return bool(interval) and call.stop // interval > call.start // interval


def _means(metrics: Sequence[CallMetrics]) -> dict[str, float]:
    """Means of the collected metrics; of the count and of the learning rate, the last."""
    values = {name: np.concatenate([np.asarray(part[name]) for part in metrics]) for name in metrics[0]}
    return {name: value[-1 if name in LAST else slice(None)].mean().item() for name, value in values.items()}


def _what_shapes_a_step(config: ConfigDict) -> str:
    """The config as a key under which the next halving of a ladder finds its compiled step: but for the seed, equal."""
    return json.dumps({**config.to_dict(), "seed": 0})


@functools.lru_cache(maxsize=1)
def _runner(config_json: str, method: Callable, network: Network, mesh: Mesh) -> Runner:
    """The compiled steps; `method` and `network` are in the key as objects, since a session may reload their code."""
    return make_runner(ConfigDict(json.loads(config_json)), network, mesh)
