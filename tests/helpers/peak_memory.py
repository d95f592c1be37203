"""How much memory it takes to find that files are no models, in a process of its own; see interop/test_bad_files.py.

python tests/helpers/peak_memory.py path ...   prints for each, in JSON, the message and the most MiB above the start's
"""

import json
import sys
from pathlib import Path

from diffusion_distillation import config as cfg
from diffusion_distillation import interop
from diffusion_distillation.errors import InputError
from helpers.runs import ROOT


def peak():
    """MiB that this process held at most since `forget`; getrusage's also counts what its parent held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def forget():
    Path("/proc/self/clear_refs").write_text("5")


def said(path, config):
    try:
        interop.load(path, config)
    except InputError as error:
        return str(error)
    return "loaded"


if __name__ == "__main__":
    config = cfg.load(ROOT / "configs" / "digits_base.py")
    good, *bad = sys.argv[1:]
    assert said(good, config) == "loaded"  # which imports and compiles what it needs
    forget()
    start, found = peak(), []
    for path in bad:
        forget()
        found.append((said(path, config), peak() - start))
    print(json.dumps(found))
