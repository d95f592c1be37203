r"""A base model for your own images at 256x256, in the latents of a published autoencoder.

32,474,512 parameters, a DiT-S/2; 100,000 updates of 64 latents of images or mirror images. It suits some thousand to
some hundred thousand images. Cost: 0.23 EFLOP, 39 minutes on one GPU at 100 TFLOP/s (calculated, not timed).
FID: the ladder's report compares its models with your images.

    diffusion_distillation encode_data --config=folder_base --config.dataset.args.path=my_images \
        --config.dataset.args.image_size=256 --autoencoder=hf://stabilityai/sd-vae-ft-ema --mirror \
        --out=runs/my_latents
    diffusion_distillation train --config=folder_latent_base --config.dataset.args.path=runs/my_latents \
        --workdir=runs/mine_latent/base

Change the config with flags:

* --config.dataset.args.randflip=False: no mirror images; encode without --mirror.
* --config.train.label_dropout=0.1: for latents with classes, encoded with class_conditional=True.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("dit_b2_imagenet256_base.py"))
    config.model.args.update(hidden_size=384, depth=12, num_heads=6)
    config.model.eval_sampling_num_steps = 256
    config.train.label_dropout = 0.0
    config.train.num_train_steps = 100_000
    config.train.batch_size = 64
    config.train.learning_rate = 2e-4
    config.train.learning_rate_warmup_steps = 1000
    config.train.ema_decay = 0.9995
    config.train.eval_every_steps = 5000
    return config
