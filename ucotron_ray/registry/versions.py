"""What the registry knows of a bundle: the tags of its versions, the files that are kept, who moved which alias.

The registry itself is MLflow's (`tracking.Registry`): a registered model with versions, and the aliases below.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ucotron_ray.core import copies
from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.model_version import BUNDLE
from ucotron_ray.registry import model_files

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
CONTENT_TAG, GATES_TAG, NAME_TAG = "manifest_sha", "gates", "bundle"


def tags_of(bundle: Artifact, dataset_digest: str | None) -> dict[str, str]:
    """What a version says of itself: what it was made of, by its own manifest."""
    manifest = bundle.manifest
    base = manifest.recipe_fields.get("base") or {}
    return {
        NAME_TAG: manifest.name,
        CONTENT_TAG: manifest.content,
        "recipe": manifest.recipe,
        "base": str(base.get("reference", "unknown")),
        "base_identity": str(base.get("identity", "unknown")),
        "prompt_hash": str(manifest.recipe_fields.get("prompt", "unknown")),
        "dataset_digest": dataset_digest or "unknown",
        "git_sha": str(manifest.provenance.get("commit")),
    }


def kept(store: Path, bundle: Artifact) -> Path:
    """A version's files under their content in the store's registry, where no later export takes their place.

    A bundle of the store is linked, as its files are only ever replaced by a rename. A directory of the user's may be
    written to in place, and is copied.
    """
    place = store / "registry" / "models" / bundle.manifest.content[:16]
    if not copies.holds(place / BUNDLE, bundle.manifest.content):
        get = copies.copy_of(bundle.path, _linked if bundle.path.is_relative_to(store) else shutil.copy2)
        copies.install(get, place / BUNDLE, bundle.manifest.content)
    if not (place / model_files.MLMODEL).is_file():
        model_files.write(place, bundle)
    return place


def audit(store: Path, model: str, event: Mapping[str, Any]) -> None:
    """Add a line about what was done to the aliases to `<store>/registry/<model>.jsonl`."""
    path = store / "registry" / f"{model}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "model": model, **event}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _linked(source: str, target: str) -> None:
    """A hard link; a copy where the file system has none, or the target lies on another one."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)
