"""Models of diffusers, read and written: compared with its golden numbers, and with diffusers itself (make peer)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.diffusers_peer import diffusers_images, needs_peer, network_error, peer, sample_errors
from helpers.runs import ROOT, call
from helpers.torch_format import saved_by_torch
from ml_collections import ConfigDict
from peers import seeded

from diffusion_distillation import config as cfg
from diffusion_distillation import interop
from diffusion_distillation.checkpoints import Metadata, abstract_params
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import archive, diffusers
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.runtime.files import as_path

GOLDEN = ROOT / "tests" / "golden"
DESCRIBED = json.loads((GOLDEN / "diffusers.json").read_text())
NAMES = (
    "cifar",
    "resnet",
    "heads",
    "classes",
    "freq_shift",
    "no_norm",
    "no_blocks",
)  # of tests/peers/diffusers_peer.py


def written(folder, name="classes", unet=(), scheduler=(), pipeline=False):
    """Write a model with golden numbers, with changes to its configs. Returns the folder."""
    described = DESCRIBED[name]
    unets, schedulers = (folder / "unet", folder / "scheduler") if pipeline else (folder, folder)
    for path in (unets, schedulers):
        path.mkdir(parents=True, exist_ok=True)
    if pipeline:
        (folder / diffusers.PIPELINE).write_text('{"_class_name": "DDPMPipeline"}')
    kind = {"_class_name": "UNet2DModel"}
    (unets / diffusers.UNET).write_text(json.dumps(kind | described["unet"] | dict(unet)))
    kind = {"_class_name": "DDPMScheduler"}
    (schedulers / diffusers.SCHEDULER).write_text(json.dumps(kind | described["scheduler"] | dict(scheduler)))
    safetensors.numpy.save_file(seeded.unet_weights(described["shapes"]), unets / diffusers.WEIGHTS)
    return folder


@pytest.mark.parametrize("name", DESCRIBED)
def test_networks_and_samples_match_golden_numbers(name, tmp_path, optimized):
    """Up to the rounding of float32."""
    arrays = np.load(GOLDEN / "diffusers.npz")
    expected = {key.removeprefix(f"{name}_"): arrays[key] for key in arrays.files if key.startswith(f"{name}_")}
    params, metadata = interop.load(written(tmp_path, name, pipeline=name == "heads"))
    assert network_error(params, metadata, expected) < 1e-5
    errors = sample_errors(params, metadata, expected)
    assert len(errors) == 8 and max(errors.values()) < 1e-4


def test_schedule_prediction_type_and_clipping_are_kept(tmp_path):
    scheduler = dict(variance_type="fixed_small_log", clip_sample=False, num_train_timesteps=50)
    pipeline = interop.from_checkpoint(written(tmp_path, scheduler=scheduler))
    assert (pipeline.image_shape, pipeline.num_classes, pipeline.num_steps) == ((8, 8, 3), 5, 50)
    model = interop.load(tmp_path)[1].config.model
    assert (model.mean_type, model.logvar_type, model.eval_clip_denoised) == ("x", "fixed_small", False)


def test_a_model_without_a_scheduler_gets_the_defaults_of_ddpm(tmp_path, caplog):
    (written(tmp_path) / diffusers.SCHEDULER).unlink()
    model = interop.load(tmp_path)[1].config.model
    assert (model.mean_type, model.eval_sampling_num_steps, model.eval_clip_denoised) == ("eps", 1000, True)
    assert model.logvar_type == "fixed_small"  # as DDPMScheduler has it
    assert "Using DDPMScheduler's defaults" in caplog.text


def test_the_unet_folder_of_a_pipeline_is_read_with_its_scheduler(tmp_path, monkeypatch):
    params, metadata = interop.load(written(tmp_path / "theirs", pipeline=True))
    again, known = interop.load(tmp_path / "theirs" / "unet")
    assert known == metadata
    jax.tree.map(np.testing.assert_array_equal, again, params)
    monkeypatch.chdir(tmp_path / "theirs" / "unet")
    assert interop.load(".")[1] == metadata
    diffusers.write(as_path(tmp_path / "ours"), *digits_model())
    assert interop.load(tmp_path / "ours" / "unet")[1].step == 7


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", diffusers.WEIGHTS), ("float16", "fp16"), ("float32", "ema")])
def test_weights_of_other_dtypes_and_variants_are_read(tmp_path, dtype, name):
    arrays = safetensors.numpy.load_file(written(tmp_path) / diffusers.WEIGHTS)
    (tmp_path / diffusers.WEIGHTS).unlink()
    arrays = {key: array.astype(jnp.dtype(dtype)) for key, array in arrays.items()}
    name = name if name == diffusers.WEIGHTS else f"diffusion_pytorch_model.{name}.safetensors"
    safetensors.numpy.save_file(arrays, tmp_path / name)
    rounded = {key: array.astype(np.float32) for key, array in arrays.items()}
    params, _ = interop.load(tmp_path)
    safetensors.numpy.save_file(rounded, tmp_path / diffusers.WEIGHTS)  # it comes first
    jax.tree.map(np.testing.assert_array_equal, params, interop.load(tmp_path)[0])


def test_weights_in_several_files_are_read(tmp_path):
    params, _ = interop.load(written(tmp_path))
    arrays = list(safetensors.numpy.load_file(tmp_path / diffusers.WEIGHTS).items())
    (tmp_path / diffusers.WEIGHTS).unlink()
    places = {}
    for number, part in enumerate((arrays[:9], arrays[9:]), start=1):
        shard = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file(dict(part), tmp_path / shard)
        places |= {key: shard for key, _ in part}
    index = tmp_path / f"{diffusers.WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()  # the weights without a variant come first
    jax.tree.map(np.testing.assert_array_equal, interop.load(tmp_path)[0], params)
    for wrong in ({**places, "a": "../away.safetensors"}, {**places, "a": f"{tmp_path}/{shard}"}, {}, []):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(InputError, match="must name files in its own folder under 'weight_map'"):
            interop.load(tmp_path)


def test_several_variants_of_the_weights_are_refused(tmp_path):
    (written(tmp_path) / diffusers.WEIGHTS).rename(tmp_path / "diffusion_pytorch_model.ema.safetensors")
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    with pytest.raises(InputError, match="has several variants of the weights"):
        interop.load(tmp_path)


def test_a_diffusers_model_is_evaluated(tmp_path):
    np.savez(tmp_path / "reference.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8))
    flags = [f"--checkpoint={written(tmp_path / 'theirs')}", f"--reference={tmp_path}/reference.npz", "--num_steps=2"]
    call("evaluate", *flags, "--num_samples=8", "--metrics=fid", f"--out={tmp_path}/evaluation.json")
    [row] = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert row["num_steps"] == 2


def test_old_names_of_attention_are_read(tmp_path):
    params, _ = interop.load(written(tmp_path))
    arrays = safetensors.numpy.load_file(tmp_path / diffusers.WEIGHTS)
    for older, newer in diffusers.OLD_NAMES.items():
        arrays = {name.replace(newer, older): array for name, array in arrays.items()}
    safetensors.numpy.save_file(arrays, tmp_path / diffusers.WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, interop.load(tmp_path)[0], params)


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        (dict(_class_name="UNet2DConditionModel"), "_class_name='UNet2DConditionModel' is not supported"),
        (dict(time_embedding_type="fourier"), "time_embedding_type='fourier' is not supported"),
        (dict(time_embedding_type="learned"), "time_embedding_type='learned'"),
        (dict(act_fn="gelu"), "act_fn='gelu' is not supported. Supported:"),
        (dict(act_fn=None), "act_fn=None"),
        (dict(center_input_sample=True), "center_input_sample=True"),
        (dict(mid_block_scale_factor=1.4), "mid_block_scale_factor=1.4"),
        (dict(mid_block_type=None), "mid_block_type=None"),
        (dict(class_embed_type="timestep"), "class_embed_type='timestep'"),
        (dict(num_class_embeds=1), "num_class_embeds=1 must be an integer of at least 2"),
        (dict(sample_size=None), "sample_size=None must be a positive integer: only square images"),
        (dict(sample_size=[8, 16]), r"sample_size=\[8, 16\] must be a positive integer"),
        (dict(sample_size=9), "images are 9x9"),
        (dict(out_channels=6), "out_channels=6 must equal in_channels=3"),
        (
            dict(down_block_types=["SkipDownBlock2D", "DownBlock2D"]),
            "down_block_types has .'SkipDownBlock2D'., which is not supported",
        ),
        (dict(down_block_types=["AttnSkipDownBlock2D", "DownBlock2D"]), "'AttnSkipDownBlock2D'"),
        (dict(up_block_types=["KUpBlock2D", "UpBlock2D"]), "'KUpBlock2D'"),
        (dict(up_block_types=["UpBlock2D"]), "must have the same length"),
        (dict(up_block_types=None), "up_block_types=None must be a list"),
        (dict(block_out_channels=[16, 24]), r"block_out_channels=\[16, 24\] must be multiples of the first one"),
        (dict(block_out_channels=[16, "a"]), "block_out_channels='a' must be an integer of at least 1"),
        (dict(freq_shift=2), "freq_shift=2 must be 0 or 1"),
        (dict(downsample_padding=2), "downsample_padding=2"),
        (dict(norm_num_groups=None), "norm_num_groups=None must be an integer of at least 1"),
        (dict(norm_eps="a"), "norm_eps='a' must be of type float"),
        (dict(attention_head_dim=7), "head_dim=7 must divide"),
        (dict(layers_per_block=2), "missing: "),
        (dict(layers_per_block=0), r"with layers_per_block=0, all block_out_channels=\[16, 32\] must be equal"),
        (dict(layers_per_block=-1), "layers_per_block=-1 must be an integer of at least 0"),
        (dict(add_attention=False), "unexpected: mid_block.attentions.0.group_norm.bias"),
    ],
)
def test_an_unsupported_network_is_refused(unet, message, tmp_path):
    with pytest.raises(InputError, match=message):
        interop.load(written(tmp_path, unet=unet))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (dict(_class_name="PNDMScheduler"), "_class_name='PNDMScheduler' is not supported. Supported: "),
        (dict(_class_name=["DDPMScheduler"]), "is not supported"),
        (dict(rescale_betas_zero_snr=True), "rescale_betas_zero_snr=True"),
        (dict(thresholding=True), "thresholding=True"),
        (dict(clip_sample_range=2.0), "clip_sample_range=2.0 must be 1"),
        (dict(beta_schedule="laplace"), "beta_schedule='laplace'"),
        (dict(variance_type="learned"), "variance_type='learned'"),
        (dict(prediction_type="flow"), "prediction_type='flow'"),
        (dict(num_train_timesteps="a"), "num_train_timesteps='a' must be an integer of at least 1"),
        (dict(trained_betas=[0.1, "a"]), "scheduler's config"),
        (dict(trained_betas=[0.1, 1.0]), "must be above 0 and below 1"),
    ],
)
def test_an_unsupported_scheduler_is_refused(scheduler, message, tmp_path):
    with pytest.raises(InputError, match=message):
        interop.load(written(tmp_path, scheduler=scheduler))


def test_missing_files_are_named(tmp_path):
    (tmp_path / diffusers.PIPELINE).write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="is a diffusers pipeline without unet"):
        interop.load(tmp_path)
    written(tmp_path, pipeline=True)
    (tmp_path / "unet" / diffusers.WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"There is no .*unet/diffusion_pytorch_model.safetensors', nor"):
        interop.load(tmp_path)


def test_weights_in_a_file_of_torch_are_read(tmp_path):
    params, _ = interop.load(written(tmp_path))
    arrays = safetensors.numpy.load_file(tmp_path / diffusers.WEIGHTS)
    (tmp_path / diffusers.WEIGHTS).unlink()
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(saved_by_torch(arrays))
    jax.tree.map(np.testing.assert_array_equal, interop.load(tmp_path)[0], params)


def digits_model(mean_type="v", num_steps=4, num_classes=1, clip=False, **args):
    """Random parameters of a network for digits, and its metadata."""
    config = cfg.defaults()
    config.dataset.name = "digits"
    small = dict(ch=32, emb_ch=64, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), num_heads=2)
    config.model.args.update(ConfigDict(small | args))
    config.model.update(mean_type=mean_type, eval_clip_denoised=clip)
    config.train.update(batch_size=8, learning_rate=1e-3)
    metadata = Metadata(
        config=cfg.resolve(config), image_shape=(8, 8, 1), num_classes=num_classes, num_steps=num_steps, step=7
    )
    leaves, tree = jax.tree.flatten(abstract_params(metadata))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves]), metadata


WRITTEN = {
    "v": dict(),
    "v in one step": dict(num_steps=1, clip=True),
    "x": dict(mean_type="x", num_steps=8, clip=True),
    "inside": dict(resblock_resample=True, attn_resolutions=(8, 4), num_heads=1, ch_mult=(1, 2, 1)),
    "no blocks": dict(num_res_blocks=0, ch_mult=(1, 1)),
    "no blocks, inside": dict(num_res_blocks=0, ch_mult=(1, 1, 1), attn_resolutions=(8, 4), resblock_resample=True),
    "in stages": dict(attn_stages=("down_1", "up_0"), resample_stages=("up_1",), head_dim=16, num_heads=None),
}


@pytest.mark.parametrize("change", WRITTEN.values(), ids=WRITTEN)
def test_a_written_model_is_read_back(change, tmp_path):
    params, metadata = digits_model(**change)
    diffusers.write(as_path(tmp_path), params, metadata)
    again, known = interop.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert (known.to_json(), known.step) == (metadata.to_json(), 7)
    assert f"num_inference_steps={metadata.num_steps}" in (tmp_path / "README.md").read_text()


def test_the_script_writes_a_model_for_one_number_of_steps(tmp_path):
    """It refuses --num_steps=free, and a folder that is not empty."""
    params, metadata = digits_model()
    archive.write(as_path(tmp_path / "a"), params, metadata)
    flags = [f"--checkpoint={tmp_path / 'a'}", "--format=diffusers"]
    call("export", *flags, f"--out={tmp_path / 'd'}", "--num_steps=2")
    loaded, _ = interop.load(tmp_path / "d")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert "not empty" in call("export", *flags, f"--out={tmp_path / 'd'}", fails=True)
    free = call("export", *flags, f"--out={tmp_path / 'e'}", "--num_steps=free", fails=True)
    assert "Give a number, such as --num_steps=4" in free and not (tmp_path / "e").exists()
    wrong = {
        "--num_steps=four": "num_steps='four' must be a positive integer",
        "--dtype=float16": "--dtype does not apply",
    }
    for flag, message in wrong.items():
        assert message in call("export", *flags, f"--out={tmp_path / 'e'}", flag, fails=True)


def test_a_model_of_diffusers_is_written_and_read_back(tmp_path):
    params, metadata = interop.load(written(tmp_path / "theirs"))
    diffusers.write(as_path(tmp_path / "ours"), params, metadata, 20)
    again, known = interop.load(tmp_path / "ours")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert known.to_json() == metadata.to_json()
    assert "has 5 classes" in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mean_type="both"), "no prediction_type for mean_type 'both'"),
        (dict(mean_type="eps"), "cannot follow this schedule at 4 steps with mean_type 'eps'"),
        (dict(attn_resolutions=(8, 4)), r"no network with num_heads=2 at levels of \[32, 64\] channels"),
        (dict(num_res_blocks=0), r"no network with num_res_blocks=0 and ch_mult=\(1, 2\): all levels must be 1"),
        (dict(ch_mult=(2, 2)), r"no network with ch_mult=\(2, 2\): it must begin with 1"),
        (dict(mid_attn_groups=0, scale_shift=False), "no network with mid_attn_groups=0 and scale_shift=False"),
        (
            dict(attn_stages=("down_0", "down_1"), ch_mult=(1, 1, 1), resample_stages=("down_0",)),
            "on the way down resample in different ways",
        ),
    ],
)
def test_a_model_that_diffusers_cannot_express_is_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        diffusers.write(as_path(tmp_path), *digits_model(**change))
    assert not list(tmp_path.iterdir())


def test_a_changed_table_of_times_is_refused(tmp_path):
    diffusers.write(as_path(tmp_path), *digits_model())
    path = tmp_path / "unet" / diffusers.WEIGHTS
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays | {"time_proj.weight": arrays["time_proj.weight"] + 0.1}, path)
    with pytest.raises(InputError, match="weight was changed after"):
        interop.load(tmp_path)


@needs_peer
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_networks_and_samples_match_diffusers(name, tmp_path, optimized):
    peer("model", f"--name={name}", f"--folder={tmp_path / name}", f"--out={tmp_path / 'out.npz'}")
    expected = dict(np.load(tmp_path / "out.npz"))
    params, metadata = interop.load(tmp_path / name)
    assert network_error(params, metadata, expected) < 1e-5
    assert max(sample_errors(params, metadata, expected).values()) < 1e-4


@needs_peer
@pytest.mark.slow
@pytest.mark.parametrize("change", WRITTEN.values(), ids=WRITTEN)
def test_diffusers_generates_the_images_of_a_written_model(change, tmp_path, optimized):
    """64 images, up to one gray level."""
    params, metadata = digits_model(**change)
    diffusers.write(as_path(tmp_path / "model"), params, metadata)
    noise = seeded.noise(64, 8, 1)
    ours = to_uint8(Pipeline(params, metadata).from_noise(noise))
    assert ours.std() > 5
    assert np.abs(diffusers_images(tmp_path / "model", noise).astype(int) - ours).max() <= 1
