import hashlib
import os

import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers.diffusers_peer import needs_peer, peer
from helpers.runs import call
from helpers.torch_format import Call, saved_by_torch
from peers import seeded

from diffusion_distillation.errors import InputError
from diffusion_distillation.evaluation import inception
from diffusion_distillation.evaluation.inception import load_inception


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "seeded.safetensors"
    path.write_bytes(safetensors.numpy.save(seeded.weights(inception.weight_shapes())))
    return path


@pytest.fixture(scope="module")
def extract(weights_file):
    return load_inception(weights_file, batch_size=8)


def relative_error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def assert_right(found, name, expected):
    """Compare outputs. Float32 sums in another order differ by 1e-6 to 6e-6."""
    for part in ("features", "logits"):
        assert relative_error(getattr(found, part), expected[f"{name}_{part}"]) < 2e-5, (name, part)


def test_features_and_logits_equal_torch_fidelitys(extract, golden):
    expected = golden("inception")
    images = {kind: seeded.images(kind, 2, 32, 32) for kind in ("noise", "smooth", "grey")}
    images["natural"] = expected["natural"]
    for name, batch in images.items():
        assert_right(extract(batch), name, expected)


def test_features_of_images_that_are_not_square_equal_torch_fidelitys(extract, golden):
    assert_right(extract(seeded.images("smooth", 2, 150, 400)), "wide", golden("inception"))


def test_any_number_of_images_gives_the_same_features(extract):
    images = seeded.images("noise", 11, 32, 32)
    features, logits = extract(images)
    assert features.shape == (11, 2048) and logits.shape == (11, 1008)
    some = extract(images[7:10])
    np.testing.assert_allclose(some.features, features[7:10], rtol=1e-5, atol=1e-5)
    assert extract(images[:0]).features.shape == (0, 2048)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 8, 8, 4), "uint8"), ((2, 8, 8, 2), "uint8"), ((2, 0, 8, 3), "uint8"), ((2, 8, 8, 3), "float32")],
)
def test_other_types_and_shapes_are_refused(extract, shape, dtype):
    with pytest.raises(InputError, match=rf"with 1 channel for gray ones; got {dtype} \[{shape[1]}, 8, {shape[3]}\]"):
        extract(np.zeros(shape, dtype))


def test_a_batch_size_below_1_is_refused(weights_file):
    with pytest.raises(InputError, match="batch_size=0 must be at least 1"):
        load_inception(weights_file, batch_size=0)


def resized(images):
    """The definition in float64: linear interpolation at y * height / 299."""
    images = images.astype(np.float64)
    for axis in (1, 2):
        size = images.shape[axis]
        rows = []
        for i in range(299):
            source = i * size / 299
            low = int(source)
            a, b = (images.take(j, axis=axis) for j in (low, min(low + 1, size - 1)))
            rows.append(a + (b - a) * (source - low))
        images = np.stack(rows, axis=axis)
    return images


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (32, 20), (299, 299), (333, 512)])
def test_resizing_follows_tensorflow_1(size):
    images = seeded.images("noise", 1, *size)
    found = jax.jit(inception.resize)(images)
    np.testing.assert_allclose(found, resized(images), atol=0.02 if max(size) > 299 else 0.005)


def test_weights_are_named_as_in_the_published_file():
    shapes = inception.weight_shapes()
    assert len(shapes) == 94 * 5 + 2
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_6b.branch7x7dbl_2.conv.weight"] == (128, 128, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3a.bn.running_var"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048) and shapes["fc.bias"] == (1008,)


# Small weights of three modules, for tests of files.
SHAPES = {"fc.weight": (2, 3), "fc.bias": (2,), "a.conv.weight": (2, 3, 1, 1)}
SHAPES |= {f"a.bn.{part}": (2,) for part in ("weight", "bias", "running_mean", "running_var")}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(inception, "weight_shapes", lambda: SHAPES)
    return seeded.weights(SHAPES)


