"""Distills a teacher, halving by halving, and reports on the students.

    python scripts/distill.py --config=configs/digits_distill.py \
        --config.distillation.teacher_checkpoint_path=runs/digits/base --workdir=runs/digits/ladder

Each student gets a folder in the workdir, steps_0032 to steps_0001 here; report/index.html shows them at the end. Every
field of the config can be set on the command line. Run again, the command goes on where it stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffusion_distillation import cli
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.report.ladder import write_report
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.parallel import use_all_cpu_cores

CONFIG = config_flags.DEFINE_config_file("config", help_string="Path of the ladder's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "The ladder's folder; it is made if it is not there.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Runs the script."""
    config = resolve(CONFIG.value)
    if "distillation" not in config:
        raise InputError("This config has no section config.distillation: run it with scripts/train.py.")
    use_all_cpu_cores(config.train.batch_size)
    source = load_source(config.dataset.name, **config.dataset.args)
    workdir = Path(WORKDIR.value)
    run_ladder(config, workdir, source, on_eval=cli.draw_samples)
    write_report(config, workdir, source)


if __name__ == "__main__":
    cli.run(main)
