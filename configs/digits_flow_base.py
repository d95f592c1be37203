"""Flow matching on the built-in digits: the network, data and updates of `digits_base.py`, with eps - x as the output.

178,721 parameters. Fréchet distance (pixels) of 2,000 samples to all digits: 0.54 with 8 DDIM steps, 14.2 with 1
(three seeds).

    diffusion_distillation train --config=digits_flow_base --workdir=runs/digits_flow/base
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("digits_base.py"))
    config.model.mean_type = "flow"
    config.model.mean_loss_weight_type = "flow_mse"
    config.model.args.logsnr_input_type = "flow_time"
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = ConfigDict(dict(name="flow"))
    return config
