r"""Compare the distillation methods at equal cost, from one teacher.

    diffusion_distillation compare --config=digits_distill \
        --config.distillation.teacher_checkpoint_path=runs/digits/base --workdir=runs/digits/compare

Every method gets --budget times the network evaluations of the config's own ladder (a forward pass counts as one, a
forward and backward pass as three). Its students with --steps sampling steps are measured by every metric of the config
with --seeds seeds. index.html in the workdir shows quality by steps and by cost. An interrupted comparison resumes.
`make compare` compares the methods on the embedded digits.
"""

import functools

from absl import flags

from diffusion_distillation import cli, interop
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import evaluators_and_reference
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.studies.comparison import compare_methods, ladder_nfe

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The comparison's folder; created if it is missing.", required=True)
STEPS = flags.DEFINE_list("steps", ["8", "4", "2", "1"], "Sampling steps of the students, from most to fewest.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Repetitions with different seeds.", lower_bound=1)
BUDGET = flags.DEFINE_float("budget", 1.0, "Cost of each method, in multiples of the config's own ladder.")
METHODS = flags.DEFINE_list("methods", [], "Methods to compare, such as halvings,tract; by default all.")
PROCESSES = cli.ProcessFlags()
flags.mark_flag_as_required("config")


def main() -> None:
    if not BUDGET.value > 0:
        raise InputError(f"--budget={BUDGET.value} must be more than 0.")
    if not STEPS.value or not all(n.isdigit() for n in STEPS.value):
        raise InputError(f"--steps={','.join(STEPS.value)} must be numbers of steps, such as 8,4,2,1.")
    config = resolve(CONFIG.value)
    if "distillation" not in config:
        raise InputError("This config has no section config.distillation. Give the config of a ladder.")
    PROCESSES.start(config.train.batch_size, config.model.dtype, config.train.microbatch_size)
    source = load_source(config.dataset.name, **config.dataset.args)
    evaluators, reference = evaluators_and_reference(config, source, config.eval.num_samples)
    compare_methods(
        config,
        WORKDIR.value,
        source,
        evaluators,
        reference,
        steps=tuple(map(int, STEPS.value)),
        seeds=SEEDS.value,
        budget=round(BUDGET.value * sum(ladder_nfe(config).values())),
        methods=METHODS.value,
        load_model=functools.partial(interop.load, config=config),
    )
    cli.saved(f"the comparison to {as_path(WORKDIR.value) / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
