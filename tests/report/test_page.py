import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_distillation import multihost
from diffusion_distillation.data import ArraySource
from diffusion_distillation.evaluation.frechet import frechet_distance, statistics
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.report import page
from diffusion_distillation.report.page import write_report

CONFIG = ConfigDict(
    dict(
        dataset=dict(name="random"),
        model=dict(train_logsnr_schedule=dict(name="cosine"), eval_clip_denoised=True),
        eval=dict(num_samples=70, batch_size=50, teacher_num_steps=(2, 1), ancestral_num_steps=(2,)),
        distillation=dict(method="progressive", teacher_checkpoint_path="base", start_num_steps=2, end_num_steps=1),
    )
)


class Images(ArraySource):
    """Random images that count how often they are looked at."""

    def __init__(self):
        super().__init__(np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), np.uint8), np.zeros(100), 1)
        self.read = 0

    def __getitem__(self, indices):
        self.read += len(indices)
        return super().__getitem__(indices)


class Drawing(Pipeline):
    """Draws random images; `drawn` gets (path, steps, sampler) of each row."""

    distilled_for = 0

    def __init__(self, path, drawn):
        self.path, self.drawn = path, drawn

    def sample(self, key, num_samples, *, sampler, batch_size, num_steps):
        if num_samples == CONFIG.eval.num_samples:
            self.drawn.append((self.path.name, num_steps, sampler))
        return np.random.default_rng(num_steps).integers(0, 256, (num_samples, 4, 4, 1), np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "from_checkpoint", lambda path: Drawing(page.as_path(path), drawn))
    return drawn


def test_what_is_known_is_not_measured_again(tmp_path, drawn, caplog):
    source, figures = Images(), tmp_path / "report" / "figures.json"
    write_report(CONFIG, tmp_path, source)
    assert source.read == 200 and len(drawn) == 4  # all images, and their halves
    table = json.loads(figures.read_text())
    assert [(row["model"], row["sampler"], row["num_steps"]) for row in table["rows"]] == [
        ("teacher", "ddim", 2), ("teacher", "ddim", 1), ("teacher", "noisy", 2), ("student", "ddim", 1)
    ]  # fmt: skip
    of_data = statistics([page.pixels(source[np.arange(100)]["image"])])
    of_samples = statistics(
        [page.pixels(Drawing(tmp_path, []).sample(None, 70, sampler="", batch_size=1, num_steps=2))]
    )
    assert table["rows"][0]["distance"] == pytest.approx(frechet_distance(of_samples, of_data))
    source.read = 0
    drawn.clear()
    write_report(CONFIG, tmp_path, source)
    assert source.read == 0 and drawn == []

    (tmp_path / "steps_0001" / "checkpoints" / "7").mkdir(parents=True)  # it is another student now
    write_report(CONFIG, tmp_path, source)
    assert drawn == [("steps_0001", 1, "ddim")]
    source.read = 0
    drawn.clear()

    (tmp_path / "report" / "samples" / "teacher_noisy_0002.npz").unlink()
    write_report(CONFIG, tmp_path, source)
    assert source.read == 100 and drawn == [("base", 2, "noisy")]
    assert json.loads(figures.read_text())["halves_distance"] == table["halves_distance"]

    figures.write_text(figures.read_text()[:50])
    write_report(CONFIG, tmp_path, source)
    assert "figures.json is damaged; what it held is measured again" in caplog.text
    assert [row["distance"] for row in json.loads(figures.read_text())["rows"]] == [
        row["distance"] for row in table["rows"]
    ]
    assert not [path for path in figures.parent.rglob("*") if "unfinished" in path.name]


def test_the_main_process_alone_looks_at_the_data(tmp_path, drawn, monkeypatch):
    source = Images()
    monkeypatch.setattr(multihost, "is_main", lambda: False)
    write_report(CONFIG, tmp_path, source)
    assert source.read == 0 and len(drawn) == 4 and not list(tmp_path.iterdir())


def test_in_a_bucket(bucket, drawn):
    write_report(CONFIG, "gs://bucket/ladder", Images())
    for name in ("index.html", "figures.json", "samples.png", "distances.png", "samplers.png"):
        assert (bucket / "ladder" / "report" / name).stat().st_size > 100
