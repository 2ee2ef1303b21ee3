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
    flags.add_setting(parser, "--source", "graph.kind")
    flags.add_setting(parser, "--namespace", "graph.namespace", metavar="NAME")
    text = "generate-dataset mixes the texts of all namespaces: say that you may see them."
    flags.add_setting(parser, "--all-namespaces", "graph.all_namespaces", const=True, text=text)
    for name in ("max_samples", "train_ratio", "min_relations", "max_text_length", "seed"):
        flags.add_setting(parser, f"--{name.replace('_', '-')}", f"graph.{name}")
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
