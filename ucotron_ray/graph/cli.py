"""The verb `import-graph`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags


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


def _import_graph(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.graph import stage as graphs

    if args.output:
        outputs.check_file(args.output)
    source = args.source
    with flags.run_of(args, name=Path(source).stem if source and "://" not in source else None) as run:
        artifact = graphs.import_graph(run, source)
        if args.output:
            datasets.write_chat_copy(artifact, args.output)
    counts = artifact.manifest.counts
    print(
        f"{artifact.path}: " + ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items()),
        file=sys.stderr,
    )
    return {"artifact": str(artifact.path), **counts}
