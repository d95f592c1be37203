"""Functions that the scripts share."""

from diffusion_distillation import cli


def test_the_dtype_of_a_run_is_float32_unless_its_config_can_be_read(tmp_path):
    """The dtype selects flags for speed only, so a wrong one does no harm."""
    assert cli.dtype_of(tmp_path) == "float32"
    for text, dtype in {
        '{"model": {"dtype": "bfloat16"}}': "bfloat16",
        '{"config": {"model": {"dtype": "bfloat16"}}}': "bfloat16",  # of an archive
        '{"model": {"dtype": "float32"}, "autoencoder": {"dtype": "bfloat16"}}': "bfloat16",
        '{"model": {"dtype": "float32"}, "autoencoder": {"dtype": "float32"}}': "float32",
        '{"model": {"dtype": "float32"}, "autoencoder": 3}': "float32",
        '{"model": {}}': "float32",
        "[]": "float32",
        "{": "float32",
        "[" * 100_000: "float32",
    }.items():
        (tmp_path / "config.json").write_text(text)
        assert cli.dtype_of(tmp_path) == dtype
