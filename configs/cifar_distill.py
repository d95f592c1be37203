r"""The paper's ladder for CIFAR-10: the model of `cifar_base.py`, from 8192 sampling steps to 1.

60,004,099 parameters; 13 students: 50,000 updates each, 100,000 for 2 steps and for 1 step. The paper used 8 TPUv4
chips. Cost: 16.4 EFLOP, 46 hours on one device at 100 TFLOP/s (calculated, not timed).
FID with 50,000 samples (Salimans & Ho 2022, table 2): 2.57 at 8 steps, 3.00 at 4, 4.51 at 2, 9.12 at 1.

    diffusion_distillation distill --config=cifar_distill \
        --config.distillation.teacher_checkpoint_path=runs/cifar/base --workdir=runs/cifar/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load, paper_ladder


def get_config() -> ConfigDict:
    base = load(Path(__file__).with_name("cifar_base.py"))
    return paper_ladder(base, start_num_steps=8192, learning_rate=5e-5)
