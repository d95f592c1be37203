"""Shows the claims of Salimans & Ho (2022) again: every output and weight of their table 1, trained and distilled.

    python scripts/claims.py --config=configs/digits_base.py --ladder=configs/digits_distill.py \
        --workdir=runs/digits/claims

Base models are trained by --config but for what they predict and how their loss is weighted, and distilled by --ladder,
--seeds times; index.html in the workdir shows which are good in few steps, what the ladder costs beside the base model,
and how undistilled samplers, deterministic and stochastic, compare. Run again, the command goes on where it stopped.
`make claims` does this on the embedded digits.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.config import resolve
from diffusion_distillation.data import load_source
from diffusion_distillation.diffusion import MEAN_TYPES
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import config_evaluators
from diffusion_distillation.evaluation.reference import dataset_reference
from diffusion_distillation.studies.claims import WEIGHTS, reproduce_claims

CONFIG = cli.define_config()
LADDER = cli.define_config("ladder")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of all that is made; made if it is missing.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many times all is done.", lower_bound=1)
OUTPUTS = cli.define_some("outputs", MEAN_TYPES, "Some outputs, such as v,x; by default all.")
WEIGHT_TYPES = cli.define_some("weights", WEIGHTS, "Some weights, such as snr,v_mse; by default all.")
PROCESSES = cli.ProcessFlags()
flags.mark_flags_as_required(["config", "ladder"])


def main() -> None:
    """Runs the script."""
    base, ladder = CONFIG.value, LADDER.value
    if "distillation" in base or "distillation" not in ladder:
        raise InputError("--config is a base model's, without a section distillation, and --ladder has one.")
    base = resolve(base)
    PROCESSES.start(base.train.batch_size, base.model.dtype)
    source = load_source(base.dataset.name, **base.dataset.args)
    reproduce_claims(
        base,
        ladder,
        WORKDIR.value,
        source,
        config_evaluators(base, source, base.eval.num_samples),
        dataset_reference(source, base.dataset),
        outputs=OUTPUTS.value,
        weights=WEIGHT_TYPES.value,
        seeds=SEEDS.value,
    )


if __name__ == "__main__":
    cli.run(main)
