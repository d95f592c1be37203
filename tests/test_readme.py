"""README and the pages of docs/: their code and commands work, and the paths, links and fields that they name exist."""

import os
import re
import runpy
import shlex
import subprocess
import sys

import numpy as np
import pytest
from helpers.runs import ROOT, main, run
from ml_collections import ConfigDict
from PIL import Image

from diffusion_distillation import config
from diffusion_distillation.data.source import source_problem
from diffusion_distillation.evaluation.metrics import METRICS, Comparison, Criterion, FeatureSet, MetricValue
from diffusion_distillation.evaluation.results import Entry, Evaluation, Row
from diffusion_distillation.methods import ladder_rungs
from diffusion_distillation.networks.model import make_network, train_schedule
from diffusion_distillation.pretrained import pretrained_folder

TEXTS = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
PAGES = "".join(text for path, text in TEXTS.items() if path.name != "fields.md")  # docs/tables.py writes it
LAUNCH = "".join(path.read_text() for path in sorted((ROOT / "scripts" / "launch").iterdir()))
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES, re.DOTALL | re.MULTILINE)  # (language, text)
BLOCKS = [text for language, text in FENCED if language == "python"]
SHELL = "".join(text for language, text in FENCED if not language).replace("\\\n", " ")
COMMANDS = sorted(set(re.findall(r"\bdiffusion_distillation ([a-z_]+)([^\n&>]*)", SHELL)))
INTERNAL = ("__main__", "cli", "hooks", "report", "runtime", "studies", "version")


def blocks_with(name):
    return [block for block in BLOCKS if name in block]


def test_the_functions_work_as_the_page_shows():
    functions, edm = map(blocks_with, ("two_step_target", "edm_denoiser"))
    names = {}
    exec(*functions, names)
    assert names["x"].shape == (16, 32, 32, 3)
    assert names["loss"].shape == (16,) and np.all(np.isfinite(names["loss"]))
    exec(*edm, names)
    found = names["denoise"](names["z"], np.full(16, 1.0))
    alpha, _ = names["diffusion"].alpha_sigma(1.0)
    np.testing.assert_allclose(found.x, alpha * names["z"], rtol=1e-4, atol=1e-5)  # the exact x for Gaussian data
    np.testing.assert_allclose(np.std(names["x"]), np.cos(np.pi / 16) ** 8, rtol=0.01)  # after 8 DDIM steps


def test_the_first_examples_sample_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    firsts, [pipeline] = map(blocks_with, ('from_checkpoint("letters")', "pipeline.denoiser"))
    assert len(firsts) == 2  # in README and "Get started"
    for first in firsts:
        names = {}
        exec(first, names)
        assert names["images"].shape == (52, 32, 32, 3) and names["images"].dtype == np.uint8
        with Image.open("letters.png") as picture:
            assert picture.width == 8 * 70 - 6
    exec(pipeline.replace("runs/digits/ladder/steps_0001", "digits"), names)
    assert names["x"].shape == (64, 8, 8, 1) and names["x"].dtype == np.float32
    assert names["denoise"](names["x"], np.zeros(64, np.float32)).eps.shape == (64, 8, 8, 1)


def test_training_starts_from_python_as_the_page_shows(monkeypatch):
    started = []
    monkeypatch.setattr("diffusion_distillation.training.loop.train", lambda *args: started.append(args))
    [training] = blocks_with("train(config, ")
    exec(training, {})
    [(made, workdir, source)] = started
    assert made == config.resolve(made) and made.train.num_train_steps == 400
    assert workdir == "runs/digits_python" and source_problem(source) is None


def test_the_ladder_of_an_edm_model_has_the_times_of_its_teacher():
    [ladder], names = blocks_with("paper_ladder(load"), {}
    exec(ladder, names)
    ladder = names["get_config"]()
    ladder.distillation.teacher_checkpoint_path = "runs/cifar_edm/base"
    ladder = config.resolve(ladder)
    assert ladder_rungs(ladder)[-1] == (2, 1) and train_schedule(ladder.model).grids_nest


def test_parts_of_your_own_work_as_the_page_shows(own_modules, monkeypatch):
    monkeypatch.setattr("diffusion_distillation.evaluation.metrics.METRICS", dict(METRICS))
    source = own_modules["my_data"]["stripes"](16)
    assert source_problem(source) is None and source[np.array([9])]["image"][0, :, 1].min() == 255
    base = config.load("digits_base")
    base.model.name, base.model.args = "my_networks:mlp", dict(width=8)
    make_network(config.resolve(base).model, (8, 8, 1), 1)  # runs it
    features = own_modules["my_features"]["brightness"](source[np.arange(4)]["image"])
    assert features.shape == (4, 1)
    [metric] = blocks_with("def mean_distance")
    names = {}
    exec(metric, names)
    record = names["METRICS"].pop("mean_distance")
    sets = [FeatureSet(features=np.full((3, 2), value)) for value in (0.0, 3.0)]
    assert record.compute(Comparison(*sets)).value == pytest.approx(3 * 2**0.5)


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """The modules of the pages, which can be imported, and their names. Their models are here, not at a URL."""
    modules = {name: block for block in BLOCKS for name in re.findall(r"^# (my_\w+)\.py$", block, re.MULTILINE)}
    for name, block in modules.items():
        (tmp_path / f"{name}.py").write_text(re.sub(r"hf://[\w/-]+", "digits", block))
    monkeypatch.syspath_prepend(tmp_path)
    return {name: runpy.run_path(str(tmp_path / f"{name}.py")) for name in modules}


