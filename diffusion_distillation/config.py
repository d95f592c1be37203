"""The fields of a run's configuration, their defaults, and the check that a config is one we can run.

Field names are those of the published code, so that its config files work here. Our own files start from `defaults`
and, for a ladder, go on with `distillation_of` the base model's config, so that every field can be set on the command
line.
"""

import copy
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from .diffusion import MEAN_TYPES
from .errors import InputError
from .fields import Free, OneOf, OrNone, defaults_of, fill, listed, one_of, options_of, tuples_for_lists
from .fields import add_missing as add_missing_fields
from .keys import MOST_SEED
from .losses import WEIGHT_TYPES
from .methods import Rung, find_method, make_method
from .networks.model import eval_schedule, train_schedule
from .networks.unet import LOGSNR_INPUT_TYPES, check_guidance_range
from .pretrained import PRETRAINED
from .registry import check_foreign, trust
from .runtime.files import as_path, read_json
from .sampling import SAMPLER_ALIASES, SAMPLERS, posterior_variance
from .schedules import get_logsnr_schedule

# A line a field: its name and default; or, where every config must give a value, its type; or its allowed values. What
# is in a Free section is not checked here but by whom it is for.
FIELDS = {
    "seed": 0,  # all that is random in a run follows from it
    "dataset": {
        "name": str,  # a source of `data.DATASETS`, or 'package.module:function'
        "args": Free(),  # its arguments, see there; and randflip, to mirror half of the training images
    },
    "sampler": one_of("ddim", SAMPLERS),
    "model": {
        "name": "unet_iddpm",  # a network of `model.NETWORKS`, or 'package.module:function' with args of its own
        "args": {  # of unet_iddpm: see `unet.UNet`; num_classes and out_ch follow from dataset and mean_type
            "ch": int,
            "emb_ch": int,
            "ch_mult": tuple,
            "num_res_blocks": int,
            "attn_resolutions": tuple,
            "num_heads": OrNone(int),
            "head_dim": OrNone(int),
            "dropout": 0.0,
            "logsnr_input_type": one_of("inv_cos", LOGSNR_INPUT_TYPES),
            "logsnr_scale_range": (-10.0, 10.0),
            "resblock_resample": False,
            "remat": False,  # save memory by computing activations twice
            # what makes networks of other projects of it
            "freq_shift": 1,
            "scale_shift": True,
            "norm_groups": 32,
            "norm_eps": 1e-6,
            "mid_attn_groups": OrNone(int),
            "pad_both_sides": False,
            "attn_stages": OrNone(tuple),
            "resample_stages": OrNone(tuple),
            "guidance_range": OrNone(tuple),  # of a ladder whose students take a weight of guidance: (0.0, 4.0)
        },
        "dtype": OneOf(("float32", "bfloat16")),  # of the activations; parameters are float32
        "mean_type": one_of("x", MEAN_TYPES),  # what the network outputs: see `diffusion.make_denoiser`
        "sigma_data": 0.5,  # standard deviation of the data, for mean_type 'edm' and 'consistency' and loss 'edm_mse'
        "sigma_min": 0.002,  # least noise, for mean_type 'consistency'
        "logvar_type": "fixed_large",  # fixed_small, fixed_large or fixed_medium:f
        "mean_loss_weight_type": one_of("snr_trunc", WEIGHT_TYPES),
        "train_num_steps": 0,  # base training at the times i / N; 0 for continuous time
        "eval_sampling_num_steps": 1024,
        "train_logsnr_schedule": Free(name="cosine"),  # see `schedules`
        "eval_logsnr_schedule": Free(name="cosine"),
        "eval_clip_denoised": True,
        "eval_guidance": 0.0,  # weight of guidance of samples; 0 for none, see `Pipeline.sample`
    },
    "train": {
        "num_train_steps": 800_000,  # updates of base training; distillation has steps_per_iter
        "init_from": OrNone(str),  # a run whose state, with its step, average and optimizer, this one goes on from
        "batch_size": int,  # over all devices
        "microbatch_size": 0,  # how much of a batch is worked on at a time, over all devices; 0 for all of it
        # jit: one program over all devices; pmap: a program for each, gradients averaged between them
        "parallel": OneOf(("jit", "pmap")),
        "shard_state": False,  # with jit, divide optimizer state, average and teacher among the devices
        "optimizer": OneOf(("adam", "momentum", "nesterov")),
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_eps": 1e-8,
        "optimizer_beta": 0.9,  # of momentum and nesterov
        "label_dropout": 0.0,  # share of images whose class is left out, to guide samples by; 0.1 is usual
        "learning_rate": float,
        "learning_rate_warmup_steps": 0,
        "learning_rate_anneal_type": OneOf(("none", "linear")),  # linear: to 0
        "learning_rate_anneal_steps": 0,  # 0 for the whole training
        "weight_decay": 0.0,  # decoupled, as in AdamW
        # The average that samples are drawn with: ema_decay, 0 for none; or, where that is left out, avg_type: ema,
        # with decay 1 - 1 / avg_steps, or aa, the arithmetic mean since the last multiple of avg_steps.
        "ema_decay": OrNone(float),
        "avg_type": OneOf(("none", "ema", "aa")),
        "avg_steps": 0,
        "grad_clip": 1.0,  # on the global norm of the averaged gradient
        "substeps": 10,  # updates that an accelerator does in one call
        "enable_update_skip": True,  # leave out updates that are not finite
        "log_loss_every_steps": 100,
        "checkpoint_every_secs": 900,
        "retain_checkpoint_every_steps": 0,  # keep these for good; 0 for none
        "eval_every_steps": 10_000,  # grids of samples
    },
    "eval": {  # the report of a ladder; and metrics during training
        "features": ("pixels",),  # what images are compared by, see `evaluation.features`
        "metrics": ("frechet",),  # names of `evaluation.metrics.METRICS`
        "inception": OrNone(str),  # the file of Inception's weights, where it is not in its place
        "metrics_every_steps": 0,  # a multiple of train.eval_every_steps, or 0: only the report measures
        "metrics_num_samples": 1000,  # then; the best model by the first metric is kept in the run's folder `best`
        "num_samples": 10_000,  # of each model and sampler
        "batch_size": 500,
        "teacher_num_steps": (256, 64, 16, 8, 4, 2, 1),  # DDIM, undistilled
        "ancestral_num_steps": (16, 64, 256),
    },
}

