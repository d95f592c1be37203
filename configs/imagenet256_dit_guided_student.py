r"""Stage 1 of Meng et al. (2023) for DiT-XL/2 at 256x256: a student that takes a guidance weight.

676,440,592 parameters; the teacher is a `DiTPipeline` folder of diffusers. Guidance weights are from 0 to 4, scales
from 1 to 5, at the times of 128 sampling steps. 20,000 updates of 256 latents. The student predicts v and starts from
the teacher, as in `imagenet256_dit_distill.py`. Cost: 6.1 EFLOP, 17 hours on one GPU at 100 TFLOP/s (calculated, not
timed).
FID: not measured. This config has not been trained, and is not tuned.

    diffusion_distillation distill --config=imagenet256_dit_guided_student \
        --config.dataset.args.path=runs/imagenet256_latents \
        --config.distillation.teacher_checkpoint_path=path/to/DiT-XL-2-256 \
        --workdir=runs/imagenet256/dit_student
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("imagenet256_dit_distill.py"))
    config.model.args.guidance_range = (0.0, 4.0)
    config.distillation.method = "guidance"
    config.distillation.teacher_guidance = None
    config.distillation.start_num_steps = None
    config.distillation.end_num_steps = 128
    config.distillation.steps_per_iter = 20_000
    config.distillation.stages = ConfigDict()
    return config
