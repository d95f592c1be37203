r"""The paper's ladder for ImageNet: the model of `imagenet64_base.py`, from 1024 sampling steps to 1.

295,905,222 parameters; 10 students: 50,000 updates each, 100,000 for 2 steps and for 1 step. The paper used 64 TPUv4
chips. Cost: 1,300 EFLOP, 56 hours on 64 devices at 100 TFLOP/s each (calculated, not timed).
FID with 50,000 samples: 8.95 at 2 steps, 15.39 at 1 (reported by Song et al. 2023, Consistency Models, table 2).

    diffusion_distillation distill --config=imagenet64_distill \
        --config.distillation.teacher_checkpoint_path=runs/imagenet64/base --workdir=runs/imagenet64/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load, paper_ladder


def get_config() -> ConfigDict:
    base = load(Path(__file__).with_name("imagenet64_base.py"))
    return paper_ladder(base, start_num_steps=1024, learning_rate=1e-4)
