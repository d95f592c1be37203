"""scripts/sample.py."""

import dataclasses
import importlib.util
import os
from unittest import mock

import jax
import numpy as np
import pytest
from absl import flags
from helpers.models import KEY, make_model, save_model
from helpers.runs import OWN_PARTS, ROOT, call, run
from PIL import Image

from diffusion_distillation import from_checkpoint
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import archive
from diffusion_distillation.report import sample_folder
from diffusion_distillation.runtime.files import as_path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a class-conditional 4-step student."""
    folder = tmp_path_factory.mktemp("student")
    save_model(folder, num_steps=4)
    return folder


@pytest.fixture
def sample(checkpoint, monkeypatch, capsys):
    """`sample(flag, ...)` runs the script with the checkpoint and returns what it printed."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(jax.device_count()))  # this process has started JAX already

    def run(*arguments):
        known = set(flags.FLAGS)
        try:
            spec = importlib.util.spec_from_file_location("sample", ROOT / "scripts" / "sample.py")
            script = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            flags.FLAGS(["sample.py", f"--checkpoint={checkpoint}", "--seed=3", *map(str, arguments)])
            with mock.patch.dict(os.environ):  # the script sets XLA_FLAGS
                script.main()
        finally:
            for name in set(flags.FLAGS) - known:
                delattr(flags.FLAGS, name)
        return capsys.readouterr().out

    return run


def read(path):
    with np.load(path) as arrays:
        return arrays["images"]


def test_one_device_gives_the_samples_of_eight(checkpoint, tmp_path):
    out = tmp_path / "samples.npz"
    options = [f"--checkpoint={checkpoint}", "--num_samples=10", "--seed=3", f"--out={out}"]
    printed = run("sample", *options, env=OWN_PARTS)
    assert f"Saved 10 images, 4 steps each, to {out}.\nNext: diffusion_distillation evaluate --checkpoint=" in printed
    np.testing.assert_array_equal(read(out), from_checkpoint(checkpoint).sample(KEY, 10))


def test_arrays_and_trajectories_are_saved(sample, checkpoint, tmp_path):
    out = tmp_path / "new" / "samples.npz"
    steps = tmp_path / "steps.png"
    options = ("--num_samples=3", f"--out={out}", "--labels=2,0", "--eta=0.5", "--noclip")
    printed = sample(*options, f"--trajectory={steps}")
    assert f"Saved the sampling trajectories of 3 images to {steps}.\n" in printed
    assert f"Saved 3 images, 4 steps each, to {out}.\n" in printed
    expected = from_checkpoint(checkpoint).sample(KEY, 3, np.array([2, 0, 2]), eta=0.5, clip=False)
    np.testing.assert_array_equal(read(out), expected)
    assert Image.open(steps).size == (4 * 70 - 6, 3 * 70 - 6)

    sample(*options, "--float")
    assert read(out).dtype == np.float32 and np.abs(read(out)).max() == 1
    np.testing.assert_array_equal(np.round((read(out) + 1) * 127.5), expected)


def test_guidance_acts_in_the_interval_of_the_flag(sample, tmp_path):
    save_model(tmp_path / "guidable", label_dropout=0.1)
    out = tmp_path / "samples.npz"
    options = (f"--checkpoint={tmp_path / 'guidable'}", "--num_samples=3", "--guidance=2", f"--out={out}")
    sample(*options, "--guidance_interval=-1,inf")
    pipeline = from_checkpoint(tmp_path / "guidable")
    expected = pipeline.sample(KEY, 3, guidance=2.0, guidance_interval=(-1.0, np.inf))
    np.testing.assert_array_equal(read(out), expected)
    assert np.any(expected != pipeline.sample(KEY, 3, guidance=2.0))
    for wrong in ("3,-4", "low,high", "3"):
        with pytest.raises(flags.IllegalFlagValueError, match="guidance_interval"):
            sample(*options, f"--guidance_interval={wrong}")


def test_a_png_is_a_grid_of_all_images(sample, tmp_path):
    sample(f"--out={tmp_path / 'grid.png'}", "--sampler=ancestral", "--num_steps=3")
    assert Image.open(tmp_path / "grid.png").size == (8 * 70 - 6, 8 * 70 - 6)


def test_the_next_command_has_the_config_that_was_given(checkpoint, tmp_path):
    config = ("--config=configs/digits_base.py", "--config.model.args.ch=32")
    options = (f"--checkpoint={checkpoint}", *config, f"--out={tmp_path / 'samples.npz'}", "--num_samples=1")
    following = f"Next: diffusion_distillation evaluate --checkpoint={checkpoint} {' '.join(config)} --out="
    assert following in call("sample", *options)


