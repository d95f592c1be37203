"""Print the version, devices and pretrained models: `python -m diffusion_distillation`."""

import inspect
import sys

import jax

import diffusion_distillation as package
from diffusion_distillation.errors import InputError
from diffusion_distillation.pretrained import PRETRAINED
from diffusion_distillation.runtime.devices import start_jax

FUNCTIONS = ("schedules", "diffusion", "sampling", "losses", "distillation", "unet")

TOUR = """\
    import jax
    from diffusion_distillation import from_checkpoint

    images = from_checkpoint("{name}").sample(jax.random.key(0), 64)  # uint8"""


def main() -> None:
    """Print the overview."""
    try:
        start_jax()
    except InputError as error:
        sys.exit(f"error: {error}")
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"diffusion_distillation {package.__version__}, JAX {jax.__version__}, {devices}\n")
    print("Pure functions, in diffusion_distillation:")
    for name in FUNCTIONS:
        print(f"  {name:13}{_first_line(getattr(package, name))}")
    print("\nPretrained models, for from_checkpoint and every --checkpoint:")
    for name, description in PRETRAINED.items():
        print(f"  {name:13}{description}.")
    print(f"\nFirst images:\n\n{TOUR.format(name=next(iter(PRETRAINED)))}\n")
    print("To train, distill, evaluate and export models, use the repository: scripts/, configs/ and README.md.")


def _first_line(module: object) -> str:
    return (inspect.getdoc(module) or "").splitlines()[0]


if __name__ == "__main__":
    main()
