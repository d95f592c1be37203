"""The fields of a run's config: their names, defaults and allowed values.

Field names follow the published code, so that its config files work here. A config file starts from `defaults`, or, for
a ladder, from `distillation_of` the base model's config. Both have every field, so that the command line can set each.
"""

import copy
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from .diffusion import MEAN_TYPES
from .errors import InputError, did_you_mean
from .fields import (
    Free,
    OneOf,
    OrNone,
    attributes_of,
    defaults_of,
    fill,
    list_fields,
    one_of,
    options_of,
)
from .fields import add_missing as add_missing_fields
from .keys import MAX_SEED
from .losses import WEIGHT_TYPES
from .methods import Rung, find_method, make_method
from .methods.base import training_times
from .networks.embedding import check_guidance_range
from .networks.model import NETWORKS, SET_BY_CONFIG, check_guidance_interval, eval_schedule, train_schedule
from .pretrained import is_pretrained
from .runtime.files import as_path, read_json, shipped_folder, tuples_for_lists
from .sampling import SAMPLER_ALIASES, SAMPLERS, SOLVERS, posterior_variance
from .schedules import NESTED_BY, get_logsnr_schedule
from .trust import check_foreign, trust

# One line per field, in the notation of `fields`: its default, or its type if every config must set it, or its allowed
# values. The fields of a Free section are checked by the function that receives them. docs/tables.py takes the meaning
# of a field from the comment on its line or above it.
FIELDS = {
    "seed": 0,  # determines everything random in a run
    "dataset": {
        "name": str,  # a key of `data.DATASETS`, or 'package.module:function'
        "args": Free(),  # arguments of that function; and randflip, which mirrors half of the training images
    },
    "autoencoder": {  # for models of latents
        "path": OrNone(str),  # folder of diffusers' AutoencoderKL, if not the one that the folder of latents names
        "dtype": OneOf(("float32", "bfloat16")),  # of activations; autoencoders that overflow in 16 bits keep float32
    },
    "sampler": one_of("ddim", SAMPLERS),  # generates samples, see `sampling.SAMPLERS`
    "model": {
        "name": "unet_iddpm",  # a key of `networks.model.NETWORKS`, or 'package.module:function', which reads `args`
        "args": attributes_of(NETWORKS["unet_iddpm"], omit=SET_BY_CONFIG),  # attributes of the network; see its class
        "dtype": OneOf(("float32", "bfloat16")),  # type of activations; parameters are float32
        "mean_type": one_of("x", MEAN_TYPES),  # output of the network, see `diffusion.make_denoiser`
        "sigma_data": 0.5,  # standard deviation of the data, for mean_type 'edm' and 'consistency' and loss 'edm_mse'
        "sigma_min": 0.002,  # smallest noise level, for mean_type 'consistency'
        "guidance_channels": OrNone(int),  # guide only the first n channels of the output; None for all
        "logvar_type": "fixed_large",  # variance of ancestral sampling: fixed_small, fixed_large or fixed_medium:f
        "mean_loss_weight_type": one_of("snr_trunc", WEIGHT_TYPES),  # weight of the loss, see `losses.training_loss`
        "train_num_steps": 0,  # N, for base training at the times i / N; 0 for continuous time
        "train_times": Free(name="uniform"),  # training times in continuous time, see `methods.base.TRAINING_TIMES`
        "eval_sampling_num_steps": 1024,  # sampling steps of a base model
        "train_logsnr_schedule": Free(name="cosine"),  # noise schedule of training, see `schedules`
        "eval_logsnr_schedule": Free(name="cosine"),  # noise schedule of sampling
        "eval_clip_denoised": True,  # clip the predicted x to [-1, 1] at each sampling step
        "eval_guidance": 0.0,  # guidance weight of samples, see `Pipeline.sample`; 0 for no guidance
        "eval_guidance_interval": OrNone(tuple),  # log-SNRs between which samples are guided, such as (-4.0, 3.0)
    },
    "train": {
        "num_train_steps": 800_000,  # updates of base training; a ladder has distillation.steps_per_iter
        # path of a model to start from. A run continues with its step, parameters, EMA and optimizer state. Of another
        # model, such as an archive or a diffusers folder, only the parameters are used
        "init_from": OrNone(str),
        "batch_size": int,  # images per update, over all devices
        "microbatch_size": 0,  # images per forward and backward pass, over all devices; 0 for the whole batch
        # jit: one program over all devices; pmap: one program per device, with gradients averaged between devices
        "parallel": OneOf(("jit", "pmap")),
        # what is divided among the devices, with jit. none: nothing, every device holds all; state: the optimizer's
        # moments, the EMA and the teacher; all: also the parameters and the gradients (FSDP)
        "shard": OneOf(("none", "state", "all")),
        "optimizer": OneOf(("adam", "momentum", "nesterov")),  # momentum and nesterov are SGD
        "adam_beta1": 0.9,  # decay of Adam's mean of gradients
        "adam_beta2": 0.999,  # decay of Adam's mean of squared gradients
        "adam_eps": 1e-8,  # added to the square root of Adam's mean of squared gradients
        "optimizer_beta": 0.9,  # decay of momentum and nesterov
        "label_dropout": 0.0,  # share of images trained without their label, for guidance; usually 0.1
        "learning_rate": float,  # after warmup
        "learning_rate_warmup_steps": 0,  # updates over which the learning rate rises from 0
        "learning_rate_anneal_type": OneOf(("none", "linear")),  # constant, or linear down to 0
        "learning_rate_anneal_steps": 0,  # updates until the learning rate is 0; 0 for all updates of the training
        "weight_decay": 0.0,  # decoupled, as in AdamW
        # decay of the EMA of the parameters, which generates the samples; 0 for no average, None for avg_type to decide
        "ema_decay": OrNone(float),
        # the average that generates the samples if ema_decay is None. none: no average; ema: an EMA with decay
        # 1 - 1 / avg_steps; aa: the mean since the last update that is a multiple of avg_steps
        "avg_type": OneOf(("none", "ema", "aa")),
        "avg_steps": 0,  # updates, for avg_type
        "grad_clip": 1.0,  # largest global norm of a batch's mean gradient
        "substeps": 10,  # updates per call of the compiled program, on accelerators
        "enable_update_skip": True,  # skip updates that are not finite
        "log_loss_every_steps": 100,  # updates between two lines of metrics
        "checkpoint_every_secs": 900,  # seconds between two checkpoints
        # keep the checkpoint at every multiple of this number of updates, itself a multiple of substeps; 0 for none
        "retain_checkpoint_every_steps": 0,
        "eval_every_steps": 10_000,  # updates between two grids of samples
    },
    "eval": {  # the report of a ladder, and metrics during training
        "features": ("pixels",),  # what images are compared by; see `evaluation.features`
        "metrics": ("frechet",),  # keys of `evaluation.metrics.METRICS`
        "inception": OrNone(str),  # path of Inception's weights, if not the default one
        # updates between two evaluations during training, a multiple of train.eval_every_steps; 0 for none. The run's
        # folder `best` keeps the best model by the first metric
        "metrics_every_steps": 0,
        "metrics_num_samples": 1000,  # samples per evaluation during training
        "num_samples": 10_000,  # samples per model and sampler in the report
        "batch_size": 500,  # images to sample at a time
        # images that samples are compared with, the `name` and `args` of a dataset; {} for the training images
        "dataset": Free(),
        # sampling steps of the undistilled teacher with DDIM; None for the ladder's first number of steps (at most
        # 256), 64 and 16 if they are fewer, and the students' steps up to 16
        "teacher_num_steps": OrNone(tuple),
        # sampling steps of the undistilled teacher with the ancestral sampler; None for every number among 256, 64 and
        # 16 up to the ladder's first number of steps
        "ancestral_num_steps": OrNone(tuple),
    },
}

