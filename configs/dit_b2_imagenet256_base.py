r"""DiT-B/2 (Peebles & Xie 2023) from scratch, on the latents of ImageNet at 256x256.

130,303,504 parameters; 400,000 updates of 256 latents. Batch, learning rate, label dropout and EMA are the paper's.
The schedule and the output are this package's: cosine, v. Cost: 14.1 EFLOP, 39 hours on one GPU at 100 TFLOP/s
(calculated, not timed). The latents of images and mirror images take 39.1 GiB.
FID: the paper reports 43.5 without guidance, for its own schedule and output. This config has not been trained.

    diffusion_distillation encode_data --config=imagenet64_guided_base --config.dataset.args.image_size=256 \
        --autoencoder=hf://stabilityai/sd-vae-ft-ema --mirror --out=runs/imagenet256_latents
    diffusion_distillation train --config=dit_b2_imagenet256_base \
        --config.dataset.args.path=runs/imagenet256_latents --workdir=runs/imagenet256/dit_b2
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults("dit")
    config.dataset.name = "Latents"
    config.dataset.args = ConfigDict(dict(path=placeholder(str), randflip=True))

    config.model.args.update(
        patch_size=2,
        hidden_size=768,
        depth=12,
        num_heads=12,
    )
    config.model.dtype = "bfloat16"
    config.model.mean_type = "v"
    config.model.eval_sampling_num_steps = 250
    config.model.eval_clip_denoised = False

    config.train.num_train_steps = 400_000
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.label_dropout = 0.1
    config.train.ema_decay = 0.9999
    return config
