r"""The paper's ladder for LSUN churches: the model of `church128_base.py`, from 1024 sampling steps to 1.

139,578,502 parameters; 10 students: 50,000 updates each, 100,000 for 2 steps and for 1 step. The paper used 64 TPUv4
chips. Cost: 799 EFLOP, 35 hours on 64 devices at 100 TFLOP/s each (calculated, not timed).
FID: only as a curve over sampling steps, in the paper's figure 4.

    diffusion_distillation distill --config=church128_distill \
        --config.distillation.teacher_checkpoint_path=runs/church128/base --workdir=runs/church128/ladder
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load, paper_ladder


def get_config() -> ConfigDict:
    base = load(Path(__file__).with_name("church128_base.py"))
    return paper_ladder(base, start_num_steps=1024, learning_rate=1e-4)
