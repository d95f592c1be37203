"""Models by their paths: published checkpoints, archives, URLs, and files that are none of these."""

import hashlib
import http.server
import json
import threading
from typing import ClassVar

import flax.serialization
import fsspec
import jax
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.models import KEY, make_model, save_model
from helpers.runs import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from diffusion_distillation import config as cfg
from diffusion_distillation import from_checkpoint, interop
from diffusion_distillation.checkpoints import store
from diffusion_distillation.checkpoints.integrity import seal
from diffusion_distillation.errors import InputError
from diffusion_distillation.interop import archive, diffusers, download
from diffusion_distillation.pipeline import Pipeline
from diffusion_distillation.runtime.files import as_path
from diffusion_distillation.training.runs import read_config
from diffusion_distillation.trust import check_foreign, trust

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(folder))
    return folder


def test_a_run_in_the_middle_of_its_training_is_loaded_with_a_warning(tmp_path, caplog):
    save_model(tmp_path / "run")
    from_checkpoint(tmp_path / "run")
    assert f"{tmp_path / 'run'} is not finished: it has done 7 of 800,000 updates." in caplog.text


def test_models_that_no_training_continues_are_loaded_without_a_warning(tmp_path, caplog):
    """A finished model, a published one, whose config does not know its updates, and a run's best one."""
    from_checkpoint("digits")
    from_checkpoint(GOLDEN / "unet_uncond.msgpack", config=golden_config())
    save_model(tmp_path / "run" / "best")
    from_checkpoint(tmp_path / "run" / "best")
    assert not caplog.records


def golden_config(mean_type="x"):
    config = cfg.defaults()
    config.dataset.name = "ImageFolder"
    config.dataset.args = ConfigDict(dict(path="unread", image_size=16))
    config.model.args.update(json.loads((GOLDEN / "unet_uncond.json").read_text())["model_args"])
    config.model.mean_type = mean_type
    config.train.update(batch_size=8, learning_rate=1e-3)
    return config


@pytest.mark.parametrize(("mean_type", "clip"), [("x", True), ("v", False), ("eps", True)])
def test_a_published_checkpoint_generates_the_golden_samples(golden, mean_type, clip, optimized):
    expected = golden("sampling_uncond")
    pipeline = from_checkpoint(GOLDEN / "unet_uncond.msgpack", config=golden_config(mean_type))
    assert (pipeline.image_shape, pipeline.num_classes, pipeline.num_steps) == ((16, 16, 3), 1, 1024)
    names = [name for name in expected.files if name.startswith(f"ddim_{mean_type}_")]
    names = [name for name in names if name.endswith("_clip" if clip else "_noclip")]
    assert names
    for name in names:
        drawn = pipeline.from_noise(expected["init_z"], num_steps=int(name.split("_")[2]), clip=clip)
        np.testing.assert_allclose(drawn, expected[name], atol=1e-4, rtol=1e-4)