@pytest.mark.parametrize(("name", "flags"), COMMANDS, ids=lambda part: part.strip()[:60])
def test_every_command_has_the_flags_and_fields_that_it_sets(name, flags, own_modules, tmp_path, capsys):
    """With --help, all flags are parsed and nothing runs."""
    flags = flags.replace("$i", "0").replace("--config=my_", f"--config={tmp_path}/my_")
    assert main(name, *shlex.split(flags, comments=True), "--help") == 0, capsys.readouterr().err


def test_the_reference_lists_every_flag_of_sample():
    [section] = re.findall(
        r"^## Flags of sample$(.*?)^#", TEXTS[ROOT / "docs/reference/commands.md"], re.DOTALL | re.MULTILINE
    )
    listed = set(re.findall(r"^\| `--(\w+)`", section, re.MULTILINE))
    code = (ROOT / "scripts" / "sample.py").read_text()
    defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', code))
    assert listed == defined | set(re.findall(r"cli\.define_(\w+)\(", code))


def test_the_generated_tables_are_up_to_date_and_complete():
    for path, text in runpy.run_path(str(ROOT / "docs" / "tables.py"))["pages"]().items():
        assert path.read_text() == text, f"{path} is out of date. Run python docs/tables.py."
        assert not re.findall(r"^.*\|\s*\|$", text, re.MULTILINE), "a field of this table has no meaning"


def test_every_block_of_code_is_run_by_a_test():
    elsewhere = blocks_with("interop.load")  # test_models_through_scripts.py, test_dit_pipeline.py
    elsewhere += blocks_with("def mixed")  # test_own_parts.py
    elsewhere += blocks_with("autoencoder.load")  # test_diffusers_autoencoder.py
    here = (
        "two_step_target",
        "edm_denoiser",
        "from_checkpoint",
        "paper_ladder(load",
        "# my_data",
        "# my_networks",
        "# my_features",
        "METRICS[",
        "train(config, ",
    )
    assert sorted(elsewhere + [block for name in here for block in blocks_with(name)]) == sorted(BLOCKS)


def test_the_figures_of_the_concepts_are_drawn(tmp_path):
    runpy.run_path(str(ROOT / "docs" / "figures.py"))["main"](tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rotation.png", "ladder.png"}


def test_the_figure_of_samples_from_the_same_noise_is_drawn(tmp_path):
    (tmp_path / "steps_0004").symlink_to(pretrained_folder("digits"))
    flags = ["--base=digits", f"--ladder={tmp_path}", "--teacher_steps=8", "--steps=4", "--undistilled=2,1"]
    command = [sys.executable, "docs/same_noise.py", *flags, "--columns=5", f"--out={tmp_path / 'drawn.png'}"]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.width > picture.height > 100  # 4 rows of 5 images


def test_the_figure_of_solvers_has_one_plot_per_evaluation(tmp_path):
    values = {Criterion("frechet", "pixels"): MetricValue(2.0)}
    rows = [Row(Entry("teacher", sampler, n), values, 1.0) for sampler in ("ddim", "heun") for n in (4, 8)]
    evaluation = tmp_path / "solvers.json"
    evaluation.write_text(Evaluation({}, {}, rows).to_json())
    flags = [f"--evaluations={evaluation},{evaluation}", "--names=digits,MNIST", f"--out={tmp_path / 'drawn.png'}"]
    command = [sys.executable, "docs/solvers.py", *flags]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.width > 2 * picture.height


def test_every_path_exists():
    for path in re.findall(r"(?:scripts|configs|tests|docs)/[\w./]+\w", PAGES + LAUNCH):
        assert (ROOT / path).exists(), path


def test_every_link_has_a_target():
    """Links between pages, and to headings. `make docs` checks the other links."""
    links = [(path, link) for path, text in TEXTS.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    assert len(links) > 40
    for path, link in links:
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        place = path.parent / target if target else path
        assert place.exists(), f"{path}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\s-]", "", h).lower().replace(" ", "-") for h in headings], f"{path}: {link}"


def test_the_reference_lists_every_module():
    package = ROOT / "diffusion_distillation"
    modules = {".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py")}
    modules = {name.removesuffix(".__init__").removesuffix("__init__") for name in modules}
    listed = {name.partition(".")[2] for name in re.findall(r"^::: (\S+)$", PAGES, re.MULTILINE)}
    packages = {name for name in modules if (package / name.replace(".", "/")).is_dir()}  # the pages list their modules
    internal = {name for name in modules if any(f"{name}.".startswith(f"{of}.") for of in INTERNAL)}
    assert modules - packages - internal <= listed
    assert listed <= modules | {"from_checkpoint", "save_grid"}


def names(fields, prefix=""):
    """The dotted names of the fields of a config."""
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from names(value, f"{prefix}{name}.")


def test_every_field_exists():
    for name in re.findall(r"`((?:train|model|eval)\.[\w.]+)", PAGES.replace("model.safetensors", "")):
        assert name in names(config.defaults()), name
    base = config.load("folder_distill")
    config.add_missing(base)
    for name in re.findall(r"`--config\.([\w.]+)=", PAGES):
        assert name in names(base) or re.match(r"dataset\.args\.|distillation\.stages\.", name), name


@pytest.mark.slow
def test_the_table_of_bytes_equals_the_scripts_output():
    assert run("benchmarks/memory") in TEXTS[ROOT / "docs" / "speed_and_memory.md"]
