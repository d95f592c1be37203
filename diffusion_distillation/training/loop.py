"""The training loop, one for base models and students."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from .. import multihost
from ..checkpoints import Checkpoints, Metadata, abstract_params
from ..data import Source, read_batches
from ..devices import data_mesh, place
from ..errors import RunError
from ..files import as_path
from ..model import count_params, init_params, make_network
from ..shapes import Params
from ..unet import UNet
from .interrupt import GO_ON, Interrupt
from .optimizers import learning_rate
from .parallel import Runner, check_batch_size, make_runner, state_shardings
from .runs import MetricsLog, locked, open_run
from .step import Metrics, Teacher, TrainState, init_state

MOST_BAD_STEPS = 100
OnEval = Callable[[Params, Metadata, epath.Path], None]


def train(
    config: ConfigDict,
    workdir: epath.PathLike,
    source: Source,
    *,
    teacher: Teacher | None = None,
    on_eval: OnEval | None = None,
) -> Params:
    """Trains for config.train.num_steps updates, from the newest checkpoint in the workdir if there is one.

    Args:
      config: resolved; for a student, that of its halving (`config.stage`).
      workdir: the run's folder.
      source: the images.
      teacher: for a student, which starts from the teacher's parameters.
      on_eval: called as `on_eval(params, metadata, workdir)` every eval_every_steps and at the end.

    Returns:
      The sampling parameters.

    Raises:
      InputError: for a workdir of another config, or a batch or a network that does not fit the devices or the images;
        before anything is compiled.
      SystemExit: after SIGINT or SIGTERM, once the state is saved.
    """
    workdir, mesh = as_path(workdir), data_mesh()
    check_batch_size(config.train, mesh)
    network = make_network(config.model, source.image_shape, source.num_classes)
    with locked(workdir):
        open_run(workdir, config)
        metadata = Metadata(config, source.image_shape, source.num_classes, int(teacher.num_steps) if teacher else 0)
        runner = _runner(_what_shapes_a_step(config), network, mesh)
        with Checkpoints(workdir, config.train.retain_checkpoint_every_steps) as checkpoints:
            return _resume(_Run(metadata, workdir, source, teacher, on_eval, runner, checkpoints), network, mesh)


class _Run(NamedTuple):
    """What a run consists of, from its first step to its last."""

    metadata: Metadata
    workdir: epath.Path
    source: Source
    teacher: Teacher | None
    on_eval: OnEval | None
    runner: Runner
    checkpoints: Checkpoints


def _resume(run: _Run, network: UNet, mesh: Mesh) -> Params:
    """Takes the run up where it stopped, or begins it, and goes on to the end."""
    config = run.metadata.config
    like = jax.eval_shape(functools.partial(init_state, config), abstract_params(run.metadata))
    shardings = state_shardings(like, mesh, shard=config.train.shard_state)
    state = run.checkpoints.restore(jax.tree.map(_abstract, like, shardings))
    if state is None:
        teacher, key = run.teacher, jax.random.key(config.seed)
        params = (
            teacher.params if teacher else init_params(network, key, run.source.image_shape, run.source.num_classes)
        )
        state = place(init_state(config, params), shardings)
    step = int(state.step)
    if step >= config.train.num_steps:
        _say(f"{run.workdir}: finished, {step:,} steps")
        return state.sampling_params
    with Interrupt() as interrupt:
        _say(
            f"{run.workdir}: {count_params(like.params):,} parameters, {len(run.source):,} images, "
            f"{mesh.size} {jax.default_backend()} device(s){f', going on from step {step:,}' if step else ''}"
        )
        state, teacher = run.runner.place(state, run.teacher)
        return _go_on(run._replace(teacher=teacher), state, step, interrupt)


def _abstract(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _go_on(run: _Run, state: TrainState, step: int, interrupt: Interrupt) -> Params:
    """The loop itself: from a step to the last, with all that is to be seen and kept on the way."""
    metadata, workdir, source, teacher, on_eval, runner, checkpoints = run
    seed, train = metadata.config.seed, metadata.config.train
    log = MetricsLog(workdir, step)
    progress = Progress(workdir.name, step, train.num_steps, train.batch_size)
    metrics: list[Metrics] = []
    health = Health(step)
    start, saved_at = step, time.monotonic()
    process = jax.process_index(), jax.process_count()
    ahead = read_batches(source, seed, range(step, train.num_steps), train.batch_size, process=process)
    with contextlib.closing(ahead):
        while step < train.num_steps:
            chunk = range(step, min((step // train.substeps + 1) * train.substeps, train.num_steps))
            batches = list(itertools.islice(ahead, len(chunk)))
            state, of_chunk = runner.steps(state, jax.random.key(seed), teacher, batches)
            metrics.append(of_chunk)
            health.watch(of_chunk)
            step = chunk.stop
            last = step == train.num_steps

            if last or _due(chunk, train.log_loss_every_steps):
                health.check(workdir)
                values = _means(metrics)
                values["learning_rate"] = float(learning_rate(train)(step - 1))
                values["images_per_sec"] = progress.show(step, values["loss"])
                log.write(step, values)
                metrics.clear()
            if chunk.start == start:
                jax.block_until_ready(of_chunk)
                progress.restart(step)  # the first call compiles, which says nothing of speed
            overdue = time.monotonic() - saved_at > train.checkpoint_every_secs
            stop, overdue = multihost.largest([interrupt.received, overdue])
            if last or stop or overdue or _due(chunk, train.retain_checkpoint_every_steps):
                health.check(workdir)
                if train.enable_update_skip or health.is_good:
                    checkpoints.save(runner.collect(state), metadata)
                elif last:  # the parameters are spoiled
                    raise RunError(f"{workdir}: the last updates were not finite; the checkpoint before them is kept.")
                saved_at = time.monotonic()
            if on_eval and (last or _due(chunk, train.eval_every_steps)) and not stop:
                with progress.paused():
                    on_eval(runner.collect(state).sampling_params, dataclasses.replace(metadata, step=step), workdir)
                stop = last and multihost.largest([interrupt.received])[0]  # while sampling; or else after a step
            if stop:
                checkpoints.wait()
                print(f"{workdir}: saved at step {step:,}; {GO_ON}", file=sys.stderr, flush=True)
                sys.exit(128 + stop)
    return runner.collect(state).sampling_params


class Health:
    """Whether updates are finite. A run is stopped when none was for 100 steps.

    Args:
      step: updates done before the first that is watched.
    """

    def __init__(self, step: int):
        self._checked = step
        self._bad_since: int | None = None
        self._unchecked: list[Metrics] = []

    @property
    def is_good(self) -> bool:
        """Whether the last update that was checked was finite."""
        return self._bad_since is None

    def watch(self, metrics: Metrics) -> None:
        """Takes the metrics of the next steps, to be looked at when they are checked: until then nothing waits."""
        self._unchecked.append(metrics)

    def check(self, workdir: epath.Path) -> None:
        """Looks at all that was watched; raises a RunError after `MOST_BAD_STEPS` steps without a finite update."""
        for part in jax.device_get(self._unchecked):
            for loss, norm in zip(part["loss"], part["gradient_norm"], strict=True):
                self._checked += 1
                if np.isfinite(loss) and np.isfinite(norm):
                    self._bad_since = None
                elif self._bad_since is None:
                    self._bad_since = self._checked
                if not self.is_good and self._checked - self._bad_since + 1 >= MOST_BAD_STEPS:
                    raise RunError(
                        f"{workdir}: no update was finite for {MOST_BAD_STEPS} steps, from step {self._bad_since:,} "
                        "on. The last checkpoint before it is kept. Try a smaller config.train.learning_rate, in "
                        "another --workdir."
                    )
        self._unchecked.clear()


class Progress:
    """The progress line: step, loss, images a second, time left. On a terminal it stays in its place."""

    def __init__(self, name: str, step: int, total: int, batch_size: int):
        self.name, self.total, self.batch_size = name, total, batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measures speed from here on."""
        self.step, self.time = step, time.monotonic()

    def show(self, step: int, loss: float) -> float:
        """Prints the line and returns the images a second since the last one."""
        now = time.monotonic()
        per_second = (step - self.step) / max(now - self.time, 1e-9)
        self.restart(step)
        left = datetime.timedelta(seconds=round((self.total - step) / per_second))
        line = (
            f"{self.name}  step {step:,}/{self.total:,}  loss {loss:.4g}  "
            f"{per_second * self.batch_size:,.0f} images/s  {left} left"
        )
        if not multihost.is_main():
            return per_second * self.batch_size
        stays = sys.stdout.isatty() and step < self.total
        print(f"\r{line:<100}" if sys.stdout.isatty() else line, end="" if stays else "\n", flush=True)
        return per_second * self.batch_size

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the speed."""
        start = time.monotonic()
        yield
        self.time += time.monotonic() - start


def _say(line: str) -> None:
    if multihost.is_main():
        print(line, flush=True)


def _due(chunk: range, interval: int) -> bool:
    """Whether a multiple of the interval has been reached within the chunk; an interval of 0 is never."""
    return bool(interval) and chunk.stop // interval > chunk.start // interval


def _means(metrics: Sequence[Metrics]) -> dict[str, float]:
    """Means of the collected metrics; of counts, the last."""
    metrics = jax.device_get(metrics)
    values = {name: np.concatenate([np.asarray(part[name]) for part in metrics]) for name in metrics[0]}
    return {name: value[-1].item() if name == "skipped" else value.mean().item() for name, value in values.items()}


def _what_shapes_a_step(config: ConfigDict) -> str:
    """The config as a key under which the next halving of a ladder finds its compiled step: but for the seed, equal."""
    return json.dumps({**config.to_dict(), "seed": 0})


@functools.lru_cache(maxsize=1)
def _runner(config_json: str, network: UNet, mesh: Mesh) -> Runner:
    return make_runner(ConfigDict(json.loads(config_json)), network, mesh)
