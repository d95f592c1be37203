"""Teachers of another kind than their students."""

import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from helpers import steps
from helpers.small_runs import SOURCE, ladder_of, make_config

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import Metadata, abstract_params, load
from diffusion_distillation.diffusion import alpha_sigma
from diffusion_distillation.methods import Rung, make_method
from diffusion_distillation.networks.model import Model
from diffusion_distillation.runtime.devices import data_mesh
from diffusion_distillation.schedules import Discrete
from diffusion_distillation.training.dry_run import bytes_held
from diffusion_distillation.training.ladder import run_ladder
from diffusion_distillation.training.loop import train
from diffusion_distillation.training.step import Teacher, init_state
from diffusion_distillation.training.teacher import load_teacher


class AsV(nn.Module):
    """A network with another output, converted to v by the textbook's formulas."""

    network: nn.Module
    mean_type: str

    @nn.compact
    def __call__(self, z, logsnr, y=None, *, train=False, index=None):
        alpha, sigma = (part.reshape(-1, 1, 1, 1) for part in alpha_sigma(logsnr))
        if self.mean_type == "flow":
            t = sigma / (alpha + sigma)
            z_flow = (1 - t) / alpha * z  # (1 - t) x + t eps
            u = self.network(z_flow, logsnr)
            x, eps = z_flow - t * u, z_flow + (1 - t) * u
        elif self.mean_type == "eps":
            eps = self.network(z, logsnr)
            x = (z - sigma * eps) / alpha
        else:
            x = self.network(z, logsnr)
            eps = (z - alpha * x) / sigma
        return alpha * eps - sigma * x


@pytest.mark.parametrize("mean_type", ["eps", "x", "flow"])
def test_a_teacher_with_another_output_gives_the_target_of_its_conversion(mean_type):
    config = steps.make_config(distillation={}).copy_and_resolve_references()
    with config.unlocked():  # at the default's log-SNR of -20, x computed from eps has few digits
        config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = dict(name="cosine", logsnr_min=-8.0)
    config = cfg.resolve(config)
    params = jax.tree.map(lambda leaf: leaf + 0.2, steps.AFFINE)
    model = Model(network=steps.NETWORK, mean_type=mean_type)
    converted = Model(network=AsV(steps.NETWORK, mean_type), mean_type="v")
    losses = [
        steps.run(config, 2, teacher=Teacher(weights, Rung(8, 4), kind))[1]
        for weights, kind in ((params, model), ({"network": params}, converted), (params, None))
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert np.all(np.abs(np.subtract(losses[0], losses[2])) > 1e-3)  # as v, the same output means something else


def unet_config(mean_type="v", schedule="cosine", **args):
    config = cfg.defaults()
    config.dataset.name = "digits"
    config.model.args.update(ch=32, emb_ch=32, ch_mult=(1,), num_res_blocks=0, attn_resolutions=(), num_heads=1)
    config.model.args.update(args)
    config.model.mean_type = mean_type
    config.model.train_logsnr_schedule = config.model.eval_logsnr_schedule = dict(name=schedule)
    config.train.update(batch_size=16, learning_rate=1e-3, num_train_steps=5)
    return config


def metadata_of(config, num_steps=0, num_classes=1):
    shape = steps.SOURCE.image_shape
    return Metadata(config=cfg.resolve(config), image_shape=shape, num_classes=num_classes, num_steps=num_steps)


def student_of(config, **distillation):
    config = cfg.distillation_of(config)
    config.distillation.update(dict(teacher_checkpoint_path="-", start_num_steps=4) | distillation)
    return config


def load_shapes(student, teacher):
    """`load_teacher`, of a teacher with this metadata whose parameters are shapes."""
    return load_teacher(cfg.resolve(student), steps.SOURCE, lambda path: (abstract_params(teacher), teacher))


def test_a_teacher_that_is_told_steps_keeps_its_own_schedule(capsys):
    theirs = metadata_of(unet_config("eps", "discrete", logsnr_input_type="step"))
    teacher = load_shapes(student_of(unet_config("v")), theirs)
    assert teacher.model.mean_type == "eps" and teacher.model.network.schedule == Discrete()
    assert teacher.starts_student
    [line] = [line for line in capsys.readouterr().out.splitlines() if "starts from" in line]
    assert "mean_type is 'eps' in the teacher and 'v' here" in line
    assert "logsnr_input_type is 'step' in the teacher and 'inv_cos' here: its first updates relearn" in line


def test_a_teacher_of_the_same_kind_is_the_students_model(capsys):
    """So that the whole ladder has one compiled step. Dropout is for training alone."""
    teacher = load_shapes(student_of(unet_config()), metadata_of(unet_config(dropout=0.2)))
    assert teacher.model is None and teacher.starts_student
    assert "starts from" not in capsys.readouterr().out


def train_base(folder, mean_type="x", **args):
    """Train a base model of a few updates in a folder, and return its config."""
    base = make_config(num_train_steps=5).copy_and_resolve_references()
    with base.unlocked():
        base.model.mean_type = mean_type
        base.model.args.update(args)
    base = cfg.resolve(base)
    train(base, folder, SOURCE)
    return base


def same_arrays(one, other):
    """The names of the layers that are the same in two trees of parameters."""
    return {
        layer
        for layer in one
        if all(np.array_equal(one[layer][name], other[layer][name]) for name in ("kernel", "bias"))
    }


@pytest.mark.parametrize(
    ("of_teacher", "of_student", "layers", "said"),
    [
        ("x", "v", {"Dense_0", "Dense_1"}, "starts from the parameters of .*base. .*mean_type is 'x' in the teacher"),
        ("both", "v", {"Dense_1"}, "starts from .*, except for Dense_0/bias, Dense_0/kernel. .*mean_type is 'both'"),
    ],
)
def test_a_student_starts_from_what_fits_of_its_teacher(tmp_path, capsys, of_teacher, of_student, layers, said):
    base = train_base(tmp_path / "base", of_teacher)
    changes = {"model.mean_type": of_student, "train.learning_rate": 0.0}
    config = ladder_of(base, tmp_path / "base", **changes)
    run_ladder(config, tmp_path / "ladder", SOURCE)
    params = [load(folder)[0] for folder in (tmp_path / "base", *sorted((tmp_path / "ladder").glob("steps_*"))[::-1])]
    assert same_arrays(params[0], params[1]) == layers
    assert same_arrays(params[1], params[2]) == {"Dense_0", "Dense_1"}
    [line] = [line for line in capsys.readouterr().out.splitlines() if "starts from" in line]
    assert re.search(said, line)


def test_a_student_with_another_network_starts_from_random_parameters(tmp_path, caplog):
    base = train_base(tmp_path / "base")
    config = ladder_of(base, tmp_path / "base", **{"model.args.width": 16, "train.learning_rate": 0.0})
    run_ladder(config, tmp_path / "ladder", SOURCE)
    assert "starts from random parameters, as the teacher" in caplog.text
    assert "config.model.args.width is 8 in the teacher and 16 here" in caplog.text
    assert load(tmp_path / "ladder" / "steps_0001")[0]["Dense_0"]["kernel"].shape == (16, 1)


def test_a_teacher_in_bfloat16_gives_students_its_float32_parameters(tmp_path):
    base = train_base(tmp_path / "base")
    losses = {}
    for dtype in ("float32", "bfloat16"):
        changes = {"distillation.teacher_dtype": dtype, "train.learning_rate": 0.0}
        seen = []
        run_ladder(
            ladder_of(base, tmp_path / "base", **changes),
            tmp_path / dtype,
            SOURCE,
            on_metrics=lambda step, values, seen=seen: seen.append(values["loss"]),
        )
        losses[dtype] = seen
        first = load(tmp_path / dtype / "steps_0001")[0]
        jax.tree.map(np.testing.assert_array_equal, first, load(tmp_path / "base")[0])
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.1)
    assert losses["bfloat16"] != losses["float32"]


