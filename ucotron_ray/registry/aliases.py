"""What the aliases of a registered model point to: `rollback` exchanges two of them, `pull` fetches one.

rollback         champion and previous change places
pull             what an alias points to, fetched, verified, put into place in one step
"""

from pathlib import Path
from typing import Any

from ucotron_ray.core import copies
from ucotron_ray.core.artifacts import Artifact, read_artifact
from ucotron_ray.core.destination import Destination
from ucotron_ray.core.errors import ConfigError, MissingArtifact, RecipeChanged
from ucotron_ray.core.files import MANIFEST
from ucotron_ray.core.model_version import Version, bundle_in
from ucotron_ray.core.run import Run
from ucotron_ray.core.tracking import Registry
from ucotron_ray.registry import versions as registry
from ucotron_ray.registry.versions import CHAMPION, CONTENT_TAG, NAME_TAG, PREVIOUS


def registry_of(run: Run, *, must_exist: bool = False) -> Registry:
    """The place's registry, which may be where its runs are not. Raises ConfigError where there is none."""
    tracking = run.config.place.tracking
    where = run.destination
    if where is None and tracking.registry_uri:
        where = Destination(tracking.registry_uri, tracking.experiment, None)
    if where is None:
        raise ConfigError(
            "there is no registry without MLflow",
            where="tracking.registry_uri, tracking.mlflow_uri",
            expected="null for the store's own, sqlite:////absolute/path/mlflow.db, or http(s)://...",
            found="none",
        )
    name = tracking.registered_model.format(tier=run.config.recipe.tier)
    return Registry(where, run.config.place, name, must_exist=must_exist)


def version_of(models: Registry, alias: str) -> Version | None:
    """What an alias points to. Raises MissingArtifact for a version that says nothing of its bytes."""
    version = models.version(alias)
    missing = [tag for tag in (CONTENT_TAG, NAME_TAG) if version is not None and tag not in version.tags]
    if version is not None and missing:
        raise MissingArtifact(
            f"version {version.number} of {models.model} was not registered by promote",
            where=models.uri,
            expected=f"its tags {CONTENT_TAG} and {NAME_TAG}",
            found=f"the alias '{alias}' on a version without {' and '.join(missing)}",
            next_step=f"in MLflow, move '{alias}' to a version that promote registered, or remove the alias",
        )
    return version


def rollback(run: Run) -> dict[str, Any]:
    """Champion and previous change places. Raises CorruptArtifact if the previous one's bytes are no longer right."""
    models = registry_of(run, must_exist=True)
    # Whatever the champion is: an alias that was moved by hand to a version of somebody else's is led back by this.
    champion, previous = models.version(CHAMPION), version_of(models, PREVIOUS)
    if previous is None:
        raise MissingArtifact(
            f"{models.model} has no previous champion",
            where=models.uri,
            found=", ".join(f"{alias} {number}" for alias, number in models.aliases().items()) or "no alias",
            next_step="promote a bundle",
        )
    if champion is not None and champion.number == previous.number:
        raise MissingArtifact(
            f"{models.model} has no champion before version {champion.number}: both aliases point to it",
            where=models.uri,
            found="a promote or rollback that was killed between its two aliases",
            next_step=f"promote the bundle that is wanted; earlier moves are in store/registry/{models.model}.jsonl",
        )
    if previous.directory is not None:
        copies.verify_content(read_artifact(previous.directory), previous.tags[CONTENT_TAG])
    else:
        refuse_unseen(previous)
    # In this order a kill in between leaves the champion where it was asked to go, and the next rollback is refused.
    models.point(CHAMPION, previous)
    models.point(PREVIOUS, champion)
    event = {"action": "rollback", "from": number_of(champion), "version": previous.number}
    registry.audit(run.store.root, models.model, event)
    names = {"bundle": previous.tags.get(NAME_TAG), "content": previous.tags.get(CONTENT_TAG)}
    return {"registered_model": models.model, **names, "version": previous.number, "previous": number_of(champion)}


def pull(run: Run, target: Path | None, *, alias: str = CHAMPION) -> Artifact:
    """What an alias points to, as a verified copy: in the target directory, else in the store under its own name.

    Raises CorruptArtifact, with nothing left behind, where a byte is not the registered one, and RecipeChanged rather
    than replace a bundle that was never registered.
    """
    models = registry_of(run, must_exist=True)
    version = version_of(models, alias)
    if version is None:
        raise MissingArtifact(
            f"{models.model} has no version with the alias '{alias}'",
            where=models.uri,
            found=", ".join(f"{name} {number}" for name, number in models.aliases().items()) or "no alias",
            next_step="promote a bundle first, or name another --alias",
        )
    place = target.absolute() if target is not None else run.store.path("bundle", version.tags[NAME_TAG])
    _refuse_to_lose(run, models, place)
    return fetch(models, version, place)


def fetch(models: Registry, version: Version, target: Path) -> Artifact:
    """A version's files in the target, all bytes as they were registered."""
    content = version.tags[CONTENT_TAG]
    if version.directory is not None and copies.holds(target, content):
        return read_artifact(target)
    source = version.directory
    refuse_unseen(version)
    get = copies.copy_of(source) if source else lambda directory: bundle_in(models.download(version.source, directory))
    return copies.install(get, target, content)


def _refuse_to_lose(run: Run, models: Registry, target: Path) -> None:
    """What a pull takes the place of is a copy of a registered version, unless --replace says otherwise."""
    if not (target / MANIFEST).is_file():
        return
    there = read_artifact(target).manifest
    if there.kind != "bundle":
        raise ConfigError(
            "the target is no bundle and stays as it is",
            where=str(target),
            expected="a new directory, or an older copy of a bundle",
            found=f"the {there.kind} '{there.name}'",
            next_step="choose another directory",
        )
    registered = {version.tags.get(CONTENT_TAG) for version in models.versions()}
    if there.content not in registered and not run.replace:
        raise RecipeChanged(
            f"the bundle '{there.name}' was never registered, and nothing could bring it back",
            where=str(target),
            expected=f"a copy of a version of {models.model}",
            found=there.content[:16],
            next_step="pull into another directory, or pass --replace to throw it away",
        )


def is_unseen(version: Version) -> bool:
    """Whether its files lie in a directory that this machine does not see."""
    return version.directory is None and version.source.startswith("file:")


def refuse_unseen(version: Version) -> None:
    """Raise MissingArtifact for such a version."""
    if is_unseen(version):
        raise MissingArtifact(
            f"the files of version {version.number} cannot be seen from here",
            where=version.source,
            next_step="bring the directory back, or register it with `promote --upload` where it is",
        )


def number_of(version: Version | None) -> str | None:
    """Its number, if there is one."""
    return version.number if version else None
