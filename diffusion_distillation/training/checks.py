"""Checks before a run: devices, processes, the model it starts from, and settings that waste it."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ..checkpoints import Metadata
from ..config import PATHS
from ..data import Source, fingerprint
from ..errors import InputError
from ..latents import Space
from ..networks.model import train_schedule
from ..pipeline import check_clip
from ..runtime import multihost
from .averages import exponential_decay
from .runs import differences

TRAINING_ARGS = ("dropout", "remat")  # of model.args; they matter in training alone
INPUT_ARGS = ("logsnr_input_type", "logsnr_scale_range", "time_scale")  # of model.args; how log-SNR enters the network
SCHEDULE = "the noise schedule (config.model.train_logsnr_schedule)"
MAX_INITIAL_WEIGHT = 0.1  # the weight of an average's initial parameters above which samples are visibly worse


def describe_model(config: ConfigDict, source: Source, num_steps: int) -> Metadata:
    """Return the metadata of a model that is trained on a source.

    Args:
      config: resolved.
      source: of images or of their latents.
      num_steps: sampling steps that it is distilled for; 0 for a base model.

    Raises:
      InputError: if the config names an autoencoder and the source has images.
    """
    info = getattr(source, "autoencoder", None)
    path = config.autoencoder.path
    if info is None and path is not None:
        raise InputError(
            f"config.autoencoder.path={path!r} is for models of latents, and config.dataset.name="
            f"{config.dataset.name!r} has images. Encode them with encode_data --autoencoder={path}, and "
            "set config.dataset.name='Latents' and config.dataset.args.path to the folder that it writes."
        )
    return Metadata(
        config=config,
        image_shape=source.image_shape,
        num_classes=source.num_classes,
        num_steps=num_steps,
        class_names=getattr(source, "class_names", None),
        autoencoder=info,
        autoencoder_path=None if info is None else path or source.autoencoder_path,
    )


def check_space(space: Space, config: ConfigDict, source: Source) -> None:
    """Raise an InputError unless a config can train on latents, if these are latents, and samples can be decoded.

    Args:
      space: what is diffused.
      config: resolved.
      source: of the examples.
    """
    if space.is_pixels:
        return
    check_clip(config.model.eval_clip_denoised, space, "config.model.eval_clip_denoised")
    space.open()
    if config.dataset.args.get("randflip") and source[np.array([0])]["mean"].shape[1] < 2:
        raise InputError(
            "config.dataset.args.randflip=True needs the latents of mirror images too. Encode them with "
            "encode_data --mirror, or unset randflip."
        )


def check_batch_size(train: Any, mesh: Mesh) -> None:
    """Raise an InputError unless the devices can share a batch, and a microbatch, evenly.

    Args:
      train: the `train` section of a resolved config.
      mesh: the devices.
    """
    for name in ("batch_size", "microbatch_size"):
        size = train[name]
        count = mesh.size
        if size % count:
            raise InputError(
                f"config.train.{name}={size} must be divisible by the number of devices, {count}: "
                f"choose {size // count * count or count} or {(size // count + 1) * count}."
            )


def check_processes(config: ConfigDict, source: Source) -> None:
    """Raise an InputError that names the difference if a process has another config or other data than process 0."""
    config_of_main = json.loads(multihost.broadcast(config.to_json()))
    paths = {f"{section}.{name}" for section, name in PATHS}
    named = "; ".join(
        f"config.{field} is {in_main!r} in process 0 and {here!r} in process {jax.process_index()}"
        for field, in_main, here in differences(config_of_main, json.loads(config.to_json()))
        if field not in paths  # hosts may have the same files in other places
    )
    content = int(fingerprint(source)[:7], 16)  # as many digits as fit an int32
    data = multihost.all_gather([len(source), *source.image_shape, source.num_classes, content])
    differing = next((process for process, values in enumerate(data) if values != data[0]), None)
    if differing is not None:
        first, other = map(_describe_data, (data[0], data[differing]))
        raise InputError(
            f"Process 0 reads {first}, process {differing} reads {other}: give all processes the same data."
        )
    if multihost.all_max([bool(named)])[0]:
        raise InputError(f"{named or 'The processes have different configs'}: give all processes the same command.")


def _describe_data(values: list[int]) -> str:
    length, height, width, channels, classes, content = values
    plural = "es" * (classes != 1)
    return f"{length:,} images of {height}x{width}x{channels} in {classes} class{plural}, fingerprint {content:07x}"


def check_same_model(what: str, where: str, start: Metadata, model: Metadata) -> None:
    """Refuse initial parameters that have the right shapes but another meaning.

    Args:
      what: begins the message: which model cannot start from which parameters.
      where: where the initial parameters are, for the message, such as 'in the teacher'.
      start: the metadata of the initial parameters.
      model: the metadata of the model that is to start from them.

    Raises:
      InputError: if the networks, their outputs, the noise schedules, the images or the classes differ. It names each
        difference.
    """
    there = start.config.model
    here = model.config.model
    schedules = train_schedule(there), train_schedule(here)
    weights = there.args.get("guidance_range"), here.args.get("guidance_range")
    compared = {
        **architecture_differences(start, model),
        **meaning_differences(start, model),
        **unequal({"config.model.args.guidance_range": weights, SCHEDULE: schedules}),
        **data_differences(start, model),
    }
    refuse(what, where, compared)


def refuse(what: str, where: str, different: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise an InputError that names differences, if there are any.

    Args:
      what: begins the message: which model cannot start from which parameters.
      where: where the first values are, such as 'in the teacher'.
      different: a value there and a value here, by name.
    """
    if different:
        raise InputError(f"{what}: {in_words(different, where)}.")


