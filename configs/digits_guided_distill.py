"""Stage 2 of the embedded example: the student of `digits_guided_student.py`, from 64 sampling steps to 1.

Figures follow.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("digits_guided_student.py"))
    config.distillation.method = "progressive"
    config.distillation.start_num_steps = 64
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 240
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.eval.teacher_num_steps = (64, 16, 8, 4, 2, 1)
    return config
