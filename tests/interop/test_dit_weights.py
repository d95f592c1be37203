"""Read diffusion transformers of diffusers and of the original code; compare them with golden numbers of diffusers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.diffusers_peer import needs_peer, peer, relative
from helpers.latent_models import encoded_columns
from helpers.models import save_model
from helpers.runs import ROOT, call
from helpers.torch_format import saved_by_torch
from ml_collections import ConfigDict
from peers import seeded

from diffusion_distillation import config as cfg
from diffusion_distillation import interop, sampling
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import diffusers
from diffusion_distillation.networks.model import eval_schedule, make_model

GOLDEN = ROOT / "tests" / "golden"
DESCRIBED = json.loads((GOLDEN / "dit.json").read_text())
NUM_STEPS = 5


def golden(name):
    arrays = np.load(GOLDEN / "dit.npz")
    return {key.removeprefix(f"{name}_"): arrays[key] for key in arrays.files if key.startswith(f"{name}_")}


def weights_of(name):
    return seeded.dit_weights(DESCRIBED[name]["shapes"])


def written(folder, name="latents", transformer=(), class_name="DiTTransformer2DModel", weights=None):
    """Write a pipeline with golden numbers, with changes to its transformer's config. Returns the folder."""
    described = DESCRIBED[name]
    for part in ("transformer", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / diffusers.PIPELINE).write_text('{"_class_name": "DiTPipeline"}')
    values = {"_class_name": class_name} | described["transformer"] | dict(transformer)
    (folder / "transformer" / diffusers.UNET).write_text(json.dumps(values))
    values = {"_class_name": "DDIMScheduler"} | described["scheduler"]
    (folder / "scheduler" / diffusers.SCHEDULER).write_text(json.dumps(values))
    safetensors.numpy.save_file(weights or weights_of(name), folder / "transformer" / diffusers.WEIGHTS)
    return folder


def output_error(params, metadata, expected):
    """The relative error of the network's outputs at the times of the expected ones."""
    config = metadata.config.model
    network = make_model(config, metadata.image_shape, metadata.num_classes).network
    logsnr = eval_schedule(config)((expected["times"] + 1).astype(np.float32) / np.float32(1000))
    with jax.default_matmul_precision("highest"):
        out = jax.jit(network.apply)({"params": params}, expected["x"], logsnr, jnp.asarray(expected["labels"]))
    return max(map(relative, out, expected["out"]))


def sample(params, metadata, noise, weight):
    """DDIM's samples of classes 0 and 1."""
    config = metadata.config.model
    model = make_model(config, metadata.image_shape, metadata.num_classes)

    @jax.jit
    def run(params, noise):
        condition = {"y": jnp.arange(2), "guidance": jnp.full(2, weight, jnp.float32)}
        return sampling.ddim(model.denoiser(params, condition), noise, eval_schedule(config), NUM_STEPS)

    return run(params, noise)


@pytest.mark.parametrize("name", DESCRIBED)
def test_outputs_match_golden_numbers(name, tmp_path, optimized):
    params, metadata = interop.load(written(tmp_path, name))
    assert output_error(params, metadata, golden(name)) < 1e-5


def test_samples_match_golden_numbers_with_and_without_guidance(tmp_path, optimized):
    params, metadata = interop.load(written(tmp_path))
    expected = golden("latents")
    for key, scale in (("sample", 1.0), ("guided", 4.0)):
        assert relative(sample(params, metadata, expected["noise"], scale - 1), expected[key]) < 1e-4


def test_the_pipeline_s_config_is_kept(tmp_path):
    """The model can be guided: its class table has a row for no class."""
    _, metadata = interop.load(written(tmp_path))
    assert (metadata.image_shape, metadata.num_classes) == ((8, 8, 4), 10)
    model = metadata.config.model
    assert (model.name, model.mean_type, model.eval_clip_denoised) == ("dit", "eps", False)
    assert (model.args.freq_shift, model.args.mlp_norm_eps) == (1, 1e-5)
    assert metadata.config.train.label_dropout == 0.1


def test_a_model_whose_scheduler_was_edited_is_another_one_where_samples_are_kept(tmp_path):
    """A run has its config in its checkpoints, which never change."""
    folder = written(tmp_path / "dit")
    first = interop.sampled_model(folder, *interop.load(folder))
    values = json.loads((folder / "scheduler" / diffusers.SCHEDULER).read_text())
    (folder / "scheduler" / diffusers.SCHEDULER).write_text(json.dumps(values | {"beta_end": 0.03}))
    second = interop.sampled_model(folder, *interop.load(folder))
    assert first["parameters"] == second["parameters"] and first["model"] != second["model"]
    save_model(tmp_path / "run")
    assert list(interop.sampled_model(tmp_path / "run", *interop.load(tmp_path / "run"))) == ["parameters"]