DISTILLATION = {
    "method": "progressive",  # what students learn: a key of `methods.METHODS`, or 'package.module:function'
    # path of the teacher: a run, an archive, a diffusers folder, a file of weights, a URL, or a pretrained model's name
    "teacher_checkpoint_path": str,
    "steps_per_iter": 50_000,  # updates per student
    "only_finetune_temb": False,  # train only the layers of the time embedding
    "start_num_steps": OrNone(int),  # sampling steps of the teacher; for method 'consistency', steps of the last grid
    "end_num_steps": 1,  # sampling steps of the last student
    # instead of start_num_steps and end_num_steps: sampling steps of the teacher and every student, such as (64, 8, 1)
    "rungs": (),
    "teacher_step": one_of("ddim", SOLVERS),  # solver of the teacher's steps in the first `teacher_step_rungs` rungs
    "teacher_step_rungs": 1,  # number of first rungs in which the teacher uses `teacher_step`; later teachers use DDIM
    "addim_variance": 0.1,  # variance of the data around the predicted x, for teacher_step 'addim'
    "teacher_guidance": OrNone(float),  # guidance weight of the first teacher, if its students take none
    "teacher_guidance_interval": OrNone(tuple),  # log-SNRs between which this teacher is guided, such as (-4.0, 3.0)
    # bfloat16: hold the teachers' parameters, and compute their activations, in bfloat16; float32: as in their training
    "teacher_dtype": OneOf(("float32", "bfloat16")),
    "args": Free(),  # options of the method: the keyword-only arguments of its function
    # overrides for students, by their sampling steps: {"1": {"updates_factor": 2.0, "learning_rate": 3e-5}}; they may
    # set fields of `train`, steps_per_iter, or updates_factor, a multiple of the ladder's steps_per_iter. Overrides
    # for students after the ladder's end are ignored
    "stages": Free(),
}

