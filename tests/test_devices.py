import os

import jax
import pytest
from running import AFFINE, OWN_PARTS, TINY, run

from diffusion_distillation import devices


@pytest.mark.parametrize("flags", ["", "--xla_cpu_enable_fast_math=false"])
def test_onednn(monkeypatch, flags):
    jax.block_until_ready(jax.numpy.zeros(3) + 1)  # so that it has read the flags, and other tests are not concerned
    monkeypatch.setenv("XLA_FLAGS", flags)
    devices.use_onednn("float32")
    assert os.environ["XLA_FLAGS"] == flags
    devices.use_onednn("bfloat16")
    knows = devices._xla_knows(devices.ONEDNN)
    assert os.environ["XLA_FLAGS"] == f"{flags} {devices.ONEDNN}=true".strip() if knows else flags
    assert devices.described(devices.data_mesh()) == f"8 cpu device(s){' with oneDNN' * knows}"
    monkeypatch.setenv("XLA_FLAGS", f"{devices.ONEDNN}=false")
    devices.use_onednn("bfloat16")
    assert os.environ["XLA_FLAGS"] == f"{devices.ONEDNN}=false"


def test_flags_that_xla_knows():
    """One that it does not would end the process."""
    assert devices._xla_knows("--xla_force_host_platform_device_count")
    assert not devices._xla_knows("--xla_no_such_flag_is_there")


def test_programs_are_kept_where_the_user_has_not_said_where():
    before = jax.config.jax_compilation_cache_dir
    devices.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before is not None


def test_programs_are_kept(tmp_path, monkeypatch):
    """By the scripts, in the user's cache; another run of the same kind finds them all."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("DIFFUSION_DISTILLATION_CACHE", str(tmp_path / "cache"))
    flags = ["--config=configs/digits_base.py", *TINY, *AFFINE, "--config.train.num_steps=2"]
    kept = []
    for name in ("first", "second"):
        run("train", *flags, f"--workdir={tmp_path / name}", env=OWN_PARTS)
        kept.append(sorted(path.name for path in tmp_path.glob("cache/programs-*/*") if "atime" not in path.name))
    assert kept[0] == kept[1] != []
