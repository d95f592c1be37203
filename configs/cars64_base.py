"""The seed project's teacher: Stanford Cars, training and test set, squeezed into 64x64, unconditional.

44,173,827 parameters, an architecture of our choice; 100,000 updates of 32 images (198 epochs), with random flips. One
GPU: it takes 0.5 EFLOP, 1.4 hours on a device that sustains 100 TFLOP/s (calculated from the program, not timed).
FID: none has been published for it.

Give the folder that cars_train and cars_test are in, as Kaggle and torchvision lay them out, or leave the path out and
prepare the dataset with `python scripts/prepare_data.py --dataset=cars196`.

    python scripts/train.py --config=configs/cars64_base.py --config.dataset.args.path=stanford_cars \
        --workdir=runs/cars64/base
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "StanfordCars"
    config.dataset.args = ConfigDict(dict(path=placeholder(str), image_size=64, randflip=True))

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
    config.model.mean_type = "x"
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = ConfigDict(dict(name="nichol_dhariwal"))
    config.model.eval_sampling_num_steps = 256

    config.train.num_steps = 100_000
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    config.train.learning_rate_warmup_steps = 1000
    config.train.ema_decay = 0.9995
    return config
