"""Sources, networks and methods of the user's own, which a config names as 'package.module:function'."""

import json
import re

import jax
import numpy as np
import pytest
from helpers.runs import OWN_PARTS, ROOT, call, run_together

from diffusion_distillation import config as cfg
from diffusion_distillation import from_checkpoint
from diffusion_distillation.checkpoints import load
from diffusion_distillation.diffusion import make_denoiser, q_sample
from diffusion_distillation.losses import data_target
from diffusion_distillation.methods import Denoisers, Rung, make_method
from diffusion_distillation.networks.model import make_network
from diffusion_distillation.schedules import get_logsnr_schedule

FLAGS = [
    "--config.dataset.name=helpers.own_parts:stripes",
    "--config.dataset.args.length=64",
    "--config.model.name=helpers.own_parts:affine",
    "--config.model.args.width=16",
    "--config.model.eval_sampling_num_steps=2",
    "--config.train.batch_size=16",
]


@pytest.mark.slow
def test_own_parts_train_and_distill_through_the_scripts(tmp_path, monkeypatch):
    base, ladder = tmp_path / "base", tmp_path / "ladder"
    train = [
        "train",
        "--config=configs/digits_base.py",
        *FLAGS,
        "--config.train.num_train_steps=40",
        f"--workdir={base}",
    ]
    flags = ["--config=configs/digits_distill.py", *FLAGS, "--config.distillation.method=helpers.own_parts:tract"]
    flags += [f"--config.distillation.teacher_checkpoint_path={base}", f"--workdir={ladder}"]
    flags += ["--config.distillation.steps_per_iter=40", "--config.distillation.stages.1.updates_factor=0.5"]
    flags += ["--config.eval.num_samples=32", "--config.eval.teacher_num_steps=(2,)"]
    flags += ["--config.eval.ancestral_num_steps=(2,)", "--config.eval.features=('pixels',)"]
    flags += ["--config.eval.metrics=('fid',)"]
    printed = run_together([train, ["distill", *flags]], env=OWN_PARTS)
    assert "steps_0002         80 updates          1,280 examples" in printed  # twice as many, as the config says
    assert "steps_0001         20 updates            320 examples" in printed
    assert "of training left" in printed
    for num_steps, updates in ((2, 80), (1, 20)):
        params, metadata = load(ladder / f"steps_{num_steps:04d}")
        assert metadata.step == updates and set(params) == {"Dense_0", "Dense_1"}
    log = (ladder / "steps_0002" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in log)
    assert from_checkpoint(ladder / "steps_0001").num_steps == 1


@pytest.fixture
def distill_with_mixed(tmp_path, monkeypatch):
    """Runs scripts/distill.py --print_config with the method `mixed` of docs/own_parts.md and these flags."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_parts.md").read_text(), re.DOTALL)
    [example] = [block for block in blocks if "def mixed" in block]
    (tmp_path / "my_methods.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--config=configs/digits_distill.py", "--config.distillation.teacher_checkpoint_path=digits"]
    flags += ["--config.distillation.method=my_methods:mixed", f"--workdir={tmp_path / 'run'}", "--print_config"]
    return lambda *more, **kwargs: call("distill", *flags, *more, **kwargs)


def test_options_of_a_method_come_from_the_command_line(distill_with_mixed):
    """They reach the method: with data_weight=1, its target is the data."""
    printed = json.loads(distill_with_mixed("--config.distillation.args.data_weight=1"))
    assert printed["distillation"]["args"] == {"data_weight": 1.0, "weight_type": "snr_trunc"}
    method = make_method(cfg.resolve(cfg.ConfigDict(printed)))
    keys = jax.random.split(jax.random.key(0), 3)
    times = method.times(keys[:2], 0, Rung(4, 2))
    x, eps = jax.random.normal(keys[2], (2, 2, 8, 8, 1))
    schedule = get_logsnr_schedule("cosine")
    z = q_sample(x, eps, schedule(times.t))
    teacher = make_denoiser(lambda z, logsnr: 0.5 * z, "v")
    target = method.target(Denoisers(teacher, student=None, average=None), x, eps, z, times)
    expected = data_target(x, eps, schedule(times.t))
    jax.tree.map(np.testing.assert_array_equal, target, expected)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data_weight=much", "--config.distillation.args.data_weight=much: could not convert string to float"),
        ("weight_type=snr", "config.distillation.args.weight_type='snr' is not one of ['snr_trunc', 'v_mse']"),
        ("data_wieght=1", "data_wieght"),
    ],
)
def test_a_bad_option_of_the_users_method_is_named(distill_with_mixed, flag, message):
    assert message in distill_with_mixed(f"--config.distillation.args.{flag}", fails=True)


def config_with(name, **args):
    config = cfg.load(ROOT / "configs" / "digits_base.py")
    config.model.name, config.model.args = name, args
    return cfg.resolve(config).model


def test_an_own_network_gets_the_configs_arguments():
    network = make_network(config_with("helpers.own_parts:affine", width=3), (8, 8, 1), 1)
    assert network.width == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet_idpm", r"Unknown config.model.name='unet_idpm'. Did you mean 'unet_iddpm'\?"),
        ("no_such_module:net", "'no_such_module' cannot be imported"),
        ("helpers.own_parts:nothing", "must return a Flax module, or an object with init and apply; it returned None"),
        ("helpers.own_parts:affine", r"cannot be called as network\(x, logsnr, y, train=True.*TypeError"),
    ],
)
def test_a_name_that_leads_to_no_network_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make_network(config_with(name, width="3") if ":" in name else named(name), (8, 8, 1), 1)


def test_an_own_network_with_the_wrong_output_is_refused():
    both = config_with("helpers.own_parts:heavy")
    with both.unlocked():
        both.mean_type = "both"
    with pytest.raises(ValueError, match=r"returns output of shape \(1, 8, 8, 1\).* must be \(1, 8, 8, 2\)"):
        make_network(both, (8, 8, 1), 1)


def named(name):
    """The model section of a resolved config, with another network."""
    config = cfg.resolve(cfg.load(ROOT / "configs" / "digits_base.py"))
    with config.unlocked():
        config.model.name = name
    return config.model
