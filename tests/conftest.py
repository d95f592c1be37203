"""Set up the tests: signatures are checked at run time, and eight CPU devices stand in for accelerators."""

import collections
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# All tests share trained classifiers and decoded images: the tests of this process, the scripts that they start, and
# pytest-xdist's other processes, which find the folder in their environment.
if "PYTEST_XDIST_WORKER" not in os.environ:
    KEPT = tempfile.TemporaryDirectory(prefix="tests", ignore_cleanup_errors=True)
    os.environ["DIFFUSION_DISTILLATION_CACHE"] = KEPT.name
# They share compiled programs too, and the next run of the tests finds them; see `pytest_configure`. JAX reads these
# variables when imported.
assert "jax" not in sys.modules
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Each of pytest-xdist's processes gets its own cores, and so do the scripts that it starts. On shared cores, threads
# would wait for each other, for a tenth of the time.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    number, count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    if own_cores := sorted(os.sched_getaffinity(0))[number::count]:
        os.sched_setaffinity(0, own_cores)
# Most programs run only a few times, and compile in half the time without optimizations. See `optimized`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "True"

import hypothesis
import jax
from jaxtyping import install_import_hook

jax.config.update("jax_default_matmul_precision", "highest")
hypothesis.settings.register_profile("exact", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("exact")
hook = install_import_hook("diffusion_distillation", "beartype.beartype")
hook.__enter__()

import flax.serialization
import numpy as np
import pytest
from etils import epath

from diffusion_distillation import diffusion, schedules
from diffusion_distillation.networks import unet
from diffusion_distillation.runtime.devices import programs_name

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    """Keep compiled programs in pytest's cache, which --cache-clear empties, apart for each kind of CPU."""
    programs = os.fspath(config.cache.mkdir(programs_name()))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    jax.config.update("jax_compilation_cache_dir", programs)


def pytest_collection_finish():
    """Collect garbage rarely, and not among the modules: collections took an eighth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def pytest_collection_modifyitems(items):
    """Run files with slow tests first, so that the processes of pytest-xdist end at about the same time."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def environment_stays():
    """Check that each test restores the environment variables that it changes."""
    names = ("PYTEST_CURRENT_TEST", "CRC32C_SW_MODE", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK")
    of_others = dict.fromkeys(names, "")  # pytest, tensorboardX and scikit-learn set these
    before = os.environ | of_others
    yield
    assert os.environ | of_others == before


@pytest.fixture
def strict():
    """JAX raises errors where it would add axes to arrays or mix their types implicitly, as users may set it."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def optimized(monkeypatch):
    """Programs of the test and of the scripts that it runs are compiled with optimizations, as users compile them."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "False")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def golden(optimized):
    """`golden(name)` returns the arrays of a file, for programs that are compiled with optimizations."""
    return lambda name: np.load(GOLDEN / f"{name}.npz")


@pytest.fixture(scope="session")
def golden_unet():
    """The golden architecture, and the parameters of its student and its teacher."""
    network = unet.UNet(num_classes=1, out_ch=3, **json.loads((GOLDEN / "unet_uncond.json").read_text())["model_args"])

    def params(name):
        return flax.serialization.msgpack_restore((GOLDEN / f"{name}.msgpack").read_bytes())["ema_params"]

    return network, params("unet_uncond"), params("unet_uncond_teacher")


@pytest.fixture(scope="session")
def golden_denoiser(golden_unet):
    """`golden_denoiser(mean_type)` returns the golden network as a denoiser. Its output counts as x, v or eps."""
    network, student, teacher = golden_unet
    apply = jax.jit(network.apply)

    def make(mean_type, *, of_teacher=False, clip_x=False):
        params = {"params": teacher if of_teacher else student}
        return diffusion.make_denoiser(lambda z, logsnr: apply(params, z, logsnr), mean_type, clip_x=clip_x)

    return make


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """A folder with small TFDS datasets that stand in for large ones."""
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    subprocess.run([sys.executable, Path(__file__).parent / "helpers" / "stand_ins.py", folder], check=True)
    return folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that stands in for the bucket gs://bucket. As in a bucket, files cannot be appended to."""

    def here(path):
        path = os.fspath(path)
        return str(tmp_path / path.removeprefix("gs://")) if path.startswith("gs://") else path

    def on_path(act, path, *args, **kwargs):
        return act(here(path), *args, **kwargs)

    def on_two(act, path, to, *args, **kwargs):
        return act(here(path), here(to), *args, **kwargs)

    def opened(act, path, mode):
        assert "a" not in mode
        return act(here(path), mode)

    def glob(act, path):
        return [found.replace(f"{tmp_path}/", "gs://", 1) for found in act(here(path))]

    names = ("exists", "isdir", "listdir", "makedirs", "mkdir", "remove", "rmtree", "stat")
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)
    with epath.testing.mock_epath(
        open=opened, glob=glob, rename=on_two, replace=on_two, copy=on_two, **dict.fromkeys(names, on_path)
    ):
        yield tmp_path / "bucket"


@pytest.fixture(scope="session")
def cosine():
    return schedules.get_logsnr_schedule("cosine", logsnr_min=-20.0, logsnr_max=20.0)
