"""What MODEL names, and how a worker gets to load it."""

from dataclasses import replace
from pathlib import Path

from ucotron_ray import artifacts, registry, wire
from ucotron_ray.artifacts import Artifact, Build, Request, Result, Store
from ucotron_ray.errors import ConfigError, CorruptArtifact, InputError
from ucotron_ray.models import base as base_models
from ucotron_ray.records import Entity
from ucotron_ray.run import Run


def prompt_identity() -> str:
    """Hash of the server's prompt: another prompt is another recipe."""
    example = [Entity(text="{entity}", label="{label}")]
    return artifacts.canonical_hash(wire.chat_messages("{text}", example))[:16]


def note_hub(run: Run, base: base_models.BaseModel) -> base_models.BaseModel:
    """Let workers ask the hub for this base. Before anything connects: whether they may is settled with that."""
    run.hub_needed = run.hub_needed or base.kind == "hub"
    return base


def loadable_base(run: Run, base: base_models.BaseModel) -> str:
    """What a worker loads: the reference itself, or for a GGUF file the safetensors that were made of it once."""
    if base.kind != "gguf":
        note_hub(run, base)
        return str(base.path or base.reference)
    request = Request("cache", f"base-{base.identity[-12:]}", {"base": base.identity, "format": "safetensors float32"})

    def build(build: Build) -> Result:
        run.connect()
        from ucotron_ray.models.on_ray import convert_on_ray

        convert_on_ray(base.reference, build.path)
        return Result({}, {}, [f"{base.reference}, dequantized to float32"])

    return str(run.make("convert-base", request, build).path)


MERGED = "model/"
"""Before the name of a merged model of the store: a path would tie what was trained on it to one machine's store."""


def merged_base(merged: Artifact) -> base_models.BaseModel:
    """A merged model of the store as a base, by its name there."""
    return replace(base_models.resolve(str(merged.path)), reference=f"{MERGED}{merged.manifest.name}")


def named_base(reference: str, store: Store) -> base_models.BaseModel:
    """The base that a recipe names: a merged model of the store, or whatever else a reference can name."""
    name = reference.removeprefix(MERGED)
    return base_models.resolve(reference) if name == reference else merged_base(store.get("model", name))


def base_of(adapter: Artifact, store: Store) -> base_models.BaseModel:
    """The base model of an adapter, with the bytes that it was trained on. Raises InputError if they are others now."""
    recorded = adapter.manifest.recipe_fields["base"]
    base = named_base(recorded["reference"], store)
    if base.identity != recorded["identity"]:
        raise InputError(
            "the base model is not the one that the adapter was trained on",
            where=base.reference,
            expected=recorded["identity"],
            found=base.identity,
            next_step="bring the original base model back, or train again",
        )
    return base


def original_base(made: Artifact, store: Store) -> base_models.BaseModel:
    """What the first training began from: of what DPO made not the merged SFT model, but that one's own base.

    Raises as `base_of`, and MissingArtifact where the store has not the merged model any more.
    """
    reference = made.manifest.recipe_fields["base"]["reference"]
    name = reference.removeprefix(MERGED)
    return base_of(made, store) if name == reference else original_base(store.get("model", name), store)


def model(run: Run, reference: str) -> tuple[base_models.BaseModel, Artifact | None]:
    """What MODEL names: an adapter of the store, the directory of an adapter artifact, or a base model."""
    adapter: Artifact | None = None
    if Path(reference).name == reference and run.store.find("adapter", reference) is not None:
        adapter = run.store.get("adapter", reference, accept_rejected=run.accept_rejected)
    elif (Path(reference) / artifacts.MANIFEST).is_file():
        found = artifacts.read_artifact(Path(reference).absolute())
        artifacts.verify(found)
        if found.manifest.kind == "adapter":
            adapter = found
    base = base_models.resolve(reference) if adapter is None else base_of(adapter, run.store)
    return note_hub(run, base), adapter


def copy_out(artifact: Artifact, directory: Path) -> None:
    """A copy of an artifact of the store where the user wants it: whole, or what was there before.

    Raises ConfigError as `refuse_mixing`: hours may lie between its first call and this one.
    """
    refuse_mixing(directory, artifact.path.parents[1], artifact.manifest.kind)
    # Through a link to what it names: a link would be exchanged itself.
    target = directory.resolve()
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    registry.install(registry.copy_of(artifact.path), target, artifact.manifest.content)


def refuse_mixing(directory: Path, root: Path, kind: artifacts.Kind) -> None:
    """Raise ConfigError if a copy of an artifact of this kind would take the place of anything but an older copy.

    `root` is the store's: what lies in it is no copy, and would be lost.
    """
    target, store = directory.resolve(), root.resolve()
    if target.is_relative_to(store) or store.is_relative_to(target):
        raise ConfigError(
            "the output directory would take the place of artifacts of the store",
            where=str(directory),
            expected="a directory outside the store",
            found=f"the store {store}",
            next_step="choose another --output-dir",
        )
    found = _in_the_way(target, kind)
    if found is not None:
        raise ConfigError(
            "the output directory cannot be replaced",
            where=str(directory),
            expected=f"a new or empty directory, or an older copy of a {kind}",
            found=found,
            next_step="choose another --output-dir",
        )


def refuse_directory(file: Path) -> None:
    """Raise ConfigError if a file cannot be written there, since a directory is."""
    if file.is_dir():
        raise ConfigError(
            "the output is a directory", where=str(file), expected="a file", next_step="name a file in it"
        )
    refuse_file(file.parent)


def refuse_file(directory: Path) -> None:
    """Raise ConfigError if there can be no such directory, since a file is where it or one above it would be."""
    nearest = _nearest(directory)
    if not nearest.is_dir():
        raise ConfigError(
            "the output is no directory",
            where=str(directory),
            expected="a directory, or a new one",
            found=f"the file {nearest}",
            next_step="choose another path",
        )


def _in_the_way(target: Path, kind: artifacts.Kind) -> str | None:
    """What a copy must not take the place of; None where it may."""
    nearest = _nearest(target)
    if not nearest.is_dir():
        return f"the file {nearest}"
    if target.is_mount():
        return "a mount point, to which nothing can be renamed; a directory in it would do"
    if nearest != target or not any(target.iterdir()):
        return None
    try:
        there = artifacts.read_artifact(target).manifest
    except CorruptArtifact:
        return "files of something else"
    return None if there.kind == kind else f"the {there.kind} '{there.name}'"


def _nearest(path: Path) -> Path:
    """The path, or of those above it the first that exists."""
    absolute = path.absolute()
    return next(found for found in (absolute, *absolute.parents) if found.exists())
