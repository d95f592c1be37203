"""Uploads an exported model to the Hugging Face Hub.

    python scripts/export.py --checkpoint=runs/digits/ladder/steps_0004 --format=both --license=mit --out=digits_4/
    python scripts/push_to_hub.py --folder=digits_4/ --repo=user/digits-4

It needs huggingface_hub, `pip install -e ".[hub]"`, and a token that may write: `hf auth login` keeps one, and HF_TOKEN
is taken instead where it is set. `from_checkpoint('hf://user/digits-4')`, and every --checkpoint here, read an archive
from there; `hf://user/digits-4@revision` that of a branch, a tag or a commit.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.export import hub
from diffusion_distillation.runtime.files import as_path

FOLDER = flags.DEFINE_string("folder", None, "That scripts/export.py wrote.", required=True)
REPO = flags.DEFINE_string("repo", None, "Where to: user/name, made if it is missing.", required=True)
PRIVATE = flags.DEFINE_bool("private", False, "Make it a private one.")


def main() -> None:
    """Runs the script."""
    print(hub.push(as_path(FOLDER.value), REPO.value, private=PRIVATE.value))


if __name__ == "__main__":
    cli.run(main)
