"""The study that reproduces the paper's claims."""

import json

import numpy as np
import pytest
from etils import epath
from helpers.runs import OWN_PARTS, call, run_together
from helpers.steps import make_config

from diffusion_distillation import config as cfg
from diffusion_distillation.studies.claims import Variant, variant_configs

OWN = [
    "--config.dataset.name=helpers.own_parts:stripes",
    "--config.dataset.args.length=64",
    "--config.train.batch_size=16",
]
OWN += [
    "--config.model.name=helpers.own_parts:affine",
    "--config.model.args.width=8",
    "--config.train.num_train_steps=20",
]
OWN += ["--config.eval.metrics=('fid', 'precision')", "--config.eval.features=('pixels',)"]
OWN += ["--config.eval.num_samples=64", "--config.eval.batch_size=64"]
LADDER = ["--ladder=configs/digits_distill.py", "--ladder.distillation.start_num_steps=4"]
LADDER += ["--ladder.distillation.steps_per_iter=2", "--ladder.train.batch_size=16"]


def test_a_variant_changes_its_output_and_weight_alone(tmp_path):
    base, ladder = make_config(), make_config(distillation=dict(start_num_steps=4))
    with base.unlocked():
        base.model.args.dropout, base.eval.num_samples = 0.25, 77
    of_base, of_ladder = variant_configs(base, ladder, Variant("eps", "v_mse"), epath.Path(tmp_path), seed=2)
    for config in (of_base, of_ladder):
        assert (config.model.mean_type, config.model.mean_loss_weight_type) == ("eps", "v_mse")
        assert config.seed == base.seed + 20_000 and config.eval.num_samples == 77 and config.dataset == base.dataset
    assert (of_base.model.args.dropout, of_ladder.model.args.dropout) == (0.25, 0.0)
    assert of_ladder.train == ladder.train and of_base.train == base.train
    assert of_ladder.distillation.teacher_checkpoint_path == str(tmp_path / "base")
    with of_base.unlocked():
        of_base.model.mean_type, of_base.seed = base.model.mean_type, base.seed
        of_base.model.mean_loss_weight_type = base.model.mean_loss_weight_type
    assert cfg.resolve(of_base) == cfg.resolve(base)


@pytest.mark.slow
def test_the_script_measures_each_pair_with_every_seed_once(tmp_path):
    """A second call finds everything done."""
    out = tmp_path / "out"
    shown = ["claims", "--config=configs/digits_base.py", *OWN, *LADDER, f"--workdir={out}", "--seeds=2"]
    shown += ["--outputs=v,flow", "--weights=flow_mse", "--config.model.mean_loss_weight_type=flow_mse"]
    run_together([shown, shown], env=OWN_PARTS)
    found = json.loads((out / "claims.json").read_text())
    assert set(found["pairs"]) == {"v_flow_mse", "flow_flow_mse"}
    for pair, rows in found["pairs"].items():
        assert {"teacher_ddim_4", "teacher_ancestral_4", "teacher_ddim_1", "student_ddim_1"} <= set(rows), pair
        for row, metrics in rows.items():
            assert set(metrics) == {"frechet_pixels", "precision_pixels"} and all(
                len(of_seeds) == 2 for of_seeds in metrics.values()
            )
            assert np.all(np.isfinite([*metrics.values()])), row
        assert len(set(rows["student_ddim_1"]["frechet_pixels"])) == 2  # seeds differ
    assert found["updates"] == {"base": 20, "ladder": 8}
    page = (out / "index.html").read_text()
    assert page.count("<table>") == 3 and page.count("data:image/png") == 3
    assert "| v, u-MSE |" in (out / "claims.md").read_text()
    runs = [*out.glob("*/seed_*/base/metrics.jsonl"), *out.glob("*/seed_*/ladder/steps_*/metrics.jsonl")]
    assert len(runs) == 2 * 2 * (1 + 2)
    assert all(path.read_text().count("\n") == 1 for path in runs)  # none was trained twice


def test_training_that_diverges_is_reported(tmp_path):
    flags = ["--outputs=v", "--weights=snr", "--seeds=1", "--config.train.learning_rate=1e38"]
    flags += ["--config.train.grad_clip=0.0", "--config.train.num_train_steps=200", f"--workdir={tmp_path / 'out'}"]
    given = ["claims", "--config=configs/digits_base.py", *OWN, *LADDER, *flags]
    error = call(*given, fails=True)
    assert "Every training diverged" in error and "Traceback" not in error


def test_a_ladders_config_is_refused_as_the_base_config(tmp_path):
    given = ["claims", "--config=configs/digits_distill.py", *LADDER, f"--workdir={tmp_path / 'out'}"]
    error = call(*given, fails=True)
    assert (
        "--config must be a base model's config" in error
        and "Traceback" not in error
        and not (tmp_path / "out").exists()
    )