DISTILLATION = {
    "method": "progressive",  # what students learn: one of `methods.METHODS`, or 'package.module:function'
    "teacher_checkpoint_path": str,  # the folder of a run
    "steps_per_iter": 50_000,  # updates a student
    "only_finetune_temb": False,  # train nothing but the layers of the embedding
    "start_num_steps": OrNone(int),  # sampling steps of the teacher; of consistency the last grid, 1280 where left out
    "end_num_steps": 1,  # and of the last student
    "rungs": (),  # in their place, for other factors than 2: the steps of the teacher and of every student, (64, 8, 1)
    # How the teacher steps: by DDIM, or by the adjusted sampler in the first addim_rungs rungs (`sampling.addim_step`).
    "teacher_step": OneOf(("ddim", "addim")),
    "addim_rungs": 1,
    "addim_variance": 0.1,
    "args": Free(),  # options of the method: the keyword arguments of its function
    # Overrides by the student's number of steps, of fields of `train`, steps_per_iter, or updates_factor, which is in
    # multiples of the ladder's steps_per_iter: {"1": {"updates_factor": 2.0, "learning_rate": 3e-5}}
    "stages": Free(),
}

# Old names of fields, which config files, stored configs and the command line may still use.
OLD_FIELDS = {
    "train.num_steps": "train.num_train_steps",
    "distillation.consistency.tuning_stages": "distillation.consistency.tuning_phases",
    # Sections named after a method. A ladder of another method ignores them.
    "distillation.tract": "distillation.args",
    "distillation.consistency": "distillation.args",
}

# Fields that hold the path of a file or a folder. A teacher may instead be a model that comes with the package.
PATHS = (
    ("dataset.args", "path"),
    ("dataset.args", "data_dir"),
    ("dataset.args", "fonts"),
    ("train", "init_from"),
    ("eval", "inception"),
    ("distillation", "teacher_checkpoint_path"),
)

# Numbers whose range is narrower than "not negative".
AT_LEAST_1 = (
    "model.eval_sampling_num_steps",
    "train.num_train_steps",
    "train.batch_size",
    "train.substeps",
    "train.log_loss_every_steps",
    "eval.num_samples",
    "eval.batch_size",
    "distillation.steps_per_iter",
)
BELOW_1 = (
    "train.adam_beta1",
    "train.adam_beta2",
    "train.optimizer_beta",
    "train.label_dropout",
    "train.ema_decay",
)
ABOVE_0 = ("train.adam_eps",)


def defaults() -> ConfigDict:
    """A config with every field at its default, or a placeholder where it has none, to start a config file from."""
    return ConfigDict(defaults_of(FIELDS))


def paper_base() -> ConfigDict:
    """A config to start that of a base model from, with what the paper's four share (section 5 and appendix B)."""
    config = defaults()
    config.model.args.resblock_resample = True
    config.train.learning_rate_warmup_steps = 1000
    config.train.ema_decay = 0.9999
    return config


