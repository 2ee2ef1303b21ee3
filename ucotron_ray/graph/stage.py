"""Rows from a knowledge graph: an export file, or a Ucotron server that is asked."""

import logging
from collections.abc import Mapping
from pathlib import Path

from ucotron_ray.core import addresses, variables
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import canonical_hash, file_hash
from ucotron_ray.core.recipe import Graph
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.stage import TRAIN, VAL
from ucotron_ray.graph import dataset as graph_dataset
from ucotron_ray.graph import export as graph_export

log = logging.getLogger(__name__)


def graph_request(run: Run, identity: Mapping[str, str]) -> Request:
    """What importing a graph would make; `identity` is the hash of what was read."""
    settings = run.config.recipe.graph.model_dump(exclude={"source"})
    return Request("dataset", run.name, {"graph": settings, "source": dict(identity)})


def import_graph(run: Run, source: str | None = None) -> Artifact:
    """A knowledge graph → `dataset/<name>` with `train.jsonl` and `val.jsonl`."""
    settings = run.config.recipe.graph
    source = source or settings.source or variables.value("UCOTRON_SERVER_URL")
    assert source is not None
    if graph_export.is_server(source):
        addresses.check(source, allowed=run.config.place.api.allowed_hosts, where="the graph's server")
    split, identity, where = _read_graph(source, settings)

    def build(build: Build) -> BuildResult:
        jsonl.write_rows(build.path / TRAIN, split.train)
        jsonl.write_rows(build.path / VAL, split.val)
        return BuildResult({}, split.counts, [f"from {where}", *split.notes])

    artifact = run.make("import-graph", graph_request(run, identity), build)
    lost = graph_dataset.lost(split.counts)
    for note in [*split.notes, *([lost] if lost else [])]:
        log.warning("%s", note)
    return artifact


def _read_graph(source: str, settings: Graph) -> tuple[graph_dataset.Split, dict[str, str], str]:
    """The rows of a source, the identity of what was read, and where it was read without any key."""
    if not graph_export.is_server(source):
        path = Path(source)
        graph = graph_export.read_file(path)
        split = graph_dataset.rows_of_graph(graph, settings)
        return split, _file_identity(path, split), str(path)
    namespace = settings.namespace or variables.value("UCOTRON_NAMESPACE") or "default"
    key = variables.value("UCOTRON_API_KEY")
    if settings.kind == "generate-dataset":
        _refuse_namespace(namespace, settings)
        keys = ("max_samples", "train_ratio", "min_relations", "max_text_length", "seed")
        body = settings.model_dump(include=set(keys))
        answer = graph_export.call(
            source, "POST", "/api/v1/finetune/generate-dataset", api_key=key, namespace=namespace, body=body
        )
        split = graph_dataset.rows_of_generate_dataset(answer, settings)
    else:
        split = graph_dataset.rows_of_graph(graph_export.fetch(source, api_key=key, namespace=namespace), settings)
    rows = [row.model_dump() for row in [*split.train, *split.val]]
    return split, {"rows": canonical_hash(rows)}, f"{source}, namespace {namespace}"


def _file_identity(path: Path, split: graph_dataset.Split) -> dict[str, str]:
    """The file's hash; where its rows are others than earlier versions read from it, that too."""
    return {"file": file_hash(path), **({"read": ", ".join(split.reading)} if split.reading else {})}


def _refuse_namespace(namespace: str, settings: Graph) -> None:
    if namespace != "default" and not settings.all_namespaces:
        raise ConfigError(
            "generate-dataset ignores namespaces: it would mix in the texts of all of them",
            where="graph.namespace",
            expected="namespace default, or --all-namespaces",
            found=namespace,
            next_step="use --source export, which keeps to the namespace, or pass --all-namespaces if you may see all",
        )


def known_request(run: Run) -> Request | None:
    """What importing the recipe's graph would make; None for a server, which would have to be asked.

    Raises InputError for a file that is no graph.
    """
    source = run.config.recipe.graph.source or variables.value("UCOTRON_SERVER_URL") or ""
    if graph_export.is_server(source):
        return None
    _, identity, _ = _read_graph(source, run.config.recipe.graph)
    return graph_request(run, identity)
