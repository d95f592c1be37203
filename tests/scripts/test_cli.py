"""What the scripts share, in this process."""

from diffusion_distillation import cli


def test_dtype_of_a_run(tmp_path):
    """What is not there, or not a run's, is float32, which is right but for speed."""
    assert cli.dtype_of(tmp_path) == "float32"
    for text, dtype in {
        '{"model": {"dtype": "bfloat16"}}': "bfloat16",
        '{"model": {}}': "float32",
        "[]": "float32",
        "{": "float32",
        "[" * 100_000: "float32",
    }.items():
        (tmp_path / "config.json").write_text(text)
        assert cli.dtype_of(tmp_path) == dtype