def distillation_of(base: ConfigDict) -> ConfigDict:
    """A ladder's config for the model and the data of a base config, with what the paper's ladders share.

    No dropout, of labels neither, no weight decay, no average, no warm-up, a learning rate that falls linearly to 0
    over every halving (appendix B). Students start from their teachers, so `train.init_from` is reset too.
    """
    config = copy.deepcopy(base)  # fields without a value keep their type
    config.sampler = "ddim"  # the only one that students are made for
    config.model.args.dropout = 0.0
    config.train.weight_decay = 0.0
    config.train.ema_decay = 0.0
    config.train.label_dropout = 0.0
    config.train.learning_rate_warmup_steps = 0
    config.train.learning_rate_anneal_type = "linear"
    config.train.learning_rate_anneal_steps = 0
    config.train.init_from = None
    config.distillation = ConfigDict(defaults_of(DISTILLATION))
    _add_old_sections(config)
    return config


def paper_ladder(base: ConfigDict, *, start_num_steps: int, learning_rate: float) -> ConfigDict:
    """The ladder of one of the paper's base models, down to 1 step (section 5)."""
    config = distillation_of(base)
    config.distillation.start_num_steps = start_num_steps
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = learning_rate
    return config


def load(path: str | Path) -> ConfigDict:
    """Load a config: what `get_config()` of a Python file returns, or the content of a run's config.json."""
    if str(path).endswith(".json"):
        values = read_json(as_path(path))
        check_foreign(values, as_path(path))
        config = ConfigDict(tuples_for_lists(_without_none(values)))
    else:
        config = runpy.run_path(str(path))["get_config"]()
    if isinstance(config, ConfigDict):
        rename_old_fields(config)
        _add_old_sections(config)
    return config


def rename_old_fields(config: ConfigDict) -> None:
    """Replace the old names of fields (`OLD_FIELDS`) in a config by their current names.

    A value under an old name wins: a config file that starts from `defaults` also has the default under the new name.
    """
    for old, new in OLD_FIELDS.items():
        *sections, old_name = old.split(".")
        section, new_name = _get(config, ".".join(sections)), new.split(".")[-1]
        if not isinstance(section, ConfigDict) or old_name not in section:
            continue
        with section.unlocked(), section.ignore_type():
            value = section[old_name]
            del section[old_name]
            if not isinstance(value, ConfigDict):
                section[new_name] = value
            elif old_name == section.get("method"):
                section[new_name] = {**(section.get(new_name) or {}), **value}


def _add_old_sections(config: ConfigDict) -> None:
    """Add the old sections of a ladder's config, empty, so that older config files can set fields in them."""
    if isinstance(config.get("distillation"), ConfigDict):
        with config.unlocked():
            config.distillation.update({"tract": ConfigDict(), "consistency": ConfigDict()})


def current_field(field: str) -> str:
    """The current name of a field, by its dotted name.

    >>> current_field("train.num_steps"), current_field("distillation.consistency.kind")
    ('train.num_train_steps', 'distillation.args.kind')
    """
    for old, new in OLD_FIELDS.items():
        if field == old or field.startswith(old + "."):
            field = new + field.removeprefix(old)
    return field


def add_missing(config: ConfigDict) -> None:
    """Adds the fields that a config file leaves out, so that they can be set on the command line."""
    add_missing_fields(config, _fields_of(config))


def listing(name: str, config: ConfigDict | None = None) -> list[str]:
    """List the fields of a config, one line per field: the flag that sets it, its value, and what is allowed.

    Args:
      name: the flag that holds the config.
      config: a config with all its fields (`add_missing`). By default, list every known field with its default.
    """
    if config is None:
        config = ConfigDict({"distillation": {"method": DISTILLATION["method"]}})
    fields, values = _fields_of(config), config.to_dict()
    lines = []
    for field, value, allowed in listed(fields, values):
        quoted = f'"{value}"' if re.search(r"[^\w.,:/+-]", value) else value  # quoted for the shell
        lines.append(f"{f'--{name}.{field}={quoted}':<70}  {allowed}".rstrip())
    return lines


