"""Path rewards: rows that are computed from a graph, by the same last step as rows that a teacher wrote."""

import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ucotron_ray.core import addresses, variables
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError, StageFailed
from ucotron_ray.core.files import canonical_hash, file_hash
from ucotron_ray.core.run import Run
from ucotron_ray.graph import export as graph_export
from ucotron_ray.graph import paths
from ucotron_ray.synthesis import outcomes, path_samples
from ucotron_ray.synthesis.rows import RowKind, check_limits
from ucotron_ray.synthesis.stage import what_is_published
from ucotron_ray.synthesis.tasks import path_reward

log = logging.getLogger(__name__)

MOST_ROUNDS = 8
SAMPLES_PER_TASK = 25


@dataclass(frozen=True)
class PathOrder:
    """So many rows from this graph: a file, a server, or None for a generated one."""

    name: str
    count: int
    source: str | None
    identity: dict[str, Any]

    @property
    def task(self) -> str:
        """The generator's name."""
        return path_reward.NAME


def wanted(run: Run, count: int | None, source: str | None, *, name: str | None = None) -> PathOrder:
    """What is asked for. Without `source`: `graph.source`, else UCOTRON_SERVER_URL, else a generated graph.

    What is named is read, to be known by its content.

    Raises ConfigError or InputError for a graph that cannot be read.
    """
    settings = run.config.recipe.generation.task(path_reward.NAME)
    count = settings.target_samples if count is None else count
    if count < 1:
        raise ConfigError("there is nothing to make", where="--count", expected="1 or more", found=str(count))
    check_limits(run.config.recipe.generation.gate)
    server = variables.value("UCOTRON_SERVER_URL") if variables.is_set("UCOTRON_SERVER_URL") else None
    source = source or run.config.recipe.graph.source or server
    if source is None:
        log.info("path_reward: no graph is named: one of %d nodes is generated", settings.nodes)
        identity: dict[str, Any] = {"generated": {"nodes": settings.nodes, "edges": settings.edges}}
    elif graph_export.is_server(source):
        graph, contents, kinds = _graph(run, source)
        edges = [graph.neighbors.tolist(), graph.kinds.tolist(), graph.offsets.tolist()]
        identity = {"content": canonical_hash([graph.ids.tolist(), edges, list(graph.kind_names), contents, kinds])}
    else:
        graph_export.read_file(Path(source))
        identity = {"file": file_hash(Path(source))}
    return PathOrder(name or run.name, count, source, identity)


def request(run: Run, want: PathOrder) -> Request:
    """What computing would make."""
    generation = run.config.recipe.generation
    settings = generation.task(path_reward.NAME).model_dump(include={"max_hops", "max_paths"})
    fields = {
        "task": want.task,
        "version": path_reward.VERSION,
        "count": want.count,
        "settings": settings,
        "graph": want.identity,
        **what_is_published(generation),
    }
    return Request("dataset", want.name, fields)


def compute(run: Run, want: PathOrder) -> Artifact:
    """Graph → `dataset/<name>`. Raises StageFailed where the graph has too few paths."""

    def build(build: Build) -> BuildResult:
        graph, contents, kinds = _graph(run, want.source)
        generation = run.config.recipe.generation
        graph = paths.split(graph, paths.regions(graph, generation.val_ratio, generation.seed))
        run.connect(workers=False)
        kind, verdicts = _rounds(run, want, build.path, graph, contents, kinds)
        from ucotron_ray.synthesis import publish, selection

        counts = selection.counts(verdicts, len(verdicts))
        facts = {
            "name": want.name,
            "task": want.task,
            "made by": "ucotron_ray synthesize, computed, no model asked",
            "graph": f"{len(graph.ids)} nodes, {len(graph.neighbors) // 2} edges within the two sides of the split",
            "graph's identity": json.dumps(want.identity),
            "recipe": canonical_hash(build.request.fields)[:16],
            "seed": generation.seed,
            **counts,
        }
        published = publish.publish(build.path, kind, verdicts, generation, facts)
        shutil.rmtree(build.path / outcomes.OUTCOMES)
        counts |= {"train": published.lines.get("train.jsonl", 0), "val": published.lines.get("val.jsonl", 0)}
        notes = published.failures or [f"from {want.source or 'a generated graph'}"]
        return BuildResult(
            {"requests": 0.0, "cost_usd": 0.0}, counts, notes, "rejected" if published.failures else "ok"
        )

    return run.make("synthesize", request(run, want), build)


def estimate(run: Run, want: PathOrder) -> dict[str, Any]:
    """There is nothing to pay."""
    found = {"task": want.task, "rows": want.count, "requests": 0, "usd": 0.0, "usd_at_most": 0.0}
    return {**found, "graph": json.dumps(want.identity), "action": run.store.plan(request(run, want))}


def _rounds(
    run: Run, want: PathOrder, directory: Path, graph: paths.PathGraph, contents: list[str], kinds: list[str]
) -> tuple[RowKind, list[Any]]:
    """Draw samples until every hop length has its share; where the graph has none left of a length, of any length."""
    from ucotron_ray.graph.on_ray import over_graph
    from ucotron_ray.synthesis import selection

    generation = run.config.recipe.generation
    max_hops = generation.task(path_reward.NAME).max_hops
    draw = partial(path_samples.draw, generation.model_dump())
    drawn: list[dict[str, Any]] = []
    balanced = path_reward.row_kind(max_hops)
    planned = want.count
    for _ in range(MOST_ROUNDS):
        drawn += over_graph(draw, graph, range(len(drawn), planned), items_per_task=SAMPLES_PER_TASK)
        _write(directory, path_samples.settled(drawn, want.count, contents, kinds, graph))
        verdicts = selection.select(directory, balanced, want.count, 1.0)
        missing = selection.missing(verdicts, balanced, want.count)
        if missing <= 0:
            return balanced, verdicts
        planned = len(drawn) + max(want.count, 2 * missing)
    any_length = path_reward.row_kind()
    verdicts = selection.select(directory, any_length, want.count, 1.0)
    missing = selection.missing(verdicts, any_length, want.count)
    if missing > 0:
        raise StageFailed(
            "the graph has too few paths",
            where=want.source or "the generated graph",
            expected=f"{want.count} pairs of ends, no node in more than {path_samples.LARGEST_SHARE_OF_A_NODE:.0%}",
            found=f"{want.count - missing} in {len(drawn)} samples",
            next_step="ask for fewer rows, or take a larger graph",
        )
    log.warning("synthesize: the graph has not enough paths of every length; lengths are not balanced")
    return any_length, verdicts


def _write(directory: Path, made: Iterator[dict[str, Any]]) -> None:
    folder = directory / outcomes.OUTCOMES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in iter(lambda: list(itertools.islice(made, 1000)), []):
        outcomes.append_outcomes(folder / "drawn.jsonl", part)


def _graph(run: Run, source: str | None) -> tuple[paths.PathGraph, list[str], list[str]]:
    """The graph with the contents and kinds of its nodes."""
    if source is None:
        settings, seed = run.config.recipe.generation.task(path_reward.NAME), run.config.recipe.generation.seed
        return paths.generated(settings.nodes, settings.edges, seed)
    if not graph_export.is_server(source):
        return paths.from_export(graph_export.read_file(Path(source)))
    addresses.check(source, allowed=run.config.place.api.allowed_hosts, where="the graph's server")
    namespace = run.config.recipe.graph.namespace or variables.value("UCOTRON_NAMESPACE") or "default"
    key = variables.value("UCOTRON_API_KEY")
    return paths.from_export(graph_export.fetch(source, api_key=key, namespace=namespace))