def test_weights_are_found_by_variable_and_in_the_cache_folder(small, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path))
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    with pytest.raises(
        InputError, match=r"95,628,359 bytes.* diffusion_distillation convert_inception --weights=\S+\.pth$"
    ) as error:
        load_inception()
    assert inception.PUBLISHED_SHA256 in str(error.value) and "--out" not in str(error.value)
    (tmp_path / "inception-2015-12-05.safetensors").write_bytes(safetensors.numpy.save(small))
    identity = load_inception().identity
    assert identity == inception.identity_of(dict(reversed(small.items())))
    monkeypatch.setenv(inception.VARIABLE, str(tmp_path / "other"))
    with pytest.raises(InputError, match=r"--out=\S*other$"):
        load_inception()
    (tmp_path / "other").write_bytes(safetensors.numpy.save({**small, "fc.bias": small["fc.bias"] + 1}))
    assert load_inception().identity != identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fc.bias": None}, "'fc.bias' is missing"),
        ({"fc.bais": np.zeros(2, np.float32)}, "'fc.bais' is not one of Inception's weights. Did you mean 'fc.bias'"),
        ({"fc.bias": np.zeros(3, np.float32)}, r"'fc.bias' is float32 \[3\]; Inception's is float32 \[2\]"),
        ({"fc.bias": np.zeros(2, np.int64)}, r"'fc.bias' is int64 \[2\]"),
        ({"fc.bias": np.array([0, np.nan], np.float32)}, "'fc.bias' has values that are not finite"),
    ],
)
def test_wrong_weights_are_named(small, tmp_path, change, message):
    weights = {name: array for name, array in {**small, **change}.items() if array is not None}
    (tmp_path / "w").write_bytes(safetensors.numpy.save(weights))
    with pytest.raises(InputError, match=message):
        load_inception(tmp_path / "w")
    (tmp_path / "w.pth").write_bytes(saved_by_torch(weights))
    assert_refused(tmp_path / "w.pth", tmp_path / "out", message.replace("\\", ""))


def test_other_files_than_safetensors_are_refused(tmp_path):
    (tmp_path / "w").write_bytes(b"PK and so on")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_inception(tmp_path / "w")


def convert(path, out, **kwargs):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return call("convert_inception", f"--weights={path}", f"--out={out}", f"--sha256={digest}", **kwargs)


def assert_refused(path, out, message):
    error = convert(path, out, fails=True)
    assert message in error and error.startswith(f"error: {path}") and error.count("\n") == 1, error
    assert not out.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_converted_weights_equal_the_published_ones(small, tmp_path, legacy):
    counted = {**small, "a.bn.num_batches_tracked": np.zeros((), np.int64)}
    (tmp_path / "w.pth").write_bytes(saved_by_torch(counted, legacy))
    printed = convert(tmp_path / "w.pth", tmp_path / "new" / "w.safetensors")
    assert inception.identity_of(small) in printed
    found = safetensors.numpy.load_file(tmp_path / "new" / "w.safetensors")
    assert found.keys() == small.keys()
    for name, array in small.items():
        np.testing.assert_array_equal(found[name], array)
    assert load_inception(tmp_path / "new" / "w.safetensors").identity == inception.identity_of(small)


def test_conversion_refuses_other_files(tmp_path):
    path = tmp_path / "w.pth"
    flags = [f"--weights={path}", f"--out={tmp_path / 'out'}"]
    assert "w.pth does not exist. Download it from https://" in call("convert_inception", *flags, fails=True)
    path.write_bytes(b"Not Found")
    assert "has 9 bytes instead of 95,628,359" in call("convert_inception", *flags, fails=True)
    error = call("convert_inception", *flags, "--sha256=00", fails=True)
    assert f"has SHA-256 {hashlib.sha256(b'Not Found').hexdigest()} instead of 00. Check --sha256" in error
    assert_refused(path, tmp_path / "out", "cannot be read as a file of torch.save")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(small, tmp_path, legacy):
    trap = Call(os.system, f"touch {tmp_path / 'trap'}")
    (tmp_path / "w.pth").write_bytes(saved_by_torch(small, legacy, trap=trap))
    message = f"asks for {os.system.__module__}.system, which is not part of"
    assert_refused(tmp_path / "w.pth", tmp_path / "out", message)
    assert not (tmp_path / "trap").exists()


@pytest.mark.slow
@needs_peer
def test_random_weights_give_torch_fidelitys_features(tmp_path, optimized):
    """Weights in both of PyTorch's formats, and images of all sizes."""
    images = {
        f"{kind}_{side}": seeded.images(kind, 2, side, side) for kind in ("noise", "grey") for side in (8, 64, 512)
    }
    np.savez(tmp_path / "images.npz", **images)
    peer("network", f"--images={tmp_path / 'images.npz'}", f"--out={tmp_path / 'out.npz'}", script="fidelity")
    for legacy in (["--legacy"], []):
        peer("weights", f"--out={tmp_path / 'w.pth'}", *legacy, script="fidelity")
        convert(tmp_path / "w.pth", tmp_path / f"w{len(legacy)}")
    assert (tmp_path / "w0").read_bytes() == (tmp_path / "w1").read_bytes()
    expected, extract = np.load(tmp_path / "out.npz"), load_inception(tmp_path / "w0", batch_size=8)
    assert extract.identity == inception.identity_of(seeded.weights(inception.weight_shapes()))
    for name, batch in images.items():
        assert_right(extract(batch), name, expected)
