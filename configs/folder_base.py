r"""A base model for your own images at 64x64.

44,173,827 parameters; 100,000 updates of 64 images, with random flips. It suits some thousand to some hundred thousand
images. Cost: 1.0 EFLOP, 2.8 hours on one GPU at 100 TFLOP/s (calculated, not timed).
FID: the ladder's report compares its models with your images.

    diffusion_distillation train --config=folder_base --config.dataset.args.path=my_images \
        --workdir=runs/mine/base

Change the config with flags:

* --config.dataset.args.class_conditional=True: subfolders are classes.
* --config.dataset.args.image_size=32: smaller images. For 128x128, also set --config.model.args.ch_mult="(1,1,2,2,2)".
* --config.dataset.args.randflip=False: no flips, for text and other images that must not be mirrored.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "ImageFolder"
    config.dataset.args = ConfigDict(
        dict(path=placeholder(str), image_size=64, class_conditional=False, on_error="skip", randflip=True)
    )

    config.model.args.update(
        ch=128,
        emb_ch=512,
        ch_mult=(1, 2, 2, 2),
        num_res_blocks=2,
        attn_resolutions=(8, 16),
        head_dim=64,
        dropout=0.1,
        resblock_resample=True,
    )
    config.model.mean_type = "v"
    config.model.eval_sampling_num_steps = 256

    config.train.num_train_steps = 100_000
    config.train.batch_size = 64
    config.train.learning_rate = 2e-4
    config.train.learning_rate_warmup_steps = 1000
    config.train.ema_decay = 0.9995
    config.train.eval_every_steps = 5000
    return config
