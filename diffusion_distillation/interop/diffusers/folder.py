"""Read and write folders of diffusers: pipelines and models of the DDPM family, as networks of this package.

To read another class of networks, add an entry to `READERS`.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath
from ml_collections import ConfigDict

from ...checkpoints import AUTOENCODER, Metadata
from ...config import resolve
from ...errors import InputError
from ...networks.dit import DiT
from ...networks.model import make_network
from ...networks.unet import UNet
from ...runtime.files import absolute, read_json, write_atomic
from ...shapes import Params
from .. import archive
from ..download import local_folder
from ..model_files import PIPELINE
from . import autoencoder, card, dit, scheduler, unet2d, weights
from .fields import header, with_defaults
from .scheduler import SCHEDULER
from .unet2d import UNET
from .weights import WEIGHTS

OTHER_DECODERS = ("vqvae", "movq")  # parts of a pipeline that decode its images
METADATA = "diffusion_distillation.json"  # the metadata, in folders that `write` made
TIMES = "time_proj.weight"  # the table of times, in folders that `write` made
NETWORKS = ("unet", "transformer")  # folders of a pipeline's network


class Reader(NamedTuple):
    """How to read a class of networks.

    Attributes:
      name: our config.model.name.
      defaults: the values that diffusers uses for missing fields.
      allowed: the supported values of some fields.
      args: `args(values, origin)` returns our config.model.args, without those that the scheduler determines.
      image_shape: `image_shape(values, origin)`, of images or latents, whatever the network sees.
      num_classes: `num_classes(values, origin)`; 1 for an unconditional network.
      to_params: `to_params(arrays, metadata, values, origin)` converts the weights.
      label_dropout: share of the labels that training dropped, if the network can be guided. Default 0.
    """

    name: str
    defaults: Mapping[str, Any]
    allowed: Mapping[str, Collection[Any]]
    args: Callable[[Mapping[str, Any], str], dict[str, Any]]
    image_shape: Callable[[Mapping[str, Any], str], tuple[int, int, int]]
    num_classes: Callable[[Mapping[str, Any], str], int]
    to_params: Callable[[dict[str, np.ndarray], Metadata, Mapping[str, Any], str], Params]
    label_dropout: float = 0.0


def _unet_params(arrays: dict[str, np.ndarray], metadata: Metadata, values: Mapping[str, Any], origin: str) -> Params:
    if values["flip_sin_to_cos"]:
        weights.swap_sin_and_cos(arrays)
    return weights.to_params(arrays, metadata, origin)


DIT = Reader(
    name="dit",
    defaults=dit.DEFAULTS,
    allowed=dit.ALLOWED,
    args=dit.dit_args,
    image_shape=dit.image_shape,
    num_classes=dit.num_classes,
    to_params=lambda arrays, metadata, values, origin: dit.to_params(arrays, metadata, origin),
    label_dropout=dit.LABEL_DROPOUT,
)
READERS = {
    "UNet2DModel": Reader(
        name="unet_iddpm",
        defaults=unet2d.DEFAULTS,
        allowed=unet2d.ALLOWED,
        args=unet2d.unet_args,
        image_shape=unet2d.image_shape,
        num_classes=unet2d.num_classes,
        to_params=_unet_params,
    ),
    "DiTTransformer2DModel": DIT,
    "Transformer2DModel": DIT,  # as older folders have it
}


def is_diffusers(folder: epath.Path) -> bool:
    """Whether a folder holds a model or a pipeline of diffusers, of any kind, according to its JSON files."""
    if (folder / PIPELINE).is_file():
        return True
    return (folder / UNET).is_file() and "_class_name" in read_json(folder / UNET)


def read(folder: epath.Path) -> tuple[Params, Metadata]:
    """Read the model in a folder of a pipeline, or of a network (`READERS`).

    A pipeline's folder has unet/ or transformer/, and scheduler/, and perhaps vae/, the autoencoder of a model of
    latents, and class names in its model_index.json. The folder may also be one of the first two, which is read
    together with the rest of the pipeline. Weights may be float32, float16 or bfloat16, in one file or in several with
    an index. Without a scheduler_config.json the scheduler is `DDPMScheduler` with its defaults: 1000 linear betas,
    epsilon, clipping, fixed_small.

    The scheduler determines the noise schedule, what the network predicts, how it is told the noise level, and whether
    x is clipped. A solver's scheduler, such as `HeunDiscreteScheduler`, also determines the sampler and its times.
    `DDPMScheduler` and `DDIMScheduler` do not: our samplers choose the times, and end at t = 0 with the predicted x,
    whatever timestep_spacing, steps_offset and set_alpha_to_one are. Samples equal those of diffusers with
    `use_clipped_model_output=True`.

    A consistency model (`CMStochasticIterativeScheduler`) is a 1-step student that samples in more steps by 'renoise'.

    Raises:
      InputError: if the network, the scheduler or a file is not supported. The message names it.
    """
    folder = _pipeline_of(folder)
    network = next((folder / name for name in NETWORKS if (folder / name / UNET).is_file()), folder)
    if not (network / UNET).is_file():
        raise InputError(
            f"{str(folder)!r} is a diffusers pipeline without unet/{UNET} or transformer/{UNET}. Supported networks: "
            f"{', '.join(READERS)}."
        )
    _check_decoder(folder)
    files = weights.find_weights(network)
    arrays = weights.read_arrays(files)
    if (folder / METADATA).is_file():
        return _read_ours(folder, arrays)
    origin = str(network / UNET)
    values = with_defaults(read_json(network / UNET), {}, {"_class_name": READERS}, origin)
    reader = READERS[values["_class_name"]]
    values = with_defaults(values, reader.defaults, reader.allowed, origin)
    metadata = _metadata(reader, values, scheduler.read_scheduler(folder), origin)
    metadata = _with_class_names(_with_autoencoder(metadata, folder), folder)
    return reader.to_params(arrays, metadata, values, str(files[0])), metadata


def write(folder: epath.Path, params: Params, metadata: Metadata, num_steps: int | None = None) -> None:
    """Write a model as a pipeline that diffusers loads: a U-Net as a `DDIMPipeline`, a DiT as a `DiTPipeline`.

    From the same noise, with num_steps steps, it generates the same images as our DDIM sampler. README.md explains how
    to call it. `read` returns the same parameters, except that the bias of a U-Net's class_emb is added to its kernel.

    A U-Net gets a table of times whose rows are our sinusoids at the times of these steps. If the model clips x,
    diffusers must be called with `use_clipped_model_output=True`. A DiT keeps the schedule of its training, and its
    autoencoder is copied to vae/.

    Args:
      folder: created if it is missing.
      params: the model's parameters.
      metadata: the model's metadata.
      num_steps: sampling steps, 1 or more. Default: the number that a student was distilled for, or a base model's
        `config.model.eval_sampling_num_steps`.

    Raises:
      InputError: if diffusers cannot express the model: a mean_type other than 'eps', 'x' and 'v', another network
        than our U-Net and DiT, or one that takes a guidance weight; a U-Net with several heads at levels of different
        widths, a first level wider than ch, levels of different widths with num_res_blocks=0, or a schedule that
        float32 betas cannot follow; for a DiT, see `dit.check_writable`.
    """
    model = metadata.config.model
    if num_steps is None:
        num_steps = metadata.num_steps or model.eval_sampling_num_steps
    if num_steps < 1:
        raise InputError(f"num_steps={num_steps} must be at least 1.")
    if model.mean_type not in scheduler.MEAN_TYPES.values():
        raise InputError(
            f"DDIMScheduler has no prediction_type for mean_type {model.mean_type!r}. Distill a model of mean_type 'v'."
        )
    network = make_network(model, metadata.shape, metadata.num_classes)
    if type(network) not in WRITERS:
        raise InputError(
            f"diffusers has no network for config.model.name={model.name!r}. Only unet_iddpm and dit can be exported."
        )
    if network.guidance_range is not None:
        raise InputError(
            f"diffusers' {network.__class__.__name__} takes no guidance weight, which this model needs. "
            "Use --format=sampler instead."
        )
    WRITERS[type(network)](folder, params, metadata, network, num_steps)
    _write_json(folder / METADATA, {"step": metadata.step, **metadata.to_share().to_json()})


def _write_unet(folder: epath.Path, params: Params, metadata: Metadata, network: UNet, num_steps: int) -> None:
    if metadata.autoencoder is not None:
        raise InputError(
            "diffusers' DDIMPipeline has no autoencoder, which this model of latents needs. Use --format=sampler "
            "instead."
        )
    logsnr = scheduler.grid_logsnr(metadata, num_steps)
    config = unet2d.unet_config(network, metadata.image_shape, num_steps)
    scheduler_config = scheduler.scheduler_config(metadata.config.model, logsnr)
    arrays = weights.from_params(params, metadata) | {TIMES: np.asarray(network.time_embedding(logsnr))}
    write_atomic(folder / "unet" / WEIGHTS, safetensors.numpy.save(arrays, {"format": "pt"}))
    _write_json(folder / "unet" / UNET, config)
    _write_json(folder / "scheduler" / SCHEDULER, scheduler_config)
    parts = {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    _write_json(folder / PIPELINE, {**header("DDIMPipeline"), **parts})
    write_atomic(folder / "README.md", card.text(metadata, num_steps))


def _write_dit(folder: epath.Path, params: Params, metadata: Metadata, network: DiT, num_steps: int) -> None:
    dit.check_writable(metadata, network, num_steps)
    autoencoder.copy(local_folder(metadata.autoencoder_path), folder / AUTOENCODER, metadata.autoencoder)
    arrays = dit.from_params(params, network)
    write_atomic(folder / "transformer" / WEIGHTS, safetensors.numpy.save(arrays, {"format": "pt"}))
    _write_json(folder / "transformer" / UNET, dit.dit_config(network, metadata.shape))
    _write_json(folder / "scheduler" / SCHEDULER, scheduler.training_config(metadata.config.model))
    names = metadata.class_names or map(str, range(metadata.num_classes))
    parts = {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / PIPELINE, {**header("DiTPipeline"), **parts})
    write_atomic(folder / "README.md", card.dit_text(metadata, num_steps))


WRITERS = {UNet: _write_unet, DiT: _write_dit}


def _write_json(path: epath.Path, values: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(values, indent=2) + "\n")


def _pipeline_of(folder: epath.Path) -> epath.Path:
    """The pipeline's folder for the network of a pipeline, else the folder itself."""
    full = absolute(folder)
    return full.parent if full.name in NETWORKS and (full.parent / PIPELINE).is_file() else folder


