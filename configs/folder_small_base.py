r"""A base model for your own images on a CPU, at 32x32.

1,192,387 parameters; 4,000 updates of 64 images in bfloat16, with random flips. It suits some hundred images. Two CPU
cores take 26 minutes, at 150 to 190 images/s.

    diffusion_distillation train --config=folder_small_base --config.dataset.args.path=my_images \
        --workdir=runs/mine_small/base

Change the config with flags:

* --config.dataset.args.class_conditional=True: subfolders are classes.
* --config.train.num_train_steps=10000: more updates, for more images.
* --config.dataset.args.randflip=False: no flips, for text and other images that must not be mirrored.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "ImageFolder"
    config.dataset.args = ConfigDict(
        dict(path=placeholder(str), image_size=32, class_conditional=False, on_error="skip", randflip=True)
    )

    config.model.args.update(
        ch=32,
        emb_ch=128,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        num_heads=1,
        dropout=0.1,
    )
    config.model.dtype = "bfloat16"
    config.model.mean_type = "v"
    config.model.eval_sampling_num_steps = 256

    config.train.num_train_steps = 4000
    config.train.batch_size = 64
    config.train.learning_rate = 1e-3
    config.train.learning_rate_warmup_steps = 200
    config.train.learning_rate_anneal_type = "linear"
    config.train.ema_decay = 0.998
    config.train.log_loss_every_steps = 100
    config.train.checkpoint_every_secs = 120
    config.train.eval_every_steps = 1000

    config.eval.num_samples = 1000
    return config
