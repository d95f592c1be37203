r"""Stage 1 of the letters' latents: a student of `letters_latent_base.py` that takes a guidance weight from 0 to 4.

1,920,528 parameters; 600 updates, as `letters_student.py`. With 64 steps, guidance weight 0.5 and 2,000 samples, the
Fréchet distance (pixels) to all images is 4.39 and the recall 0.60.

    diffusion_distillation distill --config=letters_latent_student \
        --config.distillation.teacher_checkpoint_path=runs/letters_latent/base --workdir=runs/letters_latent/student
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("letters_student.py"))
    base = load(Path(__file__).with_name("letters_latent_base.py"))
    config.dataset, config.model = base.dataset, base.model
    config.train.num_train_steps = base.train.num_train_steps
    config.model.args.guidance_range = (0.0, 4.0)
    return config