def _metadata(reader: Reader, values: dict, scheduler_values: dict, origin: str) -> Metadata:
    """The metadata of a model, from the configs of its network and its scheduler, with defaults."""
    args = reader.args(values, origin)
    try:
        settings = scheduler.settings(scheduler_values)
        config = ConfigDict(
            dict(
                dataset=dict(name="unknown"),
                model={"name": reader.name, **settings.model, "args": {**args, **settings.args}},
                sampler=settings.sampler,
                train=dict(batch_size=1, learning_rate=0.0, label_dropout=reader.label_dropout),
            ),
            convert_dict=True,
        )
        config = resolve(config)
    except (TypeError, ValueError, ArithmeticError) as error:  # also from Python and NumPy, for values of wrong types
        raise InputError(f"{origin} and its scheduler's config: {error}") from None
    metadata = Metadata(
        config=config,
        image_shape=reader.image_shape(values, origin),
        num_classes=reader.num_classes(values, origin),
        num_steps=settings.num_steps,
    )
    make_network(config.model, metadata.image_shape, metadata.num_classes)  # checks that the options fit each other
    return metadata


def _check_decoder(folder: epath.Path) -> None:
    """Refuse a pipeline whose images are decoded by another network than an AutoencoderKL in vae/."""
    for name in OTHER_DECODERS:
        part = _index(folder).get(name)
        if isinstance(part, list) and part and part[0] is not None:
            raise InputError(
                f"{str(folder)!r}: this pipeline decodes its images by {part[-1]} in {name}/, which is not supported. "
                f"Supported: an AutoencoderKL in {AUTOENCODER}/."
            )


