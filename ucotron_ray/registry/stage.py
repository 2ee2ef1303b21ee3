"""`promote`: a bundle becomes champion behind gates.

Verify every byte → score it, its base and the champion on the same rows → gates → previous := champion, champion := it.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from ucotron_ray.core import copies
from ucotron_ray.core.artifacts import Artifact, read_artifact
from ucotron_ray.core.errors import Stopped
from ucotron_ray.core.model_version import Version
from ucotron_ray.core.run import Run
from ucotron_ray.core.tracking import Registry
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.stage import TRAIN, data_of, held_out
from ucotron_ray.evaluation.answers import ModelRef, adapter_of, bundle_ref
from ucotron_ray.evaluation.comparison import asked_rows, scored_model
from ucotron_ray.evaluation.stage import GUIDE_GROUP, scored
from ucotron_ray.models.bundles import bundle_of
from ucotron_ray.models.stage import note_hub, original_base
from ucotron_ray.registry import model_files
from ucotron_ray.registry import versions as registry
from ucotron_ray.registry.aliases import fetch, is_unseen, number_of, registry_of, version_of
from ucotron_ray.registry.versions import CANDIDATE, CHAMPION, CONTENT_TAG, GATES_TAG, NAME_TAG, PREVIOUS

log = logging.getLogger(__name__)


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
    shown |= {"refused": failed, "previous": number_of(champion), "changed": False}
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
        registry.audit(run.store.root, models.model, {"action": "promote", **event, "from": number_of(champion)})
        shown["changed"] = True
    return shown


def _refuse_if_moved(models: Registry, champion: Version | None) -> None:
    """The gates are about the champion that was compared with, and the aliases are moved from it."""
    now = models.aliases().get(CHAMPION)
    if now != number_of(champion):
        raise Stopped(
            "somebody else moved champion while the bundle was compared with it",
            where=models.uri,
            expected=number_of(champion) or "no champion",
            found=now or "no champion",
            next_step="run the same command again: what is scored is not scored again",
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
    data = held_out(run, settings.data, dataset, purpose="choice")
    candidate = scored(run, bundle_ref(bundle, bundle.manifest.name), data)
    base = scored(run, ModelRef(f"{bundle.manifest.name}-base", "model", base=base_model), data)
    rival = None
    if champion is not None and champion.tags[CONTENT_TAG] != bundle.manifest.content:
        served = _bundle_of_version(run, models, champion)
        rival = scored(run, bundle_ref(served, served.manifest.name), data)
    rows = asked_rows(candidate)
    found = gates.gates(
        rows,
        scored_model(f"candidate {bundle.manifest.name}", candidate),
        scored_model("base", base),
        scored_model("champion", rival) if rival else None,
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
    logged = None
    if upload:
        with tempfile.TemporaryDirectory() as beside:
            model_files.write(Path(beside), bundle)
            source, logged = models.upload(bundle, Path(beside))
    else:
        # Not the bundle's own path: what is exported under its name later would be there instead.
        source = registry.kept(run.store.root, bundle).as_uri()
    return models.register(source, registry.tags_of(bundle, _dataset_digest(run, bundle)), run=logged)


def _is_reachable(version: Version, content: str, *, upload: bool) -> bool:
    """Whether a version's files are where they are asked for: at MLflow, or anywhere at all."""
    if upload and version.run is None:
        return False
    if version.directory is not None:
        return copies.holds(version.directory, content)
    return not is_unseen(version)


def _leave_candidate(models: Registry, version: Version) -> None:
    if models.aliases().get(CANDIDATE) == version.number:
        models.point(CANDIDATE, None)
