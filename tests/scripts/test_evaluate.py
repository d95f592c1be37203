"""scripts/evaluate.py."""

import json
import os
import re
import signal

import numpy as np
import pytest
from helpers.models import KEY, SHAPE, save_model
from helpers.runs import OWN_PARTS, call, command, free_port, run, start, start_together, wait_until
from PIL import Image

from diffusion_distillation import from_checkpoint
from diffusion_distillation.evaluation.features import pixels
from diffusion_distillation.evaluation.frechet import Statistics, frechet_distance, statistics
from diffusion_distillation.evaluation.metrics import format_number


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a class-conditional 4-step student, which samples in no time."""
    folder = tmp_path_factory.mktemp("student")
    save_model(folder, num_steps=4)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)


@pytest.fixture
def reference(images, tmp_path):
    np.savez(tmp_path / "reference.npz", arr_0=images)
    return tmp_path / "reference.npz"


def read(path):
    return json.loads(path.read_text())


def test_a_run_is_measured_and_its_samples_and_tables_are_saved(checkpoint, reference, images, tmp_path):
    out, kept = tmp_path / "new" / "evaluation.json", tmp_path / "kept"
    flags = [f"--checkpoint={checkpoint}", f"--reference={reference}", "--num_samples=30", "--batch_size=16"]
    printed = call("evaluate", *flags, "--seed=3", "--metrics=fid,recall,kid", f"--out={out}", f"--keep={kept}")
    drawn = from_checkpoint(checkpoint).sample(KEY, 30)
    found = read(out)
    assert list(found["metrics"]) == ["frechet_pixels", "kid_pixels", "kid_std_pixels", "recall_pixels"]
    expected = frechet_distance(statistics([pixels(drawn)]), statistics([pixels(images)]))
    assert found["metrics"]["frechet_pixels"] == pytest.approx(expected, rel=1e-9)
    assert found["rows"][0] | {"num_steps": 4, "model": "student"} == found["rows"][0]
    assert found["rows"][0]["content"].startswith("step 7, ")
    pictures = [np.asarray(Image.open(file)) for file in sorted(kept.glob("*.png"))]
    np.testing.assert_array_equal(pictures, drawn[..., 0])
    (kept / "00007.png").unlink()
    again = ["--seed=3", "--metrics=fid,recall,kid", f"--out={out}", f"--keep={kept}"]
    assert "lacks 1 of 30 samples, which were measured before" in call("evaluate", *flags, *again, fails=True)
    head, _, row = out.with_suffix(".md").read_text().splitlines()
    assert head == (
        "| model | sampler | steps | Fréchet distance (pixels) | images/s | KID (pixels) | recall (pixels) |"
    )
    distance, kid = (format_number(found["metrics"][name]) for name in ("frechet_pixels", "kid_pixels"))
    assert re.match(rf"\| student \| DDIM \| 4 \| {distance} \| [\d.,]+ \| {kid} ± ", row) and row in printed
    assert r"\begin{tabular}{llrrrrr}" in out.with_suffix(".tex").read_text()
    assert not list(tmp_path.rglob("*unfinished*"))


def test_several_samplers_are_compared_by_network_evaluations(checkpoint, reference, tmp_path):
    flags = [f"--checkpoint={checkpoint}", f"--reference={reference}", "--num_samples=20"]
    call("evaluate", *flags, f"--out={tmp_path / 'one.json'}")
    call("evaluate", *flags, "--sampler=ddim,heun", "--num_steps=4,3", f"--out={tmp_path / 'all.json'}")
    [one] = read(tmp_path / "one.json")["metrics"].values()
    metrics = read(tmp_path / "all.json")["metrics"]
    names = ["ddim_4", "ddim_3", "heun_4", "heun_3"]
    assert list(metrics) == [f"student_{name}_frechet_pixels" for name in names] and len({*metrics.values()}) == 4
    assert metrics["student_ddim_4_frechet_pixels"] == one
    header, _, *rows = (tmp_path / "all.md").read_text().splitlines()
    nfe = header.split(" | ").index("NFE")
    assert [row.split(" | ")[nfe] for row in rows] == ["4", "3", "8", "6"]
    assert Image.open(tmp_path / "all.png").size[0] > 100 and not (tmp_path / "one.png").exists()
    error = call("evaluate", *flags, "--num_steps=1,2", f"--keep={tmp_path}", f"--out={tmp_path}/e.json", fails=True)
    assert "Give one --sampler and one --num_steps" in error
    for flag, message in {
        "--num_steps=0": "integers of at least 1",
        "--sampler=ddim,eun": "value should be one of",
        "--others_num_steps=4": "--others_num_steps=4 is for --others",
    }.items():
        assert message in call("evaluate", *flags, flag, f"--out={tmp_path / 'e.json'}", fails=True)


def test_repeats_give_the_best_value_and_the_spread(checkpoint, reference, images, tmp_path):
    flags = [f"--checkpoint={checkpoint}", f"--reference={reference}", "--num_samples=20", "--seed=3"]
    call("evaluate", *flags, "--metrics=fid,precision", "--repeats=3", f"--out={tmp_path / 'e.json'}")
    drawn, data = from_checkpoint(checkpoint).sample(KEY, 60), statistics([pixels(images)])
    sets = [frechet_distance(statistics([pixels(part)]), data) for part in np.split(drawn, 3)]
    [row] = read(tmp_path / "e.json")["rows"]
    distance, precision = row["values"]
    assert distance["value"] == pytest.approx(min(sets))
    assert distance["spread"] == pytest.approx(max(sets) - min(sets))
    assert 0 <= precision["value"] - precision["spread"] <= 1  # the best is the largest of these


def test_stored_samples_are_compared_with_images_or_statistics(images, reference, tmp_path):
    folder, published = tmp_path / "samples", tmp_path / "published.npz"
    folder.mkdir()
    samples = np.random.default_rng(1).integers(0, 256, (30, *SHAPE), np.uint8)
    for number, image in enumerate(samples):
        Image.fromarray(image[..., 0]).save(folder / f"{number:02d}.png")
    flags = [f"--samples={folder}", "--metrics=fid"]
    call(
        "evaluate", *flags, f"--reference={reference}", f"--save_reference={published}", f"--out={tmp_path / 'a.json'}"
    )
    printed = call("evaluate", *flags, f"--reference={published}", f"--out={tmp_path / 'b.json'}")
    assert printed.splitlines()[-1].startswith("Saved the evaluation to ")
    expected = frechet_distance(statistics([pixels(samples)]), statistics([pixels(images)]))
    Image.fromarray(samples[1, ..., 0]).save(folder / "00.png")  # one is changed
    os.utime(folder / "00.png", (1, 1))
    call("evaluate", *flags, f"--reference={reference}", f"--out={tmp_path / 'a.json'}")
    assert read(tmp_path / "a.json")["metrics"]["frechet_pixels"] != pytest.approx(expected, rel=1e-6)
    Image.fromarray(samples[0, ..., 0]).save(folder / "00.png")
    os.utime(folder / "00.png", (2, 2))
    call("evaluate", *flags, f"--reference={reference}", f"--out={tmp_path / 'a.json'}")
    for name in "ab":
        assert read(tmp_path / f"{name}.json")["metrics"] == {
            "frechet_pixels": pytest.approx(expected, rel=1e-6)
        }  # of singular covariances
    assert (tmp_path / "a.md").read_text().splitlines()[-1] == f"| samples |  |  | {format_number(expected)} |  |"
    with np.load(published) as file:
        saved = Statistics(file["mu"], file["sigma"])
    np.testing.assert_allclose(saved.covariance, np.cov(pixels(images), rowvar=False), atol=1e-12)


def test_features_may_be_a_function_of_the_user(images, reference, tmp_path, monkeypatch):
    np.save(tmp_path / "samples.npy", images[:30])
    monkeypatch.syspath_prepend(OWN_PARTS["PYTHONPATH"].split(":")[0])
    own = "helpers.own_parts:brightness_std"
    flags = [f"--features=pixels,{own}", "--metrics=frechet,is", f"--samples={tmp_path / 'samples.npy'}"]
    call("evaluate", *flags, f"--reference={reference}", f"--out={tmp_path / 'e.json'}")
    found = read(tmp_path / "e.json")
    assert list(found["metrics"]) == ["frechet_pixels", f"frechet_{own}", f"is_{own}", f"is_std_{own}"]
    assert found["rows"][0]["values"][2]["value"] >= 1


def test_bad_input_is_refused_in_one_line(checkpoint, images, reference, tmp_path):
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "floats.npz", images=images.astype(np.float32))
    np.savez(tmp_path / "nothing.npz", x=images)
    (tmp_path / "cut.npz").write_bytes(reference.read_bytes()[:1000])
    np.save(tmp_path / "code.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "code.npy").rename(tmp_path / "code.npz")
    np.save(tmp_path / "color.npy", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for number, side in enumerate((8, 9)):
        Image.new("L", (side, side)).save(tmp_path / "mixed" / f"{number}.png")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    of_run, out = f"--checkpoint={checkpoint}", f"--out={tmp_path / 'e.json'}"
    of_samples, against = f"--samples={reference}", f"--reference={reference}"

    def at(name):
        return f"--reference={tmp_path / name}"

    for flags, message in {
        (): "Give either --checkpoint or --samples",
        (of_run, of_samples): "Give either --checkpoint or --samples",
        (of_samples,): "--samples needs a --reference",
        (of_run, "--out=e.txt"): "--out=e.txt must end in .json",
        (of_samples, against, "--metrics=fib"): "Unknown metric 'fib'",
        (
            of_samples,
            against,
            "--metrics=is",
        ): "Metric 'is' needs class logits, which --features=pixels does not have. Use --features=",
        (of_samples, against, "--num_samples=1"): "num_samples",
        (of_samples, against, "--features=pixel"): "Did you mean 'pixels'",
        (of_samples, at("theirs.npz")): "statistics of other features: frechet cannot be computed",
        (of_samples, at("floats.npz")): "images must be uint8 [n, height, width, 1 or 3]; these are float32",
        (of_samples, at("nothing.npz")): "has ['x'], and neither 'images', 'arr_0' nor both",
        (of_samples, at("cut.npz")): "cannot be read as an .npz",
        (of_samples, at("code.npz")): "cannot be read as an .npz",
        (of_samples, at("nowhere")): "There is no",
        (of_samples, at("empty")): "has no images: files that end in .png",
        (of_samples, at("mixed")): "give images of one size",
        (of_samples, at("broken")): "a.png' cannot be read as an image",
        (of_samples, against, "--keep=x"): "--keep needs a --checkpoint",
        (of_run, at("color.npy")): "has color images, but the model makes gray ones",
        (f"--checkpoint={tmp_path}", against): "No checkpoint in",
    }.items():
        error = call("evaluate", out, *flags, fails=True)
        assert message in error and "Traceback" not in error, (flags, error)
    assert not (tmp_path / "e.json").exists()


def test_samples_and_references_may_be_npy_files(checkpoint, images, reference, tmp_path):
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "samples.npy", images[:20])
    of_run = [f"--checkpoint={checkpoint}", "--num_samples=20"]
    for name, against in {"npz": reference, "npy": tmp_path / "images.npy"}.items():
        call("evaluate", *of_run, f"--reference={against}", f"--out={tmp_path / name}.json")
    assert read(tmp_path / "npz.json")["metrics"] == read(tmp_path / "npy.json")["metrics"]
    call(
        "evaluate", f"--samples={tmp_path / 'samples.npy'}", f"--reference={reference}", f"--out={tmp_path / 'e.json'}"
    )
    assert read(tmp_path / "e.json")["about"]["num_samples"] == 20


def test_gray_images_are_compared_with_color_images(checkpoint, images, reference, tmp_path):
    """A gray RGB file may be the reference of a gray model, or samples that are compared with color."""
    np.save(tmp_path / "rgb.npy", images.repeat(3, axis=-1))
    for name, against in {"gray": reference, "rgb": tmp_path / "rgb.npy"}.items():
        flags = [f"--checkpoint={checkpoint}", "--num_samples=20", f"--reference={against}"]
        call("evaluate", *flags, f"--out={tmp_path / name}.json")
    assert read(tmp_path / "gray.json")["metrics"] == read(tmp_path / "rgb.json")["metrics"]
    color = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.save(tmp_path / "color.npy", color)
    for samples, against in (("color.npy", reference), (reference, "color.npy")):
        flags = [f"--samples={tmp_path / samples}", f"--reference={tmp_path / against}"]
        call("evaluate", *flags, f"--out={tmp_path / 'e.json'}")
        expected = frechet_distance(*(statistics([pixels(of)]) for of in (color, images.repeat(3, axis=-1))))
        [value] = read(tmp_path / "e.json")["metrics"].values()
        assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 1)])
def test_devices_and_processes_do_not_change_the_values(checkpoint, reference, images, tmp_path, processes, devices):
    """Samples differ by at most one level, and the same images give the same values."""
    flags = [f"--checkpoint={checkpoint}", f"--reference={reference}", "--metrics=fid,kid,recall,swd"]
    flags += ["--num_samples=24", "--batch_size=16"]
    call("evaluate", *flags, f"--out={tmp_path / 'here.json'}", f"--keep={tmp_path / 'here'}")
    port, there = free_port(), [f"--out={tmp_path / 'there.json'}", f"--keep={tmp_path / 'there'}"]
    together = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    commands = [command("evaluate", *flags, *there, *together, f"--process_id={index}") for index in range(processes)]
    started = start_together(commands, devices=devices, env=OWN_PARTS)
    assert [process.wait(timeout=120) for process in started] == [0] * processes
    here, there = (
        np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / name).glob("*.png"))])
        for name in ("here", "there")
    )
    assert np.abs(here.astype(int) - there).max() <= 1
    given = [f"--samples={tmp_path / 'there'}", f"--reference={reference}", "--metrics=fid,kid,recall,swd"]
    call("evaluate", *given, f"--out={tmp_path / 'again.json'}")
    expected = read(tmp_path / "again.json")["metrics"]
    assert read(tmp_path / "there.json")["metrics"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_a_killed_evaluation_resumes(checkpoint, reference, tmp_path):
    """It keeps the samples that were measured, and gives the same values."""
    flags = [f"--checkpoint={checkpoint}", f"--reference={reference}", "--num_samples=2000", "--batch_size=100"]
    flags += ["--metrics=fid,swd", "--num_steps=8"]
    whole, killed = tmp_path / "whole.json", tmp_path / "killed.json"
    run("evaluate", *flags, f"--out={whole}", devices=2, env=OWN_PARTS)
    process = start("evaluate", *flags, f"--out={killed}", devices=2, env=OWN_PARTS)
    wait_until(lambda: list(tmp_path.glob("killed.json.unfinished/*/0/*.npz")), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not killed.exists()
    there = list(tmp_path.glob("killed.json.unfinished/*/0/*.npz"))
    process = start("evaluate", *flags, f"--out={killed}", devices=2, env=OWN_PARTS)
    wait_until(killed.exists, process)
    assert process.wait() == 0 and len(there) == 1
    assert read(killed)["metrics"] == read(whole)["metrics"]


def test_paths_need_not_be_utf8(reference, images, tmp_path):
    samples = tmp_path / "b\udcff"
    samples.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(samples / f"\udcff{number}.png")
    printed = call("evaluate", f"--samples={samples}", f"--reference={reference}", "--metrics=fid",
                  f"--out={samples}/evaluation.json")  # fmt: skip
    assert "| samples |" in printed
    assert read(samples / "evaluation.json")["about"]["samples"] == str(samples)