def test_a_folder_gets_only_its_missing_images(sample, checkpoint, tmp_path):
    out = tmp_path / "samples"
    assert f"5 images, 4 steps each, to {out}/.\n" in sample(f"--out={out}/", "--num_samples=5", "--batch_size=2")
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "00003.png").unlink()
    printed = sample(f"--out={out}", "--num_samples=9", "--clip", "--sampler=ddim")  # the config's clip and sampler
    assert f"9 images, 4 steps each, to {out}; 4 of them existed already." in printed
    images = np.stack([np.asarray(Image.open(out / f"{j:05d}.png")) for j in range(9)])[..., None]
    np.testing.assert_array_equal(images, from_checkpoint(checkpoint).sample(KEY, 9))
    after = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {path.name for path in before if after[path] != before[path]} == {"00003.png"}
    assert "9 of them existed already" in sample(f"--out={out}", "--num_samples=9")


def test_a_folder_of_other_settings_is_refused(sample, tmp_path):
    out = tmp_path / "samples"
    sample(f"--out={out}", "--num_samples=1")
    for flag, message in {
        "--seed=4": "seed is 3 in the folder and 4 now",
        "--eta=0.5": "eta is 0.0 in the folder and 0.5 now",
        "--noclip": "clip is True in the folder and False now",
        "--labels=1": r"labels is None in the folder and \['1'\] now",
        "--num_steps=2": "num_steps is 4 in the folder and 2 now",
    }.items():
        with pytest.raises(ValueError, match=f"has samples with other settings: {message}. Use a new folder"):
            sample(f"--out={out}", flag)


def test_a_folder_of_guided_samples_gets_no_others(tmp_path):
    folder = as_path(tmp_path / "guided")
    sample_folder.create(folder, {"seed": 3, "guidance": 2.0, "guidance_interval": [-4.0, 3.0]})
    message = "guidance is 2.0 in the folder and None now; guidance_interval is .* in the folder and None now"
    with pytest.raises(InputError, match=message):
        sample_folder.missing_indices(folder, {"seed": 3}, 2)


def test_labels_are_names_before_they_are_numbers(tmp_path):
    params, metadata = make_model()
    metadata = dataclasses.replace(metadata, class_names=("cats", "dogs", "0"))
    archive.write(as_path(tmp_path / "model"), params, metadata)
    assert archive.read(as_path(tmp_path / "model"))[1].class_names == ("cats", "dogs", "0")

    def sample(labels, name, **kwargs):
        options = [f"--checkpoint={tmp_path / 'model'}", "--num_samples=4", f"--labels={labels}"]
        return call("sample", *options, f"--out={tmp_path / name}", **kwargs)

    sample("dogs,2,cats,0", "names.npz")
    sample("1,2,cats,2", "numbers.npz")
    np.testing.assert_array_equal(read(tmp_path / "names.npz"), read(tmp_path / "numbers.npz"))
    sample("dogs", "folder/")
    assert "4 of them existed already" in sample("1", "folder/")
    error = sample("cats,dog", "wrong.npz", fails=True)
    message = "--labels=cats,dog must be class numbers, such as --labels=3,7, or class names. Did you mean 'dogs'?"
    assert message in error


def test_bad_flags_are_refused_before_anything_is_written(sample, tmp_path):
    new, array = f"--out={tmp_path / 'new'}", f"--out={tmp_path / 'new.npz'}"
    for arguments, message in {
        (f"--out={tmp_path / 'new.jpg'}",): r"new.jpg must end in .png or .npz, or in / for a folder",
        (new, "--float"): "--float needs an --out that ends in .npz: --out=.*new holds PNG images",
        (f"--out={tmp_path / 'new.png'}", "--float"): "--float needs an --out that ends in .npz",
        (new, "--sampler=ancestral", "--eta=0.5"): "The sampler 'ancestral' does not take eta=0.5",
        (array, "--labels=2,x"): "--labels=2,x must be class numbers",
        (array, "--labels="): "--labels= must be class numbers",
        (new, "--labels=3"): "labels must be classes from 0 to 2; got .3, 3",
    }.items():
        with pytest.raises(ValueError, match=message):
            sample(*arguments)
    with pytest.raises(flags.IllegalFlagValueError, match="eta=2"):
        sample(new, "--eta=2")
    assert not list(tmp_path.iterdir())
