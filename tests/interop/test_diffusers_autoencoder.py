"""Autoencoders of diffusers: compared with its golden numbers, and with diffusers itself (make peer)."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.autoencoders import GOLDEN, write_golden
from helpers.diffusers_peer import needs_peer, peer, relative
from helpers.runs import ROOT
from helpers.torch_format import Call, of_torch, saved_by_torch

from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import diffusers
from diffusion_distillation.networks import autoencoder
from diffusion_distillation.runtime.files import as_path

ARRAYS = np.load(ROOT / "tests" / "golden" / "autoencoder.npz")
WEIGHTS = diffusers.WEIGHTS


def errors(path, expected):
    """The relative errors of encode and decode."""
    encode, decode, _ = autoencoder.load(path)
    mean, std = encode(expected["images"])
    got = {"mean": mean, "std": std, "decoded": decode(expected["latents"])}
    return {name: relative(array, expected[name]) for name, array in got.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_encode_and_decode_match_golden_numbers(name, tmp_path, optimized):
    expected = {key.removeprefix(f"{name}_"): ARRAYS[key] for key in ARRAYS.files if key.startswith(f"{name}_")}
    assert max(errors(write_golden(tmp_path, name), expected).values()) < 1e-5


@needs_peer
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide", "sd1_full"])
def test_encode_and_decode_match_diffusers(name, tmp_path, optimized):
    flags = [f"--name={name}", f"--folder={tmp_path / name}", f"--out={tmp_path / 'out.npz'}"]
    peer("model", *flags, script="autoencoder_peer")
    assert max(errors(tmp_path / name, np.load(tmp_path / "out.npz")).values()) < 1e-5


def rewritten(folder, name, **options):
    """Read a golden autoencoder and write it again, in a folder beside it. Returns the new folder."""
    network, arrays, info = diffusers.autoencoder.read(as_path(write_golden(folder / "vae", name)))
    new = as_path(folder / "written")
    diffusers.autoencoder.write(new, network, arrays, scale=info.scale, image_shape=(16, 16, 3), **options)
    return new


@pytest.mark.parametrize("name", ["sd1", "attention", "one_level"])
def test_a_written_autoencoder_is_the_one_that_was_read(name, tmp_path):
    new = rewritten(tmp_path, name)
    old, written = (safetensors.numpy.load_file(path / WEIGHTS) for path in (tmp_path / "vae", new))
    assert old.keys() == written.keys()
    for key, array in old.items():
        np.testing.assert_array_equal(array, written[key])
    (network, _, info), (same, _, same_info) = map(diffusers.autoencoder.read, (as_path(tmp_path / "vae"), new))
    assert network == same and dataclasses.replace(info, name="written") == same_info


@needs_peer
def test_diffusers_reads_a_written_autoencoder(tmp_path, optimized):
    """In half precision, from which both compute in float32."""
    new = rewritten(tmp_path, "attention", dtype="float16")
    peer("folder", f"--folder={new}", f"--out={tmp_path / 'out.npz'}", script="autoencoder_peer")
    assert max(errors(new, np.load(tmp_path / "out.npz")).values()) < 1e-5


def test_the_example_of_the_docs_reconstructs_what_decode_and_encode_give(tmp_path):
    page = (ROOT / "docs" / "latents.md").read_text()
    [block] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "autoencoder.load" in block]
    path = write_golden(tmp_path, "sd3")
    names = {"images": np.zeros((2, 16, 16, 3), np.float32)}
    exec(block.replace("path/to/stable-diffusion/vae", str(path)), names)
    encode, decode, info = autoencoder.load(path)
    mean, _ = encode(np.zeros((2, 16, 16, 3), np.float32))
    np.testing.assert_allclose(names["x"], (mean - info.shift) * info.scale, rtol=1e-6)
    np.testing.assert_allclose(names["images"], decode(mean), rtol=1e-3, atol=1e-4)


def test_info_says_what_a_diffusion_model_needs(tmp_path):
    _, _, info = autoencoder.load(write_golden(tmp_path / "flux" / "vae", "sd3"))
    assert (info.scale, info.shift, info.latent_channels, info.downsampling) == (1.5305, 0.0609, 16, 2)
    assert (info.name, info.image_channels) == ("flux/vae", 3)
    assert info.latent_shape((16, 24, 3)) == (8, 12, 16)


def test_scale_and_shift_may_be_per_channel(tmp_path):
    """As the pipelines of diffusers use such files: latents are scaled by scaling_factor / std after the mean."""
    changes = dict(latents_mean=[1, 2, 3, 4.5], latents_std=[1.0, 2.0, 4.0, 0.5], scaling_factor=0.5)
    _, _, info = autoencoder.load(write_golden(tmp_path, **changes))
    assert info.shift == (1.0, 2.0, 3.0, 4.5) and info.scale == (0.5, 0.25, 0.125, 1.0)


def test_the_fingerprint_depends_on_parameters_and_architecture_alone(tmp_path):
    def fingerprint(path, **options):
        return autoencoder.load(path, **options)[2].fingerprint

    first = fingerprint(write_golden(tmp_path / "a"))
    assert fingerprint(write_golden(tmp_path / "b", scaling_factor=2.0, force_upcast=False), dtype="bfloat16") == first
    assert fingerprint(write_golden(tmp_path / "b", norm_num_groups=2)) != first
    arrays = safetensors.numpy.load_file(tmp_path / "b" / WEIGHTS)
    arrays["decoder.conv_out.bias"][0] += 1e-6
    safetensors.numpy.save_file(arrays, write_golden(tmp_path / "b") / WEIGHTS)
    assert fingerprint(tmp_path / "b") != first


def test_the_folder_of_a_pipeline_has_the_autoencoder_in_vae(tmp_path):
    write_golden(tmp_path / "vae")
    (tmp_path / diffusers.PIPELINE).write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert autoencoder.load(tmp_path)[2] == autoencoder.load(tmp_path / "vae")[2]


def params(folder):
    return diffusers.autoencoder.read(as_path(folder))[1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_are_read_in_every_format_and_type(tmp_path, suffix, dtype):
    """The variant is of this type, and the weights without a variant, which are preferred, hold the same numbers."""
    arrays = safetensors.numpy.load_file(write_golden(tmp_path) / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    save = safetensors.numpy.save if suffix == "safetensors" else saved_by_torch
    arrays = {name: array.astype(jnp.dtype(dtype)) for name, array in arrays.items()}
    (tmp_path / f"diffusion_pytorch_model.half.{suffix}").write_bytes(save(arrays))
    variant = params(tmp_path)
    rounded = {name: array.astype(np.float32) for name, array in arrays.items()}
    (tmp_path / f"diffusion_pytorch_model.{suffix}").write_bytes(save(rounded))
    jax.tree.map(np.testing.assert_array_equal, variant, params(tmp_path))
    assert {leaf.dtype for leaf in jax.tree.leaves(variant)} == {np.dtype("float32")}


def test_weights_in_several_files_are_read(tmp_path):
    expected = params(write_golden(tmp_path))
    arrays = list(safetensors.numpy.load_file(tmp_path / WEIGHTS).items())
    (tmp_path / WEIGHTS).unlink()
    places = {}
    for number, part in enumerate((arrays[:9], arrays[9:]), start=1):
        shard = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file(dict(part), tmp_path / shard)
        places |= {name: shard for name, _ in part}
    (tmp_path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path), expected)
    (tmp_path / shard).write_bytes((tmp_path / shard).read_bytes()[:-100])
    with pytest.raises(InputError, match=f"{shard}' cannot be read as a safetensors file"):
        params(tmp_path)
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match="must name files in its own folder"):
        params(tmp_path)


def test_old_names_of_attention_are_read(tmp_path):
    expected = params(write_golden(tmp_path))
    arrays = safetensors.numpy.load_file(tmp_path / WEIGHTS)
    for older, newer in diffusers.OLD_NAMES.items():
        arrays = {name.replace(newer, older): array for name, array in arrays.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in arrays
    safetensors.numpy.save_file(arrays, tmp_path / WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path), expected)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    arrays = safetensors.numpy.load_file(write_golden(tmp_path) / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    harm = Call(of_torch("os", "mkdir"), str(tmp_path / "harm"))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(saved_by_torch(arrays, harm=harm))
    with pytest.raises(InputError, match=r"asks for os\.mkdir.* No code in it was run"):
        params(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(_class_name="AutoencoderTiny"), "_class_name='AutoencoderTiny' is not supported"),
        (dict(act_fn="gelu"), "act_fn='gelu' is not supported. Supported:"),
        (dict(double_z=True), "unknown option 'double_z'"),
        (dict(use_quant_conv=None), "use_quant_conv=None is not supported"),
        (dict(down_block_types=["DownBlock2D"] * 2), "down_block_types=.* Supported: a list of .'DownEncoderBlock2D'"),
        (dict(up_block_types="UpDecoderBlock2D"), "up_block_types='UpDecoderBlock2D' is not supported"),
        (dict(up_block_types=["UpDecoderBlock2D"]), "must have the same length"),
        (dict(block_out_channels=[8, "a"]), "block_out_channels='a' must be an integer of at least 1"),
        (dict(block_out_channels=[8, 18]), r"channels=\(8, 18\) must be multiples of norm_groups=4"),
        (dict(block_out_channels=[8, 4 * 10**9]), "channels has 4000000000; it must be an integer from 1 to 1,048,576"),
        (dict(layers_per_block=10**9), "num_res_blocks=1000000000 must be from 1 to 32"),
        (dict(layers_per_block=1), "unexpected: decoder.up_blocks.0.resnets.2.conv1.bias"),
        (dict(latent_channels=5), r"wrong shape or type: decoder/conv_in/kernel is \[3, 3, 4, 16\]"),
        (dict(use_quant_conv=False), "unexpected: quant_conv.bias, quant_conv.weight"),
        (dict(out_channels=1), "out_channels=1 must equal in_channels=3"),
        (dict(norm_num_groups=None), "norm_num_groups=None must be an integer of at least 1"),
        (dict(scaling_factor="a"), "scaling_factor='a' must be a number"),
        (dict(scaling_factor=0), "scaling_factor=0.0 must be more than 0"),
        (dict(shift_factor=[1.0]), r"shift_factor=\[1.0\] must be a number"),
        (dict(latents_mean=[0.0] * 4), "latents_std=None must be a list of 4 numbers, one per latent channel"),
        (dict(latents_mean=[0.0] * 4, latents_std=[0, 1, 1, 1]), "latents_std=.* must be more than 0"),
        (dict(latents_mean=[0.0] * 4, latents_std=[1] * 4, shift_factor=1), "shift_factor=1 must be null"),
    ],
)
def test_an_unsupported_config_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        params(write_golden(tmp_path, **changes))


def test_a_folder_without_an_autoencoder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Neither '.*config.json' nor '.*/vae/config.json' exists"):
        autoencoder.load(tmp_path)
    (write_golden(tmp_path) / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"There is no .*diffusion_pytorch_model.safetensors', nor"):
        autoencoder.load(tmp_path)
    with pytest.raises(InputError, match="dtype='float8' must be one of"):
        autoencoder.load(tmp_path, dtype="float8")


def test_an_autoencoder_that_must_not_overflow_computes_in_float32_whatever_is_asked(tmp_path):
    images = ARRAYS["sd1_images"]

    def mean(**changes):
        encode, _, _ = autoencoder.load(write_golden(tmp_path, **changes), dtype="bfloat16")
        return np.asarray(encode(images)[0])

    assert relative(mean(force_upcast=True), ARRAYS["sd1_mean"]) < 1e-5
    assert 1e-4 < relative(mean(force_upcast=False), ARRAYS["sd1_mean"]) < 3e-2