def positions():
    """The fixed position embedding of 4x4 patches, as files store it."""
    rng = np.arange(4)[:, None] / 10000 ** (np.arange(8) / 8)
    table = np.concatenate([np.sin(rng), np.cos(rng)], axis=1)
    return np.stack([np.concatenate([table[column], table[row]]) for row in range(4) for column in range(4)])[None]


def test_older_folders_and_stored_position_embeddings_are_read(tmp_path):
    params, _ = interop.load(written(tmp_path / "new"))
    stored = positions()
    weights = weights_of("latents") | {"pos_embed.pos_embed": stored.astype(np.float16)}
    again, _ = interop.load(written(tmp_path / "old", class_name="Transformer2DModel", weights=weights))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    weights["pos_embed.pos_embed"] = stored.astype(np.float32) + 0.1
    with pytest.raises(InputError, match=r"pos_embed of shape .* is not the fixed sin-cos embedding of 4x4 patches"):
        interop.load(written(tmp_path / "learned", weights=weights))


def test_an_embedder_that_differs_between_blocks_is_refused_by_name(tmp_path):
    weights = weights_of("latents")
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    weights[name] = weights[name] + np.float32(1e-3)
    with pytest.raises(InputError, match=f"{name} differs from that of block 0"):
        interop.load(written(tmp_path, weights=weights))


@pytest.mark.parametrize(
    ("transformer", "message"),
    [
        (dict(_class_name="PixArtTransformer2DModel"), "_class_name='PixArtTransformer2DModel' is not supported"),
        (dict(norm_type="ada_norm_single"), "norm_type='ada_norm_single' is not supported"),
        (dict(activation_fn="geglu"), "activation_fn='geglu'"),
        (dict(attention_bias=False), "attention_bias=False"),
        (dict(norm_elementwise_affine=True), "norm_elementwise_affine=True"),
        (dict(dropout=0.1), "dropout=0.1"),
        (dict(sample_size=[8, 16]), r"sample_size=\[8, 16\] must be an integer"),
        (dict(sample_size=9), "images are 9x9; with patch_size=2 they must be square, with a side that 2 divides"),
        (dict(out_channels=5), "out_channels=5 must be in_channels=4, or twice as many"),
        (dict(num_embeds_ada_norm=None), "num_embeds_ada_norm=None must be an integer of at least 2"),
        (dict(num_layers=3), "missing: block_2/"),
        (dict(num_layers=1), "unexpected: blocks.1"),
        (dict(patch_size=4), r"x_embedder.proj.weight is \[32, 4, 2, 2\]; in the network .* it is \[32, 4, 4, 4\]"),
        (dict(num_embeds_ada_norm=5), r"embedding_table.weight is \[11, 32\]; in the network .* it is \[6, 32\]"),
    ],
)
def test_an_unsupported_transformer_is_refused(transformer, message, tmp_path):
    with pytest.raises(InputError, match=message):
        interop.load(written(tmp_path, transformer=transformer))


