"""Upload an exported model to the Hugging Face Hub.

    diffusion_distillation export --checkpoint=runs/digits/ladder/steps_0004 --format=both --license=mit --out=digits_4/
    diffusion_distillation push_to_hub --folder=digits_4/ --repo=user/digits-4

Install huggingface_hub with `pip install -e ".[hub]"`. Store a token with write access with `hf auth login`, or set
HF_TOKEN. Afterwards, `from_checkpoint('hf://user/digits-4')` and the --checkpoint of every script read the archive from
the Hub; `hf://user/digits-4@revision` is the one of a branch, a tag or a commit.
"""

from absl import flags

from diffusion_distillation import cli
from diffusion_distillation.export import hub
from diffusion_distillation.runtime.files import as_path

FOLDER = flags.DEFINE_string("folder", None, "A folder that the command export wrote.", required=True)
REPO = flags.DEFINE_string("repo", None, "The repository, user/name; created if it is missing.", required=True)
PRIVATE = flags.DEFINE_bool("private", False, "Create a private repository.")


def main() -> None:
    print(hub.push(as_path(FOLDER.value), REPO.value, private=PRIVATE.value))


if __name__ == "__main__":
    cli.run(main)
