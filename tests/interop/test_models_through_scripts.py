"""Scripts read models from elsewhere, and write ours for other libraries."""

import json
import re

import flax.serialization
import jax
import numpy as np
import pytest
from helpers.diffusers_peer import diffusers_images, needs_peer, peer
from helpers.runs import ROOT, TINY, call, run
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_distillation import config as cfg
from diffusion_distillation import from_checkpoint, interop
from diffusion_distillation.checkpoints import load
from diffusion_distillation.networks.model import init_params, make_network
from diffusion_distillation.pipeline import start_noise

CONFIG = """
import json
from ml_collections import ConfigDict
from diffusion_distillation.config import defaults

def get_config():
    config = defaults()
    config.dataset.name = "ImageFolder"
    config.dataset.args = ConfigDict(dict(path="unread", image_size=16))
    config.model.args.update(json.loads(open({path!r}).read())["model_args"])
    config.train.update(batch_size=8, learning_rate=1e-3)
    return config
"""

PAGE = ROOT / "docs" / "models_from_elsewhere.md"
OF_LADDER = """
from diffusion_distillation.config import distillation_of, load

def get_config():
    return distillation_of(load({base!r}))
"""
REPORT = [  # as little as can be
    "--config.eval.num_samples=32",
    "--config.eval.batch_size=32",
    "--config.eval.teacher_num_steps=(1,)",
    "--config.eval.ancestral_num_steps=()",
    "--config.eval.features=('pixels',)",
    "--config.eval.metrics=('fid',)",
]


def test_a_published_checkpoint_is_sampled_and_evaluated(tmp_path):
    """The samples equal those of `from_checkpoint`."""
    golden = ROOT / "tests" / "golden" / "unet_uncond.msgpack"
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(golden.with_suffix(".json"))))
    flags = [f"--checkpoint={golden}", f"--config={tmp_path / 'config.py'}", "--num_steps=2"]
    call("sample", *flags, "--num_samples=3", f"--out={tmp_path / 's.npz'}")
    config = cfg.load(tmp_path / "config.py")
    expected = from_checkpoint(golden, config=config).sample(jax.random.key(0), 3, num_steps=2)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["images"], expected)
    assert "Pass its config too" in call("sample", flags[0], f"--out={tmp_path / 's.npz'}", fails=True)
    reference = f"--reference={tmp_path / 's.npz'}"
    call("evaluate", *flags, "--num_samples=3", reference, f"--out={tmp_path / 'e.json'}")
    assert json.loads((tmp_path / "e.json").read_text())["metrics"]["frechet_pixels"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_published_checkpoint_is_distilled(tmp_path, monkeypatch):
    """A run also starts from it, with train.init_from."""
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    config = cfg.load(ROOT / "configs" / "digits_base.py")
    config.model.args.update(ch_mult=(1,), attn_resolutions=(), emb_ch=32)
    params = init_params(make_network(config.model, (8, 8, 1), 1), jax.random.key(0), (8, 8, 1), 1)
    teacher = tmp_path / "teacher.msgpack"
    tree = {"ema_params": jax.tree.map(np.asarray, params), "num_sample_steps": np.int32(4)}
    teacher.write_bytes(flax.serialization.msgpack_serialize(tree))
    ladder = ["--config=configs/digits_distill.py", *TINY, "--config.distillation.start_num_steps=2"]
    ladder += ["--config.distillation.stages={}", "--config.distillation.steps_per_iter=5"]
    ladder += [*REPORT, f"--config.distillation.teacher_checkpoint_path={teacher}"]
    call("distill", *ladder, f"--workdir={tmp_path / 'ladder'}")
    assert load(tmp_path / "ladder" / "steps_0001")[1].step == 5
    base = ["--config=configs/digits_base.py", *TINY, f"--config.train.init_from={teacher}"]
    call("train", *base, "--config.train.num_train_steps=2", f"--workdir={tmp_path / 'base'}")
    assert load(tmp_path / "base")[1].step == 2


@pytest.mark.slow
def test_the_golden_checkpoint_is_distilled(tmp_path, monkeypatch):
    """Two updates of Adam move no parameter by more than twice the learning rate."""
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    golden, rate = ROOT / "tests" / "golden" / "unet_uncond.msgpack", 1e-5
    (tmp_path / "base.py").write_text(CONFIG.format(path=str(golden.with_suffix(".json"))))
    (tmp_path / "ladder.py").write_text(OF_LADDER.format(base=str(tmp_path / "base.py")))
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    flags = [f"--config={tmp_path / 'ladder.py'}", f"--config.dataset.args.path={tmp_path / 'images'}", *REPORT]
    flags += ["--config.distillation.start_num_steps=2", "--config.distillation.end_num_steps=1"]
    flags += ["--config.distillation.steps_per_iter=2", "--config.train.learning_rate_anneal_type=none"]
    flags += [f"--config.train.learning_rate={rate}", f"--config.distillation.teacher_checkpoint_path={golden}"]
    call("distill", *flags, f"--workdir={tmp_path / 'ladder'}")
    student, metadata = load(tmp_path / "ladder" / "steps_0001")
    assert (metadata.step, metadata.num_steps) == (2, 1)
    teacher = flax.serialization.msgpack_restore(golden.read_bytes())["ema_params"]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), student, teacher)
    assert 0.9 * rate < max(jax.tree.leaves(moved)) < 2.1 * rate


