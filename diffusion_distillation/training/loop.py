"""The training loop, for base models and students."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from ..checkpoints import Checkpoints, Metadata, abstract_params, load, restore_from
from ..data import Source, read_batches
from ..keys import seed_key
from ..latents import Space
from ..methods import Method, find_method, make_method
from ..networks.model import Model, count_params
from ..runtime import multihost
from ..runtime.console import safe_output
from ..runtime.devices import abstract, describe_devices, to_host
from ..runtime.files import as_path
from ..runtime.multihost import print_on_main
from ..runtime.signals import RESUME_HINT, Interrupt, stopped
from ..shapes import Params
from .checks import check_batch_size, wasteful_settings
from .monitor import Health, Monitor, OnMetrics, passes
from .pmap import PmapRunner
from .prepare import LoadModel, holds_run, inputs_of, prepare
from .runner import Runner, begin, state_shardings
from .runs import check_run, forget_after, locked, open_run, record_environment
from .step import Teacher, TrainingBatch, TrainState, init_state

SLOW = 2.0  # seconds per call above which no call is queued behind another
OnEval = Callable[[Params, Metadata, epath.Path], None]


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    *,
    teacher: Teacher | None = None,
    on_eval: OnEval | None = None,
    on_metrics: OnMetrics | None = None,
    change: bool = False,
    load_model: LoadModel = load,
) -> None:
    """Train for `config.train.num_train_steps` updates, from the newest checkpoint in the workdir if there is one.

    Args:
      config: resolved; for a student, its rung's (`config.rung_config`).
      workdir: the run's folder.
      source: the training images.
      teacher: the teacher of a student, which starts from its parameters; None for a base model.
      on_eval: called as `on_eval(params, metadata, workdir)` every `eval_every_steps` and at the end, in every process.
        A run that was stopped during the call repeats it on resuming, so it should skip work that is done. The
        parameters are NumPy arrays, or with config.train.shard='all' divided device arrays. It may keep them.
      on_metrics: called in the main process as `on_metrics(step, values)` with each line of metrics.jsonl.
      change: continue a run that has another config, other data or another teacher (`runs.open_run`).
      load_model: returns the parameters and the metadata at `train.init_from` if that is not a run of this package.

    Raises:
      InputError: if the workdir's run has another config, other data or another teacher, or if a batch or a network
        does not fit the devices or the images. It is raised before anything is compiled.
      KeyboardInterrupt: after SIGINT, such as Ctrl-C or a notebook's stop button, once the state is saved. Call `train`
        again to resume. A second SIGINT raises it at once.
      SystemExit: after SIGTERM, likewise, with the status 128 + SIGTERM.
    """
    workdir = as_path(workdir)
    prepared = prepare(config, workdir, source, teacher=teacher, load_model=load_model)
    metadata, model, space, mesh, initial_params = prepared
    with safe_output(), locked(workdir):
        check_run(workdir, config, change)
        key = FrozenConfigDict({**config.to_dict(), "seed": 0})
        runner = _cached_runner(key, find_method(config), model, space, mesh)
        with Checkpoints(workdir, config.train.retain_checkpoint_every_steps) as checkpoints, Interrupt() as interrupt:
            run = _Run(
                metadata=metadata,
                workdir=workdir,
                source=source,
                teacher=teacher,
                initial_params=initial_params,
                mesh=mesh,
                runner=runner,
                checkpoints=checkpoints,
                on_eval=on_eval,
                on_metrics=on_metrics,
            )
            like = _abstract_state(run)
            parameters = count_params(like.params)
            print_on_main(f"{workdir}: {parameters:,} parameters, {len(source):,} images, {describe_devices(mesh)}")
            placed, step = _resume(run, like, change)
            if step < run.num_updates:
                _update_to_end(run, like, placed, step, interrupt)


def make_runner(config: Any, method: Method, model: Model, mesh: Mesh, **options: Any) -> Runner:
    """Make the runner of `config.train.parallel`. See `Runner` for the arguments."""
    kind = PmapRunner if config.train.parallel == "pmap" else Runner
    return kind(config, method, model, mesh, **options)


@functools.lru_cache(maxsize=1)
def _cached_runner(
    config: FrozenConfigDict, make: Callable[..., Method], model: Model, space: Space, mesh: Mesh
) -> Runner:
    """The runner of a config. A ladder's next student finds its step compiled if only the rung and the seed differ.

    `make` and `model` are in the key as objects, since a session may reload their code.
    """
    return make_runner(config, make_method(config), model, mesh, space=space)


class _Run(NamedTuple):
    """The parts of a run that stay the same from its first update to its last."""

    metadata: Metadata
    workdir: epath.Path
    source: Source
    teacher: Teacher | None
    initial_params: Callable[[], Params]
    mesh: Mesh
    runner: Runner
    checkpoints: Checkpoints
    on_eval: OnEval | None
    on_metrics: OnMetrics | None

    @property
    def config(self) -> ConfigDict:
        """The resolved config."""
        return self.metadata.config

    @property
    def num_updates(self) -> int:
        """The updates of the whole run."""
        return self.config.train.num_train_steps

    def evaluate(self, state: TrainState, step: int) -> None:
        """Call `on_eval` with the parameters after `step` updates."""
        if self.on_eval is not None:
            # Hooks may keep the parameters, and the next call consumes the state: copy them.
            params = self.runner.collect(state.sampling_params)
            params = jax.tree.map(jnp.copy, params) if self.config.train.shard == "all" else to_host(params)
            self.on_eval(params, dataclasses.replace(self.metadata, step=step), self.workdir)


Placed = tuple[TrainState, Teacher | None]  # from `Runner.place`


def _abstract_state(run: _Run) -> TrainState:
    """The shapes and shardings of a run's state, as it is saved."""
    params = abstract_params(run.metadata)
    state = jax.eval_shape(functools.partial(init_state, run.config, run.runner.method), params)
    return abstract(state, state_shardings(state, run.mesh, run.config.train.shard))


