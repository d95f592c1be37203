"""A diffusion transformer through the scripts: base training, every method, samples, on patches of the digits."""

import json

import jax
import numpy as np
import pytest
from helpers.runs import run_together

from diffusion_distillation.checkpoints import load

TINY = [
    "--config.model.args.patch_size=4",
    "--config.model.args.hidden_size=16",
    "--config.model.args.depth=1",
    "--config.model.args.num_heads=2",
    "--config.model.eval_sampling_num_steps=2",
    "--config.train.batch_size=8",
    "--config.dataset.args.class_conditional=True",
]
LADDER = [
    "--config=configs/digits_dit_distill.py",
    *TINY,
    "--config.distillation.start_num_steps=4",
    "--config.distillation.end_num_steps=2",
    "--config.distillation.steps_per_iter=2",
    "--config.distillation.stages={}",
    "--config.eval.num_samples=8",
    "--config.eval.batch_size=8",
    "--config.eval.metrics=('fid',)",
    "--config.eval.features=('pixels',)",
    "--config.eval.teacher_num_steps=(1,)",
    "--config.eval.ancestral_num_steps=()",
]
METHODS = {
    "progressive": [],
    "addim": ["--config.distillation.teacher_step=addim"],
    "tract": ["--config.distillation.method=tract"],
    "consistency": ["--config.distillation.method=consistency", "--config.distillation.args.first_grid=4"],
    "embedding": ["--config.distillation.only_finetune_temb=True"],
    "guidance": [
        "--config.distillation.method=guidance",
        "--config.distillation.start_num_steps=None",
        "--config.model.args.guidance_range=(0.0, 4.0)",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a base model and of the students of every method, which one process trains."""
    folder = tmp_path_factory.mktemp("runs")
    base = ["train", "--config=configs/digits_dit_base.py", *TINY, "--config.train.num_train_steps=4"]
    commands = [[*base, "--config.train.label_dropout=0.1", f"--workdir={folder}/base"]]
    teacher = f"--config.distillation.teacher_checkpoint_path={folder}/base"
    for name, flags in METHODS.items():
        commands.append(["distill", *LADDER, *flags, teacher, f"--workdir={folder}/{name}"])
    for name in ("base", "guidance/steps_0002"):
        flags = ["--num_samples=8", "--guidance=2", "--num_steps=2", f"--out={folder}/{name}.npz"]
        commands.append(["sample", f"--checkpoint={folder}/{name}", *flags])
    run_together(commands)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_student(name, runs):
    before, _ = load(runs / "base")
    params, metadata = load(runs / name / "steps_0002")
    assert metadata.config.model.name == "dit" and metadata.step == 2
    log = (runs / name / "steps_0002" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in log)
    changed = {
        "/".join(part.key for part in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[0].key in before and not np.array_equal(leaf, _at(before, path))
    }
    assert {"block_0/adaln/kernel", "adaln_out/kernel"} <= changed
    assert ("proj_out/kernel" in changed) == (name != "embedding")


def _at(tree, path):
    for part in path:
        tree = tree[part.key]
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "guidance/steps_0002"])
def test_guided_samples(name, runs):
    """Of a base model with label dropout, and of a student that takes the guidance weight."""
    with np.load(runs / f"{name}.npz") as samples:
        assert samples["images"].shape == (8, 8, 8, 1) and samples["images"].std() > 1
