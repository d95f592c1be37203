"""The paper's teacher for LSUN churches: 128x128, unconditional, 126,227 images.

139,578,502 parameters; 400,000 updates of 2,048 images, with random flips. The paper used 64 TPUv4 chips. Cost: 321
EFLOP, 14 hours on 64 devices at 100 TFLOP/s each (calculated, not timed).
FID: only as a curve over sampling steps, in the paper's figure 4.

    diffusion_distillation prepare_data --dataset=lsun/church_outdoor
    diffusion_distillation train --config=church128_base --workdir=runs/church128/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("bedroom128_base.py"))
    config.dataset.args.subset = "church"
    return config
