import json
import re
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffusion_distillation.data import ArraySource
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import evaluate, measure
from diffusion_distillation.evaluation.features import pixels
from diffusion_distillation.evaluation.frechet import frechet_distance, statistics
from diffusion_distillation.evaluation.ladders import evaluate_ladder, evaluators_and_reference
from diffusion_distillation.evaluation.metrics import METRICS, Metric, MetricValue
from diffusion_distillation.evaluation.results import read_evaluation
from diffusion_distillation.latents import pixels as pixel_space
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.report import page, pictures, plots
from diffusion_distillation.report.html_page import Table, render_page
from diffusion_distillation.report.page import write_joint_report, write_report
from diffusion_distillation.runtime import multihost
from diffusion_distillation.runtime.environment import describe_environment
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import locked
from diffusion_distillation.version import __version__

CONFIG = ConfigDict(
    dict(
        dataset=dict(name="random", args={}),
        model=dict(
            args=dict(ch=32), train_logsnr_schedule=dict(name="cosine"), eval_clip_denoised=True, eval_guidance=0.0
        ),
        train=dict(shard="none"),
        eval=dict(
            dataset=None,
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
            teacher_guidance=None,
            teacher_guidance_interval=None,
        ),
    )
)


class RandomImages(ArraySource):
    """A source of random images that counts reads."""

    def __init__(self):
        super().__init__(np.random.default_rng(0).integers(0, 256, (100, 4, 4, 1), np.uint8), np.zeros(100), 1)
        self.read = 0

    def __getitem__(self, indices):
        self.read += len(indices)
        return super().__getitem__(indices)


class RandomPipeline(Pipeline):
    """A pipeline of random images, which appends (path, steps, sampler) of each row to `sampled`."""

    distilled_for, num_classes, space = 0, 1, pixel_space((4, 4, 1))

    def __init__(self, path, sampled):
        self.path, self.sampled = path, sampled

    def stream(self, key, index, labels, *, sampler, batch_size, num_steps, guidance=0.0, guidance_interval=None):
        if index.max() >= CONFIG.eval.num_samples - 1:  # the call asks for all samples
            self.sampled.append((self.path.name, num_steps, sampler))
        for start in range(0, len(index), batch_size):
            rngs = [np.random.default_rng((num_steps, number)) for number in index[start : start + batch_size]]
            yield np.stack([rng.uniform(-1, 1, (4, 4, 1)) for rng in rngs]).astype(np.float32)

    def trajectory(self, key, num_samples, *, sampler, num_steps):
        return np.zeros((num_steps, num_samples, 4, 4, 1), np.uint8)


