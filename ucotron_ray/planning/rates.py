"""How fast and how costly things were, as the finished artifacts of a store say. One finished run calibrates."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ucotron_ray.core.artifacts import Artifact, Store, read_artifact
from ucotron_ray.core.errors import CorruptArtifact


@dataclass(frozen=True)
class SynthesisRate:
    """Of one accepted row, with the samples that were not accepted; and how long things took."""

    requests: float
    prompt: float
    completion: float
    usd: float
    rows_per_second: float
    """While the teacher was asked."""
    other_seconds: float
    """Of a run: its start, and what comes after the answers. They do not grow with the rows."""
    teacher: str


@dataclass(frozen=True)
class TrainingRate:
    """Tokens of a row by the model's tokenizer, and tokens a second, all of the stage's time counted."""

    tokens_per_row: float
    tokens_per_second: float
    base: str


@dataclass(frozen=True)
class Rates:
    """What was measured; a key that is missing was not."""

    synthesis: dict[str, SynthesisRate] = field(default_factory=dict)
    training: dict[str, TrainingRate] = field(default_factory=dict)
    """By `sft` and `dpo`."""
    seconds_per_answer: dict[str, float] = field(default_factory=dict)
    """By `evaluate` (tuned) and `evaluate-base`."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of stages whose work does not depend on rows: `export`, `convert-base`."""
    remote: dict[str, float] = field(default_factory=dict)
    """Training tokens a second at the vendor, by `sft` and `dpo`."""
    remote_tokens_per_row: dict[str, float] = field(default_factory=dict)
    """The same rows as the vendor is sent them, chat markup included: by characters / 4."""


def measured(store: Store) -> Rates:
    """The newest figures of every stage. Artifacts that cannot be read are passed over: nothing depends on them."""
    rates = Rates()
    for artifact in _by_age(store):
        manifest = artifact.manifest
        seconds = float(manifest.provenance.get("seconds") or 0.0)
        # Of what went on after a kill only the last attempt's seconds are known, for all of its tokens.
        if manifest.state != "ok" or seconds <= 0 or manifest.provenance.get("resumed"):
            continue
        if manifest.kind == "dataset" and "completion_tokens" in manifest.metrics:
            _add_synthesis(rates, artifact, seconds)
        elif manifest.kind == "adapter" and manifest.counts.get("tokens"):
            _add_training(rates, artifact, seconds)
        elif (
            manifest.kind == "scores"
            and manifest.counts.get("predictions")
            and not {"remote", "source"} & manifest.recipe_fields.keys()
        ):
            is_tuned = any(entry.role == "adapter" for entry in manifest.inputs)
            per_answer = seconds / manifest.counts["predictions"]
            rates.seconds_per_answer["evaluate" if is_tuned else "evaluate-base"] = per_answer
        elif manifest.kind == "bundle" and manifest.recipe_fields.get("export") != "projection":
            rates.seconds["export"] = seconds
        elif manifest.kind == "cache" and "format" in manifest.recipe_fields:
            rates.seconds["convert-base"] = seconds
        elif manifest.kind == "model" and manifest.recipe_fields.get("remote") in ("sft", "dpo"):
            method = str(manifest.recipe_fields["remote"])
            epochs = manifest.recipe_fields[method]["epochs"]
            rates.remote[method] = manifest.metrics["tokens"] * epochs / seconds
            rates.remote_tokens_per_row[method] = manifest.metrics["tokens"] / manifest.counts["rows"]
    return rates


def _add_synthesis(rates: Rates, artifact: Artifact, seconds: float) -> None:
    manifest = artifact.manifest
    accepted = manifest.counts.get("accepted", 0)
    # A run that found its answers in the journal paid and sent less than it is worth.
    if not accepted or manifest.metrics["requests"] < accepted or "asking_seconds" not in manifest.metrics:
        return
    # One that was over between two looks has taken about one look.
    asking = max(manifest.metrics["asking_seconds"], 1.0)
    rates.synthesis[str(manifest.recipe_fields["task"])] = SynthesisRate(
        requests=manifest.metrics["requests"] / accepted,
        prompt=manifest.metrics["prompt_tokens"] / accepted,
        completion=manifest.metrics["completion_tokens"] / accepted,
        usd=manifest.metrics["cost_usd"] / accepted,
        rows_per_second=accepted / asking,
        other_seconds=max(0.0, seconds - asking),
        teacher=str(manifest.recipe_fields["teacher"]),
    )


def _add_training(rates: Rates, artifact: Artifact, seconds: float) -> None:
    manifest = artifact.manifest
    method = "dpo" if "dpo" in manifest.recipe_fields else "sft"
    rows = manifest.counts.get("rows") or sum(manifest.counts.get(key, 0) for key in ("server", "rendered", "as_is"))
    epochs = manifest.recipe_fields[method]["epochs"]
    if not rows:
        return
    rates.training[method] = TrainingRate(
        tokens_per_row=manifest.counts["tokens"] / rows,
        tokens_per_second=manifest.counts["tokens"] * epochs / seconds,
        base=str(manifest.recipe_fields["base"]["reference"]),
    )


def _by_age(store: Store) -> Iterator[Artifact]:
    found: list[Artifact] = []
    for path in sorted(store.root.glob("*/*/manifest.json")):
        if ".partial" not in path.parent.name and _is_artifact(path):
            found.append(read_artifact(path.parent))
    return iter(sorted(found, key=lambda artifact: str(artifact.manifest.provenance.get("finished_at"))))


def _is_artifact(path: Path) -> bool:
    """Journals have a manifest of another kind."""
    try:
        read_artifact(path.parent)
        return "kind" in json.loads(path.read_text(encoding="utf-8"))
    except (CorruptArtifact, ValueError):
        return False
