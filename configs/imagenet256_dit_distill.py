r"""A ladder for DiT-XL/2 at 256x256, guided at one weight: from 128 sampling steps to 1.

674,816,272 parameters; the teacher is a `DiTPipeline` folder of diffusers, guided at the scale 1.5 of its paper's FID
(weight 0.5). 7 students: 10,000 updates of 256 latents each, 20,000 for 64, 2 and 1 steps. Students start from the
teacher and output v, since eps says little about x where there is little signal. The first of them relearns the
output. Cost: 32.8 EFLOP, 91 hours on one GPU at 100 TFLOP/s (calculated, not timed).
FID: the paper reports 2.27 for the teacher with 250 steps. This config has not been trained, and is not tuned.

    diffusion_distillation distill --config=imagenet256_dit_distill \
        --config.dataset.args.path=runs/imagenet256_latents \
        --config.distillation.teacher_checkpoint_path=path/to/DiT-XL-2-256 \
        --workdir=runs/imagenet256/dit_ladder

Make the latents as for `dit_b2_imagenet256_base.py`, with the teacher's own autoencoder:
--autoencoder=path/to/DiT-XL-2-256.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import distillation_of, load


def get_config() -> ConfigDict:
    config = distillation_of(load(Path(__file__).with_name("dit_b2_imagenet256_base.py")))
    config.model.args.update(
        hidden_size=1152,
        depth=28,
        num_heads=16,
        logsnr_input_type="step",
        freq_shift=1,
        mlp_norm_eps=1e-5,
        remat=True,
    )
    schedule = ConfigDict(dict(name="discrete", betas="linear", num_steps=1000, beta_start=0.0001, beta_end=0.02))
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = schedule

    config.distillation.teacher_guidance = 0.5
    config.distillation.start_num_steps = 128
    config.distillation.end_num_steps = 1
    config.distillation.steps_per_iter = 10_000
    config.distillation.stages = {number: {"updates_factor": 2.0} for number in ("64", "2", "1")}
    config.train.learning_rate = 5e-5
    config.eval.teacher_num_steps = (128, 16, 8, 4, 2, 1)
    config.eval.ancestral_num_steps = ()
    return config
