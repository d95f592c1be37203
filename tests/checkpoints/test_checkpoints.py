import dataclasses
import errno
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers.models import assert_same, at_step, make_run
from helpers.runs import wait_until
from ml_collections import ConfigDict

from diffusion_distillation import config as cfg
from diffusion_distillation.checkpoints import (
    FORMAT_VERSION,
    Checkpoints,
    Metadata,
    load,
    restore_from,
    store,
)
from diffusion_distillation.checkpoints.integrity import fingerprints, seal, unseal
from diffusion_distillation.data import ArraySource, load_source
from diffusion_distillation.errors import InputError, RunError
from diffusion_distillation.methods import make_method
from diffusion_distillation.training.loop import train
from diffusion_distillation.training.step import init_state

SHAPE = (8, 8, 1)
ORIGIN = epath.Path("metadata")  # a local file


@pytest.mark.parametrize(("train", "averages"), [(dict(ema_decay=0.9), True), (dict(ema_decay=0.0), False)])
def test_a_saved_state_is_restored(tmp_path, train, averages):
    metadata, params = make_run(**train)
    state = init_state(metadata.config, make_method(metadata.config), params)._replace(step=jnp.asarray(7, jnp.int32))
    if averages:
        state = state._replace(ema_params=jax.tree.map(lambda leaf: leaf + 1, params))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(state, metadata)
        checkpoints.save(state, metadata)  # a second time does nothing
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        assert_same(checkpoints.restore(abstract(state)), state)
    loaded, of_loaded = load(tmp_path)
    assert_same(loaded, state.sampling_params)
    assert (of_loaded.step, of_loaded.num_steps, of_loaded.image_shape) == (7, 4, SHAPE)
    assert of_loaded.config.to_json() == metadata.config.to_json()


def test_the_last_two_checkpoints_and_the_multiples_of_keep_every_are_kept(tmp_path):
    metadata, params = make_run()
    state = init_state(metadata.config, make_method(metadata.config), params)
    with Checkpoints(tmp_path, keep_every=4) as checkpoints:
        for step in range(2, 15, 2):
            checkpoints.save(state._replace(step=jnp.asarray(step, jnp.int32)), metadata)
    kept = sorted(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 8, 12, 14]


def abstract(state):
    """The shapes, dtypes and shardings of a state, as the training loop passes them."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), state)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A run's folder with checkpoints of steps 3 and 6, and their states."""
    folder = tmp_path_factory.mktemp("run")
    metadata, params = make_run(ema_decay=0.9)
    states = [at_step(init_state(metadata.config, make_method(metadata.config), params), step) for step in (3, 6)]
    with Checkpoints(folder) as checkpoints:
        for state in states:
            checkpoints.save(state, metadata)
    return folder, states


def is_needed(folder, file):
    """Whether a file is metadata, a table of orbax, or holds arrays, and not a marker or merged into a table."""
    state = Path("checkpoints", "6", "state")
    tables = (state / "_METADATA", state / "manifest.ocdbt", state.with_name("metadata") / "metadata")
    return file in tables or file.parent == state / "d" or (folder / file).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, Path.unlink])
def test_a_damaged_checkpoint_is_restored_or_replaced_by_the_one_before(tmp_path, two_checkpoints, damage, caplog):
    """Damage each file of the newest checkpoint in turn."""
    folder, (older, newer) = two_checkpoints
    files = [path.relative_to(folder) for path in (folder / "checkpoints" / "6").rglob("*") if path.is_file()]
    fell_back = set()
    for number, file in enumerate(files):
        run = tmp_path / str(number)
        shutil.copytree(folder, run)
        damage(run / file)
        caplog.clear()
        params, metadata = load(run)
        with Checkpoints(run) as checkpoints:
            state = checkpoints.restore(abstract(newer))
        expected = newer if state.step == 6 else older
        assert_same(state, expected)
        assert metadata.step >= state.step  # parameters alone need fewer files
        assert_same(params, (newer if metadata.step == 6 else older).sampling_params)
        if state.step == 3:
            fell_back.add(file)
            assert "6 is damaged" in caplog.text and "Using step 3 instead" in caplog.text
            assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["3"]
            assert len(list((run / "broken_checkpoints").iterdir())) == 1

        alone = tmp_path / f"{number} alone"
        shutil.copytree(folder, alone)
        shutil.rmtree(alone / "checkpoints" / "3")
        damage(alone / file)
        before = sorted(path.relative_to(alone) for path in alone.rglob("*"))
        reads = {load: metadata.step, lambda run: Checkpoints(run).restore(abstract(newer)): state.step}
        for read, step in reads.items():
            if step == 6:
                read(alone)
            else:
                with pytest.raises(ValueError, match=r"are damaged .*Nothing was changed"):
                    read(alone)
        assert sorted(path.relative_to(alone) for path in alone.rglob("*")) == before
    assert fell_back >= {file for file in files if is_needed(folder, file)}


