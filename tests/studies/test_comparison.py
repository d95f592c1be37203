"""The study that compares methods at equal cost."""

import json

import jax
import numpy as np
import pytest
from helpers.runs import OWN_PARTS, call, run_together
from helpers.steps import METHODS, make_config

from diffusion_distillation.diffusion import predict
from diffusion_distillation.methods import Denoisers, ladder_rungs, make_method
from diffusion_distillation.studies.comparison import ladder_configs, ladder_nfe, recipes

STEPS = (8, 4, 2, 1)


@pytest.mark.parametrize("name", METHODS)
def test_a_target_makes_as_many_calls_as_its_method_counts(name):
    method, calls = make_method(make_config(distillation=METHODS[name])), []

    def network(z, logsnr):
        calls.append(len(z))
        return predict(z, np.reshape(logsnr, (-1, 1, 1, 1)), v=0.1 * z)

    x, eps = np.random.default_rng(0).standard_normal((2, 4, 8, 8, 1)).astype(np.float32)
    for rung in method.rungs:
        calls.clear()
        with jax.disable_jit():  # so that a loop calls the network in every iteration
            times = method.times(jax.random.split(jax.random.key(0), 4), 0, rung)
            method.target(Denoisers(network, network, network), x, eps, x + eps, times)
        assert len(calls) == method.target_calls(rung), rung


@pytest.mark.parametrize("name", recipes(64, STEPS))
def test_every_method_gets_the_same_number_of_evaluations(name):
    config, budget = make_config(distillation=dict(start_num_steps=64)), 1_000_000
    recipe = recipes(64, STEPS)[name]
    ladders = ladder_configs(config, recipe, budget, seed=1)
    assert sum(sum(ladder_nfe(ladder).values()) for ladder in ladders) == pytest.approx(budget, rel=0.01)
    students = {rung.num_steps for ladder in ladders for rung in ladder_rungs(ladder)}
    assert students >= {"consistency_tuning": {1}, "tract_two_phases": {8, 1}}.get(name, set(STEPS))
    for ladder in ladders:
        assert ladder.seed == config.seed + 10_000 and ladder.distillation.steps_per_iter > 50
        assert (ladder.train.ema_decay > 0.5) == recipe.averaged
        if ladder.distillation.method == "consistency":
            assert ladder.distillation.args.grid_updates == ladder.distillation.steps_per_iter


@pytest.mark.slow
def test_the_script_trains_each_method_with_every_seed_once(tmp_path):
    """A second call finds everything done."""
    own = ["--config.dataset.name=helpers.own_parts:stripes", "--config.dataset.args.length=64"]
    own += [
        "--config.model.name=helpers.own_parts:affine",
        "--config.model.args.width=8",
        "--config.train.batch_size=16",
    ]
    out, base = tmp_path / "out", tmp_path / "base"
    compared = ["compare", "--config=configs/digits_distill.py", *own, f"--workdir={out}", "--steps=2,1", "--seeds=2"]
    compared += ["--budget=0.02", "--methods=tract,consistency_tuning,consistency_distillation"]
    compared += [f"--config.distillation.teacher_checkpoint_path={base}", "--config.distillation.start_num_steps=4"]
    compared += ["--config.eval.metrics=('fid', 'precision')", "--config.eval.features=('pixels',)"]
    compared += ["--config.eval.num_samples=64", "--config.eval.batch_size=64"]
    train = ["train", "--config=configs/digits_base.py", *own, "--config.train.num_train_steps=20", f"--workdir={base}"]
    without_1 = [f"--workdir={tmp_path / 'tuning'}", "--steps=2", "--seeds=1", "--methods=consistency_tuning"]
    run_together([train, compared, compared, [*compared, *without_1]], env=OWN_PARTS)
    assert "Quality by sampling steps" in (tmp_path / "tuning" / "index.html").read_text()
    found = json.loads((out / "comparison.json").read_text())
    assert set(found["methods"]) == {"tract", "consistency_tuning", "consistency_distillation"}
    for name, of in found["methods"].items():
        for values in of["metrics"].values():
            assert set(values) == {"2", "1"} and all(len(of_seeds) == 2 for of_seeds in values.values()), name
            assert np.all(np.isfinite([*values.values()]))
        assert len(set(of["metrics"]["frechet_pixels"]["1"])) == 2  # seeds differ
        assert of["seconds_of_an_update"] > 0
    copies = {name: of["copies_of_the_parameters"] for name, of in found["methods"].items()}
    assert copies["tract"] == pytest.approx(5, abs=0.2)  # parameters, Adam's two, the self-teacher, the teacher
    assert copies["consistency_distillation"] == pytest.approx(4, abs=0.2)
    page = (out / "index.html").read_text()
    assert page.count("<table>") == 3 and page.count("data:image/png") == 4
    assert "| tract |" in (out / "comparison.md").read_text()
    students = [*out.glob("*/seed_*/to_*/steps_*/metrics.jsonl")]
    assert len(students) == 2 * (2 + 1 + 2)
    assert all(path.read_text().count("\n") == 1 for path in students)  # none was trained twice


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--budget=0", "--budget=0.0 must be more than 0"),
        ("--steps=8,x", "--steps=8,x must be numbers of steps"),
        ("--methods=halvings,trakt", "Unknown method 'trakt'; choose from"),
        ("--steps=8,4,0", "The students' sampling steps (8, 4, 0) must get fewer"),
        ("--steps=3,1", "The students' sampling steps (3, 1) must get fewer, each dividing the one before it"),
    ],
)
def test_bad_flags_are_refused(flag, message, tmp_path):
    given = ["--config=configs/digits_distill.py", f"--config.distillation.teacher_checkpoint_path={tmp_path}"]
    error = call("compare", *given, flag, f"--workdir={tmp_path / 'out'}", fails=True)
    assert message in error and "Traceback" not in error and not (tmp_path / "out").exists()


def test_a_config_without_a_ladder_is_refused(tmp_path):
    error = call("compare", "--config=configs/digits_base.py", f"--workdir={tmp_path / 'out'}", fails=True)
    assert "no section config.distillation" in error and not (tmp_path / "out").exists()
