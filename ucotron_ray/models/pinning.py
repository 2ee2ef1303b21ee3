"""Which commit of the hub a name stands for: asked once, by the driver, so that all workers load the same bytes."""

import logging
import re

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.failures import first_line

log = logging.getLogger(__name__)

MAIN = "main"
ASK_SECONDS = 20.0
COMMIT_STEP = "pass --revision with the 40 digits of the commit (NAME@COMMIT for a MODEL), or a directory"
TOKEN_STEP = (
    "ask for access on the model's page; the token is read from HF_TOKEN, or the file that HF_TOKEN_PATH names, in the "
    "environment of each process that loads the model: on a cluster that of its nodes"
)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*")
"""A branch, a tag or a commit; it becomes part of a path in the cache."""


def commit_of(name: str, revision: str | None = None) -> str:
    """The commit of a hub model that a branch or a tag (`main` if none is given) points to; a commit is taken as it is.

    Where the hub cannot be asked, it is the one under which this machine's cache has it. Raises InputError if neither
    knows.
    """
    wanted = revision or MAIN
    if _COMMIT.fullmatch(wanted):
        return wanted
    if not _REVISION.fullmatch(wanted):
        raise InputError(
            "this is no revision of a model", where=name, expected="a branch, a tag or a commit", found=wanted
        )
    import httpx2  # noqa: PLC0415 - hub models only
    from huggingface_hub import HfApi, try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # The token is read by the library, from the variable.
        commit = HfApi().model_info(name, revision=wanted, timeout=ASK_SECONDS).sha
        said = "it named no commit"
    except RepositoryNotFoundError as error:
        raise _refused(name, error) from None
    except (RevisionNotFoundError, HFValidationError) as error:
        raise InputError(
            "the hub has no such revision of the model",
            where=f"{name}@{wanted}",
            expected="a hub name (org/name), and a branch, a tag or a commit of it",
            found=first_line(error),
            next_step="look at the model's page on the hub for its name and its revisions",
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        commit, said = None, first_line(error)
    if commit:
        return str(commit)
    cached = try_to_load_from_cache(name, "config.json", revision=wanted)
    # …/snapshots/<commit>/config.json
    found = re.search(r"/snapshots/([0-9a-f]{40})/", cached) if isinstance(cached, str) else None
    if found is None:
        raise InputError(
            "it is not known which commit of the hub's model this is",
            where=f"{name}@{wanted}",
            expected="a hub that answers, or the model in this machine's cache",
            found=said,
            next_step=COMMIT_STEP,
        )
    log.warning("%s@%s: the hub cannot be asked: commit %s of this machine's cache", name, wanted, found[1])
    return found[1]


def commit_in(identity: str) -> str | None:
    """The commit that an identity names; None for files, and for a hub model of a store that did not record it."""
    return identity.partition("@")[2] or None


def raise_refusal(name: str, error: BaseException) -> None:
    """Raise InputError if the hub's refusal is behind an error of transformers: fetching again would change nothing."""
    from huggingface_hub.errors import RepositoryNotFoundError  # noqa: PLC0415 - hub models only

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RepositoryNotFoundError):
            raise _refused(name, cause) from None
        cause = cause.__cause__


def _refused(name: str, error: BaseException) -> InputError:
    """The hub does not give a model to whoever asks: there is none, or it is gated. The token is never said."""
    return InputError(
        "the hub does not give this model",
        where=name,
        expected="a model of the hub that may be fetched, or a directory, a .gguf file, package://NAME/FILE.gguf",
        found=first_line(error),
        next_step=f"check the name; {TOKEN_STEP}",
    )