def _index(folder: epath.Path) -> dict[str, Any]:
    """The content of a pipeline's model_index.json; empty for a network's own folder."""
    return read_json(folder / PIPELINE) if (folder / PIPELINE).is_file() else {}


def _with_autoencoder(metadata: Metadata, folder: epath.Path) -> Metadata:
    """The metadata with the autoencoder in vae/, if there is one."""
    path = folder / AUTOENCODER
    if not (path / autoencoder.CONFIG).is_file():
        return metadata
    _, _, info = autoencoder.read(path)
    height, width, channels = metadata.image_shape
    if channels != info.latent_channels:
        raise InputError(
            f"{str(folder)!r}: the network is one of {channels} channels, and the autoencoder in {AUTOENCODER}/ has "
            f"{info.latent_channels} latent channels."
        )
    image_shape = height * info.downsampling, width * info.downsampling, info.image_channels
    return dataclasses.replace(
        metadata, image_shape=image_shape, autoencoder=info, autoencoder_path=str(absolute(path))
    )


def _with_class_names(metadata: Metadata, folder: epath.Path) -> Metadata:
    """The metadata with the class names of a pipeline's model_index.json, if it has one for each class."""
    names = _index(folder).get("id2label")
    labels = [str(label) for label in range(metadata.num_classes)]
    if not isinstance(names, dict) or sorted(names) != sorted(labels):
        return metadata
    return dataclasses.replace(metadata, class_names=tuple(str(names[label]) for label in labels))


def _read_ours(folder: epath.Path, arrays: dict[str, np.ndarray]) -> tuple[Params, Metadata]:
    """Read a model that `write` wrote. A U-Net's table of times must be the one that its metadata gives."""
    metadata = archive.read_metadata(folder / METADATA)
    network = make_network(metadata.config.model, metadata.shape, metadata.num_classes)
    if isinstance(network, DiT):
        return dit.to_params(arrays, metadata, str(folder / "transformer" / WEIGHTS)), metadata
    table = arrays.pop(TIMES, np.zeros((0, 0)))
    if table.ndim != 2 or table.shape != (len(table), network.ch) or not len(table):
        raise InputError(f"{str(folder)!r}: {TIMES} is not a table of times that this package wrote.")
    expected = network.time_embedding(scheduler.grid_logsnr(metadata, len(table)))
    if not np.allclose(table, expected, atol=1e-3):
        raise InputError(f"{str(folder)!r}: {TIMES} was changed after this package wrote it. Export the model again.")
    return weights.to_params(arrays, metadata, str(folder / "unet" / WEIGHTS)), metadata
