r"""Save a picture of evaluations of solvers, such as docs/solvers.png: one plot per model, one curve per solver.

    python docs/solvers.py --evaluations=runs/digits/solvers.json,runs/mnist/solvers.json --names=digits,MNIST \
        --out=docs/solvers.png

The evaluations are from `evaluate` with several samplers and numbers of steps. Their first metric is shown.
"""

from absl import app, flags

from diffusion_distillation.evaluation.results import read_evaluation
from diffusion_distillation.report.pictures import nfe_panels
from diffusion_distillation.report.plots import NFE_LABEL, save_curves
from diffusion_distillation.runtime.files import as_path

EVALUATIONS = flags.DEFINE_list("evaluations", None, "Files of `evaluate`, one per model.", required=True)
NAMES = flags.DEFINE_list("names", None, "Names of the models, in the same order.", required=True)
OUT = flags.DEFINE_string("out", None, "The PNG file.", required=True)


def main(_: list[str]) -> None:
    panels = []
    for name, path in zip(NAMES.value, EVALUATIONS.value, strict=True):
        first, *_others = nfe_panels(read_evaluation(as_path(path)))
        panels.append(first._replace(title=f"{name}: {first.title}"))
    save_curves(panels, NFE_LABEL, as_path(OUT.value))


if __name__ == "__main__":
    app.run(main)
