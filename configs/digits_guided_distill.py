"""Stage 2 of the embedded example: the student of `digits_guided_student.py`, from 64 sampling steps to 1.

200,865 parameters; 240 updates a halving and twice as many for the last two. Of 2,000 samples in 1 step at weights
0 / 1 / 3 a classifier sees the asked class in 99.2 / 100 / 100%; Frechet distance by the classifier to
all digits 4.2 / 21 / 71 (5.2 / 15 / 43 of the guided base model in 64 steps of two calls each).

    python scripts/distill.py --config=configs/digits_guided_distill.py \
        --config.distillation.teacher_checkpoint_path=runs/digits_guided/student/steps_0064 \
        --workdir=runs/digits_guided/ladder
    python scripts/sample.py --checkpoint=runs/digits_guided/ladder/steps_0001 --guidance=2 --out=guided.png
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("digits_guided_student.py")))
    config.distillation.start_num_steps = 64
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 240
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.eval.teacher_num_steps = (64, 16, 8, 4, 2, 1)
    return config
