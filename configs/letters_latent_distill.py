r"""Stage 2 of the letters' latents: from 64 sampling steps to 8, then to 4, 2 and 1.

1,920,528 parameters; 1,200 updates, as `letters_distill.py`. With guidance weight 0.5 and 2,000 samples, against all
images:

    sampling steps                8       4       2       1       teacher, 64    teacher, 1
    Fréchet distance (pixels)     4.68    5.28    6.07    7.61    4.39           245
    recall (pixels)               0.58    0.53    0.49    0.41    0.60           0

The 4-step student is the packaged model 'letters'.

    diffusion_distillation distill --config=letters_latent_distill \
        --config.distillation.teacher_checkpoint_path=runs/letters_latent/student/steps_0064 \
        --workdir=runs/letters_latent/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("letters_distill.py"))
    student = load(Path(__file__).with_name("letters_latent_student.py"))
    config.dataset, config.model = student.dataset, student.model
    config.train.num_train_steps = student.train.num_train_steps
    return config
