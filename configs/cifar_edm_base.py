"""EDM's recipe for CIFAR-10: 32x32, unconditional (Karras et al. 2022, table 1 and appendix F).

56,524,291 parameters; 390,625 updates of 512 images, with random flips. Cost: 24.5 EFLOP, 68 hours on one device at 100
TFLOP/s (calculated, not timed). This config has never been trained at full size. The paper's FID is 1.97, with 18 Heun
steps.

The process, the loss, the training times, the sampler and the optimizer are the paper's. These parts differ:

* The network is this package's U-Net with the widths, depth and dropout of the paper's DDPM++ network, which has 55.7M
  parameters. It has self-attention after every block at 16x16, also on the way up. DDPM++ also scales its residual sums
  by sqrt(1/2).
* The paper augments the images and conditions the network on the augmentation. Here they are only flipped.
* The paper's EMA has a shorter half-life at the start of training.

    diffusion_distillation prepare_data --dataset=cifar10
    diffusion_distillation train --config=cifar_edm_base --workdir=runs/cifar_edm/base
"""

from ml_collections import ConfigDict

from diffusion_distillation.config import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "CIFAR10"
    config.dataset.args = ConfigDict(dict(class_conditional=False, randflip=True))
    config.sampler = "heun"

    config.model.args.update(
        ch=128,
        emb_ch=512,
        ch_mult=(2, 2, 2),
        num_res_blocks=4,
        attn_resolutions=(16,),
        num_heads=1,
        dropout=0.13,
        logsnr_input_type="c_noise",  # log(sigma) / 4, without a factor
        time_scale=1.0,
        scale_shift=False,  # as in DDPM++
        resblock_resample=True,
    )
    config.model.mean_type = "edm"
    config.model.mean_loss_weight_type = "edm_mse"
    config.model.train_times = ConfigDict(dict(name="log_normal", mean=-1.2, std=1.2))
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = ConfigDict(dict(name="karras"))
    config.model.eval_sampling_num_steps = 18
    config.model.eval_clip_denoised = False

    config.train.num_train_steps = 390_625  # 200 million images
    config.train.batch_size = 512
    config.train.learning_rate = 1e-3
    config.train.learning_rate_warmup_steps = 19_531  # 10 million images
    config.train.ema_decay = 0.5 ** (512 / 500_000)  # a half-life of 500,000 images
    config.train.grad_clip = 0.0
    return config
