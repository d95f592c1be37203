import dataclasses
import json

import jax
import numpy as np
import pytest
from helpers.models import make_model
from ml_collections import ConfigDict

from diffusion_distillation import from_checkpoint
from diffusion_distillation.checkpoints import newest_step
from diffusion_distillation.data import load_source
from diffusion_distillation.evaluation.during_training import measure_during_training, measurement_is_due
from diffusion_distillation.evaluation.features import pixels
from diffusion_distillation.evaluation.frechet import frechet_distance, statistics
from diffusion_distillation.evaluation.ladders import evaluators_and_reference
from diffusion_distillation.runtime.files import as_path


def test_the_best_model_is_saved(tmp_path, monkeypatch, capsys):
    """The model gets better and then worse."""
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    params, metadata = make_model(num_classes=1, unet=True)
    config, source, folder = metadata.config, load_source("digits"), as_path(tmp_path / "run")
    with config.unlocked():
        config.eval.update(metrics=("fid", "recall"), metrics_num_samples=20, metrics_every_steps=10)
        config.train.eval_every_steps = 10
    evaluators, _ = evaluators_and_reference(config, source, 20)
    data = statistics([pixels(source[np.arange(len(source))]["image"])])
    for step, scale in ((10, 1.0), (20, 0.0), (30, 1.0)):
        scaled = {**params, "conv_out": {name: scale * leaf for name, leaf in params["conv_out"].items()}}
        for _ in range(2):  # the second time, as in a resumed run, nothing is due
            measure_during_training(scaled, dataclasses.replace(metadata, step=step), folder, evaluators)
        assert f"run  step {step}  Fréchet distance (pixels) " in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    best = min(lines, key=lambda line: line["frechet_pixels"])
    assert newest_step(folder / "best") == best["step"]
    drawn = from_checkpoint(folder / "best").sample(jax.random.key(0), 20)
    assert best["frechet_pixels"] == pytest.approx(frechet_distance(statistics([pixels(drawn)]), data), rel=1e-6)
    assert not list(folder.glob("*unfinished*"))


def test_the_first_evaluation_after_a_multiple_measures():
    """Evaluations may fall between multiples of metrics_every_steps."""
    config = ConfigDict(dict(eval=dict(metrics_every_steps=25), train=dict(num_train_steps=70)))
    measured = []
    for step in (10, 20, 30, 30, 40, 50, 60, 70, 70):  # some twice, as in a resumed run
        if measurement_is_due(step, measured, config):
            measured.append(step)
    assert measured == [30, 50, 70]
    assert measurement_is_due(30, [50, 70], config)  # for a run that resumed earlier
