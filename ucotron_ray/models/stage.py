"""What MODEL names, and how a worker gets to load it."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request, Store
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.files import MANIFEST, canonical_hash
from ucotron_ray.core.run import Run
from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity
from ucotron_ray.models import base as base_models
from ucotron_ray.models import pinning

log = logging.getLogger(__name__)


def prompt_identity() -> str:
    """Hash of the server's prompt: another prompt is another recipe."""
    example = [Entity(text="{entity}", label="{label}")]
    return canonical_hash(wire.chat_messages("{text}", example))[:16]


def note_hub(run: Run, base: base_models.BaseModel) -> base_models.BaseModel:
    """Let workers ask the hub for this base. Before anything connects: whether they may is settled with that."""
    run.hub_needed = run.hub_needed or base.kind == "hub"
    return base


def tier_base(run: Run, tier: str | None = None) -> base_models.BaseModel:
    """The base that the recipe names for a tier, the run's if none is given; of the hub at one commit for all of it."""
    recipe = run.config.recipe
    named = getattr(recipe.models.fine_tuning, tier or recipe.tier)
    return note_hub(run, base_models.resolve(named.local_model, named.revision, commits=run.commits))


def loadable_base(run: Run, base: base_models.BaseModel) -> str:
    """What a worker loads: the reference itself, or for a GGUF file the safetensors that were made of it once."""
    if base.kind != "gguf":
        return note_hub(run, base).loadable
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


def named_base(recorded: Mapping[str, str], store: Store) -> base_models.BaseModel:
    """The base that a recipe's `base_fields` name: a merged model of the store, or whatever else a reference can name.

    Of a hub model it is the commit that they name, whatever its branch is by now.
    """
    reference = recorded["reference"]
    name = reference.removeprefix(MERGED)
    if name == reference:
        return base_models.resolve(reference, pinning.commit_in(recorded["identity"]))
    merged = store.find("model", name) or store.get("model", name)
    base = merged_base(merged)
    if not base.identity.endswith(f":{merged.manifest.content}"):
        artifacts.verify(merged)
    return base


def base_of(adapter: Artifact, store: Store) -> base_models.BaseModel:
    """The base model of an adapter, with the bytes that it was trained on. Raises InputError if they are others now."""
    recorded = adapter.manifest.recipe_fields["base"]
    base = named_base(recorded, store)
    if base.kind == "hub" and recorded["identity"] == f"hub:{base.reference}":
        log.warning(
            "adapter '%s' was made before commits were recorded: which one of %s it was trained on is not known, %s is "
            "taken",
            adapter.manifest.name,
            base.reference,
            base.revision,
        )
    elif base.identity != recorded["identity"]:
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


def model(run: Run, reference: str, revision: str | None = None) -> tuple[base_models.BaseModel, Artifact | None]:
    """What MODEL names: an adapter of the store, the directory of an adapter artifact, or a base model."""
    adapter = adapter_of(run, reference, revision)
    if adapter is not None:
        return note_hub(run, base_of(adapter, run.store)), adapter
    return note_hub(run, base_models.resolve(reference, revision, commits=run.commits)), None


def adapter_of(run: Run, reference: str, revision: str | None = None) -> Artifact | None:
    """The adapter that MODEL names, by its name in the store or its directory; None for a base model."""
    adapter: Artifact | None = None
    if Path(reference).name == reference and run.store.find("adapter", reference) is not None:
        adapter = run.store.get("adapter", reference, accept_rejected=run.accept_rejected)
    elif (Path(reference) / MANIFEST).is_file():
        found = artifacts.read_artifact(Path(reference).absolute())
        artifacts.verify(found)
        if found.manifest.kind == "adapter":
            adapter = found
    if adapter is not None and revision is not None:
        raise ConfigError(
            "an adapter knows the commit of its base",
            where=reference,
            found=revision,
            next_step="leave --revision away",
        )
    return adapter


def short_name(reference: str) -> str:
    """The last part of what MODEL names, for what is made of it; `@` stands before the decoding of a bundle."""
    return Path(reference if Path(reference).exists() else reference.partition("@")[0]).name


def base_fields(base: base_models.BaseModel) -> dict[str, str]:
    """What a recipe says of a base: its name, and the hash of its bytes or its commit."""
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
