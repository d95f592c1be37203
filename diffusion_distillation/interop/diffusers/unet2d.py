"""Models of diffusers: `UNet2DModel` folders of the DDPM family as models of ours, and ours as such folders.

What is known of their files and their networks is from reading and running diffusers 0.42; nothing of it is needed.
"""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ...checkpoints import Metadata, abstract_params
from ...config import resolve
from ...errors import InputError
from ...networks.model import eval_schedule, make_network
from ...networks.unet import UNet
from ...runtime.files import absolute, read_json, write_atomic
from ...shapes import Params
from ..archive import read_metadata, read_safetensors
from ..published import fit

PIPELINE, UNET, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_BY_VARIANT = re.compile(r"diffusion_pytorch_model\.(\w+)\.safetensors")  # such as fp16
INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(\.\w+)?\.json")  # of weights in several files
OURS = "diffusion_distillation.json"  # the metadata of a model that we wrote
VERSION = "0.42.1"  # of diffusers, that the files are written for

# What their networks and schedulers have where a config does not say it; and what is understood of each.
UNET_DEFAULTS = {
    "sample_size": None, "in_channels": 3, "out_channels": 3, "center_input_sample": False,
    "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0, "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896], "layers_per_block": 2, "mid_block_scale_factor": 1,
    "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "dropout": 0.0, "act_fn": "silu",
    "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
}  # fmt: skip
UNET_ALLOWED = {
    "_class_name": ("UNet2DModel",),
    "time_embedding_type": ("positional",),
    "act_fn": ("silu", "swish"),
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
    "flip_sin_to_cos": (False, True),
    "add_attention": (False, True),
}
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "clip_sample": True, "clip_sample_range": 1.0, "prediction_type": "epsilon",
    "thresholding": False, "rescale_betas_zero_snr": False, "variance_type": "fixed_small",
}  # fmt: skip
SCHEDULER_ALLOWED = {
    "_class_name": ("DDPMScheduler", "DDIMScheduler"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "clip_sample": (False, True),
    "prediction_type": ("epsilon", "sample", "v_prediction"),
    "thresholding": (False,),
    "rescale_betas_zero_snr": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
MEAN_TYPES = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}
BLOCKS = {"down": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
          "up": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")}  # fmt: skip

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---

# Images of {size} in {num_steps} steps

{what}

{call}
**Pass num_inference_steps={num_steps}.** The network looks its time up in a table of {num_steps} rows, those of these
steps; another number gives other images than the model's.
"""
DRAW = """```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("this/folder")
images = pipeline(batch_size=16, num_inference_steps={num_steps}{clip}).images
```
"""
DRAW_CLASSES = """It has {num_classes} classes, which `DDIMPipeline` does not pass on. Draw in a loop of your own:

```python
import torch
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained("this/folder")
pipeline.scheduler.set_timesteps({num_steps})
z, labels = torch.randn(16, {channels}, {height}, {width}), torch.arange(16) % {num_classes}
for t in pipeline.scheduler.timesteps:
    output = pipeline.unet(z, t, labels).sample
    z = pipeline.scheduler.step(output, t, z{clip}).prev_sample
```
"""

# Our names of modules, theirs.
TOP = {
    "conv_in": "conv_in",
    "dense0": "time_embedding.linear_1",
    "dense1": "time_embedding.linear_2",
    "class_emb": "class_embedding",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
INNER = {
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
OLDER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def is_diffusers(folder: epath.Path) -> bool:
    """Whether a folder is a model or a pipeline of diffusers, as its JSON says; of what kind, `read` looks at."""
    if (folder / PIPELINE).is_file():
        return True
    return (folder / UNET).is_file() and "_class_name" in read_json(folder / UNET)


def read(folder: epath.Path) -> tuple[Params, Metadata]:
    """The model in a folder: of a pipeline, with unet/ and scheduler/, or of a `UNet2DModel`.

    The folder may also be a pipeline's unet/, which is read with the scheduler beside it. Weights may be float32,
    float16 or bfloat16, in one file or in several with an index.

    Without a scheduler_config.json the scheduler is `DDPMScheduler` at its defaults: 1000 linear betas, epsilon,
    clipping, fixed_small. What is carried over is the noise schedule, what the network predicts, and whether x is
    clipped; a sampler's choice of times (timestep_spacing, steps_offset) is not, nor set_alpha_to_one: our steps end at
    t = 0 with the predicted x. Images are drawn as diffusers draws them with `use_clipped_model_output=True`.

    Raises:
      InputError: for a network, a scheduler or a file that is not understood; it names what.
    """
    if (here := absolute(folder)).name == "unet" and (here.parent / PIPELINE).is_file():
        folder = here.parent
    unet = folder / "unet" if (folder / "unet" / UNET).is_file() else folder
    if not (unet / UNET).is_file():
        raise InputError(
            f"{str(folder)!r} is a pipeline of diffusers without unet/{UNET}: only such of one UNet2DModel."
        )
    files = _weights(unet)
    arrays = {_newer(name): array for file in files for name, array in read_safetensors(file).items()}
    if (folder / OURS).is_file():
        return _read_ours(folder, arrays)

    values = _checked(read_json(unet / UNET), UNET_DEFAULTS, UNET_ALLOWED, str(unet / UNET))
    metadata = _metadata(values, _scheduler(folder), str(unet / UNET))
    if values["flip_sin_to_cos"] and (weight := arrays.get("time_embedding.linear_1.weight")) is not None:
        # They have the cosines first: the halves of the layer that reads them change places.
        arrays["time_embedding.linear_1.weight"] = np.roll(weight, weight.shape[-1] // 2, axis=-1)
    return _inward(arrays, metadata, str(files[0])), metadata


def _weights(unet: epath.Path) -> list[epath.Path]:
    """The files with a network's weights: one, or those that an index names."""
    names = sorted(path.name for path in unet.iterdir())
    if WEIGHTS in names:
        return [unet / WEIGHTS]
    variants, indices = ([name for name in names if kind.fullmatch(name)] for kind in (WEIGHTS_BY_VARIANT, INDEX))
    if len(variants) + len(indices) > 1:
        raise InputError(
            f"{str(unet)!r} has weights of several kinds, {', '.join([*variants, *indices])}: keep one, or rename it "
            f"{WEIGHTS}."
        )
    if variants:
        return [unet / variants[0]]
    if not indices:
        raise InputError(
            f"There is no {str(unet / WEIGHTS)!r}. Weights are read from safetensors files, never from a pickle "
            "(.bin). Load a pickle in diffusers and save it with save_pretrained."
        )
    places = read_json(unet / indices[0]).get("weight_map")
    shards = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not shards or not {*shards} <= {*names}:
        raise InputError(
            f"{str(unet / indices[0])!r} must name files beside it under 'weight_map'; it names {shards[:4]}."
        )
    return [unet / shard for shard in shards]


def write(folder: epath.Path, params: Params, metadata: Metadata, num_steps: int | None = None) -> None:
    """Writes a model as a pipeline that `diffusers.DDIMPipeline.from_pretrained` loads.

    At num_steps steps it draws the images that our DDIM sampler does, from the same noise: the network looks its time
    up in a table, whose rows are our sinusoids at the times of these steps. Where the model clips x it must be called
    with `use_clipped_model_output=True`; README.md says both. `read` gives the same parameters, but for the bias of
    class_emb, which is added to its kernel.

    Args:
      folder: made if it is missing.
      params: of the model.
      metadata: of the model.
      num_steps: sampling steps; by default those that a student was distilled for, or a base model's own.

    Raises:
      InputError: for what diffusers cannot express: mean_type 'both', another network than ours, several heads at
        levels of different widths, a first level wider than ch, levels of different widths with num_res_blocks=0, or a
        schedule that float32 betas cannot follow.
    """
    model = metadata.config.model
    if num_steps is None:
        num_steps = metadata.num_steps or model.eval_sampling_num_steps
    if num_steps < 1:
        raise InputError(f"num_steps must be at least 1; got {num_steps}.")
    if model.mean_type == "both":
        raise InputError("diffusers has no prediction_type for mean_type 'both': distill a model of another one.")
    network = make_network(model, metadata.image_shape, metadata.num_classes)
    if not isinstance(network, UNet):
        raise InputError(f"diffusers has no network for config.model.name={model.name!r}: only unet_iddpm is written.")
    if network.guidance_range is not None:
        raise InputError("UNet2DModel takes no weight of guidance, as this model does: export it as a sampler's file.")

    unet = _unet_config(network, metadata.image_shape, num_steps)
    logsnr = _logsnrs(metadata, num_steps)
    scheduler = _header("DDIMScheduler") | {
        "num_train_timesteps": num_steps,
        "beta_start": 0.0001,  # not used
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
    index = _header("DDIMPipeline") | {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    arrays = _outward(params, metadata) | {"time_proj.weight": np.asarray(network.time_embedding(logsnr))}
    ours = {"step": metadata.step, **metadata.to_share().to_json()}
    write_atomic(folder / "unet" / WEIGHTS, safetensors.numpy.save(arrays, {"format": "pt"}))
    for path, values in {
        folder / "unet" / UNET: unet,
        folder / "scheduler" / SCHEDULER: scheduler,
        folder / OURS: ours,
        folder / PIPELINE: index,
    }.items():
        write_atomic(path, json.dumps(values, indent=2) + "\n")
    write_atomic(folder / "README.md", _card(metadata, num_steps))


def _metadata(values: dict[str, Any], scheduler: dict[str, Any], origin: str) -> Metadata:
    """What is known of a model from the configs of its network and its scheduler, with their defaults filled in."""
    side = values["sample_size"]
    side = side[0] if isinstance(side, list) and len(side) == 2 and side[0] == side[1] else side
    side = _count(side, "sample_size", origin, "a number: images must be square, and their size given")
    channels = _count(values["in_channels"], "in_channels", origin)
    if values["out_channels"] != channels:
        raise InputError(f"{origin}: out_channels={values['out_channels']!r} must be in_channels={channels}.")
    num_classes = values["num_class_embeds"]
    if num_classes is not None and _count(num_classes, "num_class_embeds", origin) < 2:
        raise InputError(f"{origin}: num_class_embeds={num_classes!r} must be 2 at least, or null.")

    num_steps = _count(scheduler["num_train_timesteps"], "num_train_timesteps", SCHEDULER)
    if scheduler["trained_betas"] is not None:
        schedule = dict(name="discrete", betas=scheduler["trained_betas"])
    else:
        schedule = dict(name="discrete", betas=scheduler["beta_schedule"], num_steps=num_steps)
        schedule |= {name: scheduler[name] for name in ("beta_start", "beta_end")}
    model = dict(
        args=_unet_args(values, origin),
        mean_type=MEAN_TYPES[scheduler["prediction_type"]],
        logvar_type=scheduler["variance_type"].removesuffix("_log"),
        train_logsnr_schedule=schedule,
        eval_logsnr_schedule=schedule,
        eval_sampling_num_steps=num_steps,
        eval_clip_denoised=scheduler["clip_sample"],
    )
    config = ConfigDict(
        dict(dataset=dict(name="unknown"), model=model, train=dict(batch_size=1, learning_rate=0.0)),
        convert_dict=True,
    )
    try:
        config = resolve(config)
    except (TypeError, ValueError, OverflowError) as error:  # NumPy's, of betas that are no numbers
        raise InputError(f"{origin} and its scheduler's config: {error}") from None
    metadata = Metadata(config=config, image_shape=(side, side, channels), num_classes=num_classes or 1, num_steps=0)
    make_network(config.model, metadata.image_shape, metadata.num_classes)  # whether the options fit each other
    return metadata


def _unet_args(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The arguments of our U-Net that make it theirs."""
    kinds = {way: _block_types(values, way, origin) for way in ("down", "up")}
    widths = values["block_out_channels"]
    if not isinstance(widths, list) or not len(widths) == len(kinds["down"]) == len(kinds["up"]):
        raise InputError(
            f"{origin}: block_out_channels={widths!r}, down_block_types and up_block_types must be of one length."
        )
    ch = _count(widths[0], "block_out_channels", origin)
    if any(_count(width, "block_out_channels", origin) % ch for width in widths):
        raise InputError(f"{origin}: block_out_channels={widths} must be multiples of the first.")
    types = {f"{way}_{level}": kind for way in kinds for level, kind in enumerate(kinds[way])}
    attended = [stage for stage, kind in types.items() if kind.startswith("Attn")]
    # downsample_type and upsample_type are for blocks with attention alone
    inside = [
        stage
        for stage, kind in types.items()
        if kind.startswith("Resnet")
        or (stage in attended and values[f"{stage.partition('_')[0]}sample_type"] == "resnet")
    ]
    head_dim = values["attention_head_dim"]
    scale_shift = values["resnet_time_scale_shift"] == "scale_shift"
    mid_groups = values["attn_norm_num_groups"]
    if mid_groups is None and scale_shift:
        mid_groups = 0  # there they have no normalization then
    num_res_blocks = _count(values["layers_per_block"], "layers_per_block", origin, "an integer, 0 at least", least=0)
    if not num_res_blocks and len(set(widths)) > 1:
        raise InputError(f"{origin}: with layers_per_block=0, block_out_channels={widths} must be all the same.")
    emb_ch = values["time_embedding_dim"]
    freq_shift = values["freq_shift"]
    if freq_shift not in (0, 1):
        raise InputError(f"{origin}: freq_shift={freq_shift!r} must be 0 or 1.")
    return dict(
        ch=ch,
        emb_ch=4 * ch if emb_ch is None else _count(emb_ch, "time_embedding_dim", origin),
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=num_res_blocks,
        attn_resolutions=(),
        attn_stages=(*attended, "mid") if values["add_attention"] else tuple(attended),
        resample_stages=tuple(inside),
        num_heads=1 if head_dim is None else None,
        head_dim=None if head_dim is None else _count(head_dim, "attention_head_dim", origin),
        dropout=values["dropout"],
        logsnr_input_type="step",
        freq_shift=int(freq_shift),
        scale_shift=scale_shift,
        norm_groups=_count(values["norm_num_groups"], "norm_num_groups", origin),
        norm_eps=values["norm_eps"],
        mid_attn_groups=mid_groups,
        pad_both_sides=values["downsample_padding"] == 1,
    )


def _block_types(values: dict[str, Any], way: str, origin: str) -> list[str]:
    """Of the levels from the finest on."""
    name = f"{way}_block_types"
    kinds = values[name]
    if not isinstance(kinds, list):
        raise InputError(f"{origin}: {name}={kinds!r} must be a list.")
    kinds = [str(kind).removeprefix("UNetRes") for kind in kinds]
    if unknown := sorted(set(kinds) - set(BLOCKS[way])):
        raise InputError(f"{origin}: {name} has {unknown}, which our U-Net cannot be; it can be {list(BLOCKS[way])}.")
    return kinds if way == "down" else kinds[::-1]


def _scheduler(folder: epath.Path) -> dict[str, Any]:
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.is_file():
            values = _checked(read_json(path), SCHEDULER_DEFAULTS, SCHEDULER_ALLOWED, str(path))
            if values["clip_sample"] and values["clip_sample_range"] != 1:
                raise InputError(
                    f"{path!s}: clip_sample_range={values['clip_sample_range']!r} must be 1: x is in [-1, 1]."
                )
            return values
    logging.warning("%s has no %s: it counts as DDPM's, with 1000 linear betas.", folder, SCHEDULER)
    return dict(SCHEDULER_DEFAULTS)


def _checked(given: dict[str, Any], defaults: dict[str, Any], allowed: dict[str, tuple], origin: str) -> dict[str, Any]:
    """A config of theirs with its defaults; raises an InputError for a value that is not allowed."""
    values = {"_class_name": None} | defaults | given
    for name, choices in allowed.items():
        if values[name] not in choices:
            raise InputError(f"{origin}: {name}={values[name]!r} is not supported here, only {list(choices)}.")
    return values


def _count(value: Any, name: str, origin: str, kind: str = "a positive integer", least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise InputError(f"{origin}: {name}={value!r} must be {kind}.")
    return value


def _read_ours(folder: epath.Path, arrays: dict[str, np.ndarray]) -> tuple[Params, Metadata]:
    """A model that we wrote. Its table of times is computed again from log-SNR."""
    metadata = read_metadata(folder / OURS)
    table = arrays.pop("time_proj.weight", np.zeros((0, 0)))
    network = make_network(metadata.config.model, metadata.image_shape, metadata.num_classes)
    if table.ndim != 2 or table.shape != (len(table), network.ch) or not len(table):
        raise InputError(f"{str(folder)!r}: time_proj.weight is not the table that we wrote.")
    expected = network.time_embedding(_logsnrs(metadata, len(table)))
    if not np.allclose(table, expected, atol=1e-3):
        raise InputError(
            f"{str(folder)!r}: time_proj.weight was changed since we wrote it; only our sinusoids are read."
        )
    return _inward(arrays, metadata, str(folder / "unet" / WEIGHTS)), metadata


def _inward(arrays: dict[str, np.ndarray], metadata: Metadata, origin: str) -> Params:
    """Our parameters from their arrays; raises an InputError that names those that are missing or do not fit."""
    like = abstract_params(metadata)
    arrays = dict(arrays)
    given: dict[tuple[str, ...], Any] = {}
    for path, name in _names(like, len(metadata.config.model.args.ch_mult)):
        if path == ("class_emb", "bias"):
            given[path] = np.zeros(like["class_emb"]["bias"].shape, np.float32)
        elif (array := arrays.pop(name, None)) is not None:
            if array.ndim == 4:
                array = array[:, :, 0, 0].T if path[-2] == "nin_shortcut" else array.transpose(2, 3, 1, 0)
            elif array.ndim == 2 and path[0] != "class_emb":
                array = array.T  # `fit` gives heads an axis
            given[path] = np.ascontiguousarray(array)
    return fit(given | {(name,): array for name, array in arrays.items()}, like, origin)


def _outward(params: Params, metadata: Metadata) -> dict[str, np.ndarray]:
    """Their arrays from our parameters."""
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten_dict(params).items()}
    arrays = {}
    for path, name in _names(params, len(metadata.config.model.args.ch_mult)):
        array = flat[path]
        if path == ("class_emb", "bias"):
            continue
        if path[0] == "class_emb":
            array = flat[("class_emb", "kernel")] + flat[("class_emb", "bias")]
        elif path[-2] in ("q", "k", "v"):
            array = array.reshape(array.shape[0], -1).T if path[-1] == "kernel" else array.reshape(-1)
        elif path[-2] == "proj_out" and path[-1] == "kernel":
            array = array.reshape(-1, array.shape[-1]).T
        elif path[-2] == "nin_shortcut" and path[-1] == "kernel":
            array = array.T[:, :, None, None]
        elif array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def _names(params: Params, num_levels: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """The path of each of our parameters, and the name of theirs."""
    for path in flatten_dict(params):
        *modules, leaf = path
        names = [_module(modules[0], num_levels), *(INNER.get(name, name) for name in modules[1:])]
        if len(modules) == 1 and modules[0].endswith("sample"):
            names.append("conv")
        yield path, ".".join([*names, "bias" if leaf == "bias" else "weight"])


def _module(name: str, num_levels: int) -> str:
    if name in TOP:
        return TOP[name]
    stage, part = name.split(".")
    way, _, level = stage.partition("_")
    if way == "mid":
        return {"block_1": "mid_block.resnets.0", "attn_1": "mid_block.attentions.0", "block_2": "mid_block.resnets.1"}[
            part
        ]
    kind, _, number = part.partition("_")
    index = int(level) if way == "down" else num_levels - 1 - int(level)
    kinds = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers", "upsample": "upsamplers"}
    return f"{way}_blocks.{index}.{kinds[kind]}.{number or 0}"


def _newer(name: str) -> str:
    for older, newer in OLDER.items():
        name = name.replace(older, newer)
    return name


def _unet_config(network: UNet, image_shape: tuple[int, int, int], num_steps: int) -> dict[str, Any]:
    """The config of the UNet2DModel that is our network, at num_steps times."""
    side, _, channels = image_shape
    widths = [network.ch * mult for mult in network.ch_mult]
    levels = range(len(widths))
    if network.ch_mult[0] != 1:
        raise InputError(f"diffusers has no network with ch_mult={network.ch_mult}: it must begin with 1.")
    if not network.num_res_blocks and set(network.ch_mult) != {1}:
        raise InputError(
            f"diffusers has no network with num_res_blocks=0 and ch_mult={network.ch_mult}: all levels must be 1."
        )
    kinds, types = {}, {}
    for way, last in (("down", levels[-1]), ("up", 0)):
        kinds[way], inside = [], set()
        plain, attention, resnet = BLOCKS[way]
        for level in levels:
            stage = f"{way}_{level}"
            has_blocks = way == "up" or network.num_res_blocks > 0
            attends = has_blocks and network.attends(stage, side // 2**level)
            resamples = network.resamples_inside(stage)
            if attends and level != last:
                inside.add(resamples)
            kinds[way].append(attention if attends else resnet if resamples else plain)
        if len(inside) > 1:
            raise InputError(
                f"diffusers has no network whose levels with attention on the way {way} resample in different ways."
            )
        types[way] = "resnet" if True in inside else "conv"
    attended = {
        width for level, width in enumerate(widths) for way in ("down", "up")
        if network.attends(f"{way}_{level}", side // 2**level)
    } | ({widths[-1]} if network.attends("mid") else set())  # fmt: skip
    head_dim = network.head_dim
    if network.num_heads not in (None, 1):
        if len(attended) > 1:
            raise InputError(
                f"num_heads={network.num_heads} at levels of {sorted(attended)} channels has no equal in diffusers, "
                "where every head has the same number of channels."
            )
        head_dim = max(attended, default=network.num_heads) // network.num_heads
    mid_groups = network.norm_groups if network.mid_attn_groups is None else network.mid_attn_groups
    if mid_groups == 0 and not network.scale_shift:
        raise InputError("diffusers has no mid_attn_groups=0 with scale_shift=False.")
    return _header("UNet2DModel") | {
        "act_fn": "silu",
        "add_attention": network.attends("mid"),
        "attention_head_dim": head_dim,
        "attn_norm_num_groups": mid_groups or None,
        "block_out_channels": widths,
        "center_input_sample": False,
        "class_embed_type": None,
        "down_block_types": kinds["down"],
        "downsample_padding": int(network.pad_both_sides),
        "downsample_type": types["down"],
        "dropout": network.dropout,
        "flip_sin_to_cos": False,
        "freq_shift": network.freq_shift,
        "in_channels": channels,
        "layers_per_block": network.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": network.norm_eps,
        "norm_num_groups": network.norm_groups,
        "num_class_embeds": network.num_classes if network.num_classes > 1 else None,
        "num_train_timesteps": num_steps,
        "out_channels": channels,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "sample_size": side,
        "time_embedding_dim": network.emb_ch,
        "time_embedding_type": "learned",
        "up_block_types": kinds["up"][::-1],
        "upsample_type": types["up"],
    }


def _header(kind: str) -> dict[str, Any]:
    return {"_class_name": kind, "_diffusers_version": VERSION}


def _logsnrs(metadata: Metadata, num_steps: int) -> Any:
    """Log-SNR at the times 1 / num_steps, ..., 1, `[num_steps]` float32, as our samplers have it."""
    times = jnp.arange(1, num_steps + 1).astype(jnp.float32) * (1 / jnp.float32(num_steps))
    return eval_schedule(metadata.config.model)(times)


def _betas(logsnr: Any, mean_type: str) -> list[float]:
    """Betas of which diffusers makes these log-SNRs.

    It rounds them, and 1 - beta, to float32, where steps that leave less than 1e-7 of alpha^2, or take less, cannot be
    told. What one is off by the next one makes up for.

    Raises:
      InputError: if that leaves the angle off by 1e-3 or, for mean_type 'eps', which is divided by it, alpha by 1 %.
    """
    logsnr = np.asarray(logsnr, np.float64)
    wanted, product = 1 / (1 + np.exp(-logsnr)), 1.0
    betas, products = [], []
    for alpha2 in wanted:
        beta = np.float32(np.clip(1 - alpha2 / product, 2**-24, 1 - 2**-24))
        product *= np.float64(np.float32(1) - beta)
        betas.append(float(beta))
        products.append(product)
    products = np.array(products)
    turned = np.abs(np.arccos(np.sqrt(products)) - np.arctan(np.exp(-0.5 * logsnr)))
    stretched = np.abs(np.sqrt(products / wanted) - 1)
    if turned.max() > 1e-3 or (mean_type == "eps" and stretched.max() > 0.01):
        raise InputError(
            f"diffusers' betas, in float32, cannot follow this schedule at {len(betas)} steps with mean_type "
            f"{mean_type!r}: alpha would be off by {100 * stretched.max():.0f} % at a log-SNR of "
            f"{logsnr[stretched.argmax()]:.1f}. Write a model of mean_type 'v' or 'x', or one of more steps."
        )
    return betas


def _card(metadata: Metadata, num_steps: int) -> str:
    """README.md: what it is, and how to draw with it."""
    height, width, channels = metadata.image_shape
    student = f"a student, distilled for {metadata.num_steps} sampling steps" if metadata.num_steps else "a base model"
    clip = ", use_clipped_model_output=True" if metadata.config.model.eval_clip_denoised else ""
    call = DRAW if metadata.num_classes == 1 else DRAW_CLASSES
    shape = {"height": height, "width": width, "channels": channels}
    return CARD.format(
        what=f"This is {student}, trained on {metadata.config.dataset.name} by diffusion_distillation.",
        size=f"{height}x{width}x{channels}",
        call=call.format(**shape, num_classes=metadata.num_classes, num_steps=num_steps, clip=clip),
        num_steps=num_steps,
    )
