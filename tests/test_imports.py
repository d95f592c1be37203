import subprocess
import sys

import pytest

HEAVY = ("orbax", "tensorflow", "tensorflow_datasets", "grain", "ml_collections", "matplotlib", "sklearn", "PIL")
FLOORS = ("schedules", "diffusion", "sampling", "losses", "distillation", "unet", "model")


@pytest.mark.parametrize("module", ["", *(f".{name}" for name in FLOORS)])
def test_the_pure_floors_load_no_heavy_library(module):
    code = f"import sys, diffusion_distillation{module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
