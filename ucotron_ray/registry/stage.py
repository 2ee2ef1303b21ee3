"""Bundles and the registry: `promote` behind gates, `rollback`, and `pull`.

promote BUNDLE   verify every byte → score it, its base and the champion on the same rows → gates
                 → previous := champion, champion := it
rollback         champion and previous change places
pull             what an alias points to, fetched, verified, put into place in one step
"""

import json
import logging
from pathlib import Path
from typing import Any

from ucotron_ray.core import copies
from ucotron_ray.core.artifacts import Artifact, read_artifact
from ucotron_ray.core.destination import Destination
from ucotron_ray.core.errors import ConfigError, MissingArtifact, RecipeChanged, Stopped
from ucotron_ray.core.files import MANIFEST
from ucotron_ray.core.run import Run
from ucotron_ray.core.tracking import Registry
from ucotron_ray.core.version import Version
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.stage import TRAIN, data_of, held_out
from ucotron_ray.evaluation.answers import Source, adapter_of, bundle_of, bundle_source
from ucotron_ray.evaluation.comparison import answered, asked_rows
from ucotron_ray.evaluation.stage import GUIDE_GROUP, scored
from ucotron_ray.models.stage import note_hub, original_base
from ucotron_ray.registry import versions as registry
from ucotron_ray.registry.versions import CANDIDATE, CHAMPION, CONTENT_TAG, GATES_TAG, NAME_TAG, PREVIOUS

log = logging.getLogger(__name__)


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


def promote(run: Run, reference: str, *, upload: bool) -> dict[str, Any]:
    """Move `champion` to a bundle if it passes the gates.

    `refused` has what failed, with its numbers; such a bundle stays registered as `candidate`, with its gates. Raises
    CorruptArtifact for a changed byte, ArtifactError for a bundle whose parity failed, and Stopped if somebody
    else moved `champion` meanwhile.
    """
    bundle = _servable(run, reference)
    models = registry_of(run)
    # Asked before the run sends anything: MLflow does not lock the making of its tables.
    champion = version_of(models, CHAMPION)
    with run:
        found = _judged(run, models, bundle, champion)
    version = _registered(run, models, bundle, upload=upload)
    models.tag(version, {GATES_TAG: json.dumps(found, ensure_ascii=False)})
    _refuse_if_moved(models, champion)
    failed = [f"{gate['name']}: {gate['said']}" for gate in found if not gate["passed"]]
    event = {"bundle": bundle.manifest.name, "content": bundle.manifest.content, "version": version.number}
    shown: dict[str, Any] = {**event, "registered_model": models.model, "gates": found, "artifact": str(bundle.path)}
    shown |= {"refused": failed, "previous": _number(champion), "changed": False}
    is_champion = champion is not None and champion.number == version.number
    if failed:
        if not is_champion:
            models.point(CANDIDATE, version)
        registry.audit(run.store.root, models.model, {"action": "refuse", **event, "why": failed})
    elif not is_champion:
        # In this order a kill in between is mended by the same command: the champion is still the old one.
        if champion is not None:
            models.point(PREVIOUS, champion)
        models.point(CHAMPION, version)
        _leave_candidate(models, version)
        registry.audit(run.store.root, models.model, {"action": "promote", **event, "from": _number(champion)})
        shown["changed"] = True
    return shown


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
        _refuse_unseen(previous)
    # In this order a kill in between leaves the champion where it was asked to go, and the next rollback is refused.
    models.point(CHAMPION, previous)
    models.point(PREVIOUS, champion)
    event = {"action": "rollback", "from": _number(champion), "version": previous.number}
    registry.audit(run.store.root, models.model, event)
    names = {"bundle": previous.tags.get(NAME_TAG), "content": previous.tags.get(CONTENT_TAG)}
    return {"registered_model": models.model, **names, "version": previous.number, "previous": _number(champion)}


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
    _refuse_unseen(version)
    get = copies.copy_of(source) if source else lambda directory: models.download(version.source, directory)
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


def _refuse_if_moved(models: Registry, champion: Version | None) -> None:
    """The gates are about the champion that was compared with, and the aliases are moved from it."""
    now = models.aliases().get(CHAMPION)
    if now != _number(champion):
        raise Stopped(
            "somebody else moved champion while the bundle was compared with it",
            where=models.uri,
            expected=_number(champion) or "no champion",
            found=now or "no champion",
            next_step="run the same command again: what is scored is not scored again",
        )


