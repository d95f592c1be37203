"""Exported samplers generate the images of a Pipeline, and need only JAX and flatbuffers."""

import datetime
import json
import os
import re
import runpy
import subprocess
import sys

import jax
import jax.export
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
import yaml
from helpers.models import KEY, SHAPE, make_model, noise
from helpers.runs import ROOT, call, run
from jax.sharding import Mesh

from diffusion_distillation import from_checkpoint, interop
from diffusion_distillation import pipeline as pipeline_module
from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation.metrics import Criterion, MetricValue
from diffusion_distillation.evaluation.results import Entry, Evaluation, Row
from diffusion_distillation.export import card, runner, sampler_file
from diffusion_distillation.export.card import CardInfo
from diffusion_distillation.export.options import ExportOptions
from diffusion_distillation.interop import archive
from diffusion_distillation.pipeline import Pipeline, to_uint8
from diffusion_distillation.runtime import cpu
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.sampling import SAMPLERS

SEED, LABELS = np.uint32(3), np.array([2, 0, 1, 2], np.int32)
INDEX = np.array([0, 1, 2, 3], np.int32)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Run the pipeline on one device, as an exported program does: the number of devices changes the rounding."""
    monkeypatch.setattr(pipeline_module, "data_mesh", lambda: Mesh(np.array(jax.devices()[:1]), ("data",)))


@pytest.fixture
def unchecked(monkeypatch):
    """Disable jaxtyping, which cannot compare symbolic shapes."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def exported(params, metadata, **options):
    content = sampler_file.export_sampler(params, metadata, ExportOptions(**options))
    return jax.export.deserialize(bytearray(content))


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("num_steps", [None, 1, 3])
def test_samples_from_a_seed_match_the_pipeline_bit_for_bit(sampler, num_steps):
    model = make_model(num_steps=4, unet=num_steps == 3)
    sampling = exported(*model, batch_size=4, num_steps=num_steps, sampler=sampler, platforms=("cpu",))
    drawn = sampling.call(seed=SEED, index=INDEX[::-1], labels=LABELS)
    expected = Pipeline(*model, num_steps).sample(KEY, 4, LABELS[::-1], sampler=sampler)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[::-1], expected)


def test_samples_from_noise_match_the_pipeline_in_any_number_of_steps():
    model, z = make_model(eval_clip_denoised=False, mean_type="eps"), noise(KEY, 4)
    options = dict(input="noise", output="float", num_steps="free", batch_size=4, platforms=("cpu",))
    sampling = exported(*model, **options)
    for num_steps in (1, 4, 7):
        drawn = sampling.call(z=z, labels=LABELS, num_steps=np.int32(num_steps))
        expected = Pipeline(*model).from_noise(z, LABELS, num_steps=num_steps)
        assert drawn.dtype == np.float32 and np.abs(expected).max() > 1
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_batches_of_any_size_match_the_pipeline_bit_for_bit(unchecked, num_classes):
    model = make_model(num_classes=num_classes)
    labels = {} if num_classes == 1 else {"labels": LABELS}
    sampling = exported(*model, input="noise", output="float")
    assert sampling.platforms == ("cpu", "cuda", "tpu")
    z = noise(KEY, 4)
    for n in (1, 4):
        of_n = {name: value[:n] for name, value in labels.items()}
        drawn = sampling.call(z=z[:n], **of_n)
        np.testing.assert_array_equal(drawn, Pipeline(*model).from_noise(z[:n], *of_n.values()))
    pictures = exported(*model).call(seed=SEED, index=INDEX, **labels)
    np.testing.assert_array_equal(pictures, Pipeline(*model).sample(KEY, 4, *labels.values()))


