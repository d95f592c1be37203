"""The paper's teacher for ImageNet: 64x64, conditional on 1,000 classes.

295,905,222 parameters; 550,000 updates of 2,048 images, with random flips. The paper used 64 TPUv4 chips. Cost: 717
EFLOP, 31 hours on 64 devices at 100 TFLOP/s each (calculated, not timed).
FID: the teacher's only as a curve, in the paper's figure 4; for the students', see `imagenet64_distill.py`.

    diffusion_distillation prepare_data --dataset=imagenet2012
    diffusion_distillation train --config=imagenet64_base --workdir=runs/imagenet64/base

With --config.dataset.args.pre_shrunk=True, it reads imagenet_resized/64x64, which TFDS downloads freely.
"""

from ml_collections import ConfigDict

from diffusion_distillation.config import paper_base


def get_config() -> ConfigDict:
    config = paper_base()
    config.dataset.name = "ImageNet"
    config.dataset.args = ConfigDict(dict(image_size=64, class_conditional=True, randflip=True))

    config.model.args.update(
        ch=192,
        emb_ch=768,
        ch_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attn_resolutions=(8, 16, 32),
        head_dim=64,
        dropout=0.1,
    )
    config.model.mean_type = "both"

    config.train.num_train_steps = 550_000
    config.train.batch_size = 2048
    config.train.learning_rate = 3e-4
    return config
