"""Monitor a run: its metrics, whether its updates are finite, and its speed."""

import contextlib
import datetime
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter

from ..errors import DivergedError
from ..runtime import multihost
from ..runtime.console import show_progress
from ..runtime.files import is_remote
from ..runtime.multihost import print_on_main
from .runner import CallMetrics
from .runs import MetricsLog

MAX_BAD_STEPS = 100
ESTIMATE_SECONDS = 20.0  # of updates, after which a run prints how long it will take even if it logs nothing yet
LAST = ("skipped", "learning_rate")  # metrics that are logged by their last value; the others by their mean
OnMetrics = Callable[[int, Mapping[str, float]], None]


class Monitor:
    """Write the metrics of a run, print its progress, and stop it if its updates are not finite.

    Metrics stay on the devices until `look` reads them, which waits for the devices.

    Attributes:
      health: whether updates are finite.
      progress: the speed.

    Args:
      workdir: the run's folder.
      train: the `train` section of its config.
      step: updates done.
      on_metrics: called in the main process as `on_metrics(step, values)` with each line of metrics.jsonl.
      prints_estimate: print how long the run will take once its speed is known.
    """

    def __init__(
        self,
        workdir: epath.Path,
        train: Any,
        step: int,
        *,
        on_metrics: OnMetrics | None = None,
        prints_estimate: bool = True,
    ):
        self.health = Health(workdir, step)
        self.progress = Progress(workdir.name, step, train.num_train_steps, train.batch_size)
        self._workdir = workdir
        self._train = train
        self._on_metrics = on_metrics
        self._prints_estimate = prints_estimate
        self._log = MetricsLog(workdir, step) if multihost.is_main() else None
        self._events = _event_files(workdir, step) if multihost.is_main() else None
        self._began = time.monotonic()
        self._unseen: deque[tuple[range, CallMetrics]] = deque()
        self._unwritten: list[CallMetrics] = []
        self._lengths: set[int] = set()  # of the calls so far. The first call of each length includes compilation

    def add(self, call: range, metrics: CallMetrics) -> bool:
        """Add the metrics of a call that the devices have begun.

        Args:
          call: the updates of the call.
          metrics: the metrics of these updates, still on the devices.

        Returns:
          Whether this is the first call of its length. If so, the function has waited for its end and excludes it from
          the speed, because it was compiled, or it is shorter than its program.
        """
        if len(call) not in self._lengths:
            self.look(unseen=0)  # a line that is due must not count the wait below
        self._unseen.append((call, metrics))
        if len(call) in self._lengths:
            return False
        jax.block_until_ready(metrics)
        if not self._lengths:
            print_on_main(f"{self._workdir}: compiled and begun in {time.monotonic() - self._began:.0f} s")
        self._lengths.add(len(call))
        self.progress.restart(call.stop)
        return True

    def look(self, *, unseen: int) -> None:
        """Read the metrics of all calls but the last `unseen`, and print and write them when they are due.

        Raises:
          DivergedError: if no update was finite for 100 steps.
        """
        while len(self._unseen) > unseen:
            call, metrics = self._unseen.popleft()
            self._unwritten.append(jax.device_get(metrics))
            self.health.check(self._unwritten[-1])
            if call.stop == self._train.num_train_steps or passes(call, self._train.log_loss_every_steps):
                self._write(call.stop)
            elif self._prints_estimate and self.progress.is_known(call.stop):
                self._print_estimate(call.stop, self.progress.images_per_second(call.stop))

    def close(self) -> None:
        """Flush and close TensorBoard's files."""
        if self._events is not None:
            self._events.close()

    def _write(self, step: int) -> None:
        values = _summary(self._unwritten)
        values["images_per_sec"] = self.progress.show(step, values["loss"])
        self._unwritten.clear()
        if self._prints_estimate:
            self._print_estimate(step, values["images_per_sec"])
        if not multihost.is_main():
            return
        self._log.write(step, values)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        if self._on_metrics is not None:
            self._on_metrics(step, values)

    def _print_estimate(self, step: int, images_per_sec: float) -> None:
        self._prints_estimate = False
        if left := self._train.num_train_steps - step:
            seconds = round(left * self._train.batch_size / images_per_sec)
            print_on_main(
                f"{self._workdir.name}: about {datetime.timedelta(seconds=seconds)} for the {left:,} updates left"
            )


