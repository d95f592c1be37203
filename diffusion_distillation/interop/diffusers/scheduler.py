"""diffusers' schedulers: the noise schedule of a model, as betas."""

import logging
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ...checkpoints import Metadata
from ...errors import InputError
from ...networks.model import eval_schedule
from ...runtime.files import read_json
from .fields import check_integer, header, with_defaults

SCHEDULER = "scheduler_config.json"
DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "clip_sample": True, "clip_sample_range": 1.0, "prediction_type": "epsilon",
    "thresholding": False, "rescale_betas_zero_snr": False, "variance_type": "fixed_small",
}  # fmt: skip
ALLOWED = {
    "_class_name": ("DDPMScheduler", "DDIMScheduler"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "clip_sample": (False, True),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
MEAN_TYPES = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
MAX_ANGLE_ERROR = 1e-3  # radians
MAX_ALPHA_ERROR = 0.01  # relative


def read_scheduler(folder: epath.Path) -> dict[str, Any]:
    """Read the scheduler's config in the folder of a pipeline or of a UNet2DModel.

    Returns:
      The config, filled up with diffusers' defaults; without a file, the defaults of DDPMScheduler.

    Raises:
      InputError: if the scheduler is not supported.
    """
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.is_file():
            values = with_defaults(read_json(path), DEFAULTS, ALLOWED, str(path))
            if values["clip_sample"] and values["clip_sample_range"] != 1:
                raise InputError(
                    f"{path!s}: clip_sample_range={values['clip_sample_range']!r} must be 1, as x is in [-1, 1]."
                )
            return values
    logging.warning("%s has no %s. Using DDPMScheduler's defaults: 1000 linear betas.", folder, SCHEDULER)
    return dict(DEFAULTS)


def model_fields(scheduler: dict[str, Any]) -> dict[str, Any]:
    """The fields of our config.model that a scheduler's config determines.

    >>> model_fields(DEFAULTS)["mean_type"]
    'eps'
    """
    num_steps = check_integer(scheduler["num_train_timesteps"], "num_train_timesteps", SCHEDULER)
    if scheduler["trained_betas"] is not None:
        schedule = dict(name="discrete", betas=scheduler["trained_betas"])
    else:
        schedule = dict(
            name="discrete",
            betas=scheduler["beta_schedule"],
            num_steps=num_steps,
            beta_start=scheduler["beta_start"],
            beta_end=scheduler["beta_end"],
        )
    return dict(
        mean_type=MEAN_TYPES[scheduler["prediction_type"]],
        logvar_type=scheduler["variance_type"].removesuffix("_log"),
        train_logsnr_schedule=schedule,
        eval_logsnr_schedule=schedule,
        eval_sampling_num_steps=num_steps,
        eval_clip_denoised=scheduler["clip_sample"],
    )


def scheduler_config(model: ConfigDict, logsnr: Any) -> dict[str, Any]:
    """The config of the DDIMScheduler that makes the same steps as our DDIM sampler.

    Args:
      model: our config.model.
      logsnr: log-SNR at the end of each step, from the data to the noise, `[num_steps]`.

    Raises:
      InputError: if float32 betas cannot follow the schedule.
    """
    return {
        **header("DDIMScheduler"),
        "num_train_timesteps": len(logsnr),
        "beta_start": 0.0001,  # not used, as there are trained_betas
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "trained_betas": _betas(logsnr, model.mean_type),
        "clip_sample": model.eval_clip_denoised,
        "clip_sample_range": 1.0,
        "prediction_type": {ours: theirs for theirs, ours in MEAN_TYPES.items()}[model.mean_type],
        "rescale_betas_zero_snr": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "thresholding": False,
        "timestep_spacing": "trailing",
    }


def grid_logsnr(metadata: Metadata, num_steps: int) -> Any:
    """Log-SNR at the times 1 / num_steps, ..., 1 of our samplers, `[num_steps]` float32."""
    times = jnp.arange(1, num_steps + 1).astype(jnp.float32) * (1 / jnp.float32(num_steps))
    return eval_schedule(metadata.config.model)(times)


def _betas(logsnr: Any, mean_type: str) -> list[float]:
    """Betas for which diffusers computes these log-SNRs.

    diffusers rounds a beta, and 1 - beta, to float32. It cannot represent a step that removes less than 1e-7 of
    alpha^2, or leaves less. Each beta compensates for the rounding of the ones before.

    Raises:
      InputError: if an angle is off by more than 1e-3 or, for mean_type 'eps', which is divided by alpha, if alpha is
        off by more than 1 %.
    """
    logsnr = np.asarray(logsnr, np.float64)
    alphas2 = 1 / (1 + np.exp(-logsnr))
    product = 1.0
    betas = []
    products = []
    for alpha2 in alphas2:
        beta = np.float32(np.clip(1 - alpha2 / product, 2**-24, 1 - 2**-24))
        product *= np.float64(np.float32(1) - beta)
        betas.append(float(beta))
        products.append(product)
    angle_errors = np.abs(np.arccos(np.sqrt(products)) - np.arctan(np.exp(-0.5 * logsnr)))
    alpha_errors = np.abs(np.sqrt(products / alphas2) - 1)
    if angle_errors.max() > MAX_ANGLE_ERROR or (mean_type == "eps" and alpha_errors.max() > MAX_ALPHA_ERROR):
        raise InputError(
            f"diffusers' float32 betas cannot follow this schedule at {len(betas)} steps with mean_type "
            f"{mean_type!r}: alpha would be off by {100 * alpha_errors.max():.0f} % at a log-SNR of "
            f"{logsnr[alpha_errors.argmax()]:.1f}. Use a model of mean_type 'v' or 'x', or more steps."
        )
    return betas
