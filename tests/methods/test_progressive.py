import pytest

from diffusion_distillation.methods import Rung
from diffusion_distillation.methods.rungs import halvings


def test_halvings_start_at_a_power_of_two_times_their_end():
    assert [rung.num_steps for rung in halvings(64, 1)] == [32, 16, 8, 4, 2, 1]
    assert halvings(96, 24) == (Rung(96, 48), Rung(48, 24))
    for start, end in ((64, 3), (60, 8), (4, 4), (2, 4), (0, 1), (8, 0)):
        with pytest.raises(
            ValueError, match=f"start_num_steps={start} must be end_num_steps={end} times a power of two"
        ):
            halvings(start, end)
