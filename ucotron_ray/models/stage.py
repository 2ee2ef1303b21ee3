"""What MODEL names, and how a worker gets to load it."""

from dataclasses import replace
from pathlib import Path

from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request, Store
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import MANIFEST, canonical_hash
from ucotron_ray.core.run import Run
from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity
from ucotron_ray.models import base as base_models


def prompt_identity() -> str:
    """Hash of the server's prompt: another prompt is another recipe."""
    example = [Entity(text="{entity}", label="{label}")]
    return canonical_hash(wire.chat_messages("{text}", example))[:16]


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

    def build(build: Build) -> BuildResult:
        run.connect()
        from ucotron_ray.models.on_ray import convert_on_ray

        convert_on_ray(base.reference, build.path)
        return BuildResult({}, {}, [f"{base.reference}, dequantized to float32"])

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
    elif (Path(reference) / MANIFEST).is_file():
        found = artifacts.read_artifact(Path(reference).absolute())
        artifacts.verify(found)
        if found.manifest.kind == "adapter":
            adapter = found
    base = base_models.resolve(reference) if adapter is None else base_of(adapter, run.store)
    return note_hub(run, base), adapter


def base_fields(base: base_models.BaseModel) -> dict[str, str]:
    """What a recipe says of a base: its name, and the hash of its bytes."""
    return {"reference": base.reference, "identity": base.identity}


def merge_request(
    run: Run, base: base_models.BaseModel, adapter: Artifact | None, *, name: str | None = None
) -> Request:
    """What merging would make: `model/<name>`, the run's name if none is given."""
    fields = {"merge": "float32", "base": base_fields(base), "prompt": prompt_identity()}
    inputs = (adapter.as_input("adapter"),) if adapter else ()
    return Request("model", name or run.name, fields, inputs)


def merge(run: Run, base: base_models.BaseModel, adapter: Artifact, *, name: str | None = None) -> Artifact:
    """The adapter added to its base → `model/<name>`, as transformers loads it."""

    def build(build: Build) -> BuildResult:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray.models.on_ray import merge_on_ray

        merge_on_ray(loadable, adapter.path / "adapter", build.path, run.config.place.workers, run.log_file)
        return BuildResult({}, {}, [f"base {base.reference}, float32"])

    return run.make("merge", merge_request(run, base, adapter, name=name), build)
