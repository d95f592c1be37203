r"""A ladder for SiT-XL/2 (Ma et al. 2024) at 256x256, guided at one weight: from 128 sampling steps to 1.

674,816,272 parameters; the teacher is a weights file of the original code, guided at the scale 1.5 of its paper's FID
(weight 0.5). Students keep its output, the velocity of flow matching. 7 students: 10,000 updates of 256 latents each,
20,000 for 2 and 1 steps. Cost: 28.5 EFLOP, 79 hours on one GPU at 100 TFLOP/s (calculated, not timed).
FID: the paper reports 2.15 for the teacher with its ODE sampler. This config has not been trained, and is not tuned.

    diffusion_distillation distill --config=imagenet256_sit_distill \
        --config.dataset.args.path=runs/imagenet256_latents \
        --config.distillation.teacher_checkpoint_path=path/to/SiT-XL-2-256.pt \
        --workdir=runs/imagenet256/sit_ladder

`dit_b2_imagenet256_base.py` says how to make the latents. A weights file names no autoencoder; the paper's is
stabilityai/sd-vae-ft-ema.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("imagenet256_dit_distill.py"))
    config.model.mean_type = "flow"
    config.model.args.update(logsnr_input_type="data_time", time_scale=1.0, freq_shift=0, mlp_norm_eps=1e-6)
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = ConfigDict(dict(name="flow"))
    config.distillation.stages = {number: {"updates_factor": 2.0} for number in ("2", "1")}
    return config