def resolve(config: ConfigDict) -> ConfigDict:
    """The config with every default filled in, checked.

    Args:
      config: as a config file gives it; it is left as it is.

    Returns:
      A new, locked config that has every field of `FIELDS`, and a `distillation` section if `config` has one. Local
      paths (`PATHS`) are absolute in it, so that a stored config means the same files in another working folder.

    Raises:
      InputError: for a field that is unknown, missing, of the wrong type or outside its allowed values.
    """
    config = ConfigDict(config.to_dict())
    rename_old_fields(config)
    trust(config.to_dict())
    if isinstance(config.get("sampler"), str):
        config.sampler = SAMPLER_ALIASES.get(config.sampler, config.sampler)
    resolved = ConfigDict(fill(_fields_of(config), config.to_dict()))
    _make_paths_absolute(resolved)
    for name in ("train_logsnr_schedule", "eval_logsnr_schedule"):
        _check(f"model.{name}", lambda name=name: get_logsnr_schedule(**resolved.model[name]))
    _check("model.logvar_type", lambda: posterior_variance(resolved.model.logvar_type))
    _check_ranges(resolved)
    if "distillation" in resolved:
        _resolve_distillation(resolved)
    return resolved.lock()


def to_share(config: ConfigDict) -> ConfigDict:
    """A resolved config for others: of each local path only the last part, without the owner's folders."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        _change_paths(config, lambda value: Path(value).name)
    return config


def rung_config(config: ConfigDict, rung: Rung) -> ConfigDict:
    """The resolved config of one student: that of its ladder with the overrides of `distillation.stages`.

    Its train.num_train_steps is the student's number of updates. Its seed is shifted by rung.num_steps, modulo 2^32, so
    that every student sees the data in a different order.

    Args:
      config: of the ladder, resolved.
      rung: one of `methods.ladder_rungs(config)`.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        overrides = dict(config.distillation.stages.get(str(rung.num_steps), {}))
        updates = overrides.pop("steps_per_iter", config.distillation.steps_per_iter)
        config.train.num_train_steps = updates
        if updates != config.distillation.steps_per_iter:
            config.train.learning_rate_anneal_steps = 0  # anneal over the student's own number of updates
        config.train.update(overrides)
        config.seed = (config.seed + rung.num_steps) % (MOST_SEED + 1)
    return config


def _fields_of(config: ConfigDict) -> dict:
    """The table of a config's fields, with the options of its method; a network of the user's own checks its args."""
    fields = dict(FIELDS)
    if ":" in str(_get(config, "model.name")):
        fields["model"] = {**FIELDS["model"], "args": Free()}
    if "distillation" in config:
        fields["distillation"] = dict(DISTILLATION)
        if isinstance(_get(config, "distillation.method"), str):
            fields["distillation"]["args"] = options_of(find_method(config))
    return fields


def _make_paths_absolute(config: ConfigDict) -> None:
    """A path that leads nowhere is made absolute too: it may lead somewhere at another time."""

    def absolute(value: str) -> str:
        path = Path(value).expanduser()
        return value if value in PRETRAINED and not path.exists() else str(path.absolute())

    _change_paths(config, absolute)


def _change_paths(config: ConfigDict, change: Callable[[str], str]) -> None:
    """Replaces each local path by what `change` returns for it."""
    for section, name in PATHS:
        fields = config
        for part in section.split("."):
            fields = fields.get(part, {})
        value = fields.get(name)
        if isinstance(value, str) and "://" not in value:
            fields[name] = change(value)


def _without_none(value: Any) -> Any:
    """Drop the fields that are None from all sections, so that they count as unset."""
    if not isinstance(value, dict):
        return value
    return {name: _without_none(part) for name, part in value.items() if part is not None}


def _get(config: ConfigDict, field: str) -> Any:
    """The value of a field, by its dotted name; None if its section does not exist."""
    for name in field.split("."):
        config = config.get(name) if isinstance(config, ConfigDict) else None
    return config


def _check(path: str, build: Callable[[], Any]) -> Any:
    """What `build`, which a field is for, returns; says of a ValueError which field it came from."""
    try:
        return build()
    except ValueError as error:
        raise InputError(f"config.{path}: {error}") from None