def _event_files(workdir: epath.Path, step: int) -> SummaryWriter:
    """A writer of TensorBoard's files that removes what an earlier process wrote about later steps."""
    return SummaryWriter(os.fspath(workdir), purge_step=step + 1, write_to_disk=not is_remote(workdir))


def _summary(metrics: Sequence[CallMetrics]) -> dict[str, float]:
    """One value per metric over several calls: the mean, or, for metrics in `LAST`, the last value."""
    values = {name: np.concatenate([np.asarray(part[name]) for part in metrics]) for name in metrics[0]}
    return {name: value[-1 if name in LAST else slice(None)].mean().item() for name, value in values.items()}


def passes(call: range, interval: int) -> bool:
    """Whether a multiple of the interval is reached within a call. An interval of 0 is never reached.

    >>> passes(range(8, 10), 5), passes(range(10, 12), 5), passes(range(0, 100), 0)
    (True, False, False)
    """
    return bool(interval) and call.stop // interval > call.start // interval


class Health:
    """Whether updates are finite. A run is stopped if none was for 100 steps.

    Args:
      workdir: the run's folder.
      step: updates done before the first one that is checked.
    """

    def __init__(self, workdir: epath.Path, step: int):
        self._workdir = workdir
        self._checked = step
        self._bad_since: int | None = None

    @property
    def is_good(self) -> bool:
        """Whether the last update that was checked was finite."""
        return self._bad_since is None

    def error_at_end(self) -> DivergedError:
        """The error of a run whose last updates were not finite."""
        return DivergedError(f"{self._workdir}: the last updates were not finite; the checkpoint before them is kept.")

    def check(self, metrics: CallMetrics) -> None:
        """Check the next updates. Raises a DivergedError after 100 without a finite one."""
        for loss, norm in zip(metrics["loss"], metrics["gradient_norm"], strict=True):
            self._checked += 1
            if np.isfinite(loss) and np.isfinite(norm):
                self._bad_since = None
            elif self._bad_since is None:
                self._bad_since = self._checked
            if not self.is_good and self._checked - self._bad_since + 1 >= MAX_BAD_STEPS:
                raise DivergedError(
                    f"{self._workdir}: no update was finite for {MAX_BAD_STEPS} steps, starting at step "
                    f"{self._bad_since:,}. The last checkpoint before it is kept. Try a smaller "
                    "config.train.learning_rate, in another --workdir."
                )


class Progress:
    """The progress line: step, loss, images/s, time left.

    Args:
      name: begins the line.
      step: updates done.
      total: updates of the run.
      batch_size: images per update.
    """

    def __init__(self, name: str, step: int, total: int, batch_size: int):
        self._name = name
        self._total = total
        self._batch_size = batch_size
        self.restart(step)
        self._begun = self._step, self._time

    def restart(self, step: int) -> None:
        """Measure the speed from here on."""
        self._step = step
        self._time = time.monotonic()

    def is_known(self, step: int) -> bool:
        """Whether updates have run for long enough to estimate their speed."""
        return step > self._step and time.monotonic() - self._time > ESTIMATE_SECONDS

    def images_per_second(self, step: int) -> float:
        """The speed since the previous line."""
        return (step - self._step) * self._batch_size / max(time.monotonic() - self._time, 1e-9)

    def show(self, step: int, loss: float) -> float:
        """Print the line and return the images/s since the previous line."""
        if step == self._step:  # no call came after the first ones, which took longer
            self._step, self._time = self._begun
        speed = self.images_per_second(step)
        self.restart(step)
        left = datetime.timedelta(seconds=round((self._total - step) * self._batch_size / speed))
        line = (
            f"{self._name}  step {step:,}/{self._total:,}  loss {loss:.4g}  "
            f"{speed:,.0f} images/s  {left} left{memory_of(jax.local_devices()[0])}"
        )
        if multihost.is_main():
            show_progress(line, last=step == self._total)
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time inside."""
        start = time.monotonic()
        yield
        self._time += time.monotonic() - start


def memory_of(device: Any) -> str:
    """The peak memory of a device for the progress line, such as '  31.2 of 79.0 GB'; '' if it is unknown."""
    stats = device.memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        return ""
    limit = f" of {stats['bytes_limit'] / 1e9:.1f}" if "bytes_limit" in stats else ""
    return f"  {stats['peak_bytes_in_use'] / 1e9:.1f}{limit} GB"
