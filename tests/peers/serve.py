"""Run the scripts of this folder, one after another, in one process that imports PyTorch and diffusers once.

Each line of stdin is a script's name and its flags, as a JSON list. Each line that starts with ANSWER is the answer:
a JSON string, empty or the error. The tests run it.
"""

import json
import runpy
import sys
import traceback
from pathlib import Path

ANSWER = "answer "


def run(script, *flags):
    """Run a script as `python script.py *flags` does. Returns the error, or '' if there is none."""
    path = Path(__file__).with_name(f"{script}.py")
    sys.argv = [str(path), *flags]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except (Exception, SystemExit):
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    for line in sys.stdin:
        print(f"{ANSWER}{json.dumps(run(*json.loads(line)))}", flush=True)