def written(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def small(tmp_path, params=None, num_steps=4):
    """Write a published checkpoint of a small network. Returns its path, its config and its parameters."""
    params, metadata = (params, None) if params is not None else make_model(num_classes=1, unet=True)
    tree = {"ema_params": params, "num_sample_steps": np.int32(num_steps), "step": np.int32(7), "optimizer": {}}
    return written(tmp_path / "checkpoint", tree), metadata and metadata.config, params


def test_a_published_checkpoint_is_read_with_its_number_of_steps(tmp_path):
    path, config, params = small(tmp_path)
    loaded, metadata = interop.load(path, config)
    jax.tree.map(np.testing.assert_array_equal, loaded, jax.tree.map(np.asarray, params))
    assert (metadata.step, metadata.num_steps, metadata.config.model.eval_sampling_num_steps) == (7, 0, 4)


def test_attention_without_heads_is_reshaped(tmp_path):
    """In older files, the kernels of q, k, v and proj_out are [channels, channels]."""
    params = flax.serialization.msgpack_restore((GOLDEN / "unet_uncond.msgpack").read_bytes())["ema_params"]
    flat = flatten_dict(params)
    older = {
        path: array.reshape(-1, np.shape(array)[-1]) if path[-2:] == ("proj_out", "kernel")
        else array.reshape(len(array), -1) if path[-2] in "qkv" and path[-1] == "kernel"
        else array.ravel() if path[-2] in "qkv" else array
        for path, array in flat.items()
    }  # fmt: skip
    assert sum(older[path].shape != flat[path].shape for path in flat) >= 7
    path = small(tmp_path, unflatten_dict(older))[0]
    loaded, _ = interop.load(path, golden_config())
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_parameters_that_do_not_fit_are_named(tmp_path):
    path, config, params = small(tmp_path)
    with pytest.raises(InputError, match=r"which does not describe its network\. Pass its config"):
        interop.load(path)
    flat = flatten_dict(params)
    del flat["conv_in", "bias"], flat["norm_out", "scale"]
    flat["conv_in", "offset"], flat["dense0", "bias"] = np.zeros(3), np.zeros(5, np.float32)
    other = small(tmp_path, unflatten_dict(flat))[0]
    with pytest.raises(InputError) as error:
        interop.load(other, config)
    for part in (
        "missing: conv_in/bias, norm_out/scale;",
        "unexpected: conv_in/offset;",
        "dense0/bias is [5] in the file",
    ):
        assert part in str(error.value)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.dataset.name = "TFDS"
    with pytest.raises(InputError, match="does not determine the size of the images"):
        interop.load(path, config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a msgpack file of flax"),
        (b"\x93NUMPY", "cannot be read as a msgpack file of flax"),
        (msgpack.packb([1, 2]), "has no 'ema_params', as published checkpoints have; it has list"),
        (msgpack.packb({"a": 1}), r"it has \['a'\]"),
        (
            msgpack.packb({"ema_params": {}, "num_sample_steps": "x"}),
            "num_sample_steps='x'; it must be a positive integer",
        ),
        (msgpack.packb({"ema_params": {}, "num_sample_steps": 4}), "no conv_in/kernel with 4 dimensions"),
        (b"\xdd\xff\xff\xff\xff" * 5, "cannot be read as a msgpack file of flax"),  # lists of four billion lists
        (b"\x91" * 100_000, "cannot be read as a msgpack file of flax"),
        (b"\xc7\x05\x01\x93\x93\xa1O\xc0", "cannot be read as a msgpack file of flax"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=message):
        interop.load(tmp_path / "file", golden_config())


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0), ("float16", 1e-3)])
def test_an_archive_is_read_back(tmp_path, dtype, atol):
    params, metadata = make_model(num_steps=4, unet=True)
    archive.write(as_path(tmp_path / "a"), params, metadata, dtype)
    loaded, read = interop.load(tmp_path / "a")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), loaded, params)
    assert read == metadata and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
    images = from_checkpoint(tmp_path / "a").sample(KEY, 5)
    assert np.abs(images.astype(int) - Pipeline(params, metadata).sample(KEY, 5)).max() <= (1 if atol else 0)


@pytest.fixture(scope="module")
def archived(tmp_path_factory):
    folder = as_path(tmp_path_factory.mktemp("archive"))
    archive.write(folder, *make_model(num_classes=1, unet=True))
    return folder


OVERLAPPING = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}).encode()
NOT_SAFETENSORS = "cannot be read as a safetensors file"


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (archive.WEIGHTS, lambda content: content[:-100], NOT_SAFETENSORS),
        (archive.WEIGHTS, lambda content: (2**60).to_bytes(8, "little") + content[8:], NOT_SAFETENSORS),
        (
            archive.WEIGHTS,
            lambda _: len(OVERLAPPING).to_bytes(8, "little") + OVERLAPPING + bytes(16),
            NOT_SAFETENSORS,
        ),
        (archive.WEIGHTS, lambda _: b"\x80\x04cos\nsystem\n(S'touch x'\ntR.", NOT_SAFETENSORS),
        (archive.WEIGHTS, lambda _: safetensors.numpy.save({"a": np.zeros(2, np.float32)}), "unexpected: a"),
        (archive.WEIGHTS, None, r"There is no .*model\.safetensors"),
        (archive.CONFIG, lambda _: json.dumps({"format": archive.FORMAT}).encode(), "was not written by this package"),
        (archive.CONFIG, lambda _: b" " * 2**21, "a JSON file may have at most 1,048,576"),
        (archive.CONFIG, lambda _: b'{"a":' * 100_000, "cannot be read as JSON"),
        (archive.CONFIG, lambda _: b"{", "cannot be read as JSON"),
    ],
)
def test_a_damaged_archive_is_refused(file, damage, message, archived, tmp_path):
    for name in (archive.WEIGHTS, archive.CONFIG):
        content = (archived / name).read_bytes()
        if name != file:
            (tmp_path / name).write_bytes(content)
        elif damage is not None:
            (tmp_path / name).write_bytes(damage(content))
    with pytest.raises(InputError, match=message):
        interop.load(tmp_path)


