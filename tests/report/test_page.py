import json
import re
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_distillation.data import ArraySource
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import measure, results
from diffusion_distillation.evaluation.features import pixels
from diffusion_distillation.evaluation.frechet import frechet_distance, statistics
from diffusion_distillation.evaluation.ladders import config_yardsticks
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.report import html_page, page
from diffusion_distillation.report.page import write_comparison, write_report
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import locked
from diffusion_distillation.version import __version__

CONFIG = ConfigDict(
    dict(
        dataset=dict(name="random", args={}),
        model=dict(
            args=dict(ch=32), train_logsnr_schedule=dict(name="cosine"), eval_clip_denoised=True, eval_guidance=0.0
        ),
        eval=dict(
            features=("pixels",),
            metrics=("fid", "recall"),
            inception=None,
            num_samples=70,
            batch_size=50,
            teacher_num_steps=(2, 1),
            ancestral_num_steps=(2,),
        ),
        distillation=dict(
            method="progressive",
            teacher_checkpoint_path="base",
            start_num_steps=4,
            end_num_steps=1,
            rungs=(),
            teacher_step="ddim",
        ),
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

    distilled_for, num_classes = 0, 1

    def __init__(self, path, drawn):
        self.path, self.drawn = path, drawn

    def stream(self, key, index, labels, *, sampler, batch_size, num_steps, guidance=0.0):
        if index.max() >= CONFIG.eval.num_samples - 1:  # all are asked for
            self.drawn.append((self.path.name, num_steps, sampler))
        for start in range(0, len(index), batch_size):
            rngs = [np.random.default_rng((num_steps, number)) for number in index[start : start + batch_size]]
            yield np.stack([rng.uniform(-1, 1, (4, 4, 1)) for rng in rngs]).astype(np.float32)

    def trajectory(self, key, num_samples, *, sampler, num_steps):
        return np.zeros((num_steps, num_samples, 4, 4, 1), np.uint8)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    drawn = []
    monkeypatch.setattr(results, "from_checkpoint", lambda path, config: Drawing(as_path(path), drawn))
    return drawn


def write(workdir, source, config=CONFIG):
    write_report(config, workdir, source, config_yardsticks(config, source, config.eval.num_samples))


def test_a_report_refuses_a_folder_where_a_process_works(tmp_path, drawn):
    with locked(tmp_path), pytest.raises(ValueError, match="Another process works in"):
        write(tmp_path, Images())
    assert not (tmp_path / "report").exists()


def test_what_is_known_is_not_measured_again(tmp_path, drawn, caplog):
    source, workdir = Images(), tmp_path / "ladder"
    file = workdir / "report" / "evaluation.json"
    write(workdir, source)
    rows = [("base", 2, "ddim"), ("base", 1, "ddim"), ("base", 2, "noisy"), ("steps_0002", 2, "ddim")]
    assert drawn == [*rows, ("steps_0001", 1, "ddim")]
    table = json.loads(file.read_text())
    assert [(row["model"], row["sampler"], row["num_steps"]) for row in table["rows"]] == [
        ("teacher", "ddim", 2), ("teacher", "ddim", 1), ("teacher", "noisy", 2), ("student", "ddim", 2),
        ("student", "ddim", 1),
    ]  # fmt: skip
    of_data = statistics([pixels(source[np.arange(100)]["image"])])
    batches = Drawing(workdir, []).stream(None, np.arange(70), None, sampler="", batch_size=70, num_steps=2)
    expected = frechet_distance(statistics(pixels(to_uint8(x)) for x in batches), of_data)
    distance = table["rows"][0]["values"][0]
    assert (distance["metric"], distance["features"]) == ("frechet", "pixels")
    assert distance["value"] == pytest.approx(expected)
    assert table["metrics"]["teacher_ddim_2_frechet_pixels"] == distance["value"]
    assert not list(workdir.rglob("*unfinished*"))
    drawn.clear()
    write(workdir, source)
    assert drawn == []

    (workdir / "steps_0001" / "checkpoints" / "7").mkdir(parents=True)  # it is another student now
    write(workdir, source)
    assert drawn == [("steps_0001", 1, "ddim")]
    drawn.clear()

    (workdir / "report" / "samples" / "teacher_noisy_2.npz").unlink()
    write(workdir, source)
    assert drawn == [("base", 2, "noisy")]
    assert json.loads(file.read_text())["floors"] == table["floors"]

    file.write_text(file.read_text()[:50])
    write(workdir, source)
    assert "evaluation.json is damaged or from an earlier version; its rows are measured again" in caplog.text
    assert [row["values"] for row in json.loads(file.read_text())["rows"]] == [row["values"] for row in table["rows"]]


def test_a_piece_that_was_drawn_is_not_drawn_again(tmp_path, drawn, monkeypatch):
    """The report is stopped as the second thousand of samples is looked at."""
    config = CONFIG.copy_and_resolve_references()
    config.eval.num_samples = 1070
    write(tmp_path / "whole", Images(), config)
    wrong, seen = results.measure, []

    def stops(draw, *args):
        def images(index):
            seen.append(len(index))
            if len(seen) == 2:
                raise KeyboardInterrupt
            return draw.images(index)

        return wrong(draw._replace(images=images), *args)

    with monkeypatch.context() as patch:
        patch.setattr(results, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "ladder", Images(), config)
        write(tmp_path / "ladder", Images(), config)
    assert seen[:4] == [1000, 70, 70, 1000]
    whole, resumed = (
        json.loads((tmp_path / name / "report" / "evaluation.json").read_text()) for name in ("whole", "ladder")
    )
    assert whole["metrics"] == resumed["metrics"]


def test_the_main_process_alone_looks_at_the_data(tmp_path, drawn, monkeypatch):
    source = Images()
    monkeypatch.setattr(multihost, "is_main", lambda: False)
    write(tmp_path / "ladder", source)
    assert source.read == 0 and len(drawn) == 5
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_in_a_bucket(bucket, drawn):
    write("gs://bucket/ladder", Images())
    pictures = ("samples.png", "distances.png", "metrics.png", "speed.png", "samplers.png", "nearest.png")
    for name in ("index.html", "evaluation.json", "evaluation.md", *pictures):
        assert (bucket / "ladder" / "report" / name).stat().st_size > 100


def test_every_row_and_column_of_pictures_is_labeled(tmp_path, drawn, monkeypatch):
    """The classes of samples take turns, 0, 1, 2, 0, ..., and each class has a column."""
    source, saved = Images(), {}
    source.num_classes, source.class_names = 3, ("ant", "7", "cat")

    def save(columns, labels, path):
        saved[path.name] = columns, labels

    monkeypatch.setattr(page, "save_columns", save)
    monkeypatch.setattr(page, "_page", lambda *args: "")
    write(tmp_path / "ladder", source)
    assert set(saved) == {"samples.png", "samplers.png", "trajectories.png", "classes.png", "nearest.png"}
    for name, (columns, labels) in saved.items():
        assert all(column.heading for column in columns) and all(labels), name
        assert all(len(column.images) >= len(labels) for column in columns), name
    columns, labels = saved["classes.png"]
    assert [column.heading for column in columns] == ["ant", "class 7", "cat"] and len(labels) == 21
    kept = np.load(tmp_path / "ladder" / "report" / "samples" / "student_ddim_1.npz")["arr_0"]
    for number, column in enumerate(columns):
        np.testing.assert_array_equal(column.images[:21], kept[number:63:3])
    assert saved["samples.png"][1][:4] == ["ant", "class 7", "cat", "ant"]


def test_a_page_says_when_and_with_what_it_was_made(tmp_path, drawn):
    environment = {
        "time": "2027-01-02T03:04:05+00:00",
        "command": "scripts/report.py --workdir='a <b>'",
        "versions": {"diffusion_distillation": "1.2.3", "jax": "0.12.0", "python": "3.13.1"},
        "commit": "abc123",
        "processes": 1,
        "devices": {"kind": "NVIDIA H100", "count": 8},
    }
    text = html_page.page("title", environment, [], [], {})
    assert (
        "Made on 2027-01-02 03:04:05 UTC with diffusion_distillation 1.2.3 (abc123), JAX 0.12.0 and Python 3.13.1, "
        "on 8 NVIDIA H100 devices, by <code>scripts/report.py --workdir=&#x27;a &lt;b&gt;&#x27;</code>"
    ) in text
    write(tmp_path / "ladder", Images())
    page = (tmp_path / "ladder" / "report" / "index.html").read_text()
    assert re.search(rf"Made on \d{{4}}-.* UTC with diffusion_distillation {re.escape(__version__)}", page)


@pytest.mark.parametrize("num_samples", [70, 20])
def test_images_per_second_counts_all_that_are_drawn(num_samples, tmp_path, drawn, monkeypatch):
    """On the test's clock, an image takes a second to draw."""
    config, seconds, stream = CONFIG.copy_and_resolve_references(), [0.0], Drawing.stream

    def timed(*args, batch_size, **options):
        for images in stream(*args, batch_size=batch_size, **options):
            seconds[0] += batch_size
            yield images

    config.eval.num_samples = num_samples
    monkeypatch.setattr(Drawing, "stream", timed)
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: seconds[0]))
    write(tmp_path / "ladder", Images(), config)
    rows = json.loads((tmp_path / "ladder" / "report" / "evaluation.json").read_text())["rows"]
    assert [row["images_per_sec"] for row in rows] == [1.0] * 5
    of_prepare, of_rows = 5 * min(50, num_samples), 5 * {70: 100, 20: 20}[num_samples]
    assert seconds[0] == of_prepare + of_rows