# Old names of fields, which config files, stored configs and the command line may still use.
OLD_FIELDS = {
    "train.num_steps": "train.num_train_steps",
    "train.shard_state": "train.shard",
    "distillation.addim_rungs": "distillation.teacher_step_rungs",
    "distillation.consistency.tuning_stages": "distillation.consistency.tuning_phases",
    # Sections named after a method. A ladder of another method ignores them.
    "distillation.tract": "distillation.args",
    "distillation.consistency": "distillation.args",
}

# Old values of fields, as strings in lower case.
OLD_VALUES = {"train.shard": {"true": "state", "false": "none"}}

# Fields that hold the path of a file or a folder. Paths of models may also be the name of a pretrained model.
PATHS = (
    ("dataset.args", "path"),
    ("dataset.args", "data_dir"),
    ("dataset.args", "fonts"),
    ("autoencoder", "path"),
    ("eval.dataset.args", "path"),
    ("eval.dataset.args", "data_dir"),
    ("train", "init_from"),
    ("eval", "inception"),
    ("distillation", "teacher_checkpoint_path"),
)

# Numbers with a narrower range than "not negative".
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
ABOVE_0 = ("train.adam_eps", "model.sigma_data")


def defaults(network: str = "unet_iddpm") -> ConfigDict:
    """Return a config with every field, to start a config file from. A field without a default is a placeholder.

    Args:
      network: a key of `networks.model.NETWORKS`, for `model.name`. It determines the fields of `model.args`.

    >>> defaults("dit").model.args.mlp_ratio
    4.0
    """
    config = ConfigDict({"model": {"name": network}})
    add_missing(config)
    return config


def paper_base() -> ConfigDict:
    """Return `defaults` with the settings that the paper's four base models share (section 5 and appendix B)."""
    config = defaults()
    config.model.args.resblock_resample = True
    config.train.learning_rate_warmup_steps = 1000
    config.train.ema_decay = 0.9999
    return config


