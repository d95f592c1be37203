"""Compares the methods of distillation at equal cost, from one teacher.

    python scripts/compare.py --config=configs/digits_distill.py \
        --config.distillation.teacher_checkpoint_path=runs/digits/base --workdir=runs/digits/compare

Every method gets as many evaluations of networks (a forward pass is one, with its backward pass three) as the config's
own ladder takes, or --budget times as many; the students of --steps sampling steps are measured by every metric of the
config, --seeds times, and index.html in the workdir shows quality against steps and against cost. Run again, the
command goes on where it stopped. `make compare` does this on the embedded digits.
"""

import functools

from absl import flags

from diffusion_distillation import cli, interop
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import config_evaluators
from diffusion_distillation.evaluation.reference import dataset_reference
from diffusion_distillation.studies.comparison import compare_methods, ladder_nfe

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The comparison's folder; made if it is missing.", required=True)
STEPS = flags.DEFINE_list("steps", ["8", "4", "2", "1"], "Sampling steps of the students, the largest first.")
SEEDS = flags.DEFINE_integer("seeds", 3, "How many times all is done.", lower_bound=1)
BUDGET = flags.DEFINE_float("budget", 1.0, "Of each method, in multiples of what the config's ladder takes.")
METHODS = flags.DEFINE_list("methods", [], "Some of them, such as halvings,tract; by default all.")
PROCESSES = cli.ProcessFlags()
flags.mark_flag_as_required("config")


def main() -> None:
    """Runs the script."""
    if not BUDGET.value > 0:
        raise InputError(f"--budget={BUDGET.value} must be more than 0.")
    if not STEPS.value or not all(n.isdigit() for n in STEPS.value):
        raise InputError(f"--steps={','.join(STEPS.value)} must be numbers of steps, such as 8,4,2,1.")
    config = resolve(CONFIG.value)
    if "distillation" not in config:
        raise InputError("This config has no section config.distillation: give that of a ladder.")
    PROCESSES.start(config.train.batch_size, config.model.dtype)
    source = load_source(config.dataset.name, **config.dataset.args)
    evaluators = config_evaluators(config, source, config.eval.num_samples)
    compare_methods(
        config,
        WORKDIR.value,
        source,
        evaluators,
        dataset_reference(source, config.dataset),
        steps=tuple(map(int, STEPS.value)),
        seeds=SEEDS.value,
        budget=round(BUDGET.value * sum(ladder_nfe(config).values())),
        methods=METHODS.value,
        load_model=functools.partial(interop.load, config=config),
    )


if __name__ == "__main__":
    cli.run(main)