def test_unfinished_checkpoints_are_removed(tmp_path, two_checkpoints, caplog):
    folder, (_, newer) = two_checkpoints
    shutil.copytree(folder, tmp_path / "run")
    unfinished = tmp_path / "run" / "checkpoints" / "9.orbax-checkpoint-tmp-12"
    shutil.copytree(folder / "checkpoints" / "3", unfinished)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert_same(checkpoints.restore(abstract(newer)), newer)
    assert f"Removing the unfinished checkpoint {unfinished}." in caplog.text
    assert not unfinished.exists()


def test_a_run_without_a_finished_checkpoint_cannot_be_loaded(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"No finished checkpoint in .* yet\. Let the run continue"):
        load(tmp_path)


def test_a_checkpoint_without_metadata_is_damaged(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints[0], tmp_path / "run")
    for step in ("3", "6"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "metadata")
    with pytest.raises(InputError, match=r"All checkpoints in .* are damaged"):
        load(tmp_path / "run")


def test_a_run_of_format_1_loads_and_resumes(tmp_path, capsys):
    """`golden/README.md` says how the run was made."""
    with tarfile.open(Path(__file__).parents[1] / "golden" / "run_of_format_1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "run"
    params, metadata = load(run)
    assert (metadata.step, metadata.image_shape, metadata.num_classes) == (15, SHAPE, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    config = cfg.resolve(ConfigDict(json.loads((run / "config.json").read_text())))
    train(config, run, load_source("digits"))
    assert "resuming at step 15" in capsys.readouterr().out
    ended, metadata = load(run)
    assert metadata.step == 20
    for name, kernel in np.load(run / "step_20.npz").items():
        np.testing.assert_allclose(ended[name]["kernel"], kernel, rtol=0, atol=1e-5)


def test_fingerprints_of_every_dtype_match_numpy():
    """The sum of words times odd numbers, modulo 2^32. An element of 64 bits is two words."""
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        types = (bool, np.int8, jnp.float8_e4m3fn, jnp.bfloat16, np.float16, np.float32, np.int32, np.float64, np.int64)
        arrays = [jnp.asarray(rng.integers(0, 2, shape), type) for type in types for shape in ((), (3,), (2, 3, 4))]
        sums = fingerprints(arrays)
    for array, value in zip(arrays, sums.values(), strict=True):
        words = np.asarray(array).ravel().view(f"u{min(array.dtype.itemsize, 4)}").astype(np.uint32)
        assert value == np.sum(words * (2 * np.arange(len(words), dtype=np.uint32) + 1), dtype=np.uint32)


def test_all_fingerprints_are_one_program(caplog):
    arrays = {str(size): jnp.arange(size) for size in range(1, 9)}
    with jax.log_compiles():
        fingerprints(arrays)
    compiled = [message for message in caplog.messages if message.startswith("Finished XLA compilation")]
    assert len(compiled) == 1, compiled


class Earlier(NamedTuple):
    step: Any
    params: Any
    ema_params: Any = None


class Later(NamedTuple):
    step: Any
    params: Any
    ema_params: Any = None
    average_of_later: Any = None


@pytest.mark.parametrize(("saved", "restored"), [(Earlier, Later), (Later, Earlier)])
def test_a_state_may_gain_and_lose_fields_that_are_none(tmp_path, saved, restored):
    metadata, params = make_run()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved(jnp.asarray(3), params), metadata)
    with Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(abstract(restored(jnp.asarray(3), params)))
    assert type(state) is restored
    assert_same(state, restored(np.int32(3), params))
    assert_same(load(tmp_path)[0], params)


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
                                   ValueError("RESOURCE_EXHAUSTED: of tensorstore"), OSError(errno.EMFILE, "files"),
                                   KeyboardInterrupt()])  # fmt: skip
def test_only_damage_moves_a_checkpoint(tmp_path, two_checkpoints, monkeypatch, error):
    shutil.copytree(two_checkpoints[0], tmp_path / "run")
    before = tree_of(tmp_path)

    def read(*_):
        raise error

    monkeypatch.setattr(store, "read_arrays", read)
    for act in (load, lambda run: Checkpoints(run).restore(abstract(two_checkpoints[1][0]))):
        with pytest.raises(type(error)) as raised:
            act(tmp_path / "run")
        assert raised.value is error
    assert tree_of(tmp_path) == before