@pytest.mark.parametrize("platforms", [("cpu",), ("tpu",), ("cpu", "cuda")])
def test_the_program_depends_on_its_platform_and_not_on_the_exporting_machine(monkeypatch, platforms):
    """The program for CPUs would be slower, or less exact, elsewhere."""
    model = make_model(num_steps=4, unet=True)

    def program(platforms):
        text = exported(*model, batch_size=4, platforms=platforms).mlir_module()
        return re.sub(r"(?m)^#loc.*\n| loc\(.*\)", "", text)  # without positions in the source

    on_cpu = program(platforms)
    barriers = [program((platform,)).count("optimization_barrier") for platform in ("cpu", "tpu")]
    assert barriers[0] > barriers[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert on_cpu == program(platforms)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0), ("float16", 0.1)])
def test_parameters_in_a_separate_file_are_an_input(tmp_path, dtype, atol):
    model = make_model()
    options = ExportOptions(output="float", batch_size=4, params="beside", dtype=dtype)
    sampler_file.write(as_path(tmp_path / "out"), *model, options=options)
    content = (tmp_path / "out" / runner.SAMPLER).read_bytes()
    stored = safetensors.numpy.load_file(tmp_path / "out" / archive.WEIGHTS)
    sampling = jax.export.deserialize(bytearray(content))
    drawn = sampling.call(seed=SEED, index=INDEX, labels=LABELS, params=stored)
    [expected] = Pipeline(*model).stream(KEY, INDEX, LABELS)
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=atol)
    assert not interop.archive.is_archive(as_path(tmp_path / "out"))


def test_a_file_of_jax_0_10_still_samples():
    """Up to one gray level."""
    content = (ROOT / "tests" / "golden" / "sampler_of_jax_0_10.jax").read_bytes()
    params, metadata = make_model(num_steps=4, unet=True)
    sampling = jax.export.deserialize(bytearray(content))
    drawn = sampling.call(seed=SEED, index=INDEX, labels=LABELS, params=archive.flat_arrays(params, "float32"))
    expected = Pipeline(params, metadata).sample(KEY, 4, LABELS)
    assert expected.std() > 5
    assert np.abs(np.asarray(drawn, int) - expected).max() <= 1


VARIANTS = [
    ExportOptions(),
    ExportOptions(batch_size=4, params="beside"),
    ExportOptions(input="noise", num_steps="free"),
    ExportOptions(sampler="ancestral", batch_size=16, num_steps=2, params="beside", dtype="float16"),
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("num_classes", [1, 3])
def test_the_runner_generates_the_images_of_the_pipeline(unchecked, tmp_path, monkeypatch, options, num_classes):
    params, metadata = make_model(num_classes=num_classes)
    folder, images = tmp_path / "out", tmp_path / "images.npy"
    sampler_file.write(as_path(folder), params, metadata, "both", options._replace(platforms=("cpu",)))
    monkeypatch.setattr(sys, "argv", ["run.py", "10", "3", str(images)])
    runpy.run_path(str(folder / runner.NAME))
    number = options.num_steps if isinstance(options.num_steps, int) else None
    expected = from_checkpoint(folder).sample(KEY, 10, num_steps=number, sampler=options.sampler)
    drawn = np.load(images)
    assert drawn.shape == expected.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, expected)


