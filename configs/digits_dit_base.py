"""Base model of the built-in example with a diffusion transformer (DiT) on patches of 2x2 pixels, unconditional.

328,260 parameters. Data and training are those of `digits_base.py`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from diffusion_distillation.config import defaults, load


def get_config() -> ConfigDict:
    config = load(Path(__file__).with_name("digits_base.py"))
    config.model.name = "dit"
    config.model.args = defaults("dit").model.args
    config.model.args.update(
        patch_size=2,
        hidden_size=64,
        depth=4,
        num_heads=4,
    )
    return config
