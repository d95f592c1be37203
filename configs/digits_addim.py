"""Ladder of the embedded example by larger strides, 64 to 8 to 4, 2 and 1, from a teacher that steps by aDDIM."""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("digits_distill.py"))
    config.distillation.start_num_steps = None
    config.distillation.rungs = (64, 8, 4, 2, 1)
    config.distillation.teacher_step = "addim"
    return config
