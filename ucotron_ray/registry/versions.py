"""What the registry knows of a bundle, and how a bundle comes into its place: fetched, verified, put there in one step.

The registry itself is MLflow's (`tracking.Registry`): a registered model with versions, and the aliases below.
"""

import ctypes
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ucotron_ray.core.artifacts import MANIFEST, Artifact, fsync_directory, read_artifact, verify
from ucotron_ray.core.errors import ConfigError, CorruptArtifact

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
CONTENT_TAG, GATES_TAG, NAME_TAG = "manifest_sha", "gates", "bundle"

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""`renameat2(2)`."""


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


def install(fetch: Callable[[Path], Path], target: Path, content: str) -> Artifact:
    """Fetch an artifact beside the target, compare every byte, and put it in the target's place.

    `fetch` gets an empty directory and returns where in it the artifact lies. `content` is what the registry says of
    it: a manifest that was changed together with its files is noticed too. Raises CorruptArtifact, with nothing left
    behind and nothing changed, and ConfigError where the target holds something else than an artifact.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise ConfigError(
            "the target is no artifact and stays as it is",
            where=str(target),
            expected="a new directory, or an older copy of an artifact",
            next_step="choose another directory",
        )
    aside = target.with_name(f"{target.name}.{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        fetched = read_artifact(fetch(aside))
        verify_content(fetched, content)
        _place(fetched.path, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    fsync_directory(target.parent)
    return read_artifact(target)


def verify_content(artifact: Artifact, content: str) -> None:
    """Every byte against the manifest, and the manifest against the registry. Raises CorruptArtifact."""
    verify(artifact)
    check_content(artifact, content)


def holds(directory: Path, content: str) -> bool:
    """Whether a directory is an artifact of this content, byte for byte."""
    if not (directory / MANIFEST).is_file():
        return False
    try:
        verify_content(read_artifact(directory), content)
    except CorruptArtifact:
        return False
    return True


def check_content(artifact: Artifact, content: str) -> None:
    """The manifest against the registry, the files unread. Raises CorruptArtifact."""
    if artifact.manifest.content != content:
        raise CorruptArtifact(
            f"{artifact.manifest.kind} '{artifact.manifest.name}' is not what was registered",
            where=str(artifact.path),
            expected=content[:16],
            found=artifact.manifest.content[:16],
            next_step="promote what lies there now, roll back, or bring the registered bytes back",
        )


def kept(store: Path, bundle: Artifact) -> Path:
    """A bundle's files under their content in the store's registry, where no later export takes their place.

    Those of the store are linked, as they are only ever replaced by a rename. A directory of the user's may be written
    to in place, and is copied.
    """
    place = store / "registry" / "versions" / bundle.manifest.content[:16]
    if not holds(place, bundle.manifest.content):
        get = copy_of(bundle.path, _linked if bundle.path.is_relative_to(store) else shutil.copy2)
        install(get, place, bundle.manifest.content)
    return place


def copy_of(source: Path, copy: Callable[[str, str], object] = shutil.copy2) -> Callable[[Path], Path]:
    """A fetch from a directory."""

    def fetch(directory: Path) -> Path:
        return Path(shutil.copytree(source, directory / source.name, copy_function=copy))

    return fetch


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


def _place(new: Path, target: Path) -> None:
    """Rename a directory into place. One that is there is exchanged for it: no reader finds nothing or a mixture."""
    if not target.exists():
        os.rename(new, target)
        return
    if not _exchanged(new, target):
        # A file system without exchange: for a moment there is nothing, but never a mixture.
        old = target.with_name(f"{target.name}.old.partial")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths at once (`renameat2` of Linux); False where that does not exist."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(other))
