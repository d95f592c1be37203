r"""Stage 2 of the letters: from 64 sampling steps to 8, then to 4, 2 and 1.

1,216,579 parameters; `mnist_distill.py` with other data. Two CPU cores take 10 minutes for 1,200 updates, and 4 for the
report (JAX 0.12). With guidance weight 0.5 and 2,000 samples, against all images:

    sampling steps                8       4       2       1       teacher, 64    teacher, 1
    Fréchet distance (pixels)     6.87    7.21    7.81    8.91    6.00           226
    recall                        0.56    0.53    0.49    0.43    0.59           0

    diffusion_distillation distill --config=letters_distill \
        --config.distillation.teacher_checkpoint_path=runs/letters/student/steps_0064 --workdir=runs/letters/ladder
    diffusion_distillation sample --checkpoint=runs/letters/ladder/steps_0001 --guidance=2 --out=letters.png
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("letters_student.py")))
    config.distillation.rungs = (64, 8, 4, 2, 1)
    config.distillation.steps_per_iter = 200
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = 5e-4
    config.train.log_loss_every_steps = 50
    config.eval.teacher_num_steps = (64, 8, 4, 2, 1)
    config.eval.ancestral_num_steps = ()
    return config
