"""Measure the memory that refusing bad model files takes, in its own process. See interop/test_bad_files.py.

python tests/helpers/peak_memory.py GOOD BAD...
  Loads the good model once, and then every bad one. Prints, as JSON, the message for each bad one and the MiB by which
  its loading exceeded the memory before.
"""

import json
import sys
from pathlib import Path

from diffusion_distillation import config as cfg
from diffusion_distillation import interop
from diffusion_distillation.errors import InputError

CONFIG = Path(__file__).parents[2] / "configs" / "digits_base.py"


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def peak():
    """The most MiB that this process held since `reset_peak`. That of getrusage includes its parent's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def load_message(path, config):
    """The error message of loading a model, or 'loaded'."""
    try:
        interop.load(path, config)
    except InputError as error:
        return str(error)
    return "loaded"


if __name__ == "__main__":
    config = cfg.load(CONFIG)
    good, *bad = sys.argv[1:]
    assert load_message(good, config) == "loaded"  # imports and compiles what loading needs
    reset_peak()
    before = peak()
    results = []
    for path in bad:
        reset_peak()
        message = load_message(path, config)
        results.append((message, peak() - before))
    print(json.dumps(results))
