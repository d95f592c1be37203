import subprocess
import sys

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


def test_importing_and_sampling_work_without_what_windows_lacks():
    missing = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD", "SIGQUIT", "setitimer")
    of_os = ("register_at_fork", "sched_getaffinity", "sched_setaffinity", "killpg", "geteuid", "mkfifo")
    code = f"""
import os, signal, sys
import jax, orbax.checkpoint, optax, tensorboardX, matplotlib, fsspec, grain  # these support Windows
for name in ("fcntl", "resource", "termios"): sys.modules[name] = None
for name in {missing}: delattr(signal, name)
for name in {of_os}: delattr(os, name)
import diffusion_distillation
print(diffusion_distillation.from_checkpoint("digits").sample(jax.random.key(0), 2).shape)
import diffusion_distillation.cli
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(2, 8, 8, 1)\n" and not done.returncode, done.stderr[-1000:]
