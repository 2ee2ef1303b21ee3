"""Verbs that make rows: `import-graph`, `synthesize`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ucotron_ray.verbs import flags


def add_import_graph(verbs: Any) -> None:
    """`import-graph`: rows from a knowledge graph."""
    parser = flags.verb(verbs, "import-graph", "Make training rows from a Ucotron knowledge graph.", _import_graph)
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


def add_synthesize(verbs: Any) -> None:
    """`synthesize`: rows from a teacher."""
    parser = flags.verb(
        verbs, "synthesize", "Let a teacher model write training rows. Nothing is paid twice.", _synthesize
    )
    parser.add_argument("task", choices=("relation_extraction", "preference"), metavar="TASK", help="%(choices)s")
    parser.add_argument("--count", type=int, help="accepted rows wanted (default: the task's target_samples)")
    parser.add_argument("--input", metavar="NAME|FILE", help="relation rows to build on (preference)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the rows as the guide's JSONL")
    parser.add_argument("--max-usd", type=float, help="hard budget in dollars; nothing is sent that could pass it")
    parser.add_argument("--max-rounds", type=int, help="rounds of further samples for those not accepted")
    parser.add_argument("--seed", type=int, dest="generation_seed")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with tokens and dollars; send nothing")


def _import_graph(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.stages import datasets

    source = args.source
    with flags.run_of(args, name=Path(source).stem if source and "://" not in source else None) as run:
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
    with flags.run_of(args, name=None if args.name or args.recipe else args.task) as run:
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