def in_words(different: Mapping[str, tuple[Any, Any]], where: str) -> str:
    """Name differences.

    >>> in_words({"config.model.mean_type": ("eps", "v")}, "in the teacher")
    "config.model.mean_type is 'eps' in the teacher and 'v' here"
    """
    return "; ".join(f"{name} is {there!r} {where} and {here!r} here" for name, (there, here) in different.items())


def data_differences(start: Metadata, model: Metadata) -> dict[str, tuple[Any, Any]]:
    """The differences between the images or latents of two models."""
    compared = {
        "the image shape": (tuple(start.image_shape), tuple(model.image_shape)),
        "the number of classes": (start.num_classes, model.num_classes),
    }
    there, here = start.autoencoder, model.autoencoder
    if there is None or here is None or not there.same_latents(here):
        compared["the autoencoder"] = there and there.describe(), here and here.describe()
    return unequal(compared)


def architecture_differences(start: Metadata, model: Metadata) -> dict[str, tuple[Any, Any]]:
    """The differences between two networks in everything that shapes parameters.

    A guidance weight is not among them: the layers that it adds do not change the others.
    """
    there, here = (metadata.config.model for metadata in (start, model))
    args = {**there.args, **here.args}
    names = [name for name in args if name not in (*TRAINING_ARGS, *INPUT_ARGS, "guidance_range")]
    return unequal(
        {
            "config.model.name": (there.name, here.name),
            **{f"config.model.args.{name}": (there.args.get(name), here.args.get(name)) for name in names},
        }
    )


def meaning_differences(start: Metadata, model: Metadata) -> dict[str, tuple[Any, Any]]:
    """The differences in what two networks take and output that do not show in their parameters' shapes."""
    there, here = (metadata.config.model for metadata in (start, model))
    names = ["mean_type"]
    if {there.mean_type, here.mean_type} & {"edm", "consistency"}:
        names.append("sigma_data")
    if "consistency" in (there.mean_type, here.mean_type):
        names.append("sigma_min")
    compared = {f"config.model.{name}": (there[name], here[name]) for name in names}
    for name in INPUT_ARGS:
        compared[f"config.model.args.{name}"] = (there.args.get(name), here.args.get(name))
    if there.args.get("logsnr_input_type") == here.args.get("logsnr_input_type") == "step":
        compared["the steps (config.model.train_logsnr_schedule)"] = (train_schedule(there), train_schedule(here))
    return unequal(compared)


def unequal(compared: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """The pairs whose two values differ."""
    return {name: (there, here) for name, (there, here) in compared.items() if there != here}


def wasteful_settings(train: Any) -> list[str]:
    """Warnings about settings that are allowed but waste a run, one sentence or two per setting.

    Args:
      train: the `train` section of a resolved config.
    """
    found = []
    updates = train.num_train_steps
    warmup = train.learning_rate_warmup_steps
    if warmup > updates:
        found.append(
            f"config.train.learning_rate_warmup_steps={warmup} is longer than the run of {updates:,} updates: the "
            f"learning rate only reaches {updates / warmup:.0%} of config.train.learning_rate. Set a shorter warm-up."
        )
    decay = exponential_decay(train)
    weight = decay**updates
    if weight > MAX_INITIAL_WEIGHT:
        found.append(
            f"The parameter average for sampling, with decay {decay:g}, still has {weight:.0%} of its initial "
            f"parameters after {updates:,} updates. Set config.train.ema_decay="
            f"{MAX_INITIAL_WEIGHT ** (1 / updates):.6f} or less."
        )
    return found
