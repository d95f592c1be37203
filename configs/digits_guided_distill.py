r"""Stage 2 of the built-in example: the student of `digits_guided_student.py`, from 64 sampling steps to 1.

200,865 parameters; 6 students: 240 updates each, 480 for 2 steps and for 1 step. With 2,000 samples in 1 step:

    guidance weight                   0        1        3
    recognized                        99.2%    100%     100%    (share of samples classified as the requested class)
    Fréchet distance                  4.2      21       71      (classifier features, to all digits)
    Fréchet distance, base model      5.2      15       43      (64 steps, two network evaluations each)

    diffusion_distillation distill --config=digits_guided_distill \
        --config.distillation.teacher_checkpoint_path=runs/digits_guided/student/steps_0064 \
        --workdir=runs/digits_guided/ladder
    diffusion_distillation sample --checkpoint=runs/digits_guided/ladder/steps_0001 --guidance=2 --out=guided.png
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
