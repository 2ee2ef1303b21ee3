"""The cross-modal projection: encoded pairs → trained layer → scores → bundle."""

import json
import shutil
from pathlib import Path
from typing import Any

from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Input, Request
from ucotron_ray.core.errors import ConfigError, GateFailed
from ucotron_ray.core.files import MANIFEST, file_hash, write_json
from ucotron_ray.core.run import Run
from ucotron_ray.projection import embeddings

SCORES = "scores.json"


def train_request(run: Run, data: Artifact) -> Request:
    """What training would make."""
    fields = run.config.recipe.projection.model_dump(exclude={"clip", "text", "opset", "target"})
    return Request("projection", run.name, {"projection": fields}, (data.as_input("pairs"),))


def train(run: Run, data: Artifact) -> Artifact:
    """Pairs → `projection/<name>`."""

    def build(build: Build) -> BuildResult:
        run.connect()
        from ucotron_ray.core import session
        from ucotron_ray.projection.fit import CHECKPOINT, RECORD
        from ucotron_ray.projection.job import FitJob
        from ucotron_ray.projection.on_ray import fit_on_ray

        workers, spool = run.config.place.workers, run.spool.child("train")
        encoders = embeddings.labels_of(data)
        job = FitJob(
            pairs=str(data.path),
            directory=str(build.path),
            settings=run.config.recipe.projection.model_dump(),
            encoders=encoders,
            num_threads=session.worker_resources(workers).threads,
        )
        spool.dataset(data, "training")
        figures = fit_on_ray(job, run.config.place, spool, build, run.log_file)
        for scrap in build.path.glob(f"*{CHECKPOINT}*"):
            scrap.unlink()
        spool.file(build.path / RECORD)
        record = json.loads((build.path / RECORD).read_text(encoding="utf-8"))
        return BuildResult(figures, record["counts"], [f"{side}: {label}" for side, label in encoders.items()])

    return run.make("train", train_request(run, data), build)


def checkpoint_of(run: Run, reference: str | None) -> tuple[Path, Artifact | None]:
    """What `--checkpoint` names: a projection of the store (by default this run's), a directory of one, or a file."""
    path = Path(reference or run.name)
    if reference is None or (path.name == reference and not path.exists()):
        found = run.store.get("projection", path.name, accept_rejected=run.accept_rejected)
        return found.path, found
    if (path / MANIFEST).is_file():
        found = artifacts.read_artifact(path.absolute())
        artifacts.verify(found)
        return found.path, found
    from ucotron_ray.projection import model

    model.load(path)
    return path.absolute(), None


def pairs_trained_on(run: Run, layer: Artifact | None) -> Artifact:
    """The pairs that a layer was trained on. Raises ConfigError where it does not say."""
    entry = next((entry for entry in layer.manifest.inputs if entry.role == "pairs"), None) if layer else None
    if entry is None:
        raise ConfigError(
            "there are no pairs to evaluate on",
            where="--input",
            expected="pairs or descriptions: the checkpoint does not say on which it was trained",
            next_step="pass --input NAME|FILE",
        )
    return run.store.get("dataset", entry.name)