def _is_unseen(version: Version) -> bool:
    return version.directory is None and version.source.startswith("file:")


def _refuse_unseen(version: Version) -> None:
    if _is_unseen(version):
        raise MissingArtifact(
            f"the files of version {version.number} cannot be seen from here",
            where=version.source,
            next_step="bring the directory back, or register it with `promote --upload` where it is",
        )


def _servable(run: Run, reference: str) -> Artifact:
    """The bundle with verified bytes and passed parity; --accept-rejected does not reach so far."""
    run.accept_rejected = False
    return bundle_of(run, reference)


def _judged(run: Run, models: Registry, bundle: Artifact, champion: Version | None) -> list[dict[str, Any]]:
    """Score what has to be scored, and look at every gate."""
    from ucotron_ray.evaluation import gates

    settings = run.config.recipe.evaluation
    # Noted before anything connects: whether workers may ask the hub for it is settled with that.
    base_model = note_hub(run, original_base(bundle, run.store))
    dataset = data_of(run, adapter_of(run, bundle))
    data = held_out(run, settings.data, dataset)
    candidate = scored(run, bundle_source(bundle, bundle.manifest.name), data)
    base = scored(run, Source(f"{bundle.manifest.name}-base", "model", base=base_model), data)
    rival = None
    if champion is not None and champion.tags[CONTENT_TAG] != bundle.manifest.content:
        served = _bundle_of_version(run, models, champion)
        rival = scored(run, bundle_source(served, served.manifest.name), data)
    rows = asked_rows(candidate)
    found = gates.gates(
        rows,
        answered(f"candidate {bundle.manifest.name}", candidate),
        answered("base", base),
        answered("champion", rival) if rival else None,
        run.config.recipe.promotion,
        resamples=settings.resamples,
        seed=settings.seed,
    )
    held = [row for row in rows if row.group != GUIDE_GROUP]
    found.append(gates.not_trained_on(held, _trained_on(dataset)))
    for gate in found:
        log.info("promote: %s %s: %s", "pass" if gate.passed else "FAIL", gate.name, gate.said)
    return gates.record(found)


def _trained_on(dataset: Artifact | None) -> list[str] | None:
    """The texts of the training rows; None where they are unknown."""
    if dataset is None or not (dataset.path / TRAIN).is_file():
        return None
    return [row.text for row in jsonl.read_training_rows(dataset.path / TRAIN) if isinstance(row, RawRow)]


def _dataset_digest(run: Run, bundle: Artifact) -> str | None:
    adapter = adapter_of(run, bundle)
    data = next((entry for entry in adapter.manifest.inputs if entry.role == "data"), None) if adapter else None
    return data.content if data else None


def _bundle_of_version(run: Run, models: Registry, version: Version) -> Artifact:
    """The bundle of a registered version: where it is, or a copy in this store."""
    content = version.tags[CONTENT_TAG]
    if version.directory is not None:
        found = read_artifact(version.directory)
        copies.verify_content(found, content)
        return found
    return fetch(models, version, run.store.path("bundle", f"{version.tags[NAME_TAG]}-{content[:12]}"))


def _registered(run: Run, models: Registry, bundle: Artifact, *, upload: bool) -> Version:
    """The version of these bytes: registered already, or now. With a server, or on demand, the files go there too."""
    upload = upload or models.uri.startswith(("http://", "https://"))
    content = bundle.manifest.content
    for version in models.versions():
        if version.tags.get(CONTENT_TAG) == content and _is_reachable(version, content, upload=upload):
            return version
    # Not the bundle's own path: what is exported under its name later would be there instead.
    source, logged = models.upload(bundle) if upload else (registry.kept(run.store.root, bundle).as_uri(), None)
    return models.register(source, registry.tags_of(bundle, _dataset_digest(run, bundle)), run=logged)


def _is_reachable(version: Version, content: str, *, upload: bool) -> bool:
    """Whether a version's files are where they are asked for: at MLflow, or anywhere at all."""
    if upload and version.run is None:
        return False
    if version.directory is not None:
        return copies.holds(version.directory, content)
    return not _is_unseen(version)


def _leave_candidate(models: Registry, version: Version) -> None:
    if models.aliases().get(CANDIDATE) == version.number:
        models.point(CANDIDATE, None)


def _number(version: Version | None) -> str | None:
    return version.number if version else None
