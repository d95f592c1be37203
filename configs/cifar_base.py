"""The paper's teacher for CIFAR-10: 32x32, unconditional.

60,004,099 parameters; 800,000 updates of 128 images, with random flips. The paper used 8 TPUv4 chips. Cost: 10.6 EFLOP,
29 hours on one device at 100 TFLOP/s (calculated, not timed).
FID: the teacher's only as a curve, in the paper's figure 4; for the students', see `cifar_distill.py`.

    diffusion_distillation prepare_data --dataset=cifar10
    diffusion_distillation train --config=cifar_base --workdir=runs/cifar/base
"""

from ml_collections import ConfigDict

from diffusion_distillation.config import paper_base


def get_config() -> ConfigDict:
    config = paper_base()
    config.dataset.name = "CIFAR10"
    config.dataset.args = ConfigDict(dict(class_conditional=False, randflip=True))

    config.model.args.update(
        ch=256,
        emb_ch=1024,
        ch_mult=(1, 1, 1),
        num_res_blocks=3,
        attn_resolutions=(8, 16),
        num_heads=1,
        dropout=0.2,
    )
    config.model.mean_type = "x"

    config.train.num_train_steps = 800_000
    config.train.batch_size = 128
    config.train.learning_rate = 2e-4
    config.train.weight_decay = 0.001
    return config