def original_weights(name="latents"):
    """The weights of a model of diffusers, by the names of the original code."""
    weights = weights_of(name)
    found = {
        "pos_embed": None,
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    for i in range(DESCRIBED[name]["transformer"]["num_layers"]):
        theirs = f"transformer_blocks.{i}"
        found[f"blocks.{i}.adaLN_modulation.1"] = f"{theirs}.norm1.linear"
        found[f"blocks.{i}.attn.proj"] = f"{theirs}.attn1.to_out.0"
        found[f"blocks.{i}.mlp.fc1"] = f"{theirs}.ff.net.0.proj"
        found[f"blocks.{i}.mlp.fc2"] = f"{theirs}.ff.net.2"
        for leaf in ("weight", "bias"):
            parts = [weights[f"{theirs}.attn1.to_{part}.{leaf}"] for part in "qkv"]
            found[f"blocks.{i}.attn.qkv.{leaf}"] = np.concatenate(parts)
    original = {}
    for ours, theirs in found.items():
        if isinstance(theirs, str):
            original |= {f"{ours}.{leaf}": weights[f"{theirs}.{leaf}"] for leaf in ("weight", "bias")}
        elif theirs is not None:
            original[ours] = theirs
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    return original | {"y_embedder.embedding_table.weight": weights[table]}


def config_of(mean_type="eps", schedule="discrete"):
    """The config of the model 'latents'."""
    config = cfg.defaults()
    config.dataset = ConfigDict(dict(name="unknown", args=dict(image_size=8)))
    config.model.name = "dit"
    config.model.args = ConfigDict(
        dict(patch_size=2, hidden_size=32, depth=2, num_heads=2, freq_shift=1, mlp_norm_eps=1e-5)
    )
    schedules = {f"{part}_logsnr_schedule": dict(name=schedule) for part in ("train", "eval")}
    config.model.update(ConfigDict(dict(mean_type=mean_type, **schedules)))
    config.train.update(batch_size=1, learning_rate=0.0)
    return config


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_with_the_original_names_is_the_same_network(suffix, tmp_path, optimized):
    path = tmp_path / f"DiT{suffix}"
    if suffix == ".pt":
        path.write_bytes(saved_by_torch(original_weights()))
    else:
        safetensors.numpy.save_file(original_weights(), path)
    config = config_of()
    config.model.args.logsnr_input_type = "step"
    params, metadata = interop.load(path, config)
    assert (metadata.image_shape, metadata.num_classes) == ((8, 8, 4), 10)
    assert output_error(params, metadata, golden("latents")) < 1e-5


def test_the_output_of_sit_is_negated(tmp_path):
    """It is x - eps. Everything else is as in DiT."""
    safetensors.numpy.save_file(original_weights(), tmp_path / "SiT.safetensors")
    config = config_of("flow", "flow")
    plain, _ = interop.load(tmp_path / "SiT.safetensors", config)
    config.model.args.update(logsnr_input_type="data_time", time_scale=1.0)
    negated, _ = interop.load(tmp_path / "SiT.safetensors", config)
    plain["proj_out"] = jax.tree.map(np.negative, plain["proj_out"])
    jax.tree.map(np.testing.assert_array_equal, negated, plain)


def test_a_weights_file_needs_the_config_of_a_dit(tmp_path):
    path = tmp_path / "DiT.safetensors"
    safetensors.numpy.save_file(original_weights(), path)
    with pytest.raises(InputError, match=r"DiT.safetensors' has weights and no config\. Pass the model's config"):
        interop.load(path)
    with pytest.raises(InputError, match=r"config.model.name='unet_iddpm' must be 'dit'"):
        interop.load(path, cfg.load(ROOT / "configs" / "digits_base.py"))
    safetensors.numpy.save_file({"conv_in.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(InputError, match=r"is not a DiT or SiT of the original code: it has no x_embedder"):
        interop.load(path, config_of())


def test_a_weights_file_is_read_with_the_config_of_a_ladder_that_names_no_teacher(tmp_path):
    """As `export` reads it, to make an archive that is the teacher of students with another output."""
    path = tmp_path / "DiT.safetensors"
    safetensors.numpy.save_file(original_weights() | {"pos_embed": positions().astype(np.float32)}, path)
    config = cfg.load("imagenet256_dit_distill")
    config.model.mean_type = "eps"
    config.model.args.update(hidden_size=32, depth=2, num_heads=2)
    _, metadata = interop.load(path, config)
    assert metadata.config.model.mean_type == "eps" and "distillation" not in metadata.config
    assert (metadata.image_shape, metadata.num_classes, metadata.config.train.label_dropout) == ((8, 8, 4), 10, 0.1)


SHRUNK = [f"--config.model.args.{field}" for field in ("hidden_size=32", "depth=2", "num_heads=2")]


@pytest.mark.parametrize("name", ["dit_distill", "dit_guided_student", "sit_distill"])
def test_the_configs_of_imagenet256_start_from_such_teachers(name, tmp_path, caplog):
    """With smaller networks, fewer classes and smaller latents. Their other settings are the config's."""
    encoded_columns(tmp_path)
    if name == "sit_distill":
        teacher = tmp_path / "SiT.safetensors"
        weights = original_weights() | {"pos_embed": positions().astype(np.float32)}
        safetensors.numpy.save_file(with_three_classes(weights), teacher)
    else:
        weights = with_three_classes(weights_of("latents"))
        teacher = written(tmp_path / "DiT", transformer={"num_embeds_ada_norm": 3}, weights=weights)
    flags = [f"--config.dataset.args.path={tmp_path / 'latents_True'}"]
    flags += [f"--config.distillation.teacher_checkpoint_path={teacher}", f"--workdir={tmp_path / 'ladder'}"]
    printed = call("distill", f"--config=imagenet256_{name}", *SHRUNK, *flags, "--dry_run")
    assert "Run the same command without --dry_run to start." in printed
    assert "random" not in caplog.text  # parameters


def with_three_classes(weights):
    return {key: array[:4] if "embedding_table" in key else array for key, array in weights.items()}


@needs_peer
@pytest.mark.slow
@pytest.mark.parametrize("name", DESCRIBED)
def test_outputs_and_samples_match_diffusers(name, tmp_path, optimized):
    flags = [f"--name={name}", f"--folder={tmp_path / name}", f"--out={tmp_path / 'out.npz'}"]
    peer("model", *flags, script="dit_peer")
    expected = dict(np.load(tmp_path / "out.npz"))
    params, metadata = interop.load(tmp_path / name)
    assert output_error(params, metadata, expected) < 1e-5
    for key, scale in (("sample", 1.0), ("guided", 4.0)):
        assert relative(sample(params, metadata, expected["noise"], scale - 1), expected[key]) < 1e-4
