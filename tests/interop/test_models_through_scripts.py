"""Models from elsewhere through the scripts, in this process."""

import json

import flax.serialization
import jax
import numpy as np
import pytest
from running import ROOT, TINY, call

from diffusion_distillation import config as cfg
from diffusion_distillation import from_checkpoint
from diffusion_distillation.checkpoints import load
from diffusion_distillation.model import init_params, make_network

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


def test_a_published_checkpoint_is_sampled(tmp_path):
    """And evaluated."""
    golden = ROOT / "tests" / "golden" / "unet_uncond.msgpack"
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(golden.with_suffix(".json"))))
    flags = [f"--checkpoint={golden}", f"--config={tmp_path / 'config.py'}", "--num_steps=2"]
    call("sample", *flags, "--num_samples=3", f"--out={tmp_path / 's.npz'}")
    config = cfg.load(tmp_path / "config.py")
    expected = from_checkpoint(golden, config=config).sample(jax.random.key(0), 3, num_steps=2)
    np.testing.assert_array_equal(np.load(tmp_path / "s.npz")["images"], expected)
    assert "give its config too" in call("sample", flags[0], f"--out={tmp_path / 's.npz'}", fails=True)
    reference = f"--reference={tmp_path / 's.npz'}"
    call("evaluate", *flags, "--num_samples=3", reference, f"--out={tmp_path / 'e.json'}")
    assert json.loads((tmp_path / "e.json").read_text())["metrics"]["fid"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_published_checkpoint_is_distilled(tmp_path, monkeypatch):
    """And a run begins with it."""
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    config = cfg.load(ROOT / "configs" / "digits_base.py")
    config.model.args.update(ch_mult=(1,), attn_resolutions=(), emb_ch=32)
    params = init_params(make_network(config.model, (8, 8, 1), 1), jax.random.key(0), (8, 8, 1), 1)
    teacher = tmp_path / "teacher.msgpack"
    tree = {"ema_params": jax.tree.map(np.asarray, params), "num_sample_steps": np.int32(4)}
    teacher.write_bytes(flax.serialization.msgpack_serialize(tree))
    ladder = ["--config=configs/digits_distill.py", *TINY, "--config.distillation.start_num_steps=2"]
    ladder += ["--config.distillation.stages={}", "--config.distillation.steps_per_iter=5"]
    ladder += ["--config.eval.num_samples=32", "--config.eval.batch_size=32", "--config.eval.teacher_num_steps=(1,)"]
    ladder += ["--config.eval.ancestral_num_steps=(1,)"]
    ladder += ["--config.eval.features=('pixels',)", "--config.eval.metrics=('fid',)"]
    ladder += [f"--config.distillation.teacher_checkpoint_path={teacher}"]
    call("distill", *ladder, f"--workdir={tmp_path / 'ladder'}")
    assert load(tmp_path / "ladder" / "steps_0001")[1].step == 5
    base = ["--config=configs/digits_base.py", *TINY, f"--config.train.init_from={teacher}"]
    call("train", *base, "--config.train.num_steps=2", f"--workdir={tmp_path / 'base'}")
    assert load(tmp_path / "base")[1].step == 2
