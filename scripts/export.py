"""Export a model: its sampler as one file that runs without this package, an archive of the model, or both.

    diffusion_distillation export --checkpoint=runs/digits/ladder/steps_0004 --out=digits_4/

The folder also gets a model card and run.py. On a machine without this package, they generate the same images as
the command sample with --seed=0:

    pip install jax flatbuffers
    python digits_4/run.py 64 0 images.npy

The sampler's file runs on CPUs, GPUs and TPUs. JAX guarantees to read it for six months. --format=archive writes the
parameters as safetensors and the config as JSON, which `from_checkpoint` and the --checkpoint of every script read.
--format=diffusers writes a U-Net as a `DDIMPipeline`, and a diffusion transformer of latents as a `DiTPipeline`.
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

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, or the path of another model.", required=True)
CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", None, "The folder to write; must be new or empty.", required=True)
FORMAT = flags.DEFINE_enum(
    "format",
    "sampler",
    [*sampler_file.FORMATS, "diffusers"],
    "What to write: the sampler's file, the archive, both, or a diffusers pipeline.",
)
INPUT = flags.DEFINE_enum(
    "input", "seed", options.INPUTS, "Input of the sampler: a seed, or the noise itself for deterministic samplers."
)
OUTPUT = flags.DEFINE_enum(
    "output", "uint8", options.OUTPUTS, "Output of the sampler: uint8 pixels, or float32 images in about [-1, 1]."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per call; by default any number.", lower_bound=1)
NUM_STEPS = flags.DEFINE_string(
    "num_steps", None, "Sampling steps; by default the model's own. 'free' makes them an input."
)
SAMPLER = cli.define_sampler()
PLATFORMS = flags.DEFINE_list("platforms", list(options.PLATFORMS), "Platforms that the sampler's file runs on.")
PARAMS = flags.DEFINE_enum(
    "params", "inside", options.PARAMS, "Store the parameters inside the sampler's file, or in a file beside it."
)
DTYPE = flags.DEFINE_enum("dtype", "float32", options.DTYPES, "The dtype of the stored parameters.")
LICENSE = flags.DEFINE_string("license", "unknown", "License on the model card, by its name on the Hugging Face Hub.")
EVALUATION = flags.DEFINE_string("evaluation", None, "An evaluation.json of the model, for the model card.")
# The flags that do not apply to a format.
OF_SAMPLERS = (INPUT, OUTPUT, BATCH_SIZE, SAMPLER, PLATFORMS, PARAMS)
UNUSED = {"diffusers": (*OF_SAMPLERS, DTYPE, LICENSE, EVALUATION), "archive": (*OF_SAMPLERS, NUM_STEPS)}


def main() -> None:
    export_options = ExportOptions(
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
    for flag in UNUSED.get(FORMAT.value, ()):
        if flag.present:
            raise InputError(f"--{flag.name} does not apply to --format={FORMAT.value}. Omit it.")
    out = as_path(OUT.value)
    start_jax()
    params, metadata = interop.load(CHECKPOINT.value, CONFIG.value)
    if FORMAT.value == "diffusers":
        options.check_options(export_options, metadata)
        if export_options.num_steps == options.FREE:
            raise InputError(
                "--num_steps=free does not work with --format=diffusers, whose scheduler has a table of times. Give a "
                "number, such as --num_steps=4."
            )
        sampler_file.check_new_folder(out)
        diffusers.write(out, params, metadata, export_options.num_steps and int(export_options.num_steps))
        cli.saved(f"the model to {out}", f"see {out / 'README.md'}")
        return
    metrics = {} if EVALUATION.value is None else read_metrics(EVALUATION.value)
    info = CardInfo(license=LICENSE.value, metrics=metrics)
    for path in sampler_file.write(out, params, metadata, FORMAT.value, export_options, info):
        print(f"{path}: {path.stat().length:,} bytes")
    following = f"see {out / 'README.md'}"
    if FORMAT.value == "archive":
        following = cli.command("sample", checkpoint=out, out="samples.png")
    cli.saved(f"the model to {out}", following)


def parse_steps(text: str | None) -> int | str | None:
    """The value of --num_steps: a number, 'free', or None if it is not set."""
    return int(text) if text is not None and text.isdecimal() else text


def read_metrics(path: str) -> dict[str, str]:
    """Read the metrics of the model from an evaluation.json, as text for the model card.

    Raises:
      InputError: if the file cannot be read, or has no metrics of the model.
    """
    try:
        evaluation = Evaluation.from_json(as_path(path).read_text())
    except OSError as error:
        raise InputError(f"--evaluation={path} cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"--evaluation={path} cannot be read as an evaluation.json of the command evaluate.") from None
    version = interop.model_version(interop.local_path(CHECKPOINT.value))
    rows = [row for row in evaluation.rows if row.version == version]
    if not rows:
        raise InputError(
            f"--evaluation={path} has no metrics of {CHECKPOINT.value} as it is now. Evaluate it with "
            "the command evaluate."
        )
    against = f"{evaluation.settings['num_samples']:,} samples against {evaluation.settings['reference'][0]}"
    return {f"{row.entry.title} ({against})": row.summary for row in rows}


if __name__ == "__main__":
    cli.run(main)
