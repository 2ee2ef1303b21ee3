"""The verb `projection`: the layer from CLIP's space to MiniLM's, in steps or as a whole."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import ConfigError, GateFailed

if TYPE_CHECKING:
    from ucotron_ray.core.artifacts import Artifact
    from ucotron_ray.core.run import Run

DEFAULT_NAME = "projection"
"""Of this verb's artifacts, and of the dataset that `synthesize projection` leaves."""

STEPS = ("encode", "train", "evaluate", "export")
SUFFIXES = {"encode": ".jsonl", "train": ".safetensors", "evaluate": ".json", "export": ".onnx", None: ".onnx"}

PROJECTION_SETTINGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "dropout",
    "hidden_dim",
    "val_split",
    "patience",
    "seed",
    "opset",
)


def add_projection(verbs: Any) -> None:
    """`projection`: encode, train, evaluate, export; all four without a step."""
    parser = flags.verb(
        verbs,
        "projection",
        "Train the layer from CLIP's space to MiniLM's, and export it as projection_layer.onnx.",
        _projection,
    )
    parser.add_argument("step", nargs="?", choices=STEPS, metavar="STEP", help="%(choices)s (default: all of them)")
    parser.add_argument(
        "--input",
        metavar="NAME|PATH",
        help="descriptions or encoded pairs: a dataset, JSONL, .txt, or a folder of images (default: projection)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write .jsonl, .safetensors, .json or .onnx")
    parser.add_argument("--checkpoint", metavar="NAME|PATH", help="a trained layer (evaluate, export); an old .pt too")
    group = flags.settings_group(parser)
    for name in PROJECTION_SETTINGS:
        flags.add_setting(group, f"--{name.replace('_', '-')}", f"projection.{name}")


def _projection(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs, requirements

    requirements.require_packages("ray", "torch", "transformers", "onnx", "onnxruntime", "gguf")
    _check(args)
    if args.output:
        outputs.check_file(args.output)
    name = f"{args.recipe.stem}-{DEFAULT_NAME}" if args.recipe else DEFAULT_NAME
    with flags.run_of(args, name=args.name or name) as run:
        steps = {"encode": _encode, "train": _train, "evaluate": _evaluate, "export": _export, None: _all}
        result = steps[args.step](run, args)
    return {**result, "mlflow_run": run.mlflow_run()}


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for flags that do not go together."""
    suffix = SUFFIXES[args.step]
    if args.output is not None and args.output.suffix != suffix:
        raise ConfigError(
            "--output has another suffix than what is written",
            where=f"projection {args.step or ''}".strip(),
            expected=f"a {suffix} file; weights are written as safetensors only, since a .pt file can run code",
            found=str(args.output),
            next_step=f"--output {args.output.with_suffix(suffix)}",
        )
    if args.checkpoint is not None and args.step not in ("evaluate", "export"):
        raise ConfigError(
            "--checkpoint is for evaluate and export",
            where="projection",
            expected="no --checkpoint: an interrupted training goes on by itself",
            found=args.checkpoint,
            next_step="projection evaluate --checkpoint … or projection export --checkpoint …",
        )


def _encode(run: "Run", args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.projection import embeddings

    data = embeddings.pairs_of(run, args.input or DEFAULT_NAME)
    if args.output:
        embeddings.write_guide_rows(data, args.output)
    return {"artifact": str(data.path), **data.manifest.metrics, **data.manifest.counts}


def _train(run: "Run", args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.projection import embeddings
    from ucotron_ray.projection import stage as projection

    layer = projection.train(run, embeddings.pairs_of(run, args.input or DEFAULT_NAME))
    if args.output:
        projection.copy_layer(layer, args.output)
    loss, target = layer.manifest.metrics["best_val_loss"], run.config.recipe.projection.target
    result = {"artifact": str(layer.path), **layer.manifest.metrics, "counts": layer.manifest.counts}
    return {**result, **_gate(loss < target, f"validation {loss:.4f}; target < {target:g}", layer)}


def _evaluate(run: "Run", args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.projection import embeddings
    from ucotron_ray.projection import stage as projection

    checkpoint, layer = projection.checkpoint_of(run, args.checkpoint)
    data = embeddings.pairs_of(run, args.input) if args.input else projection.pairs_trained_on(run, layer)
    return _scored(run, args, checkpoint, layer, data)


def _export(run: "Run", args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.projection import stage as projection

    bundle = projection.export(run, *projection.checkpoint_of(run, args.checkpoint))
    if args.output:
        projection.copy_graph(bundle, args.output)
    return {"artifact": str(bundle.path), "bundle": str(bundle.path), "parity": True, **bundle.manifest.metrics}


def _all(run: "Run", args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.projection import embeddings
    from ucotron_ray.projection import stage as projection

    data = embeddings.pairs_of(run, args.input or DEFAULT_NAME)
    layer = projection.train(run, data)
    scored = _scored(run, args, layer.path, layer, data)
    if scored.get("exit_code") and not run.accept_rejected:
        return scored
    return {**scored, **_export(run, args)}


def _scored(
    run: "Run", args: argparse.Namespace, checkpoint: Path, layer: "Artifact | None", data: "Artifact"
) -> dict[str, Any]:
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.projection import stage as projection

    artifact = projection.evaluate(run, checkpoint, layer, data)
    scores = projection.scores_of(artifact)
    _print_scores(scores)
    for note in artifact.manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    if args.output and args.step == "evaluate":
        datasets.copy_file(artifact.path / projection.SCORES, args.output)
    result = {"artifact": str(artifact.path), **{key: scores[key] for key in ("val", "test", "rows", "target")}}
    return {**result, **_gate(scores["passed"], projection.verdict(scores), artifact)}


def _gate(passed: bool, found: str, artifact: "Artifact") -> dict[str, Any]:
    """Exit 1 with the figures where the target is missed."""
    if passed:
        return {"target_met": True}
    error = GateFailed(
        "the projection misses its target",
        where=str(artifact.path),
        expected="a cosine loss below projection.target",
        found=found,
        next_step="encode more descriptions, train for more epochs (--epochs), or raise projection.target knowingly",
    )
    print(f"error: {error}", file=sys.stderr)
    return {"target_met": False, "status": "failed", "error": error.problem, "exit_code": error.exit_code}


def _print_scores(scores: dict[str, Any]) -> None:
    print(f"{'':<18} {'cosine loss':>11} {'R@1':>7} {'R@5':>7} {'R@10':>7} {'MRR':>7} {'pairs':>6}", file=sys.stderr)
    for side in ("val", "test"):
        for who, values in scores[side].items():
            loss = f"{values['cosine_loss']:.4f}" if "cosine_loss" in values else "–"
            recalls = " ".join(f"{values[key]:>7.3f}" for key in ("recall_at_1", "recall_at_5", "recall_at_10", "mrr"))
            print(f"{side + ' ' + who:<18} {loss:>11} {recalls} {scores['rows'][side]:>6}", file=sys.stderr)
