"""The ladder of `imagenet64_distill.py` with an adjusted teacher in its first halving (Heek et al. 2024).

295,905,222 parameters; as much work as there. Their FIDs, of another network, of students of 1 / 2 / 4 / 8 steps:
10.7 / 4.7 / 2.4 / 1.7, where Salimans & Ho had 15.39 / 8.95 of the first two. Nobody has trained it here.

    python scripts/distill.py --config=configs/imagenet64_addim.py \
        --config.distillation.teacher_checkpoint_path=runs/imagenet64/base --workdir=runs/imagenet64/addim
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("imagenet64_distill.py"))
    config.distillation.teacher_step = "addim"
    return config
