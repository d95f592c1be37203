"""A dry run finds mistakes in a custom method before anything is compiled."""

import jax
import jax.numpy as jnp
import pytest
from helpers.small_runs import SOURCE, ladder_of, make_config

from diffusion_distillation.checkpoints import abstract_params
from diffusion_distillation.training.checks import describe_model
from diffusion_distillation.training.dry_run import dry_run


def dry_run_of(tmp_path, method, **args):
    """Dry-run a ladder with a custom method and a teacher whose parameters are zero."""
    base = make_config()
    teacher = describe_model(base, SOURCE, 0)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_params(teacher))
    config = ladder_of(base, "teacher", **{"distillation.method": method, "distillation.args": args})
    dry_run(config, tmp_path / "ladder", SOURCE, load_model=lambda path: (params, teacher))


def test_a_method_that_fits_passes(tmp_path, capsys):
    dry_run_of(tmp_path, "helpers.own_parts:tract")
    assert "Nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("times", r"`times` must return a NamedTuple whose field t has shape \(16,\), .*, not GroupTimes: .*t=\(\)"),
        ("target", r"`target` must return a Prediction of arrays of z's shape, \(16, 8, 8, 1\), not an array of"),
        ("loss", r"`loss` must return an array of shape \(16,\), one loss per example, not an array of shape \(\)\."),
        ("pair", r"`loss` must return .*, not tuple: \(\(16,\), \(16,\)\)\."),
    ],
)
def test_a_function_of_a_method_that_returns_another_shape_is_named(tmp_path, part, message):
    """Without the check, training would run with a loss that is already averaged."""
    with pytest.raises(ValueError, match=f"config.distillation.method='helpers.own_parts:broken': {message}"):
        dry_run_of(tmp_path, "helpers.own_parts:broken", part=part)
