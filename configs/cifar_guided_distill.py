r"""Stage 2 of Meng et al. (2023) for CIFAR-10: the student of `cifar_guided_student.py`, from 1024 sampling steps to 1.

61,328,131 parameters; 10 students, trained as in `cifar_distill.py`. Teachers and students take a guidance weight. The
settings are not tuned.

    diffusion_distillation distill --config=cifar_guided_distill \
        --config.distillation.teacher_checkpoint_path=runs/cifar_guided/student/steps_1024 \
        --workdir=runs/cifar_guided/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load, paper_ladder


def get_config() -> ConfigDict:
    student = load(Path(__file__).with_name("cifar_guided_student.py"))
    return paper_ladder(student, start_num_steps=1024, learning_rate=5e-5)
