"""diffusers' UNet2DModel: its config as arguments of our U-Net, and our U-Net as its config."""

from typing import Any

from ...errors import InputError
from ...networks.unet import UNet
from .fields import check_integer, header

UNET = "config.json"
DEFAULTS = {
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
ALLOWED = {
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
# The block types of levels on the way down and up: plain, with attention, and with resampling in a residual block.
BLOCKS = {"down": ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
          "up": ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")}  # fmt: skip


def image_shape(values: dict[str, Any], origin: str) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a UNet2DModel.

    Args:
      values: its config, with defaults.
      origin: the config's file, for error messages.
    """
    size = values["sample_size"]
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if type(size) is not int or size < 1:
        raise InputError(
            f"{origin}: sample_size={size!r} must be a positive integer: only square images are supported."
        )
    channels = check_integer(values["in_channels"], "in_channels", origin)
    if values["out_channels"] != channels:
        raise InputError(f"{origin}: out_channels={values['out_channels']!r} must equal in_channels={channels}.")
    return size, size, channels


def num_classes(values: dict[str, Any], origin: str) -> int:
    """The number of classes of a UNet2DModel; 1 for an unconditional one."""
    classes = values["num_class_embeds"]
    if classes is None:
        return 1
    return check_integer(classes, "num_class_embeds", origin, least=2)


def unet_args(values: dict[str, Any], origin: str) -> dict[str, Any]:
    """The arguments with which our U-Net is the same network as a UNet2DModel, but for its input for the noise level.

    Args:
      values: its config, with defaults.
      origin: the config's file, for error messages.

    Raises:
      InputError: if our U-Net cannot be this network.
    """
    widths, blocks = _levels(values, origin)
    ch = widths[0]
    attended = [level for level, block in blocks.items() if block.startswith("Attn")]
    scale_shift = values["resnet_time_scale_shift"] == "scale_shift"
    mid_groups = values["attn_norm_num_groups"]
    if mid_groups is None and scale_shift:
        mid_groups = 0  # diffusers does not normalize then
    num_res_blocks = check_integer(values["layers_per_block"], "layers_per_block", origin, least=0)
    if not num_res_blocks and len(set(widths)) > 1:
        raise InputError(f"{origin}: with layers_per_block=0, all block_out_channels={widths} must be equal.")
    emb_ch = values["time_embedding_dim"]
    head_dim = values["attention_head_dim"]
    freq_shift = values["freq_shift"]
    if freq_shift not in (0, 1):
        raise InputError(f"{origin}: freq_shift={freq_shift!r} must be 0 or 1.")
    return dict(
        ch=ch,
        emb_ch=4 * ch if emb_ch is None else check_integer(emb_ch, "time_embedding_dim", origin),
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=num_res_blocks,
        attn_resolutions=(),
        attn_stages=(*attended, "mid") if values["add_attention"] else tuple(attended),
        resample_stages=tuple(level for level, block in blocks.items() if _resamples_inside(level, block, values)),
        num_heads=1 if head_dim is None else None,
        head_dim=None if head_dim is None else check_integer(head_dim, "attention_head_dim", origin),
        dropout=values["dropout"],
        freq_shift=int(freq_shift),
        scale_shift=scale_shift,
        norm_groups=check_integer(values["norm_num_groups"], "norm_num_groups", origin),
        norm_eps=values["norm_eps"],
        mid_attn_groups=mid_groups,
        pad_both_sides=values["downsample_padding"] == 1,
    )


def _levels(values: dict[str, Any], origin: str) -> tuple[list[int], dict[str, str]]:
    """The width of each level, and the block type of each of our levels, such as 'down_0', from the finest on."""
    types = {way: _block_types(values, way, origin) for way in ("down", "up")}
    widths = values["block_out_channels"]
    if not isinstance(widths, list) or not len(widths) == len(types["down"]) == len(types["up"]):
        raise InputError(
            f"{origin}: block_out_channels={widths!r}, down_block_types and up_block_types must have the same length."
        )
    for width in widths:
        check_integer(width, "block_out_channels", origin)
    if any(width % widths[0] for width in widths):
        raise InputError(f"{origin}: block_out_channels={widths} must be multiples of the first one.")
    return widths, {f"{way}_{level}": block for way in types for level, block in enumerate(types[way])}


def _block_types(values: dict[str, Any], way: str, origin: str) -> list[str]:
    """The block types of the levels on the way 'down' or 'up', from the finest level on."""
    name = f"{way}_block_types"
    blocks = values[name]
    if not isinstance(blocks, list):
        raise InputError(f"{origin}: {name}={blocks!r} must be a list.")
    blocks = [str(block).removeprefix("UNetRes") for block in blocks]
    if unknown := sorted(set(blocks) - set(BLOCKS[way])):
        raise InputError(f"{origin}: {name} has {unknown}, which is not supported. Supported: {list(BLOCKS[way])}.")
    return blocks if way == "down" else blocks[::-1]


def _resamples_inside(level: str, block: str, values: dict[str, Any]) -> bool:
    """Whether a level resamples in a residual block. diffusers' field for this holds for levels with attention only."""
    way = level.partition("_")[0]
    return block.startswith("Resnet") or (block.startswith("Attn") and values[f"{way}sample_type"] == "resnet")


def unet_config(network: UNet, image_shape: tuple[int, int, int], num_steps: int) -> dict[str, Any]:
    """The config of the UNet2DModel that is the same network as ours.

    Args:
      network: our network.
      image_shape: (height, width, channels).
      num_steps: the rows of its table of times.

    Raises:
      InputError: if no UNet2DModel is this network.
    """
    side, _, channels = image_shape
    if network.ch_mult[0] != 1:
        raise InputError(f"diffusers has no network with ch_mult={network.ch_mult}: it must begin with 1.")
    if not network.num_res_blocks and set(network.ch_mult) != {1}:
        raise InputError(
            f"diffusers has no network with num_res_blocks=0 and ch_mult={network.ch_mult}: all levels must be 1."
        )
    down_blocks, downsample_type = _blocks(network, "down", side)
    up_blocks, upsample_type = _blocks(network, "up", side)
    mid_groups = network.norm_groups if network.mid_attn_groups is None else network.mid_attn_groups
    if mid_groups == 0 and not network.scale_shift:
        raise InputError("diffusers has no network with mid_attn_groups=0 and scale_shift=False.")
    return {
        **header("UNet2DModel"),
        "act_fn": "silu",
        "add_attention": network.attends("mid"),
        "attention_head_dim": _head_dim(network, side),
        "attn_norm_num_groups": mid_groups or None,
        "block_out_channels": _widths(network),
        "center_input_sample": False,
        "class_embed_type": None,
        "down_block_types": down_blocks,
        "downsample_padding": int(network.pad_both_sides),
        "downsample_type": downsample_type,
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
        "up_block_types": up_blocks[::-1],
        "upsample_type": upsample_type,
    }


def _widths(network: UNet) -> list[int]:
    return [network.ch * mult for mult in network.ch_mult]


def _blocks(network: UNet, way: str, side: int) -> tuple[list[str], str]:
    """The block types on the way 'down' or 'up', from the finest level on, and how levels with attention resample."""
    plain, attention, resnet = BLOCKS[way]
    num_levels = len(network.ch_mult)
    last = num_levels - 1 if way == "down" else 0  # it does not resample
    has_blocks = way == "up" or network.num_res_blocks > 0
    blocks = []
    resampling = set()
    for level in range(num_levels):
        attends = has_blocks and network.attends(f"{way}_{level}", side // 2**level)
        inside = network.resamples_inside(f"{way}_{level}")
        if attends and level != last:
            resampling.add(inside)
        blocks.append(attention if attends else resnet if inside else plain)
    if len(resampling) > 1:
        raise InputError(
            f"diffusers has no network whose levels with attention on the way {way} resample in different ways."
        )
    return blocks, "resnet" if True in resampling else "conv"


def _head_dim(network: UNet, side: int) -> int | None:
    """The channels per head; None for a single head."""
    if network.num_heads in (None, 1):
        return network.head_dim
    widths = _widths(network)
    attended = {
        width
        for level, width in enumerate(widths)
        for way in ("down", "up")
        if network.attends(f"{way}_{level}", side // 2**level)
    }
    if network.attends("mid"):
        attended.add(widths[-1])
    if len(attended) > 1:
        raise InputError(
            f"diffusers has no network with num_heads={network.num_heads} at levels of {sorted(attended)} channels: "
            "all its heads have the same number of channels."
        )
    return max(attended, default=network.num_heads) // network.num_heads