def test_a_checkpoint_of_a_later_version_is_not_moved(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints[0], tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "6" / "metadata" / "metadata"
    path.write_text(json.dumps(seal(unseal(json.loads(path.read_text())) | {"format_version": FORMAT_VERSION + 1})))
    before = tree_of(tmp_path)
    message = f"has format {FORMAT_VERSION + 1}.* reads formats up to {FORMAT_VERSION}"
    with pytest.raises(InputError, match=message):
        load(tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints, pytest.raises(InputError, match=message):
        checkpoints.restore(abstract(two_checkpoints[1][0]))
    assert tree_of(tmp_path) == before


def tree_of(folder):
    """The files below a folder, with their modification times."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_the_state_of_another_run_is_restored_and_its_folder_unchanged(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints[0], tmp_path / "run")
    older, newer = two_checkpoints[1]
    unfinished = tmp_path / "run" / "checkpoints" / "9.orbax-checkpoint-tmp-12"
    unfinished.mkdir()
    before = tree_of(tmp_path)
    assert_same(restore_from(tmp_path / "run", abstract(newer)), newer)
    alone = abstract(newer)._replace(opt_state=None)  # which another optimizer may have
    assert_same(restore_from(tmp_path / "run", alone), newer._replace(opt_state=None))
    wider = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype), abstract(newer).params)
    for field, difference in {
        "params": r"params/Dense_0/bias is float32\[1\] in the checkpoint and float32\[1, 2\] in the config",
        "skipped": r"skipped is int32\[\] in the checkpoint and missing in the config",
    }.items():
        with pytest.raises(ValueError, match=f"does not fit this config: .*{difference}"):
            restore_from(tmp_path / "run", abstract(newer)._replace(**{field: wider}))
    with pytest.raises(ValueError, match="there is no such folder"):
        restore_from(tmp_path / "nowhere", abstract(newer))
    assert tree_of(tmp_path) == before
    flip_a_bit(tmp_path / "run" / "checkpoints" / "6" / "metadata" / "metadata")
    before = tree_of(tmp_path)
    assert_same(restore_from(str(tmp_path / "run"), abstract(newer)), older)
    assert tree_of(tmp_path) == before


def test_class_names_are_optional_and_saved(tmp_path):
    metadata, _ = make_run()
    named = dataclasses.replace(metadata, num_classes=2, class_names=("cats", "dogs"))
    values = json.loads(json.dumps(named.to_json()))
    assert Metadata.from_json(values, 0, ORIGIN).class_names == ("cats", "dogs")
    assert "class_names" not in metadata.to_json()
    assert Metadata.from_json(metadata.to_json(), 0, ORIGIN).class_names is None
    for wrong in (["cats"], [1, 2]):
        with pytest.raises(ValueError, match="class_names must be one string per class"):
            Metadata.from_json(values | {"class_names": wrong}, 0, ORIGIN)


def test_a_run_saves_its_class_names(tmp_path):
    config = cfg.defaults()
    config.dataset.name = "digits"
    config.model.name, config.model.args = "helpers.own_parts:affine", dict(width=4096)
    config.train.update(batch_size=16, learning_rate=1e-3, num_train_steps=1)
    source = ArraySource(np.zeros((16, *SHAPE), np.uint8), np.arange(16) % 2, 2, ("cats", "dogs"))
    train(cfg.resolve(config), tmp_path, source)
    assert load(tmp_path)[1].class_names == ("cats", "dogs")


@pytest.mark.parametrize(
    ("name", "message"),
    [("a[1]b", r"\[ in a path is read as a pattern"), ("a\\b", r"\\ in a path"), ("a*b?", r"\* or \? in a path"),
     ("b\udcff", "not UTF-8")],
)  # fmt: skip
def test_paths_that_lose_checkpoints_are_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path / name / "run")
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a]b", "sp ace", "{a,b}", "#%41"])
def test_checkpoints_are_saved_below_unusual_paths(tmp_path, name):
    metadata, params = make_run()
    with Checkpoints(tmp_path / name) as checkpoints:
        checkpoints.save(at_step(init_state(metadata.config, make_method(metadata.config), params), 3), metadata)
        checkpoints.wait()
    assert load(tmp_path / name)[1].step == 3


def test_a_run_that_was_moved_to_an_unusual_path_is_read(tmp_path, two_checkpoints):
    shutil.copytree(two_checkpoints[0], tmp_path / "a[1]b*")
    assert load(tmp_path / "a[1]b*")[1].step == 6
    (tmp_path / "a[1]b*" / "checkpoints" / "6").rename(tmp_path / "steps_0004")
    with pytest.raises(ValueError, match=r"it holds the students of a ladder\. Choose one of its folders: steps_0004"):
        load(tmp_path)


@pytest.mark.parametrize("lost", ["checkpoints/6", "checkpoints/6/metadata", "checkpoints/6/state/manifest.ocdbt"])
def test_a_checkpoint_that_cannot_be_opened_is_a_run_error(tmp_path, lost):
    metadata, params = make_run()
    with pytest.raises(RunError, match="could not be written"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(init_state(metadata.config, make_method(metadata.config), params), 6), metadata)
        wait_until(lambda: not checkpoints.is_saving())
        path = tmp_path / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        checkpoints.wait()