def test_a_teacher_in_bfloat16_takes_half_the_memory():
    config = steps.make_config(distillation={})
    teacher = Teacher(steps.AFFINE, Rung(8, 4), dtype="bfloat16")
    state = init_state(config, make_method(config), steps.AFFINE)
    sizes = [bytes_held(state, who, data_mesh(), "none") for who in (None, teacher, teacher.replace(dtype=None))]
    rung = 8  # two integers
    assert sizes[1] - sizes[0] - rung == (sizes[2] - sizes[0] - rung) / 2 == 2 * 65


@pytest.mark.parametrize(
    ("theirs", "num_steps", "ours", "message"),
    [
        (dict(mean_type="eps"), 0, dict(model=dict(schedule="flow")), "The teacher '.*' has mean_type='eps', which"),
        ({}, 4, dict(model=dict(schedule="flow")), "trained for 4 sampling steps, at times of its own noise sched"),
        ({}, 8, {}, "trained for 8 sampling steps: set config.distillation.start_num_steps=8"),
        (dict(mean_type="x"), 0, dict(only_finetune_temb=True), "only_finetune_temb=True keeps .*: .*mean_type is"),
        (
            dict(mean_type="consistency", schedule="karras"),
            1,
            {},
            r"is a consistency model.* Distill a diffusion model",
        ),
        ({}, 0, dict(teacher_guidance=1.0), "cannot be guided, which config.distillation.teacher_guidance=1.0"),
    ],
)
def test_a_teacher_that_a_student_cannot_learn_from_is_refused(theirs, num_steps, ours, message):
    distillation = {name: value for name, value in ours.items() if name != "model"}
    student = student_of(unet_config(**ours.get("model", {})), **distillation)
    with pytest.raises(ValueError, match=message):
        load_shapes(student, metadata_of(unet_config(**theirs), num_steps))


def test_a_ladder_cannot_set_which_channels_of_its_teacher_are_guided():
    theirs, ours = unet_config(), unet_config()
    theirs.train.label_dropout = 0.1
    ours.model.guidance_channels = 1
    with pytest.raises(
        ValueError, match=r"its own model.guidance_channels=None; .*=1 would have no effect. Set it to None"
    ):
        load_shapes(student_of(ours, teacher_guidance=1.0), metadata_of(theirs))
