"""Writes a model for elsewhere: its sampler as one file that needs JAX alone, its archive, or both, with a card.

    python scripts/export.py --checkpoint=runs/digits/ladder/steps_0004 --out=digits_4/
    pip install jax flatbuffers                   # elsewhere, where that is all it takes:
    python digits_4/run.py 64 0 images.npy

draws the images that `scripts/sample.py --seed=0` draws. The file is for CPUs, GPUs and TPUs, whichever it is written
on; JAX promises to read it for six months. `--format=archive` writes the parameters as safetensors and the config as
JSON, which `from_checkpoint` and every --checkpoint here read.
"""

from absl import flags

from diffusion_distillation import cli, interop
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.results import Evaluation
from diffusion_distillation.export import card, options, sampler_file
from diffusion_distillation.export.card import CardInfo
from diffusion_distillation.export.options import ExportOptions
from diffusion_distillation.interop import diffusers
from diffusion_distillation.runtime.devices import start_jax
from diffusion_distillation.runtime.files import as_path

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The folder of a run, or another model's path.", required=True)
CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", None, "The folder to write, a new or an empty one.", required=True)
FORMAT = flags.DEFINE_enum(
    "format",
    "sampler",
    [*sampler_file.FORMATS, "diffusers"],
    "What to write; diffusers is a pipeline of its UNet2DModel.",
)
INPUT = flags.DEFINE_enum("input", "seed", options.INPUTS, "What the sampler starts from.")
OUTPUT = flags.DEFINE_enum("output", "uint8", options.OUTPUTS, "What the sampler returns.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images at a time; by default it is free.", lower_bound=1)
NUM_STEPS = flags.DEFINE_string(
    "num_steps", None, "Sampling steps, by default the model's own; 'free' makes them an input."
)
SAMPLER = cli.define_sampler()
PLATFORMS = flags.DEFINE_list("platforms", list(options.PLATFORMS), "What the sampler's file is for.")
PARAMS = flags.DEFINE_enum("params", "inside", options.PARAMS, "Parameters in the sampler's file or in one beside it.")
DTYPE = flags.DEFINE_enum("dtype", "float32", options.DTYPES, "What parameters are stored in.")
LICENSE = flags.DEFINE_string("license", "unknown", "For the card: such as apache-2.0, as the Hugging Face Hub has it.")
EVALUATION = flags.DEFINE_string("evaluation", None, "An evaluation.json of the model, for the card.")


def main() -> None:
    """Runs the script."""
    chosen = ExportOptions(
        input=INPUT.value,
        output=OUTPUT.value,
        batch_size=BATCH_SIZE.value,
        num_steps=parse_steps(NUM_STEPS.value),
        sampler=SAMPLER.value,
        platforms=tuple(PLATFORMS.value),
        params=PARAMS.value,
        dtype=DTYPE.value,
    )
    card.check_license(LICENSE.value)
    out = as_path(OUT.value)
    start_jax()
    params, metadata = interop.load(CHECKPOINT.value, CONFIG.value)
    if FORMAT.value == "diffusers":
        if chosen.num_steps == options.FREE:
            raise InputError("--format=diffusers is for one number of --num_steps: its table of times is for these.")
        sampler_file.check_new_folder(out)
        diffusers.write(out, params, metadata, chosen.num_steps and int(chosen.num_steps))
        cli.saved(f"the model to {out}", f"see {out / 'README.md'}")
        return
    metrics = {} if EVALUATION.value is None else read_metrics(EVALUATION.value)
    info = CardInfo(license=LICENSE.value, metrics=metrics)
    for path in sampler_file.write(out, params, metadata, FORMAT.value, chosen, info):
        print(f"{path}: {path.stat().length:,} bytes")
    following = f"see {out / 'README.md'}"
    if FORMAT.value == "archive":
        following = cli.command("sample", checkpoint=out, out="samples.png")
    cli.saved(f"the model to {out}", following)


def parse_steps(text: str | None) -> int | str | None:
    """The number that --num_steps is, or 'free'; None if it is not given."""
    return int(text) if text is not None and text.isdecimal() else text


def read_metrics(path: str) -> dict[str, str]:
    """The rows of an evaluation.json in words; raises an InputError if it is none, or has none of this model."""
    try:
        found = Evaluation.from_json(as_path(path).read_text())
    except OSError as error:
        raise InputError(f"--evaluation={path} cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"--evaluation={path} is no evaluation.json, as scripts/evaluate.py writes it.") from None
    here = interop.model_version(interop.local_path(CHECKPOINT.value))
    rows = [row for row in found.rows if row.version == here]
    if not rows:
        raise InputError(f"--evaluation={path} is not of this model as it is now: measure it with scripts/evaluate.py.")
    against = f"{found.settings['num_samples']:,} samples against {found.settings['reference'][0]}"
    return {f"{row.entry.title} ({against})": row.summary for row in rows}


if __name__ == "__main__":
    cli.run(main)