@pytest.fixture
def sampled(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    sampled = []
    monkeypatch.setattr(evaluate, "from_checkpoint", lambda path, **_: RandomPipeline(as_path(path), sampled))
    return sampled


@pytest.fixture
def opened(sampled, monkeypatch):
    """The folders of the pipelines that were loaded, in order."""
    opened = []
    load = evaluate.from_checkpoint
    monkeypatch.setattr(
        evaluate, "from_checkpoint", lambda path, **kwargs: opened.append(path.name) or load(path, **kwargs)
    )
    return opened


def skip_pictures(patch):
    """Write empty files instead of pictures, which take seconds to draw."""
    for name in ("save_columns", "save_curves", "save_losses"):
        patch.setattr(pictures, name, lambda *args: args[-1].write_bytes(b""))


@pytest.fixture
def no_pictures(monkeypatch):
    """Tests of other parts of a report need no pictures."""
    skip_pictures(monkeypatch)


def write(workdir, source, config=CONFIG):
    write_report(config, workdir, *evaluators_and_reference(config, source, config.eval.num_samples))


def test_a_report_refuses_a_folder_that_another_process_uses(tmp_path, sampled):
    with locked(tmp_path), pytest.raises(ValueError, match="Another process works in"):
        write(tmp_path, RandomImages())
    assert not (tmp_path / "report").exists()


def test_a_report_that_calls_the_ancestral_sampler_noisy_is_not_measured_again(tmp_path, sampled, no_pictures):
    source, workdir = RandomImages(), tmp_path / "ladder"
    file, samples = workdir / "report" / "evaluation.json", workdir / "report" / "samples"
    write(workdir, source)
    file.write_text(file.read_text().replace("ancestral", "noisy"))
    (samples / "teacher_ancestral_2.npz").rename(samples / "teacher_noisy_2.npz")
    sampled.clear()
    write(workdir, source)
    assert sampled == []


def test_only_changed_or_missing_rows_are_measured_again(tmp_path, sampled, opened, caplog, no_pictures):
    source, workdir = RandomImages(), tmp_path / "ladder"
    file = workdir / "report" / "evaluation.json"
    write(workdir, source)
    assert opened.count("base") == 1  # the teacher is kept for its rows and trajectories
    rows = [("base", 2, "ddim"), ("base", 1, "ddim"), ("base", 2, "ancestral"), ("steps_0002", 2, "ddim")]
    assert sampled == [*rows, ("steps_0001", 1, "ddim")]
    table = json.loads(file.read_text())
    assert [(row["model"], row["sampler"], row["num_steps"]) for row in table["rows"]] == [
        ("teacher", "ddim", 2), ("teacher", "ddim", 1), ("teacher", "ancestral", 2), ("student", "ddim", 2),
        ("student", "ddim", 1),
    ]  # fmt: skip
    of_data = statistics([pixels(source[np.arange(100)]["image"])])
    batches = RandomPipeline(workdir, []).stream(None, np.arange(70), None, sampler="", batch_size=70, num_steps=2)
    expected = frechet_distance(statistics(pixels(to_uint8(x)) for x in batches), of_data)
    distance = table["rows"][0]["values"][0]
    assert (distance["metric"], distance["features"]) == ("frechet", "pixels")
    assert distance["value"] == pytest.approx(expected)
    assert table["metrics"]["teacher_ddim_2_frechet_pixels"] == distance["value"]
    assert not list(workdir.rglob("*unfinished*"))
    sampled.clear()
    write(workdir, source)
    assert sampled == []

    (workdir / "steps_0001" / "checkpoints" / "7").mkdir(parents=True)  # it is another student now
    write(workdir, source)
    assert sampled == [("steps_0001", 1, "ddim")]
    sampled.clear()

    (workdir / "report" / "samples" / "teacher_ancestral_2.npz").unlink()
    write(workdir, source)
    assert sampled == [("base", 2, "ancestral")]
    assert json.loads(file.read_text())["floors"] == table["floors"]

    file.write_text(file.read_text()[:50])
    write(workdir, source)
    assert "evaluation.json is damaged or from an earlier version; its rows are measured again" in caplog.text
    assert [row["values"] for row in json.loads(file.read_text())["rows"]] == [row["values"] for row in table["rows"]]


def test_an_interrupted_report_keeps_the_samples_it_has_measured(tmp_path, sampled, monkeypatch, no_pictures):
    """The report stops when it measures the second part of 1,000 samples."""
    config = CONFIG.copy_and_resolve_references()
    config.eval.num_samples = 1070
    write(tmp_path / "whole", RandomImages(), config)
    wrong, seen = evaluate.measure, []

    def stops(draw, *args):
        def images(index):
            seen.append(len(index))
            if len(seen) == 2:
                raise KeyboardInterrupt
            return draw.images(index)

        return wrong(draw._replace(images=images), *args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "measure", stops)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "ladder", RandomImages(), config)
        write(tmp_path / "ladder", RandomImages(), config)
    assert seen[:4] == [1000, 70, 70, 1000]
    whole, resumed = (
        json.loads((tmp_path / name / "report" / "evaluation.json").read_text()) for name in ("whole", "ladder")
    )
    assert whole["metrics"] == resumed["metrics"]


def test_only_the_main_process_reads_the_data_and_writes(tmp_path, sampled, monkeypatch, no_pictures):
    source = RandomImages()
    monkeypatch.setattr(multihost, "is_main", lambda: False)
    write(tmp_path / "ladder", source)
    assert source.read == 0 and len(sampled) == 5
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_a_report_is_written_to_a_bucket(bucket, sampled):
    write("gs://bucket/ladder", RandomImages())
    pictures = ("samples.png", "distances.png", "metrics.png", "speed.png", "samplers.png", "nearest.png")
    for name in ("index.html", "evaluation.json", "evaluation.md", *pictures):
        assert (bucket / "ladder" / "report" / name).stat().st_size > 100


def test_rows_and_columns_of_pictures_are_labeled(tmp_path, sampled, monkeypatch):
    """Samples have the model's classes 0, 1, 2, 0, ... in turn, and each class has a column."""
    saved = {}
    monkeypatch.setattr(RandomPipeline, "num_classes", 3)
    monkeypatch.setattr(RandomPipeline, "class_names", ("ant", "7", "cat"), raising=False)

    def save(columns, labels, path):
        saved[path.name] = columns, labels

    monkeypatch.setattr(pictures, "save_columns", save)
    monkeypatch.setattr(page, "render_page", lambda *_, **__: "")
    write(tmp_path / "ladder", RandomImages())  # without classes
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


