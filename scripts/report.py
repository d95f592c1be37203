"""Writes the page of a ladder again, or one with several ladders side by side.

    python scripts/report.py --workdir=runs/digits/ladder
    python scripts/report.py --workdir=runs/digits/ladder,runs/digits/other --out=runs/digits/compared

The first measures what the ladder's report lacks, as at the end of scripts/distill.py, and writes report/index.html;
--metrics=frechet,recall measures other metrics than the config's. The second puts the reports of several ladders on one
page.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.data import load_source
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import config_evaluators
from diffusion_distillation.report.page import write_joint_report, write_report
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import read_config

WORKDIR = flags.DEFINE_list("workdir", None, "The folders of ladders, with commas between.", required=True)
OUT = flags.DEFINE_string("out", None, "Where the page of several ladders goes.")
FEATURES = flags.DEFINE_list("features", None, "By default those of the ladder's config.eval.features.")
METRICS = flags.DEFINE_list("metrics", None, "By default those of the ladder's config.eval.metrics.")
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "By default the ladder's config.eval.num_samples.", lower_bound=1
)
INCEPTION = flags.DEFINE_string("inception", None, "The file of Inception's weights, where it is not in its place.")
PROCESSES = cli.ProcessFlags()


def main() -> None:
    """Runs the script."""
    several = len(WORKDIR.value) > 1
    if several and OUT.value is None:
        raise InputError(f"--workdir has {len(WORKDIR.value)} ladders: set --out to the folder for their page.")
    if OUT.value is not None and not several:
        raise InputError(f"--out={OUT.value} is for several ladders, as in --workdir=runs/one,runs/two; drop it.")
    for flag in (FEATURES, METRICS, NUM_SAMPLES):
        if several and flag.value is not None:
            raise InputError(f"--{flag.name} is for one ladder: give one --workdir at a time, without --out.")
    ladders = []
    for path in WORKDIR.value:
        if not (as_path(path) / "config.json").exists():
            raise InputError(f"{path!r} is no run's folder: it has no config.json.")
        config = read_config(as_path(path))
        if "distillation" not in config:
            raise InputError(f"{path!r} is no ladder: its config has no section config.distillation.")
        with config.unlocked():
            config.eval.features = tuple(FEATURES.value or config.eval.features)
            config.eval.inception = INCEPTION.value or config.eval.inception
            config.eval.metrics = tuple(METRICS.value or config.eval.metrics)
            config.eval.num_samples = NUM_SAMPLES.value or config.eval.num_samples
        ladders.append((path, config))
    if several:
        write_joint_report(ladders, OUT.value)
        return
    [(workdir, config)] = ladders
    PROCESSES.start(config.eval.batch_size, config.model.dtype)
    source = load_source(config.dataset.name, **config.dataset.args)
    write_report(config, workdir, source, config_evaluators(config, source, config.eval.num_samples))


if __name__ == "__main__":
    cli.run(main)
