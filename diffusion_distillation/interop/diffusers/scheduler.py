"""diffusers' schedulers: the noise process, the network's output and input, and the sampler of a model.

To read another class of schedulers, add an entry to `READERS`.
"""

import logging
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ...checkpoints import Metadata
from ...errors import InputError
from ...networks.model import eval_schedule
from ...runtime.files import read_json
from ...schedules import get_logsnr_schedule
from .fields import check_integer, header, with_defaults

SCHEDULER = "scheduler_config.json"
MEAN_TYPES = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
SOLVER_STEPS = 50  # the default of diffusers' pipelines with these schedulers
MAX_ANGLE_ERROR = 1e-3  # radians
MAX_ALPHA_ERROR = 0.01  # relative


class Settings(NamedTuple):
    """What a scheduler determines of a model.

    Attributes:
      model: fields of our config.model, without `args`.
      args: fields of config.model.args: the number that tells the network the noise level.
      sampler: a name in `sampling.SAMPLERS`; default 'ddim'.
      num_steps: sampling steps that the model was distilled for; 0, the default, for a diffusion model.
    """

    model: dict[str, Any]
    args: dict[str, Any]
    sampler: str = "ddim"
    num_steps: int = 0


class Reader(NamedTuple):
    """How to read a class of schedulers.

    Attributes:
      defaults: the values that diffusers uses for missing fields.
      allowed: the supported values of some fields.
      settings: `settings(values)` returns the `Settings` of a config with all its fields.
    """

    defaults: Mapping[str, Any]
    allowed: Mapping[str, Collection[Any]]
    settings: Callable[[Mapping[str, Any]], Settings]


def read_scheduler(folder: epath.Path) -> dict[str, Any]:
    """Read the scheduler's config in the folder of a pipeline or of a UNet2DModel.

    Returns:
      The config, filled up with diffusers' defaults; without a file, the defaults of DDPMScheduler.

    Raises:
      InputError: if the scheduler, or one of its options, is not supported.
    """
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.is_file():
            return _with_defaults(read_json(path), str(path))
    logging.warning("%s has no %s. Using DDPMScheduler's defaults: 1000 linear betas.", folder, SCHEDULER)
    return _with_defaults({"_class_name": "DDPMScheduler"}, SCHEDULER)


def settings(values: Mapping[str, Any]) -> Settings:
    """What a scheduler determines of a model.

    Args:
      values: its config, from `read_scheduler`.

    Raises:
      InputError: if its options do not fit each other.

    >>> settings(READERS["EDMEulerScheduler"].defaults | {"_class_name": "EDMEulerScheduler"}).args
    {'logsnr_input_type': 'c_noise', 'time_scale': 1.0}
    """
    return READERS[values["_class_name"]].settings(values)


