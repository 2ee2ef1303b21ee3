"""Upload of an adapter to the Hugging Face hub. Only where a flag asks for it."""

import logging

from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.errors import ConfigError, StageFailed
from ucotron_ray.core.run import Run
from ucotron_ray.core.variables import is_set

log = logging.getLogger(__name__)

TOKEN = "HF_TOKEN"


def check(run: Run, repository: str | None) -> None:
    """Raise ConfigError before anything is trained, if an upload is wanted that could only fail."""
    if repository is None:
        return
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ConfigError(
            "this is no name of a repository", where="--push-to-hub", expected="ORG/NAME", found=repository
        )
    if not is_set(TOKEN):
        raise ConfigError(
            f"the environment variable {TOKEN} is not set",
            where="--push-to-hub",
            expected=f"{TOKEN}: a token of the hub that may write",
            next_step=f"export {TOKEN}=... and run the same command again, or leave --push-to-hub away",
        )
    run.hub_needed = True


def push(adapter: Artifact, repository: str) -> str:
    """Upload the adapter's weights, configuration and tokenizer into a private repository; return its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        # The token is read by the library, from the variable.
        api = HfApi()
        url = str(api.create_repo(repository, private=True, exist_ok=True))
        api.upload_folder(
            repo_id=repository,
            folder_path=str(adapter.path / "adapter"),
            commit_message=f"adapter {adapter.manifest.name}, content {adapter.manifest.content[:16]}",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise StageFailed(
            "the adapter is trained, but the hub did not take it",
            where=repository,
            found=str(error).splitlines()[0],
            next_step="run the same command again: the adapter is reused, and the upload tried once more",
        ) from error
    log.info("hub: %s", url)
    return url
