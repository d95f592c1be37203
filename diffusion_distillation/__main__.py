"""The command line: `diffusion_distillation train --config=digits_base --workdir=runs/digits/base`.

The first word names a command, which is a script in `scripts/`. Without one, an overview is printed. If the package is
not installed, `python -m diffusion_distillation` is the same program.
"""

import ast
import inspect
import runpy
import sys
from pathlib import Path

import jax

import diffusion_distillation as package
from diffusion_distillation.errors import InputError, did_you_mean
from diffusion_distillation.pretrained import AUTOENCODERS, PRETRAINED
from diffusion_distillation.runtime.devices import start_jax
from diffusion_distillation.runtime.files import shipped_folder

# The commands that most people need, in the order in which they need them. The others follow by name.
FIRST = ("demo", "train", "distill", "sample", "evaluate", "report", "export")
FUNCTIONS = ("schedules", "diffusion", "sampling", "losses", "distillation", "unet")

IMAGES = """\
    import jax
    from diffusion_distillation import from_checkpoint, save_grid

    images = from_checkpoint("letters").sample(jax.random.key(0), 52, guidance=2.0)  # uint8
    save_grid(images, "letters.png")"""
TRAINING = """\
    diffusion_distillation train --config=digits_base --workdir=runs/digits/base
    diffusion_distillation distill --config=digits_distill --workdir=runs/digits/ladder \\
        --config.distillation.teacher_checkpoint_path=runs/digits/base"""


def main() -> None:
    """Run the command that the first argument names, or print the overview or the version."""
    commands = find_commands()
    if sys.argv[1:2] == ["help"]:  # `help train` is `train --help`
        sys.argv[1:] = [*sys.argv[2:], "--help"]
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print_overview(commands)
    elif name == "--version":
        print(package.__version__)
    elif name in commands:
        sys.argv[:2] = [str(commands[name])]
        runpy.run_path(str(commands[name]), run_name="__main__")
    else:
        print(f"error: Unknown command {name!r}.{did_you_mean(name, commands)}", file=sys.stderr)
        sys.exit(2)


def find_commands() -> dict[str, Path]:
    """The script of each command, by the command's name."""
    scripts = {script.stem: script for script in sorted(shipped_folder("scripts").glob("*.py"))}
    return {name: scripts[name] for name in dict.fromkeys([*FIRST, *scripts])}


def print_overview(commands: dict[str, Path]) -> None:
    """Print the version, devices, commands, configs, functions and pretrained models."""
    try:
        start_jax()
    except InputError as error:
        sys.exit(f"error: {error}")
    kind = jax.devices()[0].device_kind
    devices = "CPU" if kind == "cpu" else f"{jax.device_count()} x {kind}"  # a run makes a device of each CPU core
    print(f"diffusion_distillation {package.__version__}, JAX {jax.__version__}, {devices}")
    print("\nCommands, each with --help: diffusion_distillation <command>")
    for name, script in commands.items():
        print(f"  {name:20}{_first_line(ast.get_docstring(ast.parse(script.read_text(encoding='utf-8'))))}")
    print("\nConfigs, for --config:")
    print(f"  {', '.join(sorted(config.stem for config in shipped_folder('configs').glob('*.py')))}")
    print("\nPretrained models, for from_checkpoint and every --checkpoint:")
    for name, description in PRETRAINED.items():
        print(f"  {name:20}{description}.")
    print("\nPretrained autoencoders, for encode_data --autoencoder:")
    for name, description in AUTOENCODERS.items():
        print(f"  {name:20}{description}.")
    print("\nPure functions, in diffusion_distillation:")
    for name in FUNCTIONS:
        print(f"  {name:20}{_first_line(inspect.getdoc(getattr(package, name)))}")
    print(f"\nFirst images:\n\n{IMAGES}")
    print(f"\nFirst training, two minutes on two CPU cores:\n\n{TRAINING}")


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


if __name__ == "__main__":
    main()
