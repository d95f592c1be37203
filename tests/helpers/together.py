"""Run commands of the scripts one after another, in one process or in each of several that connect once.

python tests/helpers/together.py '[["train", "--config=...", ...], ["sample", ...]]'
"""

import functools
import json
import sys
from pathlib import Path

from diffusion_distillation import hooks
from diffusion_distillation.runtime import multihost

sys.path.insert(0, str(Path(__file__).parents[1]))  # for importing helpers

from helpers.runs import main

if __name__ == "__main__":
    multihost.start = functools.cache(multihost.start)
    hooks.GRID_SIZE = 4
    for script, *flags in json.loads(sys.argv[1]):
        print(f"== {script}", flush=True)
        if status := main(script, *flags):
            sys.exit(status)