def test_a_wrong_option_is_an_error_of_one_line_before_anything_is_compiled(tmp_path, monkeypatch):
    params, metadata = make_model()
    monkeypatch.setattr(jax.export, "export", lambda *_, **__: pytest.fail("compiled"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for format, options, info, name, message in [
        ("onnx", {}, {}, "out", r"format='onnx' must be one of \['sampler', 'archive', 'both'\]"),
        ("both", {"input": "text"}, {}, "out", "input='text' must be one of"),
        ("both", {"dtype": "int8"}, {}, "out", "dtype='int8' must be one of"),
        ("both", {"platforms": ("cpu", "gpu")}, {}, "out", "platforms=cpu,gpu must be some of cpu, cuda, tpu, rocm"),
        ("both", {"platforms": ()}, {}, "out", "must be some of"),
        ("both", {"batch_size": 0}, {}, "out", "batch_size=0 must be at least 1. Omit it"),
        ("both", {"num_steps": 0}, {}, "out", "num_steps=0 must be a positive integer, or 'free'"),
        ("both", {"num_steps": "many"}, {}, "out", "num_steps='many' must be a positive integer, or 'free'"),
        ("both", {"input": "noise", "sampler": "ancestral"}, {}, "out", "adds noise in every step. Use input='seed'"),
        ("both", {}, {"license": "MIT\nevil: 1"}, "out", "must be an identifier of the Hugging Face Hub"),
        ("both", {}, {}, "full", "exists and is not empty"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            sampler_file.write(
                as_path(tmp_path / name), params, metadata, format, ExportOptions(**options), CardInfo(**info)
            )
        assert "\n" not in str(error.value).replace("\\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_network_that_needs_the_batch_size_needs_a_fixed_one(monkeypatch):
    monkeypatch.setattr(sampler_file, "sampler_function", lambda *_: lambda **inputs: np.zeros(len(inputs["index"])))
    with pytest.raises(InputError, match=r"does not support batches of any size \(.*\)\. Pass batch_size"):
        exported(*make_model())
    assert exported(*make_model(), batch_size=4).call(seed=SEED, index=INDEX, labels=LABELS).shape == (4,)


def test_all_or_nothing_is_written(tmp_path, monkeypatch):
    model, out = make_model(), as_path(tmp_path / "out")
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(sampler_file, "write_atomic", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
        with pytest.raises(OSError, match="No space"):
            sampler_file.write(out, *model, "archive")
    assert not list(out.iterdir())
    files = sampler_file.write(out, *model, "archive")
    assert {path.name for path in files} == {archive.WEIGHTS, archive.CONFIG, card.NAME}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_card_describes_the_model(unchecked, tmp_path):
    info = CardInfo(license="mit", metrics={"student, DDIM, 4 steps": "fid 0.4"}, date=datetime.date(2027, 8, 31))
    sampler_file.write(
        as_path(tmp_path / "out"), *make_model(num_steps=4), "both", ExportOptions(platforms=("cpu",)), info
    )
    text = (tmp_path / "out" / card.NAME).read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "mit" and "$" not in text
    for part in (
        "a student distilled for 4 sampling steps", "8 x 8 pixels, 1 channel", "3, 0 to 2", "| data | digits |",
        f"with JAX {jax.__version__}", "- student, DDIM, 4 steps: fid 0.4", "until 2028-02-29",
        "`labels`: int32 [batch]",
    ):  # fmt: skip
        assert part in body, part


def test_the_code_of_the_card_runs(unchecked, checkpoint):
    """The Python code in a card runs as it is."""
    [_, metadata], names = interop.load(checkpoint), {}
    parts = card.text(metadata, ("sampler", "archive"), ExportOptions(), CardInfo())
    [block] = re.findall(r"```python\n(.*?)```", parts, re.DOTALL)
    exec(block.replace("this/folder", str(checkpoint)), names)
    assert names["images"].shape == (64, 8, 8, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    archive.write(as_path(folder), *make_model(num_steps=4, num_classes=1, unet=True))
    return folder


def test_the_script_exports_with_metrics_of_this_model_only(unchecked, checkpoint, tmp_path):
    values = {Criterion("frechet", "pixels"): MetricValue(0.25)}
    row = Row(Entry("student", "ddim", 4), values, 100.0, interop.model_version(as_path(checkpoint)))
    found = Evaluation({"num_samples": 2000, "reference": ["digits", ""]}, {}, [row])
    (tmp_path / "evaluation.json").write_text(found.to_json())
    (tmp_path / "other.json").write_text(found._replace(rows=[row._replace(version="step 7")]).to_json())
    (tmp_path / "no.json").write_text(json.dumps({}))
    flags = [f"--checkpoint={checkpoint}", f"--out={tmp_path}/out", "--platforms=cpu"]
    for name, message in {
        "other": "has no metrics of",
        "no": "cannot be read as an evaluation",
        "?": "cannot be read (",
    }.items():
        printed = call("export", *flags, f"--evaluation={tmp_path}/{name}.json", fails=True)
        assert printed.startswith("error: ") and message in printed
    assert "num_steps='x'" in call("export", *flags, "--num_steps=x", fails=True)
    assert not (tmp_path / "out").exists()
    printed = call("export", *flags, f"--evaluation={tmp_path}/evaluation.json", "--license=mit", "--num_steps=free")
    assert "sampler.jax: " in printed
    text = (tmp_path / "out" / card.NAME).read_text()
    assert (
        "- student, DDIM, 4 steps (2,000 samples against digits): Fréchet distance (pixels) 0.25, 100.0 images/s"
        in text
    )


ALONE = """
import runpy, sys
from importlib.machinery import PathFinder

class OnlyThese:
    @staticmethod
    def find_spec(name, path=None, target=None):
        top = name.partition(".")[0]
        there = top in sys.stdlib_module_names | {found} or top[0] == "_"
        return PathFinder.find_spec(name, path, target) if there else None

sys.meta_path = [OnlyThese if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
assert not {"flax", "orbax", "diffusion_distillation"} & set(sys.modules)
"""
# JAX, and what it imports itself
JAX_ALONE = {"jax", "jaxlib", "jax_plugins", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers"}


@pytest.mark.slow
def test_a_process_with_only_jax_generates_the_images_of_sample_py(checkpoint, tmp_path, optimized, monkeypatch):
    """Bit for bit, with equal XLA flags. On CPUs with bfloat16 instructions, scripts set the width of vectors."""
    if cpu.KNOWS_FLAGS:
        monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_prefer_vector_width=256")
    out, images = tmp_path / "out", tmp_path / "images.npy"
    flags = [f"--checkpoint={checkpoint}"]
    run("export", *flags, f"--out={out}")
    run("sample", *flags, f"--out={tmp_path}/ours.npz", "--num_samples=16", "--seed=5")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone = [sys.executable, "-c", ALONE.replace("{found}", repr(JAX_ALONE))]
    subprocess.run([*alone, out / runner.NAME, "16", "5", images], cwd=tmp_path, env=kept, check=True)
    with np.load(tmp_path / "ours.npz") as ours:
        np.testing.assert_array_equal(np.load(images), ours["images"])


def test_the_pure_sampler_generates_the_images_of_the_pipeline():
    params, metadata = make_model()
    pipeline = Pipeline(params, metadata)
    fn, weights = pipeline.pure_sampler(clip=False)
    index = np.arange(3, dtype=np.int32)
    z = pipeline_module.start_noise(KEY, index, SHAPE)
    x = jax.jit(fn)(weights, z, num_steps=4, labels=index)
    np.testing.assert_array_equal(to_uint8(np.asarray(x)), pipeline.sample(KEY, 3, clip=False))
    assert pipeline.is_deterministic() and not pipeline.is_deterministic(eta=0.1)
    with pytest.raises(InputError, match="Unknown sampler"):
        pipeline.pure_sampler(sampler="dim")


@pytest.mark.parametrize("model", [dict(label_dropout=0.1), dict(guidance_range=(0.0, 4.0), num_steps=4)])
def test_the_guidance_weight_is_an_input_of_the_program(model, unchecked, tmp_path):
    """For a model with label dropout, and for a guided student. run.py uses the config's weight."""
    model = make_model(eval_guidance=2.0, **model)
    weights = np.array([0.0, 1.0, 3.0, 3.0], np.float32)
    sampling = exported(*model, platforms=("cpu",))
    drawn = sampling.call(seed=SEED, index=INDEX, labels=LABELS, guidance=weights)
    expected = Pipeline(*model).sample(KEY, 4, LABELS, guidance=weights)
    np.testing.assert_allclose(drawn.astype(int), expected, atol=1)
    assert "guidance=np.full(len(index), 2.0, np.float32)" in runner.text(model[1], ExportOptions())
    assert "`guidance`: float32 [batch]" in card.text(model[1], ("sampler",), ExportOptions(), CardInfo())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_card_names_every_sampler(sampler):
    _, metadata = make_model()
    text = card.text(metadata, ("sampler",), ExportOptions(sampler=sampler), CardInfo())
    assert f"| sampler | {SAMPLERS[sampler].title} |" in text
