"""Folders of DiTPipeline, with their autoencoder and class names: read, sampled, written, read by diffusers."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.diffusers_peer import needs_peer, peer, relative
from helpers.latent_models import IMAGE_SHAPE, SHAPE, write_autoencoder
from helpers.runs import ROOT
from peers import seeded

from diffusion_distillation import config as cfg
from diffusion_distillation import interop
from diffusion_distillation.checkpoints import Metadata
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import diffusers
from diffusion_distillation.networks.model import make_network
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.runtime.files import as_path

DESCRIBED = json.loads((ROOT / "tests" / "golden" / "dit.json").read_text())["latents"]
NAMES = [f"name {label}, other {label}" for label in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline with the golden transformer and an autoencoder."""
    folder = tmp_path_factory.mktemp("dit")
    for part, class_name in (("transformer", "DiTTransformer2DModel"), ("scheduler", "DDIMScheduler")):
        (folder / part).mkdir()
        name = diffusers.UNET if part == "transformer" else diffusers.SCHEDULER
        (folder / part / name).write_text(json.dumps({"_class_name": class_name} | DESCRIBED[part]))
    weights = seeded.dit_weights(DESCRIBED["shapes"])
    safetensors.numpy.save_file(weights, folder / "transformer" / diffusers.WEIGHTS)
    write_autoencoder(folder / "vae")
    index = {"_class_name": "DiTPipeline", "id2label": {str(label): name for label, name in enumerate(NAMES)}}
    (folder / diffusers.PIPELINE).write_text(json.dumps(index))
    return folder


def test_a_pipeline_comes_with_its_autoencoder_and_class_names(folder):
    for path in (folder, folder / "transformer"):
        _, metadata = interop.load(path)
        assert (metadata.image_shape, metadata.shape, metadata.num_classes) == (IMAGE_SHAPE, SHAPE, 10)
        assert metadata.autoencoder_path == str(folder / "vae")
        assert metadata.class_names == tuple(NAMES)


def test_a_written_pipeline_has_the_arrays_of_the_original_and_is_read_again(folder, tmp_path):
    """But for the variances, which our network leaves out."""
    params, metadata = interop.load(folder)
    diffusers.write(as_path(tmp_path / "out"), params, metadata, num_steps=5)
    original, written = (
        safetensors.numpy.load_file(path / "transformer" / diffusers.WEIGHTS) for path in (folder, tmp_path / "out")
    )
    assert original.keys() == written.keys()
    for name in original.keys() - {"proj_out_2.weight", "proj_out_2.bias"}:
        np.testing.assert_array_equal(written[name], original[name], name)
    again, read = interop.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert read.autoencoder == metadata.autoencoder and read.class_names == metadata.class_names
    assert read.autoencoder_path == str(tmp_path / "out" / "vae")
    # diffusers' own files say the same without ours.
    (tmp_path / "out" / diffusers.METADATA).unlink()
    plain, of_files = interop.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, plain, params)
    assert of_files.config.model == metadata.config.model


def test_the_config_of_the_documentation_gives_students_the_network_of_a_folder(folder):
    [block] = re.findall(r"```python\n([^`]*interop\.load\([^`]*)```", (ROOT / "docs" / "latents.md").read_text())
    names = {}
    exec(block.replace("path/to/dit", str(folder)), names)
    ladder = names["get_config"]()
    ladder.dataset.args.path, ladder.distillation.teacher_checkpoint_path = "latents", str(folder)
    assert cfg.resolve(ladder).model == interop.load(folder)[1].config.model


def changed(metadata: Metadata, **fields):
    config = metadata.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(fields)
    return Metadata(**{**vars(metadata), "config": config})


