import subprocess
import sys

HEAVY = ("orbax", "tensorflow", "tensorflow_datasets", "grain", "ml_collections", "matplotlib", "sklearn", "PIL")
FLOORS = ("schedules", "diffusion", "sampling", "losses", "distillation", "unet", "model")


def test_the_pure_floors_load_no_heavy_library():
    names = ["diffusion_distillation", *(f"diffusion_distillation.{name}" for name in FLOORS)]
    look = f"print([name for name in {HEAVY} if name in sys.modules])"
    code = "; ".join(["import sys", *(f"import {name}; print('{name}', end=' '); {look}" for name in names)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in names]