def distillation_of(base: ConfigDict) -> ConfigDict:
    """Return a ladder's config for a base model, with the settings that the paper's ladders share (appendix B).

    These are: no dropout, no label dropout, no weight decay, no EMA and no warmup, and for each student a learning rate
    that falls linearly to 0. Students start from their teachers, so `train.init_from` is unset.

    Args:
      base: the base model's config, as its file returns it.
    """
    config = copy.deepcopy(base)  # a deep copy keeps the types of placeholders
    config.sampler = "ddim"  # students learn DDIM steps
    config.model.eval_logsnr_schedule = copy.deepcopy(config.model.train_logsnr_schedule)
    if "dropout" in config.model.args:
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
    """Return the config of a ladder from one of the paper's base models down to 1 step (section 5).

    Args:
      base: the base model's config, as its file returns it.
      start_num_steps: sampling steps of the first teacher.
      learning_rate: initial learning rate of each student.
    """
    config = distillation_of(base)
    config.distillation.start_num_steps = start_num_steps
    config.distillation.stages = {"2": {"updates_factor": 2.0}, "1": {"updates_factor": 2.0}}
    config.train.learning_rate = learning_rate
    return config


def load(path: str | Path) -> ConfigDict:
    """Load a config from a Python file, by its `get_config()`, or from a run's config.json.

    Args:
      path: the file, or the name of one of the package's configs (`find`).

    Raises:
      InputError: if there is no such file, or if a config.json that was downloaded names code to run.

    >>> load("digits_base").train.batch_size
    64
    """
    if str(path).endswith(".json"):
        values = read_json(as_path(path))
        check_foreign(values, as_path(path))
        config = ConfigDict(tuples_for_lists(_without_none(values)))
    else:
        config = runpy.run_path(str(find(path)))["get_config"]()
    if isinstance(config, ConfigDict):
        rename_old_fields(config)
        _add_old_sections(config)
    return config


def find(config: str | Path) -> Path:
    """Find a config's file.

    Args:
      config: the path of a file, or the name of one of the package's configs, such as 'digits_base'.

    Raises:
      InputError: if there is no such file.

    >>> find("digits_base").name
    'digits_base.py'
    """
    path = Path(config).expanduser()
    if path.is_file():
        return path
    shipped = {file.stem: file for file in shipped_folder("configs").glob("*.py")}
    is_name = path.name == str(config) and not path.suffix
    if is_name and path.name in shipped:
        return shipped[path.name]
    neighbors = {str(file): file for file in path.parent.glob("*.py")}
    known = shipped if is_name or path.stem in shipped else neighbors
    hint = did_you_mean(path.stem if known is shipped else path, known)
    if is_name and Path(f"{config}.py").is_file():
        hint = f" Did you mean the file '{config}.py'?"
    raise InputError(
        f"There is no config {str(config)!r}. Give a file, or the name of one of the package's configs, such as "
        f"digits_base.{hint if hint.startswith(' Did') else ''}"
    )


def rename_old_fields(config: ConfigDict) -> None:
    """Replace the old names (`OLD_FIELDS`) and old values (`OLD_VALUES`) of fields in a config by their current ones.

    If a field has values under both names, the old name wins, because the new one then only holds the default.
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
    for field, values in OLD_VALUES.items():
        section, name = _get(config, field.rpartition(".")[0]), field.rpartition(".")[2]
        if isinstance(section, ConfigDict) and (value := str(section.get(name)).lower()) in values:
            with section.unlocked(), section.ignore_type():
                section[name] = values[value]


def _add_old_sections(config: ConfigDict) -> None:
    """Add a ladder's old sections, empty, so that older config files can set fields in them."""
    if isinstance(config.get("distillation"), ConfigDict):
        with config.unlocked():
            config.distillation.update({"tract": ConfigDict(), "consistency": ConfigDict()})


def current_field(field: str) -> str:
    """Return the current dotted name of a field.

    >>> current_field("train.num_steps"), current_field("distillation.consistency.kind")
    ('train.num_train_steps', 'distillation.args.kind')
    """
    for old, new in OLD_FIELDS.items():
        if field == old or field.startswith(old + "."):
            field = new + field.removeprefix(old)
    return field