def test_what_diffusers_cannot_sample_is_refused(folder, tmp_path):
    params, metadata = interop.load(folder)
    out = as_path(tmp_path / "out")
    for fields, num_steps, message in (
        ({}, 7, "num_steps=7 does not divide 1000. Use --format=sampler instead"),
        ({"model.args.logsnr_input_type": "inv_cos"}, 5, "logsnr_input_type='inv_cos'"),
        ({"model.args.freq_shift": 0}, 5, "has freq_shift=1, mlp_ratio=4.0; this one has 0 and 4.0"),
        ({"model.args.guidance_range": (0.0, 4.0)}, 5, "takes no guidance weight"),
        ({"model.mean_type": "flow"}, 5, "no prediction_type for mean_type 'flow'"),
        ({"model.eval_guidance": 1.0}, 5, "only models of 1000 classes; this one has 10 and model.eval_guidance=1.0"),
    ):
        with pytest.raises(InputError, match=message):
            diffusers.write(out, params, changed(metadata, **fields), num_steps)
    replaced = dataclasses.replace(metadata, autoencoder=dataclasses.replace(metadata.autoencoder, fingerprint="0123"))
    with pytest.raises(InputError, match="the latents need 0123"):
        diffusers.write(out, params, replaced, 5)
    assert not out.exists()
    guided = changed(metadata, **{"model.eval_guidance": 1.0, "model.eval_guidance_interval": (-4.0, 3.0)})
    network = make_network(guided.config.model, SHAPE, 1000)
    with pytest.raises(InputError, match=r"guides at all times; this model has eval_guidance_interval=\(-4.0, 3.0\)"):
        diffusers.dit.check_writable(guided, network, 5)


def test_a_written_pipeline_cannot_be_guided_by_diffusers_unless_it_has_1000_classes(folder, tmp_path):
    params, metadata = interop.load(folder)
    diffusers.write(as_path(tmp_path / "out"), params, metadata, 5)
    assert "No other guidance_scale than 1 works" in (tmp_path / "out" / "README.md").read_text()


def test_a_written_pipeline_has_the_weights_of_a_variant_where_diffusers_looks(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    vae = tmp_path / "in" / "vae"
    (vae / diffusers.WEIGHTS).rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    params, metadata = interop.load(tmp_path / "in")
    diffusers.write(as_path(tmp_path / "out"), params, metadata, 5)
    assert sorted(path.name for path in (tmp_path / "out" / "vae").iterdir()) == ["config.json", diffusers.WEIGHTS]


def test_a_pipeline_with_another_decoder_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    index = {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}
    (tmp_path / "in" / diffusers.PIPELINE).write_text(json.dumps(index))
    with pytest.raises(InputError, match="decodes its images by VQModel in vqvae/, which is not supported"):
        interop.load(tmp_path / "in")


def test_a_transformer_of_other_channels_than_the_autoencoder_is_refused(folder, tmp_path):
    (tmp_path / "vae").mkdir()
    for part in ("transformer", "scheduler", diffusers.PIPELINE):
        (tmp_path / part).symlink_to(folder / part)
    golden = json.loads((ROOT / "tests" / "golden" / "autoencoder.json").read_text())["sd3"]
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"} | golden["config"]))
    weights = seeded.unet_weights(golden["shapes"])
    safetensors.numpy.save_file(weights, tmp_path / "vae" / diffusers.WEIGHTS)
    with pytest.raises(InputError, match="the network is one of 4 channels, and the autoencoder in vae/ has 16"):
        interop.load(tmp_path)


@needs_peer
@pytest.mark.slow
def test_images_are_those_of_diffusers_both_ways(tmp_path, optimized):
    """A pipeline that diffusers wrote, and the same model as we write it, with and without guidance."""
    peer("pipeline", f"--folder={tmp_path / 'in'}", f"--out={tmp_path / 'in.npz'}", script="dit_peer")
    expected = np.load(tmp_path / "in.npz")
    params, metadata = interop.load(tmp_path / "in")
    pipeline = Pipeline(params, metadata, 5)
    for scale in (1.0, 4.0):
        x = pipeline.from_noise(expected["noise"], guidance=scale - 1)
        images = np.clip(pipeline.decode(x) / 2 + 0.5, 0, 1)
        assert relative(images, expected[f"scale_{scale}"]) < 1e-4
    diffusers.write(as_path(tmp_path / "out"), params, metadata, 5)
    peer("pipeline", f"--folder={tmp_path / 'out'}", f"--out={tmp_path / 'out.npz'}", script="dit_peer")
    for name, images in np.load(tmp_path / "out.npz").items():
        assert relative(images, expected[name]) < 1e-5, name