def _with_defaults(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    with_defaults(values, {}, {"_class_name": tuple(READERS)}, origin)
    reader = READERS[values["_class_name"]]
    return with_defaults(values, reader.defaults, reader.allowed, origin)


def _of_betas(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The discrete schedule that a config's betas make, and what the network predicts."""
    num_steps = check_integer(values["num_train_timesteps"], "num_train_timesteps", SCHEDULER)
    if values["trained_betas"] is not None:
        schedule = dict(name="discrete", betas=values["trained_betas"])
    else:
        schedule = dict(
            name="discrete",
            betas=values["beta_schedule"],
            num_steps=num_steps,
            beta_start=values["beta_start"],
            beta_end=values["beta_end"],
        )
    return schedule, MEAN_TYPES[values["prediction_type"]]


def _clips(values: Mapping[str, Any]) -> bool:
    """Whether x is clipped. It can only be clipped to [-1, 1]."""
    if values["clip_sample"] and values["clip_sample_range"] != 1:
        raise InputError(f"clip_sample_range={values['clip_sample_range']!r} must be 1, as x is in [-1, 1].")
    return values["clip_sample"]


def _ddpm(values: Mapping[str, Any]) -> Settings:
    """DDPM and DDIM. Our samplers choose the times themselves, whatever timestep_spacing is."""
    schedule, mean_type = _of_betas(values)
    model = dict(
        mean_type=mean_type,
        logvar_type=values["variance_type"].removesuffix("_log"),
        train_logsnr_schedule=schedule,
        eval_logsnr_schedule=schedule,
        eval_sampling_num_steps=values["num_train_timesteps"],
        eval_clip_denoised=_clips(values),
    )
    return Settings(model, dict(logsnr_input_type="step"))


def _solver(values: Mapping[str, Any], sampler: str, grid: Mapping[str, Any], clip: bool = False) -> Settings:
    """A solver for networks that were trained with betas.

    Args:
      values: the scheduler's config.
      sampler: our name of the solver.
      grid: arguments of the schedule whose grid has the solver's times.
      clip: whether x is clipped.
    """
    schedule, mean_type = _of_betas(values)
    model = dict(
        mean_type=mean_type,
        train_logsnr_schedule=schedule,
        eval_logsnr_schedule={**schedule, **grid} if "name" not in grid else grid,
        eval_sampling_num_steps=SOLVER_STEPS,
        eval_clip_denoised=clip,
    )
    return Settings(model, dict(logsnr_input_type="step"), sampler)


def _spaced(values: Mapping[str, Any]) -> dict[str, Any]:
    """The grid of a solver at the times of timestep_spacing."""
    return dict(spacing=values["timestep_spacing"], steps_offset=values["steps_offset"])


def _karras(values: Mapping[str, Any], sigma_min: float | None = None, sigma_max: float | None = None):
    """The grid of use_karras_sigmas: from the betas' largest sigma to their smallest, unless the config sets others."""
    schedule, _ = _of_betas(values)
    alpha2 = get_logsnr_schedule(**schedule).alphas_cumprod.astype(np.float64)
    least, most = (math.sqrt((1 - product) / product) for product in (alpha2[0], alpha2[-1]))
    return dict(
        name="karras",
        sigma_min=least if sigma_min is None else sigma_min,
        sigma_max=most if sigma_max is None else sigma_max,
    )


def _euler(values: Mapping[str, Any]) -> Settings:
    return _solver(values, "ddim", _euler_grid(values))


def _heun(values: Mapping[str, Any]) -> Settings:
    return _solver(values, "heun", _euler_grid(values), _clips(values))


def _euler_grid(values: Mapping[str, Any]) -> dict[str, Any]:
    if not values["use_karras_sigmas"]:
        return _spaced(values)
    ends = values.get("sigma_min"), values.get("sigma_max")
    if None in ends and values["timestep_spacing"] != "linspace":
        raise InputError(
            f"use_karras_sigmas with timestep_spacing={values['timestep_spacing']!r} makes the range of sigma depend "
            "on the number of steps, which is not supported. Set timestep_spacing='linspace'."
        )
    return _karras(values, *ends)


def _dpm_solver(values: Mapping[str, Any]) -> Settings:
    sampler = {1: "ddim", 2: "dpmpp_2m"}[values["solver_order"]]
    grid = _karras(values) if values["use_karras_sigmas"] else _spaced(values)
    # Its grid of N steps is that of N + 1 steps, without the start of the last one.
    if grid.get("spacing") in ("leading", "linspace"):
        grid["skip_last"] = True
    return _solver(values, sampler, grid)


def _flow(values: Mapping[str, Any]) -> Settings:
    num_times = check_integer(values["num_train_timesteps"], "num_train_timesteps", SCHEDULER)
    shift = values["shift"]
    schedule = dict(name="flow", shift=shift)
    # The last step starts at the least of the training times, 1 / num_times, which diffusers shifts a second time.
    last_start = shift / (num_times + shift - 1)
    model = dict(
        mean_type="flow",
        train_logsnr_schedule=schedule,
        eval_logsnr_schedule={**schedule, "last_start": last_start},
        eval_sampling_num_steps=SOLVER_STEPS,
        eval_clip_denoised=False,
    )
    args = dict(logsnr_input_type="flow_time", time_scale=float(num_times))
    return Settings(model, args, "renoise" if values["stochastic_sampling"] else "ddim")


def _edm(values: Mapping[str, Any]) -> Settings:
    schedule = dict(name="karras", sigma_max=values["sigma_max"], rho=values["rho"])
    model = dict(
        mean_type="edm",
        sigma_data=values["sigma_data"],
        train_logsnr_schedule={**schedule, "sigma_min": 0.0},  # its grids nest, as ladders need
        eval_logsnr_schedule={**schedule, "sigma_min": values["sigma_min"]},
        eval_sampling_num_steps=SOLVER_STEPS,
        eval_clip_denoised=False,
    )
    return Settings(model, dict(logsnr_input_type="c_noise", time_scale=1.0))


def _consistency(values: Mapping[str, Any]) -> Settings:
    """Consistency models. They sample in 1 step by default, and in up to num_train_timesteps."""
    num_scales = check_integer(values["num_train_timesteps"], "num_train_timesteps", SCHEDULER, least=2)
    schedule = dict(name="karras", num_scales=num_scales)
    schedule |= {name: values[name] for name in ("sigma_min", "sigma_max", "rho")}
    model = dict(
        mean_type="consistency",
        sigma_data=values["sigma_data"],
        sigma_min=values["sigma_min"],
        train_logsnr_schedule=schedule,
        eval_logsnr_schedule=schedule,
        eval_sampling_num_steps=1,
        eval_clip_denoised=values["clip_denoised"],
    )
    return Settings(model, dict(logsnr_input_type="c_noise"), "renoise", num_steps=1)


BETAS = dict(
    num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", trained_betas=None,
    prediction_type="epsilon",
)  # fmt: skip
BETAS_ALLOWED = dict(
    beta_schedule=("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    prediction_type=tuple(MEAN_TYPES),
)
FIXED_VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
DDPM = Reader(
    defaults=BETAS | dict(
        clip_sample=True, clip_sample_range=1.0, thresholding=False, rescale_betas_zero_snr=False,
        variance_type="fixed_small",
    ),
    allowed=BETAS_ALLOWED | dict(
        clip_sample=(False, True), thresholding=(False,), rescale_betas_zero_snr=(False,),
        variance_type=FIXED_VARIANCES,
    ),
    settings=_ddpm,
)  # fmt: skip
SOLVER = BETAS | dict(
    use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False, timestep_spacing="linspace",
    steps_offset=0,
)  # fmt: skip
SOLVER_ALLOWED = BETAS_ALLOWED | dict(
    use_karras_sigmas=(False, True, None), use_exponential_sigmas=(False, None), use_beta_sigmas=(False, None),
    timestep_spacing=("linspace", "leading", "trailing"),
)  # fmt: skip
READERS = {
    "DDPMScheduler": DDPM,
    "DDIMScheduler": DDPM,
    "EulerDiscreteScheduler": Reader(
        defaults=SOLVER | dict(
            interpolation_type="linear", sigma_min=None, sigma_max=None, timestep_type="discrete",
            rescale_betas_zero_snr=False, final_sigmas_type="zero",
        ),
        allowed=SOLVER_ALLOWED | dict(
            interpolation_type=("linear",), timestep_type=("discrete",), rescale_betas_zero_snr=(False,),
            final_sigmas_type=("zero",),
        ),
        settings=_euler,
    ),
    "HeunDiscreteScheduler": Reader(
        defaults=SOLVER | dict(beta_start=0.00085, beta_end=0.012, clip_sample=False, clip_sample_range=1.0),
        allowed=SOLVER_ALLOWED | dict(clip_sample=(False, True)),
        settings=_heun,
    ),
    "DPMSolverMultistepScheduler": Reader(
        defaults=SOLVER | dict(
            solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", thresholding=False,
            use_lu_lambdas=False, use_flow_sigmas=False, final_sigmas_type="zero", lambda_min_clipped=-math.inf,
            variance_type=None, rescale_betas_zero_snr=False,
        ),
        allowed=SOLVER_ALLOWED | dict(
            solver_order=(1, 2), algorithm_type=("dpmsolver++",), solver_type=("midpoint",), thresholding=(False,),
            use_lu_lambdas=(False, None), use_flow_sigmas=(False, None), final_sigmas_type=("zero",),
            lambda_min_clipped=(-math.inf,), variance_type=(None, *FIXED_VARIANCES), rescale_betas_zero_snr=(False,),
        ),
        settings=_dpm_solver,
    ),
    "FlowMatchEulerDiscreteScheduler": Reader(
        defaults=dict(
            num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False, invert_sigmas=False, shift_terminal=None,
            use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False, stochastic_sampling=False,
        ),
        allowed=dict(
            use_dynamic_shifting=(False,), invert_sigmas=(False,), shift_terminal=(None,),
            use_karras_sigmas=(False, None), use_exponential_sigmas=(False, None), use_beta_sigmas=(False, None),
            stochastic_sampling=(False, True),
        ),
        settings=_flow,
    ),
    "EDMEulerScheduler": Reader(
        defaults=dict(
            sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras", prediction_type="epsilon",
            rho=7.0, final_sigmas_type="zero",
        ),
        allowed=dict(sigma_schedule=("karras",), prediction_type=("epsilon",), final_sigmas_type=("zero",)),
        settings=_edm,
    ),
    "CMStochasticIterativeScheduler": Reader(
        defaults=dict(
            num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, s_noise=1.0, rho=7.0,
            clip_denoised=True,
        ),
        allowed=dict(s_noise=(1,), clip_denoised=(False, True)),
        settings=_consistency,
    ),
}  # fmt: skip


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
        **_sampling_config(model),
    }


def training_config(model: ConfigDict) -> dict[str, Any]:
    """The config of the DDIMScheduler with the betas of a model's training.

    Args:
      model: our config.model, with a discrete schedule.
    """
    schedule = get_logsnr_schedule(**model.train_logsnr_schedule)
    is_named = isinstance(schedule.betas, str)
    return {
        **header("DDIMScheduler"),
        "num_train_timesteps": schedule.num_steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.betas if is_named else "linear",
        "trained_betas": None if is_named else list(map(float, schedule.betas)),
        **_sampling_config(model),
    }


def _sampling_config(model: ConfigDict) -> dict[str, Any]:
    """The fields of a DDIMScheduler's config that are not about betas."""
    return {
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
    """Log-SNR at the starts of our samplers' steps, from the last step to the first, `[num_steps]` float32."""
    schedule = eval_schedule(metadata.config.model)
    return schedule(schedule.grid_time(jnp.arange(num_steps), num_steps))


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
