"""What an artifact is and what it was made from, from its manifest alone."""

from pathlib import Path

from ucotron_ray.core.artifacts import Artifact, Store, read_artifact
from ucotron_ray.core.errors import MissingArtifact
from ucotron_ray.core.files import MANIFEST
from ucotron_ray.core.provenance import cleaned


def find(store: Store, reference: str) -> list[Artifact]:
    """The artifacts of a name, or the one of `KIND/NAME`. Raises MissingArtifact."""
    pattern = reference if reference.count("/") == 1 else f"*/{reference}"
    paths = sorted(path.parent for path in Path(store.root).glob(f"{pattern}/{MANIFEST}"))
    if not paths:
        every = sorted(path.parent.relative_to(store.root).as_posix() for path in store.root.glob(f"*/*/{MANIFEST}"))
        raise MissingArtifact(
            f"the store has no artifact '{reference}'",
            where=str(store.root),
            found=", ".join(every) or "an empty store",
            next_step="name one of these, or another store with --set store=PATH",
        )
    return [read_artifact(path) for path in paths]


def describe(store: Store, artifact: Artifact) -> str:
    """The manifest in words, and below it the inputs, their inputs, and so on."""
    manifest = artifact.manifest
    made = cleaned(manifest.provenance)
    lines = [
        f"{manifest.kind}/{manifest.name}  {manifest.state}",
        f"  path      {artifact.path}",
        f"  content   {manifest.content[:16]}  recipe {manifest.recipe[:16]}",
        f"  made      {made.get('finished_at')} in {made.get('seconds')} s at commit {str(made.get('commit'))[:12]}",
        f"  by        {made.get('command')}",
        *(f"  {key:<28} {value:.4g}" for key, value in manifest.metrics.items()),
        *(f"  {key:<28} {value}" for key, value in manifest.counts.items()),
        *(f"  note: {note}" for note in manifest.notes),
        *_ancestry(store, artifact, indent="  "),
    ]
    return "\n".join(lines)


def _ancestry(store: Store, artifact: Artifact, *, indent: str) -> list[str]:
    lines = []
    for entry in artifact.manifest.inputs:
        path = store.root / entry.kind / entry.name
        parent = read_artifact(path) if (path / MANIFEST).is_file() else None
        if parent is None:
            state = "no longer in the store"
        else:
            state = "" if parent.manifest.content == entry.content else "has other content now"
        lines.append(f"{indent}← {entry.role}: {entry.kind}/{entry.name} {entry.content[:16]} {state}".rstrip())
        if parent is not None:
            lines.extend(_ancestry(store, parent, indent=indent + "  "))
    return lines