def evaluate(run: Run, checkpoint: Path, layer: Artifact | None, data: Artifact) -> Artifact:
    """Cosine loss and retrieval on validation and test pairs → `scores/<name>`, also where the target is missed."""
    settings = run.config.recipe.projection
    fields: dict[str, Any] = {"target": settings.target, **_identity(checkpoint, layer)}
    if layer is None:
        # An artifact knows how its pairs were divided; a bare file is asked about the recipe's split.
        fields["split"] = settings.model_dump(include={"seed", "val_split", "test_split"})

    def build(build: Build) -> BuildResult:
        run.connect()
        from ucotron_ray.core import session
        from ucotron_ray.projection.job import EvaluateJob
        from ucotron_ray.projection.on_ray import evaluate_on_ray

        workers, spool = run.config.place.workers, run.spool.child("evaluate")
        threads = session.worker_resources(workers).threads
        job = EvaluateJob(str(data.path), str(checkpoint), settings.model_dump(), threads)
        spool.dataset(data, "evaluation")
        if layer:
            spool.model(layer, "input")
        scores = evaluate_on_ray(job, workers, run.log_file)
        write_json(build.path / SCORES, scores)
        spool.file(build.path / SCORES)
        figures = {
            f"{side}_{who}_{key}": value
            for side in ("val", "test")
            for who, values in scores[side].items()
            for key, value in values.items()
        }
        notes = [] if scores["passed"] else [verdict(scores)]
        if layer is None:
            notes.append(
                f"{checkpoint.name} does not say on which pairs it was trained: some of these may be among them"
            )
        return BuildResult(figures, scores["rows"], notes)

    request = Request("scores", run.name, {"projection scores": fields}, _inputs(layer, data))
    return run.make("evaluate", request, build)


def scores_of(artifact: Artifact) -> dict[str, Any]:
    """The figures of an evaluation."""
    scores: dict[str, Any] = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    return scores


def verdict(scores: dict[str, Any]) -> str:
    """How far validation and test rows are from the target."""
    losses = {side: scores[side]["projection"]["cosine_loss"] for side in ("val", "test")}
    return ", ".join(f"{side} {loss:.4f}" for side, loss in losses.items()) + f"; target < {scores['target']:g}"


def export(run: Run, checkpoint: Path, layer: Artifact | None) -> Artifact:
    """Layer → `bundle/<name>` with `projection_layer.onnx`. Raises GateFailed if it computes something else."""
    settings = run.config.recipe.projection
    fields = {"export": "projection", "opset": settings.opset, **_identity(checkpoint, layer)}

    def build(build: Build) -> BuildResult:
        run.connect()
        from ucotron_ray.projection.job import ExportJob
        from ucotron_ray.projection.on_ray import export_on_ray

        spool = run.spool.child("export")
        if layer:
            spool.model(layer, "input")
        job = ExportJob(run.name, str(checkpoint), str(build.path), settings.opset, _facts(layer))
        figures = export_on_ray(job, run.config.place.workers, run.log_file)
        missed = json.loads((build.path / "parity.json").read_text(encoding="utf-8"))["missed"]
        for name in ("MODEL_CARD.md", "parity.json", "io_contract.json"):
            spool.file(build.path / name)
        return BuildResult(figures, {}, missed, state="failed" if missed else "ok")

    bundle = run.make("export", Request("bundle", run.name, fields, _inputs(layer, None)), build)
    if bundle.manifest.state != "ok":
        raise GateFailed(
            "the exported projection does not compute what PyTorch computes",
            where=str(bundle.path),
            found="; ".join(bundle.manifest.notes),
            next_step="the bundle is kept for inspection, marked failed; see parity.json in it",
        )
    return bundle


def copy_layer(layer: Artifact, path: Path) -> None:
    """A copy of the trained weights (with their configuration in the header) where the user wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(layer.path / "model.safetensors", path)


def copy_graph(bundle: Artifact, path: Path) -> None:
    """A copy of the ONNX file where the user wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle.path / "projection_layer.onnx", path)


def _identity(checkpoint: Path, layer: Artifact | None) -> dict[str, str]:
    """An artifact counts as an input; a bare file by its bytes."""
    return {} if layer else {"checkpoint": file_hash(checkpoint)}


def _inputs(layer: Artifact | None, data: Artifact | None) -> tuple[Input, ...]:
    layers = (layer.as_input("projection"),) if layer else ()
    return (*layers, data.as_input("pairs")) if data else layers


def _facts(layer: Artifact | None) -> dict[str, str]:
    if layer is None:
        return {"trained by": "another program; its pairs are not known"}
    manifest = layer.manifest
    facts = {"content": manifest.content[:16], "validation cosine loss": f"{manifest.metrics['best_val_loss']:.4f}"}
    facts |= {f"{side} pairs": str(count) for side, count in manifest.counts.items()}
    return facts