def add_missing(config: ConfigDict) -> None:
    """Add the fields that a config file omits, so that the command line can set them."""
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
    for field, value, allowed in list_fields(fields, values):
        quoted = f'"{value}"' if re.search(r"[^\w.,:/+-]", value) else value  # quoted for the shell
        lines.append(f"{f'--{name}.{field}={quoted}':<70}  {allowed}".rstrip())
    return lines


def resolve(config: ConfigDict) -> ConfigDict:
    """Check a config and fill in the defaults.

    Args:
      config: as a config file returns it; not changed.

    Returns:
      A new, locked config with every field of `FIELDS`, and of `DISTILLATION` if `config` has such a section. Its local
      paths (`PATHS`) are absolute, so that a stored config refers to the same files from every working folder.

    Raises:
      InputError: if a field is unknown, missing, of the wrong type or outside its allowed values.

    >>> config = defaults()
    >>> config.dataset.name = "digits"
    >>> config.train.update(batch_size=64, learning_rate=1e-3)
    >>> config.model.args.update(ch=16, emb_ch=64, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
    >>> resolve(config).train.optimizer
    'adam'
    >>> config.train.batch_size = 0
    >>> resolve(config)
    Traceback (most recent call last):
    diffusion_distillation.errors.InputError: config.train.batch_size=0 must be at least 1.
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
    _check("model.train_times", lambda: training_times(**resolved.model.train_times))
    _check("model.logvar_type", lambda: posterior_variance(resolved.model.logvar_type))
    _check_ranges(resolved)
    if "distillation" in resolved:
        _resolve_distillation(resolved)
    return resolved.lock()


def to_share(config: ConfigDict) -> ConfigDict:
    """Return a copy of a resolved config to publish: its local paths are cut to their last part."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        _change_paths(config, lambda value: Path(value).name)
    return config


