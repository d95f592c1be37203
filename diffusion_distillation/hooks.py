"""The hooks that scripts pass to `train` and `run_ladder`: sample grids, metrics during training, Weights & Biases."""

import functools
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from . import interop
from .checkpoints import Metadata
from .data import Source
from .errors import InputError
from .keys import seed_key
from .pipeline import Pipeline
from .report.grids import save_grid
from .runtime import multihost
from .runtime.files import absolute, as_path
from .runtime.hashing import sha256
from .shapes import Params
from .training.loop import OnEval
from .training.monitor import OnMetrics

GRID_SIZE = 64  # images per sample grid


def training_hooks(
    config: ConfigDict, source: Source, workdir: epath.Path, wandb_project: str | None = None
) -> dict[str, Any]:
    """The keyword arguments `on_eval`, `on_metrics` and `load_model` of `train` and `run_ladder`.

    Args:
      config: resolved.
      source: the training data.
      workdir: the folder of the run or the ladder.
      wandb_project: the Weights & Biases project that metrics are sent to; None for no project.

    Raises:
      InputError: if the config asks for metrics that cannot be computed, or if wandb is not installed.
    """
    return {
        "on_eval": eval_hook(config, source),
        "on_metrics": None if wandb_project is None else wandb_hook(wandb_project, workdir, config),
        "load_model": functools.partial(interop.load, config=config),
    }


def eval_hook(config: ConfigDict, source: Source) -> OnEval:
    """An `on_eval` that saves a grid of samples and, with eval.metrics_every_steps, computes metrics."""
    if not config.eval.metrics_every_steps:
        return save_sample_grid
    from .evaluation import during_training, ladders  # slow to import

    evaluators, _ = ladders.evaluators_and_reference(config, source, config.eval.metrics_num_samples)

    def on_eval(params: Params, metadata: Metadata, workdir: epath.Path) -> None:
        save_sample_grid(params, metadata, workdir)
        during_training.measure_during_training(params, metadata, workdir, evaluators)

    return on_eval


def save_sample_grid(params: Params, metadata: Metadata, workdir: epath.PathLike) -> None:
    """Save a grid of samples to `samples/step_<step>.png` in the workdir, unless the file exists.

    All grids start from the same noise. Every process must call it; the main process writes the file.
    """
    path = as_path(workdir) / "samples" / f"step_{metadata.step:07d}.png"
    if multihost.on_main(path.exists):
        return
    images = Pipeline(params, metadata).sample(seed_key(0), GRID_SIZE)
    if multihost.is_main():
        save_grid(images, path)


def wandb_hook(project: str, workdir: epath.Path, config: ConfigDict) -> OnMetrics | None:
    """An `on_metrics` that sends metrics to Weights & Biases; None in processes other than the main one.

    A resumed run continues its W&B run. The metrics of a ladder's students have their folder as prefix, and a step axis
    of their own.

    Raises:
      InputError: if wandb is not installed.
    """
    if not multihost.is_main():
        return None
    try:
        import wandb
    except ImportError:
        raise InputError('--wandb_project needs wandb: pip install -e ".[wandb]"') from None
    run_id = sha256([str(absolute(workdir))], 16)
    run = wandb.init(project=project, name=str(workdir), id=run_id, resume="allow", config=config.to_dict())
    prefixes = set()

    def on_metrics(step: int, values: Mapping[str, float]) -> None:
        prefix = f"steps_{values['num_steps']:04d}/" if "num_steps" in values else ""
        if prefix not in prefixes:
            prefixes.add(prefix)
            run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")
        run.log({f"{prefix}{name}": value for name, value in {**values, "step": step}.items()})

    return on_metrics
