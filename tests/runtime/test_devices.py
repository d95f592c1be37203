import os

import jax
import pytest
from helpers.runs import AFFINE, OWN_PARTS, TINY, free_port, run

from diffusion_distillation.runtime import cpu, devices

FLAGS = ONEDNN, VECTORS = "--xla_cpu_experimental_onednn_custom_call", "--xla_cpu_prefer_vector_width"


@pytest.mark.parametrize("given", ["", "--xla_cpu_enable_fast_math=false"])
def test_flags_that_pay(monkeypatch, given):
    jax.block_until_ready(jax.numpy.zeros(3) + 1)  # so that it has read the flags, and other tests are not concerned

    def after(flags, dtype, description):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setattr(cpu, "describe_cpu", lambda: description)
        cpu.set_cpu_flags(dtype)
        return os.environ["XLA_FLAGS"].split()

    knows_onednn, knows_vectors = map(cpu._xla_knows, FLAGS)
    onednn, vectors = [f"{ONEDNN}=true"] * knows_onednn, [f"{VECTORS}=512"] * knows_vectors
    assert after(given, "float32", "flags: avx512f") == given.split()
    assert after(given, "float32", "flags: avx512f avx512_bf16") == given.split() + vectors
    assert after(given, "bfloat16", "flags: avx512f") == given.split() + onednn
    assert devices.describe_devices(devices.data_mesh()) == f"8 cpu devices{' with oneDNN' * knows_onednn}"
    assert after(given, "bfloat16", "flags: avx512f avx512_bf16") == given.split() + onednn + vectors
    if knows_onednn and knows_vectors:
        assert devices.describe_devices(devices.data_mesh()) == "8 cpu devices with oneDNN and 512-bit vectors"
    for refused in (f"{ONEDNN}=false {VECTORS}=256", f"{VECTORS}=128 {ONEDNN}=false"):
        assert after(refused, "bfloat16", "flags: avx512f avx512_bf16") == refused.split()
    assert devices.describe_devices(devices.data_mesh()) == "8 cpu devices"


def test_flags_that_xla_knows():
    """One that it does not would end the process."""
    assert cpu._xla_knows("--xla_force_host_platform_device_count")
    assert not cpu._xla_knows("--xla_no_such_flag_is_there")


@pytest.mark.parametrize(
    ("setting", "libc", "asked"),
    [
        ("always [madvise] never", "glibc 2.35", True),
        ("[always] madvise never", "glibc 2.36", False),
        ("always madvise [never]", "glibc 2.36", False),
        ("always [madvise] never", "glibc 2.34", False),
        ("always [madvise] never", None, False),
        (None, "glibc 2.36", False),
    ],
)
def test_large_pages(tmp_path, monkeypatch, setting, libc, asked):
    monkeypatch.setattr(cpu, "PAGES", tmp_path / "enabled")
    monkeypatch.setattr(cpu.os, "confstr", lambda name: libc)
    if setting is not None:
        cpu.PAGES.write_text(f"{setting}\n")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert cpu.large_pages() == {}
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert cpu.large_pages() == ({"GLIBC_TUNABLES": cpu.LARGE_PAGES} if asked else {})
    monkeypatch.setenv("GLIBC_TUNABLES", cpu.LARGE_PAGES)
    assert devices.describe_devices(devices.data_mesh()) == f"8 cpu devices{' with large pages' * asked}"


def test_training_has_large_pages(tmp_path, monkeypatch):
    """It starts anew for them, with all that its command says."""
    monkeypatch.delenv("GLIBC_TUNABLES")
    if not cpu.large_pages():
        pytest.skip("this system has them for all programs, or for none")
    flags = [
        "--config=configs/digits_base.py",
        *TINY,
        *AFFINE,
        "--config.train.num_train_steps=1",
        f"--workdir={tmp_path}",
    ]
    flags += [f"--coordinator=localhost:{free_port()}", "--num_processes=1", "--process_id=0"]
    printed = run("train", *flags, env=OWN_PARTS)
    assert "large pages" in printed.splitlines()[1] and "step 1/1" in printed


def test_programs_are_kept_where_the_user_has_not_said_where():
    before = jax.config.jax_compilation_cache_dir
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before is not None


def test_programs_are_kept(tmp_path, monkeypatch):
    """By the scripts, in the user's cache; another run of the same kind finds them all."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    flags = ["--config=configs/digits_base.py", *TINY, *AFFINE, "--config.train.num_train_steps=2"]
    kept = []
    for name in ("first", "second"):
        run("train", *flags, f"--workdir={tmp_path / name}", env=OWN_PARTS)
        kept.append(sorted(path.name for path in tmp_path.glob("cache/programs-*/*") if "atime" not in path.name))
    assert kept[0] == kept[1] != []


def test_an_unavailable_platform_is_one_line():
    """JAX would raise an AssertionError, or an error with its own reason."""
    error = run("train", "--config=configs/digits_base.py", "--workdir=-", fails=True, env={"JAX_PLATFORMS": "cuda"})
    [line] = error.splitlines()
    assert line.startswith("error: JAX cannot start: ") and "JAX_PLATFORMS is set to cuda. Unset it" in line
