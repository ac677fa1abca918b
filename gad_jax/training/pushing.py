"""Uploads exports and data sets to the Hugging Face hub; HF_ENDPOINT names another hub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gad_jax.base.errors import UserError, first_line
from gad_jax.models.carried import TOKENIZER_FILES

STALE = ["*.safetensors", "*.safetensors.index.json", "generation_config.json", *TOKENIZER_FILES]
"""Files of an earlier upload that are removed where this one has none: they would be read too."""


def repositories(name: str, parts: list[str]) -> dict[str, str]:
    """Returns the hub's repository of each part: `name`, and `name`-discriminator next to it.

    Raises UserError for a name that is not ORG/NAME.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"--push={name}: give ORG/NAME, with letters, digits, '-', '_' and '.'")
    if len(parts) == 1:
        return {parts[0]: name}
    return {part: name if part == "student" else f"{name}-{part}" for part in parts}


def create(repository: str, public: bool, kind: str = "model") -> None:
    """Makes a repository unless it exists; one that exists stays as public as it is. `kind` is
    `model` or `dataset`.

    It is called before the work, so that the work is not done in vain. Raises UserError.
    """
    from huggingface_hub import HfApi  # here: half a second, for those who push

    with _explained(repository, ""):
        HfApi().create_repo(repository, repo_type=kind, private=not public, exist_ok=True)


def upload(repository: str, directory: Path, message: str) -> str:
    """Uploads a directory in one commit; returns where it is. Raises UserError."""
    from huggingface_hub import HfApi

    with _explained(repository, f"; the export is in {directory}"):
        done = HfApi().upload_folder(
            repo_id=repository,
            folder_path=directory,
            commit_message=message,
            delete_patterns=STALE,
        )
    return str(done.repo_url)


def upload_adapter(repository: str, directory: Path, message: str, public: bool) -> str:
    """Uploads adapters to a repository next to that of the whole network; returns where they are.

    Raises UserError."""
    name = f"{repository}-adapter"
    create(name, public)
    return upload(name, directory, message)


def upload_rows(repository: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Uploads files, by their names there, to a dataset in one commit; returns where it is.

    Other files of the dataset stay. Raises UserError."""
    from huggingface_hub import CommitOperationAdd, HfApi

    with _explained(repository, "; the rows are written"):
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        done = HfApi().create_commit(repository, added, commit_message=message, repo_type="dataset")
    return str(done.repo_url)


@contextmanager
def _explained(repository: str, written: str) -> Iterator[None]:
    """Turns the library's errors into one sentence; `written` ends it."""
    from huggingface_hub import errors

    where = f"--push={repository}:"
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise UserError(
            f"{where} nobody is logged in; run `hf auth login`, or set HF_TOKEN{written}"
        ) from error
    except errors.HFValidationError as error:
        raise UserError(f"{where} {first_line(error)}; give another name{written}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = error.server_message or first_line(error)
        advice = {
            401: "the token is not accepted or there is none; run `hf auth login`, or set HF_TOKEN",
            403: "the token may not write there; take one with write access to that organisation, "
            "or another name",
            404: "there is no such organisation or repository for this token; check the name",
            429: "the hub asks to wait; try again later",
        }.get(status, "try again later, or upload the directory by hand with `hf upload`")
        raise UserError(
            f"{where} the hub refused ({status}: {reason}); {advice}{written}"
        ) from error
    except Exception as error:  # no network, offline mode, a proxy: the classes vary with versions
        chain = [error, *([error.__cause__] if error.__cause__ else [])]  # which file, and why
        reason = ": ".join(first_line(one, with_class=True) for one in chain)
        raise UserError(
            f"{where} could not be uploaded ({reason}); check the connection, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE{written}"
        ) from error
