"""Checks before a run: devices, processes, the model it starts from, and settings that waste it."""

import json
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ..checkpoints import Metadata
from ..config import PATHS
from ..data import Source, fingerprint
from ..errors import InputError
from ..networks.model import train_schedule
from ..runtime import multihost
from .averages import exponential_decay
from .runs import differences

MOST_OF_FIRST = 0.1  # the weight of an average's initial parameters above which samples are visibly worse


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
    compared = {
        f"config.model.args.{name}": (there.args.get(name), here.args.get(name))
        for name in {**there.args, **here.args}
        if name not in ("dropout", "remat")  # they do not shape parameters, and students often have others
    }
    if there.args.get("guidance_range") is None:  # a student may be the first model that takes a guidance weight
        compared.pop("config.model.args.guidance_range", None)
    compared |= {f"config.model.{name}": (there[name], here[name]) for name in ("name", "mean_type")}
    compared |= {
        "the noise schedule (config.model.train_logsnr_schedule)": (train_schedule(there), train_schedule(here)),
        "the image shape": (tuple(start.image_shape), tuple(model.image_shape)),
        "the number of classes": (start.num_classes, model.num_classes),
    }
    named = [f"{name} is {a!r} {where} and {b!r} here" for name, (a, b) in compared.items() if a != b]
    if named:
        raise InputError(f"{what}: {'; '.join(named)}.")


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
    if weight > MOST_OF_FIRST:
        found.append(
            f"The parameter average for sampling, with decay {decay:g}, still has {weight:.0%} of its initial "
            f"parameters after {updates:,} updates. Set config.train.ema_decay={MOST_OF_FIRST ** (1 / updates):.6f} or "
            "less."
        )
    return found