def _check_ranges(config: ConfigDict) -> None:
    ranges = [
        (AT_LEAST_1, lambda value: value >= 1, "at least 1"),
        (BELOW_1, lambda value: value < 1, "below 1"),
        (ABOVE_0, lambda value: value > 0, "more than 0"),
    ]
    for fields, holds, allowed in ranges:
        for field in fields:
            value = _get(config, field)
            if value is not None and not holds(value):
                raise InputError(f"config.{field}={value} must be {allowed}.")
    flip = config.dataset.args.get("randflip")
    if flip not in (None, True, False):
        raise InputError(f"config.dataset.args.randflip={flip!r} must be True or False.")
    train = config.train
    if train.microbatch_size and train.batch_size % train.microbatch_size:
        raise InputError(
            f"config.train.batch_size={train.batch_size} must be a multiple of config.train.microbatch_size="
            f"{train.microbatch_size}."
        )
    if train.shard_state and train.parallel == "pmap":
        raise InputError("config.train.shard_state=True needs config.train.parallel='jit': pmap replicates the state.")
    if train.retain_checkpoint_every_steps % train.substeps:
        raise InputError(
            f"config.train.retain_checkpoint_every_steps={train.retain_checkpoint_every_steps} must be a multiple of "
            f"config.train.substeps={train.substeps}, the updates done in one call."
        )
    weights, shown = config.model.args.get("guidance_range"), config.model.eval_guidance
    if weights is not None:
        _check("model.args", lambda: check_guidance_range(weights))
    if "distillation" not in config and weights is not None:
        raise InputError(
            f"config.model.args.guidance_range={weights} is for students, which learn it from a teacher. A teacher is "
            "made with train.label_dropout=0.1."
        )
    if weights is None and shown and not train.label_dropout:
        raise InputError(
            f"config.model.eval_guidance={shown} is for models that can be guided: set train.label_dropout, or "
            "model.args.guidance_range of students."
        )
    if weights is not None and not min(weights) <= shown <= max(weights):
        raise InputError(f"config.model.eval_guidance={shown} must lie in model.args.guidance_range={weights}.")
    if train.ema_decay is None and train.avg_type != "none" and train.avg_steps < 1:
        raise InputError(f"config.train.avg_type={train.avg_type!r} needs config.train.avg_steps, at least 1.")
    if config.eval.metrics_every_steps % max(train.eval_every_steps, 1):
        raise InputError(
            f"config.eval.metrics_every_steps={config.eval.metrics_every_steps} must be a multiple of "
            f"config.train.eval_every_steps={train.eval_every_steps}."
        )
    for name in ("teacher_num_steps", "ancestral_num_steps"):
        if name == "teacher_num_steps" and not config.eval[name]:
            raise InputError("config.eval.teacher_num_steps=() must hold one number of steps at least.")
        if not all(isinstance(steps, int) and steps > 0 for steps in config.eval[name]):
            raise InputError(f"config.eval.{name}={config.eval[name]} must hold numbers of steps, at least 1 each.")


def _resolve_distillation(config: ConfigDict) -> None:
    """Checks the ladder, and turns each updates_factor into the steps_per_iter that it stands for."""
    distillation = config.distillation
    if config.sampler != "ddim":
        raise InputError(
            f"config.sampler={config.sampler!r}: students are made for steps of DDIM; set config.sampler='ddim'. "
            "Another one can be chosen when samples are drawn."
        )
    if train_schedule(config.model) != eval_schedule(config.model):
        raise InputError(
            f"config.model.eval_logsnr_schedule={config.model.eval_logsnr_schedule.to_dict()} differs from "
            f"train_logsnr_schedule={config.model.train_logsnr_schedule.to_dict()}: a student must be sampled at the "
            "times that it was trained for."
        )
    if config.train.init_from is not None:
        raise InputError(
            f"config.train.init_from={config.train.init_from!r} is for base models: students start from their teachers."
        )
    rungs = {rung.num_steps: rung for rung in _check("distillation", lambda: make_method(config)).rungs}
    fields = {"steps_per_iter": OrNone(int), "updates_factor": OrNone(float), **FIELDS["train"]}
    del fields["init_from"], fields["num_train_steps"]
    stages = {}
    for name, given in distillation.stages.to_dict().items():
        path = f"distillation.stages.{name}"
        if given is None:
            continue
        if name not in map(str, rungs):
            raise InputError(
                f"config.{path}: no student has {name} step{'s' * (name != '1')}; the students have {list(rungs)}. "
                f"Drop this override with --config.{path}=None, or all of them with --config.distillation.stages={{}}."
            )
        if not isinstance(given, dict):
            raise InputError(f"config.{path}={given!r} must be a section with fields of its own.")
        checked = fill(fields, {"batch_size": 1, "learning_rate": 0.0, **given}, path + ".")
        stages[name] = {field: checked[field] for field in given if field != "updates_factor"}
        if checked["updates_factor"] and not checked["steps_per_iter"]:
            stages[name]["steps_per_iter"] = max(1, round(checked["updates_factor"] * distillation.steps_per_iter))
        if checked["updates_factor"] == 0:
            raise InputError(f"config.{path}.updates_factor=0.0 must be more than 0.")
    distillation.stages = ConfigDict(stages)
    for name in stages:
        of_rung = rung_config(config, rungs[int(name)])
        _check(f"distillation.stages.{name}", lambda of_rung=of_rung: _check_ranges(of_rung))