def _resume(run: _Run, like: TrainState, change: bool) -> tuple[Placed | None, int]:
    """Restore the newest state, open the run's folder, and do the evaluation that an earlier process may have missed.

    Returns:
      The state and the teacher on the devices, or None if the run has not begun; and the updates done.
    """
    # Restore.
    workdir = run.workdir
    train = run.config.train
    state = run.checkpoints.restore(like)
    finished = state is not None and int(state.step) >= run.num_updates

    # Open the folder. A finished run no longer learns: what it learned from stays on record.
    inputs = {} if finished else inputs_of(run.source, run.teacher and run.teacher.params)
    open_run(workdir, run.config, change, inputs)
    if not finished:
        check_batch_size(train, run.mesh)
        record_environment(workdir)
    if state is None and train.init_from is not None and holds_run(train.init_from):
        state = restore_from(train.init_from, like)
        run.checkpoints.save(state, run.metadata)  # from now on it does not depend on the other run
    step = 0 if state is None else int(state.step)
    multihost.on_main(functools.partial(forget_after, workdir, step))
    if state is None:
        return None, 0

    # Evaluate.
    placed = run.runner.place(state, None if finished else run.teacher)
    del state  # or its arrays would be held twice, as restored and as placed
    print_on_main(f"{workdir}: {f'finished, {step:,} updates' if finished else f'resuming at step {step:,}'}")
    last_call = range(max(step - run.runner.call_length, 0), step)
    if finished or passes(last_call, train.eval_every_steps):
        run.evaluate(placed[0], step)
    return placed, step


def _update_to_end(run: _Run, like: TrainState, placed: Placed | None, step: int, interrupt: Interrupt) -> None:
    """Do the updates from `step` to the last, and save and evaluate when due.

    Each iteration starts the next call on the devices, then reads the metrics of the call before it. So the devices
    always have work, and are at most one call ahead of the monitoring.

    Args:
      run: the run.
      like: the shapes of its state, as it is saved.
      placed: the state after `step` updates, and the teacher, on the devices; None to begin.
      step: updates done.
      interrupt: records signals.
    """
    train = run.config.train
    key = seed_key(run.config.seed)
    for warning in wasteful_settings(train) if multihost.is_main() else ():
        logging.warning("%s: %s", run.workdir, warning)
    print_on_main(f"{run.workdir}: compiling the training step")
    monitor = Monitor(
        run.workdir, train, step, on_metrics=run.on_metrics, prints_estimate=run.teacher is None
    )  # a ladder prints one estimate for all its students
    calls = _calls(run, step)
    decisions = Decisions()
    saved_at = time.monotonic()
    save_when_due = False
    with contextlib.closing(calls), contextlib.closing(monitor):
        upcoming = next(calls)
        state, teacher = _compile(run, like, placed, key, upcoming[1])
        del placed
        while upcoming is not None:
            # Start the next call. While the devices are busy, read the batches of the call after it.
            call, batches = upcoming
            began = time.monotonic()
            state, metrics = run.runner.steps(state, key, teacher, batches)
            interrupt.nothing_to_save = False
            is_first = monitor.add(call, metrics)
            upcoming = next(calls, None)

            # Read the metrics of the previous call.
            monitor.look(unseen=0 if decisions.slow else 1)

            # Decide.
            overdue = multihost.is_main() and time.monotonic() - saved_at > train.checkpoint_every_secs
            slow = not is_first and time.monotonic() - began > SLOW
            stop, overdue = decisions.take(interrupt.received, overdue, slow)
            save_when_due |= overdue
            last = call.stop == run.num_updates
            evaluates = run.on_eval is not None and (last or passes(call, train.eval_every_steps))
            retains = passes(call, train.retain_checkpoint_every_steps)
            saves = last or stop or evaluates or retains or (save_when_due and call.stop % train.substeps == 0)

            # Save.
            if saves:
                monitor.look(unseen=0)
                _save(run, state, call.stop, monitor.health)
                saved_at = time.monotonic()
                save_when_due = False
                decisions.forget()
            if last or evaluates:
                run.checkpoints.wait()
                interrupt.nothing_to_save = True  # a signal from here on ends the process at once
                [stop] = multihost.all_max([interrupt.received])
            if stop:
                _stop(run, stop)

            # Evaluate.
            if evaluates:
                with monitor.progress.paused():
                    run.evaluate(state, call.stop)


