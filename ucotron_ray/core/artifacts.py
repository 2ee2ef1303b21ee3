"""What stages leave behind: directories with a manifest, built aside, published by one rename, verified and reused.

    <store>/<kind>/<name>/            files + manifest.json, complete
    <store>/<kind>/<name>.partial/    being built; recipe.json says by which recipe
    <store>/<kind>/<name>.lock        held by the process that builds

A directory without `manifest.json` is never an artifact. The manifest is written last, and the directory is renamed
after it, so a kill at any moment leaves either the partial directory or the whole artifact.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ucotron_ray.core.errors import ArtifactError, ConfigError, CorruptArtifact, MissingArtifact, RecipeChanged
from ucotron_ray.core.files import (
    MANIFEST,
    RECIPE,
    FileEntry,
    canonical_hash,
    content_hash,
    differing_fields,
    fsync_directory,
    list_files,
    remove_asides,
    write_json,
)
from ucotron_ray.core.provenance import cleaned, provenance
from ucotron_ray.core.rows_use import RowsUse

ArtifactKind = Literal["dataset", "adapter", "model", "bundle", "projection", "sweep", "scores", "cache"]
State = Literal["ok", "rejected", "failed"]

SCHEMA_VERSION = 1
MAX_NAME_BYTES = 200
"""File systems take 255, and `.partial` and the like are added."""


class Input(BaseModel):
    """An artifact that another one was made from. `content` ties it to bytes, not to a name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    kind: str
    name: str
    content: str


class Manifest(BaseModel):
    """The record beside the data. `recipe_fields` is what `recipe` hashes; `provenance` is never hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ArtifactKind
    name: str
    schema_version: int = SCHEMA_VERSION
    state: State = "ok"
    content: str
    recipe: str
    recipe_fields: dict[str, Any]
    inputs: list[Input]
    files: list[FileEntry]
    metrics: dict[str, float] = {}
    counts: dict[str, int] = {}
    notes: list[str] = []
    rows: list[RowsUse] = []
    """Which rows it was made with, and what for; empty in manifests of before."""
    provenance: dict[str, Any] = {}


@dataclass(frozen=True)
class Artifact:
    """A complete artifact: where it lies and its manifest."""

    path: Path
    manifest: Manifest

    def as_input(self, role: str) -> Input:
        """This artifact as the input of another one."""
        m = self.manifest
        return Input(role=role, kind=m.kind, name=m.name, content=m.content)


@dataclass(frozen=True)
class Request:
    """What a stage is about to make: the recipe fields that change the result, and its inputs."""

    kind: ArtifactKind
    name: str
    fields: dict[str, Any]
    inputs: tuple[Input, ...] = ()

    @property
    def recipe(self) -> str:
        """sha256 of the canonical JSON of the fields and of the inputs' contents (their names do not count)."""
        inputs = sorted((entry.role, entry.content) for entry in self.inputs)
        return canonical_hash({"fields": self.fields, "inputs": inputs})


@dataclass
class BuildResult:
    """What a stage measured while it built, for the manifest."""

    metrics: dict[str, float]
    counts: dict[str, int]
    notes: list[str]
    state: State = "ok"
    rows: Sequence[RowsUse] = ()


