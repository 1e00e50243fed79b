"""A model's files to the Hugging Face Hub, in one commit."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from pipeline.errors import InputError, StorageError, UserError, one_line

REFUSALS = {401: "the Hub refuses the token", 403: "the token may not write there", 404: "there is no such owner"}
"""What a status of the Hub means where a repository is made or written; others are failures of its own."""

FAILURES = cast(tuple[type[Exception], ...], (*HfHubHTTPError.__bases__, RuntimeError))
"""What the HTTP client raises, httpx or its successor by the version of huggingface_hub; OSError; RuntimeError hides either."""


def push_files(directory: str, files: Sequence[str], repo: str, *, public: bool) -> str:
    """Upload files of a directory to a model repository, which is made if there is none; return the commit's address.

    A new repository is private unless it is to be `public`; one that is there already stays what it is. Raises UserError
    without a token, InputError for a repository that cannot be written, or is public without `public`, and StorageError if the
    Hub fails or cannot be reached.
    """
    if get_token() is None:
        raise UserError("there is no token for the Hub; set HF_TOKEN, or log in with `hf auth login`")
    api = HfApi()
    with _translated(repo, api.endpoint):
        if repo.count("/") != 1:  # a name alone is somebody else's, such as bert-base-uncased
            raise HFValidationError(repo)
        name = _make_or_check(api, repo, public=public)
        commit = api.upload_folder(
            repo_id=name, folder_path=directory, allow_patterns=list(files), commit_message="Upload by offramp"
        )
    return str(commit.commit_url)


def _make_or_check(api: HfApi, repo: str, *, public: bool) -> str:
    """Return the whole name of a repository, made if there is none; raise InputError for one that would show the model."""
    try:
        found = api.model_info(repo)
    except RepositoryNotFoundError:
        return str(api.create_repo(repo, private=not public, exist_ok=True).repo_id)
    if not public and not found.private:
        raise InputError("repo", f"{repo}: is public; with `public` the model will be, too")
    return str(found.id)


@contextmanager
def _translated(repo: str, endpoint: str) -> Iterator[None]:
    """Raise what the Hub or the way to it refuses as our errors, which are one line."""
    try:
        yield
    except HFValidationError as error:
        raise InputError("repo", f"{repo}: is no name of a repository (OWNER/NAME)") from error
    except OfflineModeIsEnabled as error:
        raise UserError("the Hub may not be asked (HF_HUB_OFFLINE)") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in REFUSALS:
            raise InputError("repo", f"{repo}: {REFUSALS[status]} ({status})") from error
        raise StorageError(f"{endpoint}: {one_line(error, limit=300)}") from error
    except FAILURES as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise StorageError(f"{endpoint}: the upload failed: {one_line(cause, with_type=True, limit=300)}") from error
