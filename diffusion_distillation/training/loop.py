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
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ..data import Source, read_batches
from ..model import count_params, init_params, make_network
from ..shapes import Params
from ..unet import UNet
from .checkpoints import Checkpoints, Metadata
from .interrupt import Interrupt
from .optimizers import learning_rate
from .parallel import RunSteps, check_batch_size, compile_steps, data_mesh, replicated
from .runs import MetricsLog, open_run
from .step import Metrics, Teacher, TrainState, init_state, make_train_step

OnEval = Callable[[Params, Metadata, Path], None]


def train(
    config: ConfigDict,
    workdir: Path,
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
    mesh = data_mesh()
    check_batch_size(config.train.batch_size, mesh)
    network = make_network(config.model, source.image_shape, source.num_classes)
    open_run(workdir, config)

    params = teacher.params if teacher else init_params(network, jax.random.key(config.seed), source.image_shape)
    state, teacher = jax.device_put((init_state(config, params), teacher), replicated(mesh))
    metadata = Metadata(config, source.image_shape, source.num_classes, int(teacher.num_steps) if teacher else 0)
    run_steps = _compiled_steps(_what_shapes_a_step(config), network, mesh)
    with Checkpoints(workdir, config.train.retain_checkpoint_every_steps) as checkpoints:
        step = checkpoints.latest_step() or 0
        if step:
            state = checkpoints.restore(state)
        if step >= config.train.num_steps:
            print(f"{workdir}: finished, {step:,} steps", flush=True)
            return state.sampling_params
        print(
            f"{workdir}: {count_params(params):,} parameters, {len(source):,} images, "
            f"{mesh.size} {jax.default_backend()} device(s){f', going on from step {step:,}' if step else ''}",
            flush=True,
        )
        return _train_on(state, step, teacher, run_steps, source, checkpoints, metadata, workdir, on_eval)


def _train_on(
    state: TrainState,
    step: int,
    teacher: Teacher | None,
    run_steps: RunSteps,
    source: Source,
    checkpoints: Checkpoints,
    metadata: Metadata,
    workdir: Path,
    on_eval: OnEval | None,
) -> Params:
    """The loop itself: from a step to the last, with all that is to be seen and kept on the way."""
    seed, train = metadata.config.seed, metadata.config.train
    log = MetricsLog(workdir, step)
    progress = Progress(workdir.name, step, train.num_steps, train.batch_size)
    metrics: list[Metrics] = []
    start, saved_at = step, time.monotonic()
    process = jax.process_index(), jax.process_count()
    ahead = read_batches(source, seed, range(step, train.num_steps), train.batch_size, process=process)
    with Interrupt() as interrupt, contextlib.closing(ahead):
        while step < train.num_steps:
            chunk = range(step, min((step // train.substeps + 1) * train.substeps, train.num_steps))
            batches = list(itertools.islice(ahead, len(chunk)))
            state, of_chunk = run_steps(state, jax.random.key(seed), teacher, batches)
            metrics.append(of_chunk)
            step = chunk.stop
            last = step == train.num_steps

            if last or _due(chunk, train.log_loss_every_steps):
                values = _means(metrics)
                values["learning_rate"] = float(learning_rate(train)(step - 1))
                values["images_per_sec"] = progress.show(step, values["loss"])
                log.write(step, values)
                metrics.clear()
            if chunk.start == start:
                jax.block_until_ready(of_chunk)
                progress.restart(step)  # the first call compiles, which says nothing of speed
            stop = bool(interrupt.received)
            overdue = time.monotonic() - saved_at > train.checkpoint_every_secs
            if last or stop or overdue or _due(chunk, train.retain_checkpoint_every_steps):
                checkpoints.save(state, metadata)
                saved_at = time.monotonic()
            if stop:
                interrupt.exit(f"{workdir}: saved at step {step:,}; run the same command again to go on.")
            if on_eval and (last or _due(chunk, train.eval_every_steps)):
                with progress.paused():
                    on_eval(state.sampling_params, dataclasses.replace(metadata, step=step), workdir)
    return state.sampling_params


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
        stays = sys.stdout.isatty() and step < self.total
        print(f"\r{line:<100}" if sys.stdout.isatty() else line, end="" if stays else "\n", flush=True)
        return per_second * self.batch_size

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the speed."""
        start = time.monotonic()
        yield
        self.time += time.monotonic() - start


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
def _compiled_steps(config_json: str, network: UNet, mesh: Mesh) -> RunSteps:
    return compile_steps(make_train_step(ConfigDict(json.loads(config_json)), network), mesh)