def _calls(run: _Run, step: int) -> Iterator[tuple[range, list[TrainingBatch]]]:
    """The updates of each call of the devices, from `step` to the last, and their batches."""
    length = run.runner.call_length
    process = jax.process_index(), jax.process_count()
    updates = range(step, run.num_updates)
    batches = read_batches(run.source, run.config.seed, updates, run.config.train.batch_size, process=process)
    with contextlib.closing(batches):
        while step < run.num_updates:
            call = range(step, min((step // length + 1) * length, run.num_updates))
            yield call, list(itertools.islice(batches, len(call)))
            step = call.stop


def _compile(
    run: _Run, like: TrainState, placed: Placed | None, key: jax.Array, batches: list[TrainingBatch]
) -> Placed:
    """Compile the training step, and meanwhile make the initial parameters if the run has not begun.

    Returns:
      The state and the teacher on the devices.
    """
    with ThreadPoolExecutor(1) as thread:
        initial_params = thread.submit(run.initial_params) if placed is None else None
        run.runner.compile(like, key, run.teacher, batches)
    if initial_params is None:
        return placed
    state = begin(run.config, run.runner.method, initial_params.result(), run.mesh)
    return run.runner.place(state, run.teacher)


def _save(run: _Run, state: TrainState, step: int, health: Health) -> None:
    """Save a state, unless its last updates were not finite and spoiled the parameters."""
    if run.config.train.enable_update_skip or health.is_good:
        run.checkpoints.save(run.runner.collect(state), run.metadata)
    elif step == run.num_updates:
        raise health.error_at_end()


def _stop(run: _Run, signal_number: int) -> NoReturn:
    """Stop a run after a signal, once its state is saved."""
    run.checkpoints.wait()
    step = run.checkpoints.latest_step() or 0
    print(f"{run.workdir}: saved at step {step:,}; {RESUME_HINT}", file=sys.stderr, flush=True)
    raise stopped(signal_number)


class Decisions:
    """Joint decisions of all processes: a request of any process holds for all of them.

    With several processes, requests take effect one call later. Their results have arrived by then, so nothing waits
    for the devices, unless calls are slow anyway.

    Attributes:
      slow: whether to wait for the devices after every call.
    """

    def __init__(self):
        self.slow = False
        self._asked: deque[Callable[[], list[int]]] = deque()

    def take(self, stop: int, save: bool, slow: bool) -> tuple[int, bool]:
        """Make this process's requests, and return the joint decision.

        Args:
          stop: the signal to stop for; 0 for none.
          save: whether to save.
          slow: whether calls are slow.

        Returns:
          The signal to stop for, or 0, and whether to save.
        """
        self._asked.append(multihost.all_max_async([stop, save, slow]))
        unanswered = 0 if self.slow or jax.process_count() == 1 else 1
        answers = [self._asked.popleft()() for _ in range(len(self._asked) - unanswered)]
        if not answers:
            return 0, False
        stop, save, slow = map(max, zip(*answers, strict=True))
        self.slow = bool(slow)
        return stop, bool(save)

    def forget(self) -> None:
        """Drop the requests without an answer, because they are fulfilled."""
        self._asked.clear()