class Store:
    """A directory of artifacts."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, kind: ArtifactKind, name: str) -> Path:
        """Where the complete artifact lies or would lie."""
        is_path = {"/", "\\", os.sep} & set(name) or name.startswith((".", "~")) or not name.isprintable()
        if not name or is_path or len(name.encode()) > MAX_NAME_BYTES or name.endswith((".partial", ".lock")):
            raise ConfigError(
                f"{name[:80]!r} cannot be the name of an artifact",
                expected="one path component without a slash, no dot or ~ first, not ending in .partial or .lock",
                next_step="choose another --name",
            )
        return self.root / kind / name

    def partial(self, kind: ArtifactKind, name: str) -> Path:
        """Where the artifact is built."""
        path = self.path(kind, name)
        return path.with_name(path.name + ".partial")

    def find(self, kind: ArtifactKind, name: str) -> Artifact | None:
        """The complete artifact, not yet verified; None if there is none."""
        path = self.path(kind, name)
        return read_artifact(path) if (path / MANIFEST).is_file() else None

    def get(self, kind: ArtifactKind, name: str, *, accept_rejected: bool = False) -> Artifact:
        """The complete artifact with verified bytes, as an input. Raises MissingArtifact, CorruptArtifact."""
        artifact = self.find(kind, name)
        if artifact is None:
            raise MissingArtifact(
                f"the store has no {kind} '{name}'",
                where=str(self.root),
                found=", ".join(self.names(kind)) or f"no {kind} at all",
                next_step=f"make it first, or name one of these with --set store=PATH for another store ({self.root})",
            )
        verify(artifact)
        artifact = _cleaned(artifact)
        if artifact.manifest.state != "ok" and not accept_rejected:
            raise ArtifactError(
                f"{kind} '{name}' is marked {artifact.manifest.state} and is no input",
                where=str(artifact.path),
                found="; ".join(artifact.manifest.notes) or "no reason noted",
                next_step="mend it, or pass --accept-rejected if you know why it is",
            )
        return artifact

    def names(self, kind: str) -> list[str]:
        """The names of all complete artifacts of a kind."""
        folder = self.root / kind
        return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if ".partial" not in path.parent.name)

    def plan(self, request: Request) -> Literal["run", "resume", "reuse", "conflict"]:
        """What `build` would do with this request, without doing it (the table of the design, section 3)."""
        found = self.find(request.kind, request.name)
        if found is not None:
            return "reuse" if found.manifest.recipe == request.recipe else "conflict"
        started = _read_request(self.partial(request.kind, request.name))
        if started is None:
            return "run"
        return "resume" if started["recipe"] == request.recipe else "conflict"

    def refuse_other_recipe(self, request: Request, *, replace: bool = False) -> None:
        """Raise RecipeChanged where `building` would, for callers with hours of work to do before they build."""
        if replace:
            return
        found = self.find(request.kind, request.name)
        if found is not None:
            _refuse_other_recipe(request, found.manifest.recipe_fields, found.manifest.recipe, found.path)
            return
        partial = self.partial(request.kind, request.name)
        started = _read_request(partial)
        if started is not None:
            _refuse_other_recipe(request, started["fields"], started["recipe"], partial)

    @contextmanager
    def building(self, request: Request, *, replace: bool = False) -> Iterator["Build"]:
        """Hold the name, and give the complete artifact or a directory to build in.

        The directory is kept when the body raises, for the next run to resume. Raises RecipeChanged and
        CorruptArtifact as the table of the design says, and ArtifactError if another process builds the same name.
        """
        target, partial = self.path(request.kind, request.name), self.partial(request.kind, request.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _held(target.with_name(target.name + ".lock")):
            self.refuse_other_recipe(request, replace=replace)
            found = self.find(request.kind, request.name)
            if found is not None and found.manifest.recipe == request.recipe:
                verify(found)
                yield Build(request, target, _cleaned(found))
                return
            started = _read_request(partial)
            if started is None or started["recipe"] != request.recipe:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                write_json(partial / RECIPE, {"recipe": request.recipe, "fields": request.fields})
                started = None
            build = Build(request, partial, None, resumed=started is not None)
            yield build
            if build.artifact is None:
                raise ArtifactError(f"the stage of {request.kind} '{request.name}' ended without publishing it")


class Build:
    """One artifact being made. `artifact` is set if it was there already, or once it is published."""

    def __init__(self, request: Request, path: Path, artifact: Artifact | None, *, resumed: bool = False) -> None:
        self.request = request
        self.path = path
        self.artifact = artifact
        self.reused = artifact is not None
        self.resumed = resumed
        self._began = time.time()

    def publish(self, result: BuildResult) -> Artifact:
        """Write the manifest, rename the directory: from here on it is an artifact.

        An older artifact of that name (`--replace`) is only removed once the new one is whole.
        """
        partial = self.path
        remove_asides(partial)
        files = list_files(partial)
        manifest = Manifest(
            kind=self.request.kind,
            name=self.request.name,
            state=result.state,
            content=content_hash(files),
            recipe=self.request.recipe,
            recipe_fields=self.request.fields,
            inputs=list(self.request.inputs),
            files=files,
            metrics=result.metrics,
            counts=result.counts,
            notes=result.notes,
            rows=list(result.rows),
            # Of a build that went on these are the seconds of its last attempt alone.
            provenance={**provenance(seconds=time.time() - self._began), "resumed": self.resumed},
        )
        write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
        target = partial.with_name(partial.name.removesuffix(".partial"))
        old = partial.with_name(target.name + ".old.partial")
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
        fsync_directory(target.parent)
        (target / RECIPE).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        self.artifact = Artifact(target, manifest)
        return self.artifact


def read_artifact(path: Path) -> Artifact:
    """The artifact in a directory, not yet verified. Raises CorruptArtifact if its manifest cannot be read."""
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise CorruptArtifact(
            "the manifest cannot be read",
            where=str(path / MANIFEST),
            found=str(error).splitlines()[0],
            next_step="fetch the artifact again, or delete the directory and make it again",
        ) from error
    return Artifact(path, manifest)


def _cleaned(artifact: Artifact) -> Artifact:
    """The artifact without passwords in what its manifest says of its making, which older versions kept there."""
    kept = cleaned(artifact.manifest.provenance)
    if kept == artifact.manifest.provenance:
        return artifact
    manifest = artifact.manifest.model_copy(update={"provenance": kept})
    with suppress(OSError):
        # A store of others, that is only read. Neither content nor recipe is of the provenance.
        write_json(artifact.path / MANIFEST, manifest.model_dump(mode="json"))
    return Artifact(artifact.path, manifest)


def verify(artifact: Artifact) -> None:
    """Compare every byte with the manifest. Raises CorruptArtifact with the first path that differs."""
    found = {entry.path: entry for entry in list_files(artifact.path)}
    listed = {entry.path: entry for entry in artifact.manifest.files}
    different = [path for path in sorted({*found, *listed}) if found.get(path) != listed.get(path)]
    if different or content_hash(list(listed.values())) != artifact.manifest.content:
        raise CorruptArtifact(
            f"{artifact.manifest.kind} '{artifact.manifest.name}' is damaged",
            where=str(artifact.path / different[0]) if different else str(artifact.path / MANIFEST),
            expected="the bytes that its manifest lists",
            found=f"{len(different)} file(s) missing, added or changed" if different else "a changed list of files",
            next_step="delete the directory and run the same command again",
        )


def _read_request(partial: Path) -> dict[str, Any] | None:
    try:
        request: dict[str, Any] = json.loads((partial / RECIPE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return request


def _refuse_other_recipe(request: Request, fields: dict[str, Any], recipe: str, path: Path) -> None:
    if recipe == request.recipe:
        return
    lines = differing_fields(request.fields, fields) or ["an input has other content"]
    raise RecipeChanged(
        f"{request.kind} '{request.name}' exists and was made by another recipe",
        where=str(path),
        found="; ".join(lines[:8]) + (f"; and {len(lines) - 8} more" if len(lines) > 8 else ""),
        next_step="choose a new --name, or pass --replace to throw it away",
    )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """An advisory lock that the kernel gives back when its holder dies, however it dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(
                "another process is building this artifact",
                where=str(path),
                next_step="wait for it to end, or choose another --name",
            ) from error
        yield
