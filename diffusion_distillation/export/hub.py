"""Exported models on the Hugging Face Hub; `from_checkpoint('hf://user/name')` reads them from there."""

import re
from typing import Any

from etils import epath

from ..errors import InputError, RunError
from . import card

MESSAGE = "Model exported by diffusion_distillation"


def push(folder: epath.Path, repo: str, *, private: bool = False) -> str:
    """Uploads an exported folder, in one commit, to a repository of models, which is made if there is none.

    Args:
      folder: that `export.write` wrote.
      repo: 'user/name' or 'organization/name'.
      private: whether a repository that is made is for its owner alone; one that is there stays as it is.

    Returns:
      The address of the repository.

    Raises:
      InputError: before anything is sent, if the folder is not what `export.write` writes, the name cannot be one, or
        huggingface_hub is not installed or has no token; and if the Hub does not let this token do it.
      RunError: if the Hub cannot be reached, or fails.
    """
    if not (folder / card.NAME).is_file():
        what = f"has no {card.NAME}" if folder.is_dir() else "is no folder"
        raise InputError(f"{str(folder)!r} {what}: give the folder that scripts/export.py wrote.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(
            f"repo={repo!r} must be the name of a user or an organization and one of the model: user/name."
        )
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise InputError("The Hub is reached with huggingface_hub: pip install huggingface_hub.") from None
    token = huggingface_hub.get_token()
    if token is None:
        raise InputError("There is no token of the Hugging Face Hub here: run `hf auth login`, or set HF_TOKEN to one.")
    hub = huggingface_hub.HfApi(token=token)
    try:
        address = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=MESSAGE, ignore_patterns=".*")
    except HFValidationError as error:
        raise InputError(f"repo={repo!r} cannot be a name on the Hub: {_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"The Hub does not let this token write to {repo!r} ({status}): it must be one that may write, of a "
                "member of it. `hf auth whoami` says whose it is."
            ) from None
        raise RunError(f"The Hub did not take {repo!r}: {_line(error)} Run the same command again.") from error
    except Exception as error:  # whatever the library for HTTP raises, which is another in each version
        raise RunError(f"The Hub cannot be reached: {type(error).__name__}: {_line(error)}. Try again.") from error
    return str(address)


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
