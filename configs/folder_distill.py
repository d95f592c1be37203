"""A ladder for images of your own: the model of `folder_base.py`, from 256 sampling steps to 1.

44,173,827 parameters; 8 halvings of 10,000 updates, 20,000 for 2 steps and for 1. One GPU: it takes 1.7 EFLOP, 4.7
hours on a device that sustains 100 TFLOP/s (calculated from the program, not timed).
FID: it depends on your images; the ladder's report compares its models with them.

    python scripts/distill.py --config=configs/folder_distill.py --config.dataset.args.path=my_images \
        --config.distillation.teacher_checkpoint_path=runs/mine/base --workdir=runs/mine/ladder

Give every flag that the base model was trained with.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("folder_base.py")))
    config.distillation.start_num_steps = 256
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 10_000
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = 1e-4
    return config
