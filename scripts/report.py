"""Write the page of a ladder again, or one page with several ladders side by side.

    diffusion_distillation report --workdir=runs/digits/ladder
    diffusion_distillation report --workdir=runs/digits/ladder,runs/digits/other --out=runs/digits/compared

With one ladder, it measures what the ladder's report lacks and writes report/index.html in its folder, like the end of
the command distill. --metrics=frechet,recall measures these metrics instead of the config's. With several ladders, it
writes index.html to --out from the reports that they have.
"""

from absl import flags
from ml_collections import ConfigDict

from diffusion_distillation import cli
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.ladders import evaluators_and_reference
from diffusion_distillation.report.page import write_joint_report, write_report
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import read_config

WORKDIR = flags.DEFINE_list("workdir", None, "A ladder's folder, or several separated by commas.", required=True)
OUT = flags.DEFINE_string("out", None, "The folder for the page of several ladders.")
FEATURES = flags.DEFINE_list("features", None, "Features to compare images by; default config.eval.features.")
METRICS = flags.DEFINE_list("metrics", None, "Metrics to measure; default config.eval.metrics.")
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", None, "Samples of each model; default config.eval.num_samples.", lower_bound=1
)
INCEPTION = flags.DEFINE_string("inception", None, "The file of Inception's weights; default config.eval.inception.")
PROCESSES = cli.ProcessFlags()


def main() -> None:
    check_flags()
    ladders = [(workdir, ladder_config(workdir)) for workdir in WORKDIR.value]
    if len(ladders) > 1:
        write_joint_report(ladders, OUT.value)
        cli.saved(f"the page of {len(ladders)} ladders to {as_path(OUT.value) / 'index.html'}")
        return
    [(workdir, config)] = ladders
    PROCESSES.start(config.eval.batch_size, config.model.dtype, training=False)
    write_report(config, workdir, *evaluators_and_reference(config, None, config.eval.num_samples))
    cli.saved(f"the report to {as_path(workdir) / 'report' / 'index.html'}")


def check_flags() -> None:
    """Raise an InputError for flags that do not apply to the number of ladders."""
    several = len(WORKDIR.value) > 1
    if several and OUT.value is None:
        raise InputError(f"--workdir has {len(WORKDIR.value)} ladders. Set --out to the folder for their page.")
    if OUT.value is not None and not several:
        raise InputError(f"--out={OUT.value} is for several ladders, as in --workdir=runs/one,runs/two. Omit it.")
    for flag in (FEATURES, METRICS, NUM_SAMPLES, INCEPTION):
        if several and flag.value is not None:
            raise InputError(f"--{flag.name} is for one ladder. Give one --workdir at a time, without --out.")


def ladder_config(workdir: str) -> ConfigDict:
    """The config of a ladder, with what the flags set in its `eval` section."""
    if not (as_path(workdir) / "config.json").exists():
        raise InputError(f"{workdir!r} is not a run's folder: it has no config.json.")
    config = read_config(as_path(workdir))
    if "distillation" not in config:
        raise InputError(f"{workdir!r} is not a ladder: its config has no section config.distillation.")
    with config.unlocked():
        config.eval.features = tuple(FEATURES.value or config.eval.features)
        config.eval.inception = INCEPTION.value or config.eval.inception
        config.eval.metrics = tuple(METRICS.value or config.eval.metrics)
        config.eval.num_samples = NUM_SAMPLES.value or config.eval.num_samples
    return config


if __name__ == "__main__":
    cli.run(main)