def rung_config(config: ConfigDict, rung: Rung) -> ConfigDict:
    """Return the config of one student: its ladder's config with the overrides of `distillation.stages`.

    Its train.num_train_steps is the student's number of updates. Its seed is shifted by rung.num_steps, modulo 2^32, so
    that every student sees the data in a different order.

    Args:
      config: the ladder's config, resolved.
      rung: the student's rung, one of `methods.ladder_rungs(config)`.

    Returns:
      A new config, resolved but not locked.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        overrides = dict(config.distillation.stages.get(str(rung.num_steps), {}))
        updates = overrides.pop("steps_per_iter", config.distillation.steps_per_iter)
        config.train.num_train_steps = updates
        if updates != config.distillation.steps_per_iter:
            config.train.learning_rate_anneal_steps = 0  # anneal over the student's own number of updates
        config.train.update(overrides)
        config.seed = (config.seed + rung.num_steps) % (MAX_SEED + 1)
    return config


def _fields_of(config: ConfigDict) -> dict:
    """The table of a config's fields, with the options of its network and its method.

    The function of a network by dotted name checks the network's args itself.
    """
    fields = dict(FIELDS)
    name = str(_get(config, "model.name") or FIELDS["model"]["name"])
    args = attributes_of(NETWORKS[name], omit=SET_BY_CONFIG) if name in NETWORKS else Free()
    fields["model"] = {**FIELDS["model"], "args": args}
    if "distillation" in config:
        fields["distillation"] = dict(DISTILLATION)
        if isinstance(_get(config, "distillation.method"), str):
            fields["distillation"]["args"] = options_of(find_method(config))
    return fields


def _make_paths_absolute(config: ConfigDict) -> None:
    """Make the local paths of a config absolute, whether or not they exist yet."""
    _change_paths(config, absolute_path)


def absolute_path(value: str) -> str:
    """Make a path absolute, unless it is a URL or the name of a pretrained model.

    >>> absolute_path("gs://bucket/run"), absolute_path("digits")
    ('gs://bucket/run', 'digits')
    """
    path = Path(value).expanduser()
    return value if "://" in value or is_pretrained(value) else str(path.absolute())


def dataset_of(config: ConfigDict) -> dict[str, Any]:
    """Return the `name` and the `args` of the images in a config, with absolute paths and without `randflip`."""
    dataset = ConfigDict({"dataset": config.dataset.to_dict()})
    _make_paths_absolute(dataset)
    args = {name: value for name, value in dataset.dataset.args.items() if name != "randflip"}
    return {"name": dataset.dataset.name, "args": args}


def model_of(config: ConfigDict) -> ConfigDict:
    """Resolve a config without its `distillation` section: what describes a model, not the ladder that starts from it.

    >>> "distillation" in model_of(load("digits_distill"))
    False
    """
    return resolve(ConfigDict({name: value for name, value in config.to_dict().items() if name != "distillation"}))


def _change_paths(config: ConfigDict, change: Callable[[str], str]) -> None:
    """Replace each local path by `change(path)`."""
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
    """Return `build()`. If it raises a ValueError, name the field at `path` in the message."""
    try:
        return build()
    except ValueError as error:
        raise InputError(f"config.{path}: {error}") from None


def _check_ranges(config: ConfigDict) -> None:
    """Check what the table of fields cannot express: narrower ranges, and fields that depend on each other."""
    # Ranges.
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

    # Batches and updates.
    train = config.train
    if train.microbatch_size and train.batch_size % train.microbatch_size:
        raise InputError(
            f"config.train.batch_size={train.batch_size} must be a multiple of config.train.microbatch_size="
            f"{train.microbatch_size}."
        )
    if train.shard != "none" and train.parallel == "pmap":
        raise InputError(
            f"config.train.shard={train.shard!r} needs config.train.parallel='jit': pmap replicates the state. Set "
            "config.train.shard='none' for pmap."
        )
    if train.retain_checkpoint_every_steps % train.substeps:
        raise InputError(
            f"config.train.retain_checkpoint_every_steps={train.retain_checkpoint_every_steps} must be a multiple of "
            f"config.train.substeps={train.substeps}, the updates per call."
        )

    # Guidance.
    guidance_range = config.model.args.get("guidance_range")
    guidance = config.model.eval_guidance
    if guidance_range is not None:
        _check("model.args", lambda: check_guidance_range(guidance_range))
    interval = config.model.eval_guidance_interval
    if interval is not None:
        _check("model.eval_guidance_interval", lambda: check_guidance_interval(interval))
    if "distillation" not in config and guidance_range is not None:
        raise InputError(
            f"config.model.args.guidance_range={guidance_range} is for students of a ladder, which learn guidance from "
            "a teacher. For a base model, unset it (None) and set config.train.label_dropout=0.1."
        )
    if guidance_range is None and guidance and not train.label_dropout:
        raise InputError(
            f"config.model.eval_guidance={guidance} needs a model that can be guided: set config.train.label_dropout="
            "0.1 for a base model, or config.model.args.guidance_range=(0.0, 4.0) for students that take the weight. "
            "Students of one weight (config.distillation.teacher_guidance) are guided already: set "
            "config.model.eval_guidance=0.0."
        )
    if guidance_range is not None and not min(guidance_range) <= guidance <= max(guidance_range):
        raise InputError(
            f"config.model.eval_guidance={guidance} must be within config.model.args.guidance_range={guidance_range}."
        )

    # The average and the evaluations.
    if train.ema_decay is None and train.avg_type != "none" and train.avg_steps < 1:
        raise InputError(f"config.train.avg_type={train.avg_type!r} needs config.train.avg_steps, at least 1.")
    if config.eval.metrics_every_steps % max(train.eval_every_steps, 1):
        raise InputError(
            f"config.eval.metrics_every_steps={config.eval.metrics_every_steps} must be a multiple of "
            f"config.train.eval_every_steps={train.eval_every_steps}."
        )
    for name in ("teacher_num_steps", "ancestral_num_steps"):
        if name == "teacher_num_steps" and config.eval[name] == ():
            raise InputError("config.eval.teacher_num_steps=() must have at least one number of sampling steps.")
        if not all(isinstance(steps, int) and steps > 0 for steps in config.eval[name] or ()):
            raise InputError(f"config.eval.{name}={config.eval[name]} must be numbers of sampling steps, at least 1.")


def _resolve_distillation(config: ConfigDict) -> None:
    """Check a ladder's config, and replace each updates_factor by the steps_per_iter that it amounts to."""
    # The sampler and the schedules.
    distillation = config.distillation
    if config.sampler != "ddim":
        raise InputError(
            f"config.sampler={config.sampler!r} must be 'ddim' for a ladder: students learn DDIM steps. You can choose "
            "another sampler when you sample, with --sampler."
        )
    if train_schedule(config.model) != eval_schedule(config.model):
        raise InputError(
            f"config.model.eval_logsnr_schedule={config.model.eval_logsnr_schedule.to_dict()} differs from "
            f"train_logsnr_schedule={config.model.train_logsnr_schedule.to_dict()}. Set both alike: students are "
            "sampled at the times that they are trained at."
        )
    if not train_schedule(config.model).grids_nest:
        name = config.model.train_logsnr_schedule.name
        raise InputError(
            f"config.model.train_logsnr_schedule={config.model.train_logsnr_schedule.to_dict()} cannot be distilled: "
            f"the times of a student must be among its teacher's. Set {NESTED_BY[name]} in both schedules."
        )
    _check_teacher_guidance(config)
    if config.train.init_from is not None:
        raise InputError(
            f"config.train.init_from={config.train.init_from!r} is for base models. Unset it (None): students start "
            "from their teachers."
        )

    # The method and the students' overrides.
    rungs = {rung.num_steps: rung for rung in _check("distillation", lambda: make_method(config)).rungs}
    fields = {"steps_per_iter": OrNone(int), "updates_factor": OrNone(float), **FIELDS["train"]}
    del fields["init_from"], fields["num_train_steps"]
    stages = {}
    for num_steps, override in distillation.stages.to_dict().items():
        name = str(num_steps)
        path = f"distillation.stages.{name}"
        if override is None or (name.isdigit() and 0 < int(name) < min(rungs)):  # the ladder ends before it
            continue
        if name not in map(str, rungs):
            raise InputError(
                f"config.{path}: no student has {name} step{'s' * (name != '1')}; the students have {list(rungs)}. "
                f"Drop this override with --config.{path}=None, or all of them with --config.distillation.stages={{}}."
            )
        if not isinstance(override, dict):
            raise InputError(f"config.{path}={override!r} must be a section, such as {{'updates_factor': 2.0}}.")
        checked = fill(fields, {"batch_size": 1, "learning_rate": 0.0, **override}, path + ".")
        stages[name] = {field: checked[field] for field in override if field != "updates_factor"}
        if checked["updates_factor"] and not checked["steps_per_iter"]:
            stages[name]["steps_per_iter"] = max(1, round(checked["updates_factor"] * distillation.steps_per_iter))
        if checked["updates_factor"] == 0:
            raise InputError(f"config.{path}.updates_factor=0.0 must be more than 0.")
    distillation.stages = ConfigDict(stages)
    for name in stages:
        student = rung_config(config, rungs[int(name)])
        _check(f"distillation.stages.{name}", lambda student=student: _check_ranges(student))


def _check_teacher_guidance(config: ConfigDict) -> None:
    """Check the guidance of a ladder's teacher, as far as the config alone tells."""
    distillation = config.distillation
    guidance_range = config.model.args.get("guidance_range")
    interval = distillation.teacher_guidance_interval
    if distillation.teacher_guidance is not None and guidance_range is not None:
        raise InputError(
            f"config.distillation.teacher_guidance={distillation.teacher_guidance} is for students without a guidance "
            f"weight, but these take one: config.model.args.guidance_range={guidance_range}. Unset one of the two "
            "(None)."
        )
    if interval is None:
        return
    _check("distillation.teacher_guidance_interval", lambda: check_guidance_interval(interval))
    if distillation.teacher_guidance is None and guidance_range is None:
        raise InputError(
            f"config.distillation.teacher_guidance_interval={interval} needs a guided teacher: set "
            "config.distillation.teacher_guidance to its weight."
        )
