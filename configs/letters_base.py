"""Coloured letters with classes, to be guided: 10,400 images of 32x32, in the typefaces that come with matplotlib.

1,195,843 parameters; `mnist_base.py` on other data. Two CPU cores: TIME

    python scripts/train.py --config=configs/letters_base.py --workdir=runs/letters/base
"""

from ml_collections import ConfigDict

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "letters"
    config.dataset.args = ConfigDict(dict(class_conditional=True))

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
    config.model.eval_guidance = 0.5

    config.train.num_steps = 4000
    config.train.batch_size = 64
    config.train.label_dropout = 0.1
    config.train.learning_rate = 1e-3
    config.train.learning_rate_warmup_steps = 200
    config.train.learning_rate_anneal_type = "linear"
    config.train.ema_decay = 0.998
    config.train.log_loss_every_steps = 100
    config.train.checkpoint_every_secs = 120
    config.train.eval_every_steps = 1000

    config.eval.features = ("pixels", "classifier")
    config.eval.metrics = ("fid", "accuracy", "precision", "recall")
    config.eval.num_samples = 2000
    return config