def test_an_evaluation_of_an_earlier_version_does_not_count(tmp_path, caplog):
    row = {"model": "teacher", "sampler": "ddim", "num_steps": 2, "metrics": {"fid": 1.0}, "spread": {}}
    row |= {"images_per_sec": 1.0, "content": None}
    (tmp_path / "evaluation.json").write_text(json.dumps({"about": {}, "floors": {}, "rows": [row]}))
    assert results.read(as_path(tmp_path / "evaluation.json")) is None
    assert "from an earlier version; its rows are measured again" in caplog.text


def test_several_ladders_on_a_page(tmp_path, drawn):
    ladders = [tmp_path / name for name in ("one", "two")]
    with pytest.raises(InputError, match=r"one' has no readable report/evaluation.json. Run scripts/report.py"):
        write_comparison([(path, CONFIG) for path in ladders], tmp_path / "both")
    for path in ladders:
        write(path, Images())
    write_comparison([(path, CONFIG) for path in ladders], tmp_path / "both")
    page = (tmp_path / "both" / "index.html").read_text()
    other = CONFIG.copy_and_resolve_references()
    with other.unlocked():
        other.eval.num_samples = 50
    write(ladders[1], Images(), other)
    with pytest.raises(InputError, match=r"num_samples: 70 in .*one', 50 in .*: scripts/report.py .*two --num_samples"):
        write_comparison([(path, CONFIG) for path in ladders], tmp_path / "both")
    assert page.count("<table>") == 2 and "<caption>one</caption>" in page and page.count("image/png;base64") == 4
