"""The paper's teacher for LSUN bedrooms: 128x128, unconditional, 3,033,042 images.

139,578,502 parameters; 400,000 updates of 2,048 images, with random flips. The paper used 64 TPUv4 chips. Cost: 321
EFLOP, 14 hours on 64 devices at 100 TFLOP/s each (calculated, not timed).
FID: only as a curve over sampling steps, in the paper's figure 4.

    diffusion_distillation prepare_data --dataset=lsun/bedroom
    diffusion_distillation train --config=bedroom128_base --workdir=runs/bedroom128/base
"""

from ml_collections import ConfigDict

from diffusion_distillation.config import paper_base


def get_config() -> ConfigDict:
    config = paper_base()
    config.dataset.name = "LSUN"
    config.dataset.args = ConfigDict(dict(subset="bedroom", image_size=128, randflip=True))

    config.model.args.update(
        ch=64,
        emb_ch=768,
        ch_mult=(1, 2, 4, 6, 8),
        num_res_blocks=3,
        attn_resolutions=(8, 16, 32),
        head_dim=64,
        dropout=0.1,
    )
    config.model.mean_type = "both"

    config.train.num_train_steps = 400_000
    config.train.batch_size = 2048
    config.train.learning_rate = 3e-4
    return config