@pytest.fixture(scope="module")
def originals(archived, tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    tree = {"ema_params": {"conv_in": {"kernel": rng.normal(size=(3, 3, 1, 2)).astype(np.float32)}}}
    tree |= {"num_sample_steps": 4, "step": 1}
    return {
        "msgpack": written(folder / "m", tree).read_bytes(),
        "safetensors": safetensors.numpy.save({"a/b": np.zeros((2, 3), np.float32), "c": np.zeros(1, np.float16)}),
        "json": (archived / archive.CONFIG).read_bytes(),
    }


@settings(max_examples=1000)
@given(data=st.data(), kind=st.sampled_from(["msgpack", "safetensors", "json"]))
def test_a_mutated_file_loads_or_is_an_input_error_of_one_line(originals, archived, tmp_path_factory, data, kind):
    """Change, remove and insert bytes."""
    content = bytearray(originals[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        new = data.draw(st.binary(max_size=4))
        content[at : at + data.draw(st.integers(0, 8))] = new
    folder = tmp_path_factory.mktemp("mutated")
    if kind == "msgpack":
        path = folder / "file"
        path.write_bytes(content)
    else:
        path = folder
        files = {archive.CONFIG: originals["json"], archive.WEIGHTS: originals["safetensors"]}
        files[archive.CONFIG if kind == "json" else archive.WEIGHTS] = bytes(content)
        for name, there in files.items():
            (folder / name).write_bytes(there)
    try:
        interop.load(path, golden_config())
    except InputError as error:
        assert "\n" not in str(error)


class Server(http.server.BaseHTTPRequestHandler):
    """Serve the files of a dict, whole or in parts, and fail after `broken_after` requests for parts."""

    files: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []
    broken_after = 10**9
    tells_versions = True

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        if body:
            self.requests.append(asked)
        if len([part for part in self.requests if part]) > self.broken_after:
            self.send_error(500)
            return
        start, end = 0, len(content)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, end) if last else end
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.tells_versions:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    path, config, _ = small(tmp_path)
    Server.files, Server.requests, Server.broken_after = {"/checkpoint": path.read_bytes()}, [], 10**9
    with http.server.ThreadingHTTPServer(("localhost", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/checkpoint", config, path
        server.shutdown()


def test_a_url_is_downloaded_once(server):
    url, config, path = server
    expected = interop.load(path, config)[0]
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, interop.load(url, config)[0], expected)
    assert len(Server.requests) == 1
    with pytest.raises(InputError, match="there is nothing at this URL"):
        interop.load(url + "s", config)


def test_an_interrupted_download_resumes(server, monkeypatch, cache):
    url, config, path = server
    monkeypatch.setattr(download, "CHUNK", 100_000)
    Server.broken_after = 2
    with pytest.raises(InputError, match=r"cannot be downloaded: .* Try again\."):
        interop.load(url, config)
    [part] = cache.rglob("*.part")
    assert part.stat().st_size == 200_000 and not list(cache.rglob("checkpoint"))
    Server.broken_after, Server.requests[:] = 10**9, []
    interop.load(url, config)
    assert Server.requests[0] == "bytes=200000-299999" and not list(cache.rglob("*.part"))
    [copy] = cache.rglob("checkpoint")
    assert copy.read_bytes() == path.read_bytes()


def test_only_files_inside_a_folder_are_downloaded(archived, monkeypatch, cache):
    monkeypatch.setitem(download.SCHEMES, "memory", "fsspec")
    files = fsspec.filesystem("memory")
    for name in (archive.WEIGHTS, archive.CONFIG):
        files.pipe(f"/there/{name}", (archived / name).read_bytes())
    files.pipe("/there/run.py", b"raise SystemExit")
    assert interop.load("memory://there")[1].image_shape == (8, 8, 1)
    assert not list(cache.rglob("run.py"))
    away = {"/elsewhere/../../../away.json": {"size": 2}}
    monkeypatch.setattr(type(files), "find", lambda *_, **__: away)
    files.pipe("/elsewhere/config.json", b"{}")
    with pytest.raises(InputError, match="leads out of the folder"):
        interop.load("memory://elsewhere")


def test_a_model_without_safetensors_is_downloaded_with_its_bin_files(monkeypatch, cache):
    """As older repositories of diffusers have them."""
    monkeypatch.setitem(download.SCHEMES, "memory", "fsspec")
    files = fsspec.filesystem("memory")
    weights = "diffusion_pytorch_model"
    for name in ("model_index.json", f"vae/{weights}.safetensors", f"vae/{weights}.bin", f"transformer/{weights}.bin"):
        files.pipe(f"/old/{name}", b"{}")
    files.pipe("/old/transformer/optimizer.bin", b"")
    copy = download.local_copy("memory://old")
    names = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    assert names == {"model_index.json", f"vae/{weights}.safetensors", f"transformer/{weights}.bin"}


def test_of_a_pipeline_only_what_is_read_is_downloaded(monkeypatch, cache):
    """Not the text encoder, other variants of the weights, weights for other libraries or of the whole pipeline."""
    monkeypatch.setitem(download.SCHEMES, "memory", "fsspec")
    files = fsspec.filesystem("memory")
    weights = "diffusion_pytorch_model"
    wanted = {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        *(f"unet/{weights}{part}" for part in ("-00001-of-00002.safetensors", "-00002-of-00002.safetensors")),
        f"unet/{weights}.safetensors.index.json",
        "vae/config.json",
        f"vae/{weights}.safetensors",
    }
    unwanted = {
        "v1-5-pruned.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "unet/diffusion_flax_model.msgpack",
        f"unet/{weights}.fp16.safetensors",
        f"unet/{weights}.safetensors.index.fp16.json",
        f"vae/{weights}.bin",
        f"vae/{weights}.fp16.safetensors",
    }
    for name in wanted | unwanted:
        files.pipe(f"/pipeline/{name}", b"{}")
    copy = download.local_copy("memory://pipeline")
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == wanted


def test_an_unknown_name_is_an_error_with_the_nearest_one():
    with pytest.raises(InputError, match=r"There is no model 'digts' here\. Did you mean 'digits'\?"):
        from_checkpoint("digts")


def test_a_scheme_without_its_library_names_the_library(monkeypatch):
    with pytest.raises(InputError, match=r"s3:// URLs need s3fs\. Run: pip install s3fs"):
        interop.load("s3://bucket/model")


@pytest.mark.parametrize(("tells_versions", "changes"), [(True, True), (False, True), (False, False)])
def test_a_download_does_not_mix_two_versions(server, monkeypatch, cache, tells_versions, changes):
    url, config, path = server
    monkeypatch.setattr(download, "CHUNK", 100_000)
    monkeypatch.setattr(Server, "tells_versions", tells_versions)
    Server.broken_after = 2
    with pytest.raises(InputError, match="cannot be downloaded"):
        interop.load(url, config)
    Server.broken_after, Server.requests[:] = 10**9, []
    if changes:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        tree["ema_params"] = jax.tree.map(lambda leaf: leaf + 1, tree["ema_params"])
        Server.files["/checkpoint"] = flax.serialization.msgpack_serialize(tree)
    interop.load(url, config)
    assert Server.requests[0] == "bytes=0-99999"
    assert [copy.read_bytes() for copy in cache.rglob("checkpoint")] == [Server.files["/checkpoint"]]


def test_a_file_that_changes_during_its_download_is_refused(server, monkeypatch, cache):
    url, config, _ = server

    def change_and_answer(self):
        if self.requests:  # the file was copied
            Server.files["/checkpoint"] += b"more"
        self.answer(body=False)

    monkeypatch.setattr(Server, "do_HEAD", change_and_answer)
    with pytest.raises(InputError, match=r"it changed during the download\. Try again"):
        interop.load(url, config)
    assert not list(cache.rglob("checkpoint"))


def test_files_of_a_folder_are_of_one_version(archived, monkeypatch, cache):
    monkeypatch.setitem(download.SCHEMES, "memory", "fsspec")
    files, weights = fsspec.filesystem("memory"), (archived / archive.WEIGHTS).read_bytes()
    files.pipe(f"/changing/{archive.CONFIG}", b"{}")
    files.pipe(f"/changing/{archive.WEIGHTS}", weights)
    cat_file = type(files).cat_file

    def break_off(self, name, *args):
        if name.endswith(archive.WEIGHTS):
            raise OSError("broken off")
        return cat_file(self, name, *args)

    with monkeypatch.context() as broken, pytest.raises(InputError, match="broken off"):
        broken.setattr(type(files), "cat_file", break_off)
        interop.load("memory://changing")
    assert [path.read_text() for path in cache.rglob(archive.CONFIG)] == ["{}"]
    files.pipe(f"/changing/{archive.CONFIG}", (archived / archive.CONFIG).read_bytes())
    assert interop.load("memory://changing")[1].image_shape == (8, 8, 1)


FIELDS_THAT_NAME_CODE = {
    "model.name": "evil_{}:run",
    "distillation.method": "evil_{}:run",
    "dataset.name": "evil_{}:run",
    "eval.features": ["pixels", "evil_{}:run"],
    "dataset.args.name": "evil_{}:run",
}


def with_code(values, field, name):
    """A config as JSON, with code named in a field."""
    *sections, last = field.split(".")
    section = values
    for part in sections:
        section = section.setdefault(part, {})
    section[last] = json.loads(json.dumps(FIELDS_THAT_NAME_CODE[field]).replace("{}", name))
    return values


@pytest.mark.parametrize("field", FIELDS_THAT_NAME_CODE)
@pytest.mark.parametrize("kind", ["archive", "diffusers", "run", "ladder", "config"])
def test_code_in_what_others_may_have_written_is_refused(field, kind, archived, cache, bucket, monkeypatch):
    imported = []
    monkeypatch.setattr("importlib.import_module", imported.append)
    values = json.loads((archived / archive.CONFIG).read_text())
    with_code(values["config"], field, f"{kind}_{field.replace('.', '_')}")
    folder = cache / "downloads" / "0123" / kind
    if kind in ("run", "ladder"):
        url, folder = "gs://bucket/run", bucket / "run"
    (folder / "checkpoints" / "3" / "metadata").mkdir(parents=True)
    if kind == "archive":
        files = {archive.CONFIG: values, archive.WEIGHTS: {}}
    elif kind == "diffusers":
        files = {diffusers.PIPELINE: {}, f"unet/{diffusers.UNET}": {}, diffusers.METADATA: values}
        (folder / "unet").mkdir()
        (folder / "unet" / diffusers.WEIGHTS).write_bytes((archived / archive.WEIGHTS).read_bytes())
    elif kind in ("ladder", "config"):
        files = {"config.json": values["config"]}
    else:
        sealed = seal(values | {"fingerprints": {}, "format_version": 1})
        files = {"checkpoints/3/metadata/metadata": sealed}
        monkeypatch.setattr(store, "finished_steps", lambda run: [3])
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    act = {"run": lambda: interop.load(url), "ladder": lambda: read_config(as_path(url))}
    act["config"] = lambda: cfg.load(folder / "config.json")
    with pytest.raises(InputError, match=r"names code to run, 'evil_.* others may have written this file"):
        act.get(kind, lambda: interop.load(folder))()
    assert not imported


def test_code_that_the_user_names_too_is_not_refused(archived, cache):
    """For example, a user's network in the user's bucket."""
    values = {"name": "own_code_of_this_test:net", "logvar_type": "fixed_medium:0.5"}
    with pytest.raises(InputError, match="'own_code_of_this_test:net', and others"):
        check_foreign(values, as_path("gs://bucket/config.json"))
    trust({"model": {"name": "own_code_of_this_test:net"}})
    check_foreign(values, as_path("gs://bucket/config.json"))
