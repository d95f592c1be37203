"""A teacher for images of your own on a CPU: any folder of them, at 32x32.

1,192,387 parameters; 4,000 updates of 64 images in bfloat16, with random flips: fit for some hundred images. Two CPU
cores: 26 minutes, at 150 to 190 images/s.

    python scripts/train.py --config=configs/folder_small_base.py --config.dataset.args.path=my_images \
        --workdir=runs/mine/base

Sub-folders become classes with --config.dataset.args.class_conditional=True. More images want more updates,
--config.train.num_train_steps=10000; text must not be mirrored, --config.dataset.args.randflip=False.
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
