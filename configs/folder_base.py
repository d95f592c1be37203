"""A teacher for images of your own, any folder of them, at 64x64.

44,173,827 parameters; 100,000 updates of 64 images, with random flips: fit for some thousand images to some hundred
thousand. One GPU: it takes 1.0 EFLOP, 2.8 hours on a device that sustains 100 TFLOP/s (calculated from the program, not
timed). FID: it depends on your images; the ladder's report compares its models with them.

    python scripts/train.py --config=configs/folder_base.py --config.dataset.args.path=my_images \
        --workdir=runs/mine/base

Sub-folders become classes with --config.dataset.args.class_conditional=True. For 32x32 set
--config.dataset.args.image_size=32; for 128x128 set it to 128 and --config.model.args.ch_mult="(1,1,2,2,2)". Text and
other images that must not be mirrored need --config.dataset.args.randflip=False.
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