@needs_peer
@pytest.mark.slow
def test_a_digits_student_draws_the_same_images_in_diffusers(tmp_path):
    """64 samples, up to one gray level. The scripts run in processes of their own, optimized as for users."""
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "False"}
    base, student, there = (tmp_path / name for name in ("base", "ladder/steps_0004", "there"))
    flags = [
        "--config=configs/digits_base.py",
        "--config.train.num_train_steps=100",
        "--config.train.eval_every_steps=0",
    ]
    run("train", *flags, f"--workdir={base}", env=env)
    flags = ["--config=configs/digits_distill.py", "--config.distillation.start_num_steps=8", *REPORT]
    flags += ["--config.distillation.end_num_steps=4", "--config.distillation.steps_per_iter=40"]
    flags += ["--config.distillation.stages={}"]
    flags += [f"--config.distillation.teacher_checkpoint_path={base}"]
    run("distill", *flags, f"--workdir={tmp_path / 'ladder'}", env=env)
    run("sample", f"--checkpoint={student}", "--num_samples=64", "--seed=3", f"--out={tmp_path / 'i.npz'}", env=env)
    run("export", f"--checkpoint={student}", "--format=diffusers", f"--out={there}", env=env)
    with np.load(tmp_path / "i.npz") as drawn:
        ours = drawn["images"]
    noise = np.asarray(start_noise(jax.random.key(3), np.arange(64), (8, 8, 1)))
    assert ours.std() > 5
    assert np.abs(diffusers_images(there, noise).astype(int) - ours).max() <= 1


@needs_peer
@pytest.mark.slow
def test_a_teacher_of_diffusers_is_distilled(tmp_path):
    """Train a teacher in diffusers, and distill it with the config of the documentation."""
    np.savez(tmp_path / "images.npz", images=(load_digits().images[..., None] / 8 - 1).astype(np.float32))
    teacher, student = tmp_path / "teacher", tmp_path / "ladder" / "steps_0004"
    peer("train", f"--folder={teacher}", f"--images={tmp_path / 'images.npz'}", "--updates=200")
    [config] = re.findall(r"```python\n([^`]*interop\.load\([^`]*)```", PAGE.read_text())
    config = config.replace("hf://google/ddpm-cifar10-32", str(teacher)).replace("cifar_base", "digits_base")
    (tmp_path / "ladder.py").write_text(config)
    flags = [f"--config={tmp_path / 'ladder.py'}", f"--config.distillation.teacher_checkpoint_path={teacher}", *REPORT]
    flags += ["--config.distillation.start_num_steps=8", "--config.distillation.end_num_steps=4"]
    flags += ["--config.distillation.steps_per_iter=80", "--config.train.log_loss_every_steps=1"]
    flags += ["--config.train.learning_rate=1e-3", "--config.distillation.stages={}"]
    run("distill", *flags, f"--workdir={tmp_path / 'ladder'}")
    losses = [json.loads(line)["loss"] for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 80 and np.mean(losses[-10:]) < losses[0] / 5
    known = interop.load(student)[1]
    assert known.num_steps == 4 and known.config.model == interop.load(teacher)[1].config.model
