"""Verbs, flags and exit codes. Imports no stage at the top: `--help` and every mistake in a flag answer at once."""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ucotron_ray import __version__, config
from ucotron_ray.errors import ConfigError, Stopped, UcotronRayError

log = logging.getLogger(__name__)

Handler = Callable[[argparse.Namespace], dict[str, Any]]

STOPPED_EXIT = 75

SHORTHANDS = {
    "model_name": "models.fine_tuning.{tier}.local_model",
    "epochs": "training.sft.{tier}.epochs",
    "batch_size": "training.sft.{tier}.batch_size",
    "learning_rate": "training.sft.{tier}.learning_rate",
    "max_seq_length": "training.sft.{tier}.max_context_length",
    "max_samples": "graph.max_samples",
    "train_ratio": "graph.train_ratio",
    "min_relations": "graph.min_relations",
    "max_text_length": "graph.max_text_length",
    "graph_seed": "graph.seed",
    "namespace": "graph.namespace",
    "graph_kind": "graph.kind",
    "data": "evaluation.data",
    "dpo_epochs": "training.dpo.{tier}.epochs",
    "dpo_learning_rate": "training.dpo.{tier}.learning_rate",
    "max_usd": "api.max_usd",
    "max_rounds": "api.max_rounds",
    "generation_seed": "generation.seed",
    "max_rows": "evaluation.max_rows",
}
"""Flags of the guide that are another way to say --set KEY=VALUE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code. Mistakes of the user end here as one block of text on stderr."""
    args = _parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for noisy in ("httpx", "urllib3", "mlflow", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    began = time.monotonic()
    handler: Handler = args.handler
    try:
        result = {"status": "ok", "artifact": None, **handler(args)}
        code = int(result.pop("exit_code", 0))
    except UcotronRayError as error:
        print(f"error: {error}", file=sys.stderr)
        result = {"status": "stopped" if isinstance(error, Stopped) else "failed", "artifact": None}
        result |= {"error": error.problem, "exit_code": error.exit_code}
        code = error.exit_code
    except KeyboardInterrupt:
        problem = "stopped before the end, by Ctrl-C or SIGTERM"
        print(f"error: {problem}\n  next step: run the same command again: it goes on from here", file=sys.stderr)
        result = {"status": "stopped", "artifact": None, "error": problem, "exit_code": STOPPED_EXIT}
        code = STOPPED_EXIT
    result["seconds"] = round(time.monotonic() - began, 1)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ucotron-ray",
        description="Training data, fine-tuning and production of relation extraction models for Ucotron, on Ray.",
        epilog="exit codes: 0 done, 1 failed, 2 bad usage or input (nothing was started), 3 would overwrite what "
        "another recipe made, 75 stopped and resumable by the same command",
    )
    parser.add_argument("--version", action="version", version=f"ucotron-ray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_doctor(verbs)
    _add_import_graph(verbs)
    _add_synthesize(verbs)
    _add_sft(verbs)
    _add_dpo(verbs)
    _add_evaluate(verbs)
    _add_export(verbs)
    _add_pipeline(verbs)
    _add_show(verbs)
    _add_simulate_fireworks(verbs)
    _add_simulate_ucotron(verbs)
    return parser


def _verb(verbs: Any, name: str, help_text: str, handler: Handler) -> argparse.ArgumentParser:
    """A verb with the options that all verbs share."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(handler=handler)
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--recipe", type=Path, metavar="FILE", help="what to make (YAML); an existing fireworks_config.yaml fits"
    )
    common.add_argument("--place", type=Path, metavar="FILE", help="where to make it (YAML)")
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="one setting of recipe or place",
    )
    common.add_argument("--name", help="name of the artifacts (default: the recipe file's name, else `default`)")
    common.add_argument("--replace", action="store_true", help="throw away what another recipe made under this name")
    common.add_argument("--accept-rejected", action="store_true", help="take inputs that a gate rejected")
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    return parser


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("the guide's flags (each is another way to say --set)")
    flags.add_argument("--tier", choices=("slm", "small", "medium"), help="model tier: 0.5B, 1.5B, 7B")
    flags.add_argument(
        "--model-name", metavar="MODEL", help="hub name, directory, .gguf file or package://NAME/FILE.gguf"
    )
    flags.add_argument("--epochs", type=int)
    flags.add_argument("--batch-size", type=int, help="rows per optimizer step over all workers")
    flags.add_argument("--learning-rate", type=float)
    flags.add_argument("--max-seq-length", type=int, metavar="TOKENS")


def _add_doctor(verbs: Any) -> None:
    _verb(
        verbs,
        "doctor",
        "Check Python, packages, GPU, variables and models, and say what to do about each gap.",
        _doctor,
    )


def _add_import_graph(verbs: Any) -> None:
    parser = _verb(verbs, "import-graph", "Make training rows from a Ucotron knowledge graph.", _import_graph)
    parser.add_argument(
        "source", nargs="?", metavar="SOURCE", help="export file or server URL (default: UCOTRON_SERVER_URL)"
    )
    parser.add_argument(
        "--source", dest="graph_kind", choices=("export", "generate-dataset"), help="which call of a server"
    )
    parser.add_argument("--namespace", help="namespace on the server (default: UCOTRON_NAMESPACE, else default)")
    parser.add_argument(
        "--all-namespaces", action="store_true", help="generate-dataset mixes namespaces: say that you may"
    )
    parser.add_argument("--max-samples", type=int)
    parser.add_argument("--train-ratio", type=float)
    parser.add_argument("--min-relations", type=int)
    parser.add_argument("--max-text-length", type=int, metavar="CHARACTERS")
    parser.add_argument("--seed", type=int, dest="graph_seed")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the training rows as the guide's chat JSONL"
    )


def _add_synthesize(verbs: Any) -> None:
    parser = _verb(verbs, "synthesize", "Let a teacher model write training rows. Nothing is paid twice.", _synthesize)
    parser.add_argument("task", choices=("relation_extraction", "preference"), metavar="TASK", help="%(choices)s")
    parser.add_argument("--count", type=int, help="accepted rows wanted (default: the task's target_samples)")
    parser.add_argument("--input", metavar="NAME|FILE", help="relation rows to build on (preference)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the rows as the guide's JSONL")
    parser.add_argument("--max-usd", type=float, help="hard budget in dollars; nothing is sent that could pass it")
    parser.add_argument("--max-rounds", type=int, help="rounds of further samples for those not accepted")
    parser.add_argument("--seed", type=int, dest="generation_seed")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with tokens and dollars; send nothing")


def _add_sft(verbs: Any) -> None:
    parser = _verb(verbs, "sft", "Fine-tune a model with LoRA on relation rows.", _sft)
    parser.add_argument(
        "--train-data", metavar="NAME|FILE", help="dataset or JSONL (default: the dataset of this --name)"
    )
    parser.add_argument("--val-data", type=Path, metavar="FILE", help="validation JSONL, with a --train-data file")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="also write the merged model there")
    _add_training_flags(parser)


def _add_dpo(verbs: Any) -> None:
    parser = _verb(verbs, "dpo", "Teach an adapter's model which of two answers is better.", _dpo)
    parser.add_argument("--data", required=True, metavar="NAME|FILE", help="preference pairs: a dataset or JSONL")
    parser.add_argument("--from", required=True, dest="start", metavar="ADAPTER", help="adapter of sft to start from")
    parser.add_argument("--epochs", type=int, dest="dpo_epochs")
    parser.add_argument("--learning-rate", type=float, dest="dpo_learning_rate")


def _add_evaluate(verbs: Any) -> None:
    parser = _verb(
        verbs, "evaluate", "Score a model's triples on held-out rows and on the guide's five prompts.", _evaluate
    )
    parser.add_argument("model", metavar="MODEL", help="an adapter's name or path, or a base model")
    parser.add_argument("--data", metavar="NAME|FILE", help="held-out rows (default: evaluation.data)")
    parser.add_argument("--max-rows", type=int, help="a seeded sample of so many rows")
    parser.add_argument("--no-base", action="store_true", help="do not score the base model beside an adapter")


def _add_export(verbs: Any) -> None:
    parser = _verb(
        verbs, "export", "Merge an adapter, export it as ONNX, compare with PyTorch, and bundle it.", _export
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an adapter's name or path, or a base model")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="a plain model directory instead of MODEL")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="also write the bundle there")
    parser.add_argument("--data", metavar="NAME|FILE", help="rows whose prompts parity is measured on")


def _add_pipeline(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "pipeline",
        "The whole chain: rows, training, scores, export. A second run reuses what is done.",
        _pipeline,
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and print the plan; train and pay nothing"
    )
    parser.add_argument("--skip-generate", action="store_true", help="take the rows that are there")
    parser.add_argument("--skip-train", action="store_true", help="take the adapter that is there")
    parser.add_argument("--skip-export", action="store_true", help="end after the scores")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="directory with train_sft.jsonl and val_sft.jsonl")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="also write the merged model to DIR and the bundle to DIR-onnx"
    )
    parser.add_argument("--max-samples", type=int)
    _add_training_flags(parser)


def _add_show(verbs: Any) -> None:
    parser = _verb(verbs, "show", "Print an artifact's manifest and its ancestry.", _show)
    parser.add_argument("artifact", metavar="NAME", help="a name, or KIND/NAME")


def _add_simulate_fireworks(verbs: Any) -> None:
    parser = verbs.add_parser(
        "simulate-fireworks",
        help="Serve a STAND-IN for Fireworks.ai on loopback, for tests and for trying things out.",
        description="Serve a STAND-IN for Fireworks.ai on loopback. Its answers come from sentence patterns.",
        usage="ucotron-ray simulate-fireworks [options] [-- COMMAND with {url}]",
    )
    parser.set_defaults(handler=_simulate_fireworks, json=False)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="median latency")
    parser.add_argument("--latency-p99", type=float, metavar="SECONDS", help="lognormal with this 99th percentile")
    parser.add_argument("--faults", default="", metavar="NAME=SHARE,…", help="429, 500, 503, reset, hang, 400, …")
    parser.add_argument("--retry-after", default="1", help="header of the fault 429-retry-after")
    parser.add_argument("--garbage", type=float, default=0.03, help="share of answers with something wrong in them")
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--generated-tokens-per-minute", type=float)
    parser.add_argument("--limit-moves", default="", metavar="SECONDS:FACTOR,…", help="how the limits move")
    parser.add_argument("--completion-tokens", type=float, metavar="MEAN", help="report as many generated tokens")
    parser.add_argument("--model", action="append", default=[], metavar="ID", help="another model to list and serve")
    parser.add_argument(
        "--refuse-key", action="append", default=[], metavar="KEY", help="422 for requests with this key"
    )
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="require the key in this variable (default: none)")
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="write every request received, as JSONL")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="run this, then stop; {url} is the address")


def _add_simulate_ucotron(verbs: Any) -> None:
    parser = _verb(
        verbs, "simulate-ucotron", "Serve a STAND-IN for a Ucotron server on loopback, for tests.", _simulate_ucotron
    )
    parser.add_argument("--port", type=int, default=8420, help="port on 127.0.0.1")
    parser.add_argument("--graph", type=Path, metavar="FILE", help="export file to begin with")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="require the key in this variable (default: no auth)")
    parser.add_argument("--endpoint", metavar="URL", help="fine_tuned_re_endpoint that `learn` calls")
    parser.add_argument("--endpoint-model", default="ucotron-re", metavar="ID", help="fine_tuned_re_model")


# ---- handlers --------------------------------------------------------------------------------------------------------


def _config(args: argparse.Namespace) -> config.Config:
    overrides = [config.parse_override(text) for text in args.overrides]
    tier = getattr(args, "tier", None)
    if tier:
        overrides.append(("tier", tier))
    loaded = config.load(recipe=args.recipe, place=args.place, overrides=overrides)
    for flag, key in SHORTHANDS.items():
        value = getattr(args, flag, None)
        if value is not None:
            overrides.append((key.format(tier=loaded.recipe.tier), value))
    if getattr(args, "all_namespaces", False):
        overrides.append(("graph.all_namespaces", True))
    if getattr(args, "no_base", False):
        overrides.append(("evaluation.base", False))
    return config.load(recipe=args.recipe, place=args.place, overrides=overrides)


def _run(args: argparse.Namespace, *, name: str | None = None) -> Any:
    from ucotron_ray.run import Run

    chosen = args.name or name or (args.recipe.stem if args.recipe else "default")
    return Run(_config(args), verb=args.verb, name=chosen, replace=args.replace, accept_rejected=args.accept_rejected)


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray import doctor

    checks = doctor.examine(_config(args))
    for check in checks:
        print(f"{check.verdict:<5} {check.subject:<22} {check.found}" + (f"  → {check.advice}" if check.advice else ""))
    gaps = sum(check.verdict == doctor.GAP for check in checks)
    return {"gaps": gaps, "exit_code": 1 if gaps else 0, "status": "gaps" if gaps else "ok"}


def _import_graph(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.stages import datasets

    source = args.source
    with _run(args, name=Path(source).stem if source and "://" not in source else None) as run:
        artifact = datasets.import_graph(run, source)
        if args.output:
            datasets.write_chat_copy(artifact, args.output)
    counts = artifact.manifest.counts
    print(
        f"{artifact.path}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items()),
        file=sys.stderr,
    )
    return {"artifact": str(artifact.path), **counts}


def _synthesize(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.stages import datasets, requirements, synthesis

    requirements.require_packages("ray", "aiohttp", "datasketch", "json_repair")
    with _run(args, name=None if args.name or args.recipe else args.task) as run:
        wanted = synthesis.wanted(run, args.task, args.count, args.input)
        if args.dry_run:
            estimate = synthesis.estimate(run, wanted)
            for key, value in estimate.items():
                print(f"{key:<24} {value}", file=sys.stderr)
            return estimate
        artifact = synthesis.synthesize(run, wanted)
        if args.output:
            datasets.copy_file(artifact.path / f"{args.task}.jsonl", args.output)
    manifest = artifact.manifest
    result: dict[str, Any] = {"artifact": str(artifact.path), **manifest.counts, **manifest.metrics}
    return result


def _sft(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.models import base as base_models
    from ucotron_ray.stages import datasets, export, models, requirements, training

    requirements.require_packages("ray", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf")
    with _run(args) as run:
        base = base_models.resolve(run.config.recipe.tier_model.local_model)
        dataset = datasets.training_data(run, args.train_data, args.val_data)
        adapter = training.sft(run, dataset, base)
        result = {"artifact": str(adapter.path), **adapter.manifest.metrics, "counts": adapter.manifest.counts}
        if args.output_dir:
            merged = export.merge(run, base, adapter)
            models.copy_out(merged, args.output_dir)
            result["output_dir"] = str(args.output_dir)
    return result


def _dpo(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.stages import export, models, requirements, training

    requirements.require_packages("ray", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf")
    with _run(args, name=f"{Path(args.start).name}-dpo") as run:
        base, adapter = models.model(run, args.start)
        if adapter is None:
            raise ConfigError(
                "DPO starts from an adapter", where="--from", expected="an adapter of the store", found=args.start
            )
        pairs = training.pairs_of(run, args.data)
        made = training.dpo(run, pairs, export.merge(run, base, adapter, name=adapter.manifest.name))
    return {"artifact": str(made.path), **made.manifest.metrics, "counts": made.manifest.counts}


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.stages import datasets, models, requirements, scoring

    requirements.require_packages("ray", "torch", "transformers", "peft", "gguf")
    with _run(args, name=Path(args.model).name) as run:
        base, adapter = models.model(run, args.model)
        data = datasets.held_out(run, run.config.recipe.evaluation.data, datasets.data_of(run, adapter))
        artifact = scoring.evaluate(run, run.name, base, adapter, data)
        scores = scoring.scores_of(artifact)
        result = {"artifact": str(artifact.path), **scores["overall"], "groups": scores["groups"]}
        result |= {"raw": scores["raw"], "guide": scores["guide"]}
        beside = {run.name: scores}
        if adapter and run.config.recipe.evaluation.base:
            before = scoring.scores_of(scoring.evaluate(run, f"{run.name}-base", base, None, data))
            result["base"] = before["overall"]
            beside = {f"{run.name}-base": before, **beside}
    _print_scores(beside)
    return result


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.stages import datasets, export, models, requirements

    requirements.require_packages("ray", "torch", "transformers", "peft", "optimum", "onnx", "onnxruntime", "gguf")
    if (args.model is None) == (args.model_dir is None):
        raise ConfigError("one model is needed", expected="MODEL or --model-dir DIR", found="both or none")
    reference = args.model or str(args.model_dir)
    with _run(args, name=Path(reference).name) as run:
        base, adapter = models.model(run, reference)
        reference_data = run.config.recipe.evaluation.data
        dataset = datasets.data_of(run, adapter)
        data = datasets.held_out(run, reference_data, dataset) if reference_data or dataset else None
        bundle = export.export(run, base, adapter, data)
        if args.output_dir:
            models.copy_out(bundle, args.output_dir)
    figures = bundle.manifest.metrics
    return {"artifact": str(bundle.path), "bundle": str(bundle.path), "parity": True, **figures}


def _pipeline(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray import pipeline

    options = pipeline.Options(args.skip_generate, args.skip_train, args.skip_export, args.data_dir, args.output_dir)
    with _run(args) as run:
        if args.dry_run:
            steps = pipeline.plan(run, options)
            for step in steps:
                print(f"{step['stage']:<14} {step['action']:<9} {step['artifact']}")
            return {"status": "planned", "plan": steps, "config": run.config.model_dump()}
        result = pipeline.execute(run, options)
    return {**result, "mlflow_run": run.mlflow_run()}


def _show(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray import show
    from ucotron_ray.artifacts import Store

    store = Store(Path(_config(args).place.store).expanduser())
    found = show.find(store, args.artifact)
    for artifact in found:
        print(show.describe(store, artifact))
    return {"artifact": str(found[0].path), "manifests": [artifact.manifest.model_dump() for artifact in found]}


def _simulate_fireworks(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import simulator

    settings = simulator.Settings(
        seed=args.seed,
        latency=args.latency,
        latency_p99=args.latency_p99,
        faults=simulator.parse_faults(args.faults),
        retry_after=args.retry_after,
        garbage=args.garbage,
        requests_per_minute=args.requests_per_minute,
        generated_tokens_per_minute=args.generated_tokens_per_minute,
        limit_moves=simulator.parse_moves(args.limit_moves),
        completion_tokens=args.completion_tokens,
        models=(simulator.TEACHER, simulator.EMBEDDER, *args.model),
        api_key=config.secret(args.api_key_env, None),
        refused_keys=tuple(args.refuse_key),
        ledger=args.ledger,
    )
    return {"exit_code": simulator.serve(settings, port=args.port, command=args.command or None)}


def _simulate_ucotron(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.graph import simulator

    simulator.serve(
        port=args.port,
        graph=args.graph,
        api_key_variable=args.api_key_env,
        endpoint=args.endpoint,
        endpoint_model=args.endpoint_model,
    )
    return {}


def _print_scores(beside: dict[str, dict[str, Any]]) -> None:
    print(f"{'':<24} {'F1':>6} {'95 % interval':>16} {'precision':>10} {'recall':>7} {'valid':>6} {'rows':>5}")
    for name, scores in beside.items():
        parts = {
            "": scores["overall"],
            **scores["groups"],
            "raw layout": scores["raw"],
            "guide's five": scores["guide"],
        }
        for part, values in parts.items():
            if values:
                label = f"{name} {part}".strip()
                interval = f"{values['f1_low']:.3f}-{values['f1_high']:.3f}"
                print(
                    f"{label:<24} {values['f1']:>6.3f} {interval:>16} {values['precision']:>10.3f} "
                    f"{values['recall']:>7.3f} {values['valid_answers']:>6.2f} {values['rows']:>5.0f}"
                )


def _stop(signum: int, frame: FrameType | None) -> None:
    # Inside `ray.get` only this exception and SystemExit get through; any other would be swallowed.
    raise KeyboardInterrupt