def test_a_new_metric_is_measured_tabled_and_plotted(tmp_path, sampled, monkeypatch, no_pictures):
    """Its record in `METRICS` is enough."""
    config, plotted = CONFIG.copy_and_resolve_references(), {}

    def contrast(sets):
        return MetricValue(float(np.std(sets.samples.features)), deviation=0.25)

    def save_curves(panels, x_label, path):
        plotted[path.name] = panels
        plots.save_curves(panels, x_label, path)

    record = Metric(title="contrast", compute=contrast, sample_fields=frozenset({"features"}), log_scale=True)
    monkeypatch.setitem(METRICS, "contrast", record)
    monkeypatch.setattr(pictures, "save_curves", save_curves)
    config.eval.metrics = ("contrast", "fid")
    write(tmp_path, RandomImages(), config)

    report = tmp_path / "report"
    measured = {}
    for row in json.loads((report / "evaluation.json").read_text())["rows"]:
        [value] = [value for value in row["values"] if value["metric"] == "contrast"]
        measured[row["model"], row["sampler"], row["num_steps"]] = value["value"]
    for model, steps in (("teacher", 2), ("student", 1)):
        [x] = RandomPipeline(report, []).stream(None, np.arange(70), None, sampler="", batch_size=70, num_steps=steps)
        assert measured[model, "ddim", steps] == pytest.approx(np.std(pixels(to_uint8(x))))
    table = (report / "evaluation.md").read_text()
    assert "| contrast (pixels) |" in table and table.count(" ± 0.25 |") == len(measured) == 5
    [panel] = plotted["metrics.png"]
    assert (panel.title, panel.log_scale) == ("contrast (pixels)", True)
    students = next(curve for curve in panel.curves if curve.model == "student")
    assert list(students.points) == [(1, measured["student", "ddim", 1]), (2, measured["student", "ddim", 2])]
    assert (report / "metrics.png").stat().st_size > 1000


def test_the_teacher_is_loaded_once_for_all_its_rows(tmp_path, sampled, monkeypatch):
    loaded = []

    def load(path, **_):
        loaded.append(as_path(path).name)
        return RandomPipeline(as_path(path), sampled)

    monkeypatch.setattr(evaluate, "from_checkpoint", load)
    source = RandomImages()
    evaluators, reference = evaluators_and_reference(CONFIG, source, 70)
    evaluate_ladder(CONFIG, as_path(tmp_path), evaluators, reference, as_path(tmp_path / "evaluation.json"))
    assert len(sampled) == 5 and loaded == ["base", "steps_0002", "steps_0001"]


def test_a_page_names_its_date_versions_devices_and_command(tmp_path, sampled, no_pictures):
    environment = {
        "time": "2027-01-02T03:04:05+00:00",
        "command": "diffusion_distillation report --workdir='a <b>'",
        "versions": {"diffusion_distillation": "1.2.3", "jax": "0.12.0", "python": "3.13.1"},
        "commit": "abc123",
        "processes": 1,
        "devices": {"kind": "NVIDIA H100", "count": 8},
    }
    text = render_page("title", environment, [], [], {})
    assert (
        "Made on 2027-01-02 03:04:05 UTC with diffusion_distillation 1.2.3 (abc123), JAX 0.12.0 and Python 3.13.1, "
        "on 8 NVIDIA H100 devices, by <code>diffusion_distillation report --workdir=&#x27;a &lt;b&gt;&#x27;</code>"
    ) in text
    write(tmp_path / "ladder", RandomImages())
    page = (tmp_path / "ladder" / "report" / "index.html").read_text()
    assert re.search(rf"Made on \d{{4}}-.* UTC with diffusion_distillation {re.escape(__version__)}", page)
    order = [
        "In 1 step, the student has Fréchet distance (pixels) ",
        "<h2>The same noise",
        "(pixels) by sampling steps<",
    ]
    order += ["<h2>Quality by sampling steps", "<h2>All measurements", "<summary>Configuration", "Made on "]
    assert sorted(order, key=page.index) == order


def test_numbers_are_aligned_at_the_right(tmp_path):
    table = Table("", ["", "steps", "model"], [["teacher", "64", ""], ["4 steps", "1,024 ± 0.1", "best"]])
    text = render_page("title", describe_environment(), [table], [], {})
    assert '<td class="text">teacher</td><td>64</td><td class="text"></td>' in text
    assert '<th class="text"><button></button></th><th><button>steps</button></th><th class="text">' in text


def test_halves_of_few_images_are_no_baseline(tmp_path, sampled, no_pictures):
    """A half of 16 images has a singular covariance of 16 pixels."""
    images = RandomImages()
    write(tmp_path / "many", images)
    few = ArraySource(images[np.arange(32)]["image"], np.zeros(32), 1)
    write(tmp_path / "few", few)
    of_many, of_few = (
        read_evaluation(as_path(tmp_path / name / "report" / "evaluation.json")) for name in ("many", "few")
    )
    assert list(of_many.baselines) == ["frechet_pixels"] and of_few.baselines == {}
    assert "random halves" in (tmp_path / "many" / "report" / "index.html").read_text()
    assert "random halves" not in (tmp_path / "few" / "report" / "index.html").read_text()


