"""Trains a base model.

    python scripts/train.py --config=configs/digits_base.py --workdir=runs/digits/base

Every field of the config can be set on the command line, say --config.train.num_steps=5000. Run again, the command goes
on where it stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffusion_distillation import cli
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.training.loop import train
from diffusion_distillation.training.parallel import use_all_cpu_cores

CONFIG = config_flags.DEFINE_config_file("config", help_string="Path of the run's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; it is made if it is not there.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Runs the script."""
    config = resolve(CONFIG.value)
    if "distillation" in config:
        raise InputError("This config has a section config.distillation: run it with scripts/distill.py.")
    use_all_cpu_cores(config.train.batch_size)
    source = load_source(config.dataset.name, **config.dataset.args)
    train(config, Path(WORKDIR.value), source, on_eval=cli.draw_samples)


if __name__ == "__main__":
    cli.run(main)
