import os
from unittest import mock

import jax
import pytest
from helpers.runs import AFFINE, OWN_PARTS, TINY, run

from diffusion_distillation.runtime import cpu, devices

ONEDNN, VECTORS = "--xla_cpu_experimental_onednn_custom_call", "--xla_cpu_prefer_vector_width"


@pytest.mark.parametrize("given", ["", "--xla_cpu_enable_fast_math=false"])
def test_cpu_flags_are_set_where_they_pay_and_the_user_did_not(monkeypatch, given):
    jax.block_until_ready(jax.numpy.zeros(3) + 1)  # JAX reads the flags now, so changing them affects no other test

    def after(flags, dtype, description):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setenv(*cpu.MAX_INSTRUCTIONS)
        monkeypatch.setattr(cpu, "describe_cpu", lambda: description)
        cpu.set_cpu_flags(dtype)
        return os.environ["XLA_FLAGS"].split()

    onednn = [f"{ONEDNN}=true"] * cpu.KNOWS_FLAGS
    vectors = [f"{VECTORS}=512"] * cpu.KNOWS_FLAGS
    assert after(given, "float32", "flags: avx512f") == given.split()
    assert after(given, "float32", "flags: avx512f avx512_bf16") == given.split() + vectors
    assert after(given, "bfloat16", "flags: avx512f") == given.split()
    assert devices.describe_devices(devices.data_mesh()) == "8 cpu devices"
    assert after(given, "bfloat16", "flags: avx512f avx512_bf16") == given.split() + onednn + vectors
    if cpu.KNOWS_FLAGS:
        assert devices.describe_devices(devices.data_mesh()) == "8 cpu devices with oneDNN and 512-bit vectors"
    for refused in (f"{ONEDNN}=false {VECTORS}=256", f"{VECTORS}=128 {ONEDNN}=false"):
        assert after(refused, "bfloat16", "flags: avx512f avx512_bf16") == refused.split()
    assert devices.describe_devices(devices.data_mesh()) == "8 cpu devices"


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), (None, 8)])
def test_a_container_has_the_cores_of_its_quota(quota, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "CONTAINER_QUOTA", tmp_path / "cpu.max")
    if quota:
        cpu.CONTAINER_QUOTA.write_text(f"{quota}\n")
    assert cpu.usable_cores() == cores


@pytest.mark.parametrize(
    ("batch_size", "microbatch_size", "count"),
    [(128, 0, 8), (128, 4, 4), (96, 6, 6), (64, 0, 4), (40, 0, 2), (8, 0, 1)],
)
def test_cpu_devices_divide_a_microbatch_and_have_16_examples_of_a_batch(
    batch_size, microbatch_size, count, monkeypatch
):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setattr(cpu, "usable_cores", lambda: 8)
    update = mock.Mock()
    monkeypatch.setattr(cpu, "jax", mock.Mock(**{"config.update": update}))
    cpu.use_all_cpu_cores(batch_size, microbatch_size)
    update.assert_called_once_with("jax_num_cpu_devices", count)


def test_onednn_uses_no_amx_in_training_unless_the_user_allows_it(monkeypatch):
    name, without_amx = cpu.MAX_INSTRUCTIONS
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.delenv(name)
    cpu.set_cpu_flags("bfloat16", training=False)
    assert name not in os.environ
    monkeypatch.setenv(name, "AVX512_CORE_AMX")
    cpu.set_cpu_flags("bfloat16")
    assert os.environ[name] == "AVX512_CORE_AMX"
    monkeypatch.delenv(name)
    cpu.set_cpu_flags("bfloat16")
    assert os.environ[name] == without_amx


def test_the_users_own_compilation_cache_is_left_alone():
    before = jax.config.jax_compilation_cache_dir
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == before is not None


def test_a_second_run_finds_its_programs_compiled(tmp_path, monkeypatch):
    """Scripts keep compiled programs in the user's cache folder."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    flags = ["--config=configs/digits_base.py", *TINY, *AFFINE, "--config.train.num_train_steps=2"]
    kept = []
    for name in ("first", "second"):
        run("train", *flags, f"--workdir={tmp_path / name}", env=OWN_PARTS)
        kept.append(sorted(path.name for path in tmp_path.glob("cache/programs-*/*") if "atime" not in path.name))
    assert kept[0] == kept[1] != []


def test_an_unavailable_platform_is_an_error_of_one_line():
    """JAX would raise an AssertionError, or an error with its own reason."""
    error = run("train", "--config=configs/digits_base.py", "--workdir=-", fails=True, env={"JAX_PLATFORMS": "cuda"})
    [line] = error.splitlines()
    assert line.startswith("error: JAX cannot start: ") and "JAX_PLATFORMS is set to cuda. Unset it" in line
