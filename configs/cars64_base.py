r"""The seed project's teacher: Stanford Cars, training and test set, squeezed to 64x64, unconditional.

44,173,827 parameters, the architecture of `folder_base.py`; 100,000 updates of 32 images (198 epochs), with random
flips. Cost: 0.5 EFLOP, 1.4 hours on one GPU at 100 TFLOP/s (calculated, not timed).
FID: not published.

Set `path` to the folder with cars_train and cars_test, in the layout of Kaggle and torchvision. Or omit it, and prepare
the dataset with `diffusion_distillation prepare_data --dataset=cars196`.

    diffusion_distillation train --config=cars64_base --config.dataset.args.path=stanford_cars \
        --workdir=runs/cars64/base
"""

from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("folder_base.py"))
    config.dataset.name = "StanfordCars"
    config.dataset.args = ConfigDict(dict(path=placeholder(str), image_size=64, randflip=True))

    config.model.mean_type = "x"
    config.model.train_logsnr_schedule.name = "nichol_dhariwal"
    config.model.eval_logsnr_schedule.name = "nichol_dhariwal"

    config.train.batch_size = 32
    config.train.learning_rate = 1e-3
    return config
