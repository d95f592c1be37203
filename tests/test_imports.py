import ast
import subprocess
import sys

from helpers.runs import ROOT

PACKAGE = ROOT / "diffusion_distillation"
HEAVY = ("orbax", "tensorflow", "tensorflow_datasets", "grain", "ml_collections", "matplotlib", "sklearn", "PIL")
FLOORS = (
    "schedules",
    "diffusion",
    "sampling",
    "losses",
    "distillation",
    "networks.unet",
    "networks.model",
    "networks.autoencoder",
)


def test_the_pure_functions_load_no_heavy_library():
    names = ["diffusion_distillation", *(f"diffusion_distillation.{name}" for name in FLOORS)]
    look = f"print([name for name in {HEAVY} if name in sys.modules])"
    code = "; ".join(["import sys", *(f"import {name}; print('{name}', end=' '); {look}" for name in names)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} []" for name in names]


def imports_of(path):
    """The libraries and the modules of the package that a module imports at its top."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = PACKAGE.joinpath(*folder[: len(folder) - node.level + 1], *(node.module or "").split("."))
            yield from (module for alias in node.names if (module := base / f"{alias.name}.py").exists())
            yield from (module for module in (base.with_suffix(".py"), base / "__init__.py") if module.exists())


def libraries_of(*names):
    """The libraries that these modules import, themselves or by other modules of the package."""
    seen, waiting = set(), [PACKAGE / f"{name}.py" for name in names]
    while waiting:
        new = set(imports_of(waiting.pop())) - seen
        seen |= new
        waiting += [module for module in new if not isinstance(module, str)]
    return {name for name in seen if isinstance(name, str)} - set(sys.stdlib_module_names)


def test_the_pure_functions_import_only_the_libraries_that_the_pages_name():
    pure = ["schedules", "diffusion", "sampling", "losses", "distillation", "latents", "methods/__init__"]
    assert libraries_of(*pure) == {"jax", "numpy", "jaxtyping"}
    assert libraries_of("__init__") == {"jax", "numpy", "jaxtyping", "flax"}


def test_importing_and_sampling_work_without_what_windows_lacks():
    missing = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD", "SIGQUIT", "setitimer")
    of_os = ("register_at_fork", "sched_getaffinity", "sched_setaffinity", "killpg", "geteuid", "mkfifo")
    of_os += ("set_blocking",)  # until Python 3.12
    code = f"""
import os, signal, sys
import jax, orbax.checkpoint, optax, tensorboardX, matplotlib, fsspec, grain  # these support Windows
for name in ("fcntl", "resource", "termios"): sys.modules[name] = None
for name in {missing}: delattr(signal, name)
for name in {of_os}: delattr(os, name)
import diffusion_distillation
print(diffusion_distillation.from_checkpoint("digits").sample(jax.random.key(0), 2).shape)
from diffusion_distillation import cli
cli.run(lambda: print("ran"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(2, 8, 8, 1)\nran\n" and not done.returncode, done.stderr[-1000:]
