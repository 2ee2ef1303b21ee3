"""The verb `schema`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import flags, terminal

if TYPE_CHECKING:
    from collections import Counter

    from ucotron_ray.core.config import Config
    from ucotron_ray.data.schema import Schema
    from ucotron_ray.graph.schema import Induced

NAME_WIDTH, TYPES_WIDTH, EXAMPLE_WIDTH = 40, 72, 60
SHOWN = 20
"""Lines of a list beside the table."""


def add_schema(verbs: Any) -> None:
    """`schema`: the predicates and types of a graph or an ontology."""
    parser = flags.verb(
        verbs,
        "schema",
        "Write the schema of a knowledge graph or an ontology as YAML to edit, or check one.",
        _schema,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="export file or server URL; an ontology (.ttl, .owl, .rdf, .xml); a schema (.yaml), which is checked",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the schema there (YAML)")
    parser.add_argument("--force", action="store_true", help="replace the file of --output")
    parser.add_argument(
        "--min-count", type=int, metavar="N", help="of a graph: leave out predicates with fewer edges (default: 1)"
    )
    flags.add_setting(parser, "--namespace", "graph.namespace", metavar="NAME")


def _schema(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs
    from ucotron_ray.data import schema_file
    from ucotron_ray.graph import proposals

    config = flags.config_of(args)
    if args.output:
        outputs.check_file(args.output)
    schema, induced = _read(args, config)
    found = [proposal.model_dump() for proposal in proposals.proposals(induced)] if induced else []
    if args.output:
        _write(args.output, schema_file.write(schema, found), force=args.force)
    for line in (*_table(schema, induced), *_notes(induced, found)):
        print(terminal.printable(line))
    print(
        f"{len(schema.predicates)} predicates, {len(schema.types)} types" + (f": {args.output}" if args.output else "")
    )
    return {
        "artifact": str(args.output) if args.output else None,
        "predicates": len(schema.predicates),
        "types": len(schema.types),
        "content": schema.content,
        "rare": induced.rare if induced else {},
        "stray_types": induced.stray_types if induced else [],
        "proposals": found,
        "schema": schema.model_dump(mode="json", exclude_defaults=True),
    }


def _read(args: argparse.Namespace, config: "Config") -> "tuple[Schema, Induced | None]":
    """The schema of the source, and what else a graph says of it."""
    from ucotron_ray.core import addresses, requirements, variables
    from ucotron_ray.core.errors import ConfigError
    from ucotron_ray.data import schema_file
    from ucotron_ray.graph import export
    from ucotron_ray.graph import schema as graph_schema

    source, suffix = args.source, Path(args.source).suffix.lower()
    is_server = export.is_server(source)
    is_ontology = suffix in (".ttl", ".owl", ".rdf", ".xml") and not is_server
    is_schema = suffix in (".yaml", ".yml") and not is_server
    if args.min_count is not None and (args.min_count < 1 or is_ontology or is_schema):
        raise ConfigError(
            "--min-count counts the edges of a graph",
            expected="1 or more, with a graph as SOURCE",
            found=f"--min-count {args.min_count} with {source}",
            next_step="leave it out, or name a graph",
        )
    if is_schema:
        return schema_file.read(Path(source)), None
    if is_ontology:
        requirements.require_packages("rdflib")
        from ucotron_ray.graph import ontology

        return ontology.read(Path(source)), None
    if is_server:
        addresses.check(source, allowed=config.place.api.allowed_hosts, where="the graph's server")
        namespace = config.recipe.graph.namespace or variables.value("UCOTRON_NAMESPACE") or "default"
        graph = export.fetch(source, api_key=variables.value("UCOTRON_API_KEY"), namespace=namespace)
    else:
        graph = export.read_file(Path(source))
    induced = graph_schema.induce(graph, min_count=args.min_count or 1, where=source)
    return induced.schema, induced


def _write(output: Path, text: str, *, force: bool) -> None:
    """Raises ConfigError rather than throw away what a person may have edited."""
    from ucotron_ray.core import files
    from ucotron_ray.core.errors import ConfigError

    if output.exists() and not force and output.read_text(encoding="utf-8", errors="replace") != text:
        raise ConfigError(
            "the output is there already, and differs",
            where=str(output),
            next_step="name another --output and take over what you edited, or throw it away with --force",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(output, text)


def _table(schema: "Schema", induced: "Induced | None") -> Iterator[str]:
    """A line a predicate: name, edges, types of the ends with their shares where a graph is read, an example."""
    width = min(NAME_WIDTH, max(len(predicate.name) for predicate in schema.predicates))
    yield f"{'predicate':<{width}}  {'count':>6}  {'types':<{TYPES_WIDTH}}  example"
    for predicate in schema.predicates:
        use = induced.uses[predicate.name] if induced else None
        ends = (
            _types(predicate.domain, use.domain if use else None),
            _types(predicate.range, use.range if use else None),
        )
        arrow = "↔" if predicate.symmetric else "→"
        types = terminal.cut(f" {arrow} ".join(ends), TYPES_WIDTH)
        example = f"{predicate.examples[0].subject} → {predicate.examples[0].object}" if predicate.examples else ""
        count = "" if predicate.count is None else f"{predicate.count:,}"
        shown = terminal.cut(predicate.name, width)
        yield f"{shown:<{width}}  {count:>6}  {types:<{TYPES_WIDTH}}  {terminal.cut(example, EXAMPLE_WIDTH)}".rstrip()
        other = [f"inverse of {predicate.inverse}"] if predicate.inverse else []
        if predicate.aliases:
            other.append(f"also {', '.join(predicate.aliases)}")
        if other:
            yield f"{'':<{width}}  {'':>6}  {'; '.join(other)}"


def _types(names: tuple[str, ...], ends: "Counter[str] | None") -> str:
    if not names:
        return "any"
    if ends is None or len(names) == 1:
        return ", ".join(names)
    return ", ".join(f"{name} {ends[name] / ends.total():.0%}" for name in names)


def _notes(induced: "Induced | None", proposals: list[dict[str, Any]]) -> Iterator[str]:
    """What a graph's schema lacks, and what a person should look at."""
    if induced is None:
        return
    if induced.rare:
        edges = sum(induced.rare.values())
        yield f"left out: {len(induced.rare)} predicates with {edges} edges, by --min-count: " + _listed(
            [f"{name} {count}" for name, count in induced.rare.items()]
        )
    if induced.stray_types:
        strays = [f"{kind} in the {side} of {name} ({ends})" for name, side, kind, ends in induced.stray_types]
        yield "types with too few of a predicate's ends: " + _listed(strays)
    for proposal in proposals[:SHOWN]:
        yield f"{proposal['kind']}? {' and '.join(proposal['predicates'])}: {proposal['reason']}"
    if len(proposals) > SHOWN:
        yield f"and {len(proposals) - SHOWN} more, under `proposals:` of the file"


def _listed(entries: list[str]) -> str:
    more = len(entries) - SHOWN
    return ", ".join(entries[:SHOWN]) + (f" and {more} more" if more > 0 else "")