@pytest.mark.parametrize(("dataset", "title"), [("ImageFolder", "my_images"), ("StanfordCars", "StanfordCars")])
def test_a_report_on_a_folder_of_images_has_the_folders_name(tmp_path, sampled, no_pictures, dataset, title):
    config = ConfigDict(CONFIG.to_dict())
    config.dataset = dict(name=dataset, args=dict(path="data/my_images"))
    write(tmp_path, RandomImages(), config)
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"<h1>{title}: 4 sampling steps become 1</h1>" in page


@pytest.mark.parametrize("num_samples", [70, 20])
def test_images_per_second_counts_every_sampled_image(num_samples, tmp_path, sampled, monkeypatch, no_pictures):
    """By the test's clock, sampling takes 1 second per image."""
    config, seconds, stream = CONFIG.copy_and_resolve_references(), [0.0], RandomPipeline.stream

    def timed(*args, batch_size, **options):
        for images in stream(*args, batch_size=batch_size, **options):
            seconds[0] += batch_size
            yield images

    config.eval.num_samples = num_samples
    monkeypatch.setattr(RandomPipeline, "stream", timed)
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: seconds[0]))
    write(tmp_path / "ladder", RandomImages(), config)
    rows = json.loads((tmp_path / "ladder" / "report" / "evaluation.json").read_text())["rows"]
    assert [row["images_per_sec"] for row in rows] == [1.0] * 5
    of_prepare, of_rows = 5 * min(50, num_samples), 5 * {70: 100, 20: 20}[num_samples]
    assert seconds[0] == of_prepare + of_rows


def test_an_evaluation_of_an_earlier_version_is_ignored(tmp_path, caplog):
    row = {"model": "teacher", "sampler": "ddim", "num_steps": 2, "metrics": {"fid": 1.0}, "spread": {}}
    row |= {"images_per_sec": 1.0, "content": None}
    (tmp_path / "evaluation.json").write_text(json.dumps({"about": {}, "floors": {}, "rows": [row]}))
    assert read_evaluation(as_path(tmp_path / "evaluation.json")) is None
    assert "from an earlier version; its rows are measured again" in caplog.text


def test_one_page_shows_several_ladders(tmp_path, sampled, monkeypatch):
    ladders = write_two(tmp_path, monkeypatch)
    write_joint_report([(path, CONFIG) for path in ladders], tmp_path / "both")
    page = (tmp_path / "both" / "index.html").read_text()
    assert page.count("<table>") == 3 and "<caption>one</caption>" in page and page.count("image/png;base64") == 4
    assert '<td class="text">one: teacher, undistilled</td>' in page and "one: In 1 step, the student has " in page


def test_ladders_in_folders_of_the_same_names_keep_their_own_rows(tmp_path, sampled, monkeypatch):
    """As studies write them."""
    for method in ("tract", "strides"):
        write_two(tmp_path / method / "seed_0", monkeypatch)
    ladders = [tmp_path / method / "seed_0" / "one" for method in ("tract", "strides")]
    write_joint_report([(path, CONFIG) for path in ladders], tmp_path / "both")
    page = (tmp_path / "both" / "index.html").read_text()
    for name in ("tract/seed_0/one", "strides/seed_0/one"):
        assert f'<td class="text">{name}: teacher, undistilled</td>' in page


def test_ladders_that_were_measured_differently_cannot_share_a_page(tmp_path, sampled, monkeypatch):
    ladders = write_two(tmp_path, monkeypatch, num_samples=50)
    message = (
        r"num_samples: 70 in .*one', 50 in .*Measure both alike: diffusion_distillation report .*two --num_samples"
    )
    with pytest.raises(InputError, match=message):
        write_joint_report([(path, CONFIG) for path in ladders], tmp_path / "both")


def test_a_ladder_without_a_report_cannot_share_a_page(tmp_path):
    with pytest.raises(InputError, match=r"one' has no readable report/evaluation.json. To write it, run: diff"):
        write_joint_report([(tmp_path / "one", CONFIG), (tmp_path / "two", CONFIG)], tmp_path / "both")


def write_two(folder, monkeypatch, **options):
    """Write the reports of two ladders, the second with other options of config.eval."""
    other = CONFIG.copy_and_resolve_references()
    with other.unlocked():
        other.eval.update(options)
    with monkeypatch.context() as patch:
        skip_pictures(patch)
        write(folder / "one", RandomImages(), CONFIG)
        write(folder / "two", RandomImages(), other)
    return folder / "one", folder / "two"
