"""Upload exported models to the Hugging Face Hub. `from_checkpoint('hf://user/name')` reads them from there."""

import re
from typing import Any

from etils import epath

from ..errors import InputError, RunError
from . import card

MESSAGE = "Model exported by diffusion_distillation"


def push(folder: epath.Path, repo: str, *, private: bool = False) -> str:
    """Upload an exported folder to a model repository, in one commit.

    Args:
      folder: written by `sampler_file.write`.
      repo: 'user/name' or 'organization/name'. It is created if it is missing.
      private: create a private repository. An existing one keeps its visibility.

    Returns:
      The address of the repository.

    Raises:
      InputError: before anything is sent, if the folder is not an exported one, the name is not valid, or
        huggingface_hub is not installed or has no token; and if the Hub does not accept the token.
      RunError: if the Hub cannot be reached, or fails.
    """
    if not (folder / card.NAME).is_file():
        problem = f"has no {card.NAME}" if folder.is_dir() else "is not a folder"
        raise InputError(f"{str(folder)!r} {problem}. Pass a folder that the command export wrote.")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise InputError(f"repo={repo!r} must be user/name or organization/name.")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError:
        raise InputError("Uploading needs huggingface_hub. Run: pip install huggingface_hub.") from None
    token = huggingface_hub.get_token()
    if token is None:
        raise InputError("There is no token of the Hugging Face Hub. Run `hf auth login`, or set HF_TOKEN.")
    hub = huggingface_hub.HfApi(token=token)
    try:
        address = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=MESSAGE, ignore_patterns=".*")
    except HFValidationError as error:
        raise InputError(f"repo={repo!r} is not a valid name on the Hub: {_one_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(
                f"The Hub does not let this token write to {repo!r} ({status}). Use a token with write access, of a "
                "member of the organization. `hf auth whoami` prints the token's owner."
            ) from None
        raise RunError(f"The Hub rejected {repo!r}: {_one_line(error)} Run the same command again.") from error
    except Exception as error:  # from the HTTP library, which depends on the version of huggingface_hub
        raise RunError(f"The Hub cannot be reached: {type(error).__name__}: {_one_line(error)}. Try again.") from error
    return str(address)


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
