r"""Reproduce the claims of Salimans & Ho (2022): train and distill every output and loss weight of their table 1.

    diffusion_distillation claims --config=digits_base --ladder=digits_distill \
        --workdir=runs/digits/claims

--config trains the base models, one per output and loss weight; --ladder distills them. Everything is repeated with
--seeds seeds. index.html in the workdir shows which outputs are good in few steps, what the ladder costs in addition to
the base model, and how undistilled DDIM and ancestral sampling compare. An interrupted command resumes.
`make claims` reproduces the claims on the embedded digits. --outputs=flow --weights=flow_mse repeats the study with a
flow matching model, such as digits_flow_base.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import evaluators_and_reference
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.studies.claims import (
    OTHER_OUTPUTS,
    OUTPUTS,
    WEIGHT_TITLES,
    WEIGHTS,
    reproduce_claims,
)

CONFIG = cli.define_config()
LADDER = cli.define_config("ladder")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder for all runs and the page; created if it is missing.", required=True
)
SEEDS = flags.DEFINE_integer("seeds", 3, "Repetitions with different seeds.", lower_bound=1)
OUTPUT_TYPES = cli.define_some(
    "outputs", (*OUTPUTS, *OTHER_OUTPUTS), OUTPUTS, "Network outputs, such as v,flow; by default the paper's."
)
WEIGHT_TYPES = cli.define_some(
    "weights", WEIGHT_TITLES, WEIGHTS, "Loss weights, such as snr,flow_mse; by default the paper's."
)
PROCESSES = cli.ProcessFlags()
flags.mark_flags_as_required(["config", "ladder"])


def main() -> None:
    base = CONFIG.value
    ladder = LADDER.value
    if "distillation" in base or "distillation" not in ladder:
        raise InputError(
            "--config must be a base model's config, without a section distillation, and --ladder a ladder's, with one."
        )
    base = resolve(base)
    PROCESSES.start(base.train.batch_size, base.model.dtype, base.train.microbatch_size)
    source = load_source(base.dataset.name, **base.dataset.args)
    evaluators, reference = evaluators_and_reference(base, source, base.eval.num_samples)
    reproduce_claims(
        base,
        ladder,
        WORKDIR.value,
        source,
        evaluators,
        reference,
        outputs=OUTPUT_TYPES.value,
        weights=WEIGHT_TYPES.value,
        seeds=SEEDS.value,
    )
    cli.saved(f"the reproduced claims to {as_path(WORKDIR.value) / 'index.html'}")


if __name__ == "__main__":
    cli.run(main)
