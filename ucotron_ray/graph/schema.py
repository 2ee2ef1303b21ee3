"""A knowledge graph → the schema that it follows: its predicates, the types of their ends, and examples."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ucotron_ray.core.errors import InputError
from ucotron_ray.data.records import name_key, server_label
from ucotron_ray.data.schema import EntityType, Example, Predicate, Schema, predicate_key
from ucotron_ray.graph.export import Edge, KnowledgeGraph

MIN_TYPE_SHARE = 0.05
"""Of a predicate's ends, that a type has to hold to be in its domain or range. In a graph of 3,164 labelled edges and
83 predicates one type was below it, with two edges, and one of the two was labelled wrongly."""

NUM_EXAMPLES = 3
MAX_EXAMPLE_CHARACTERS = 300
"""A longer chunk is a poor example: it says many things beside."""

MAX_PREDICATES = 1000
"""A longer vocabulary fits into no prompt and no head; graphs that a model filled freely have a long tail."""

UNTYPED = "concept"
"""The server's own word for what has no label."""

Pair = tuple[str, str]


@dataclass
class Use:
    """What a graph says of one predicate."""

    spellings: Counter[str] = field(default_factory=Counter)
    domain: Counter[str] = field(default_factory=Counter)
    range: Counter[str] = field(default_factory=Counter)
    pairs: set[Pair] = field(default_factory=set)
    """Subject and object, as `name_key`."""
    examples: list[Example] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The commonest spelling."""
        return min(self.spellings, key=lambda name: (-self.spellings[name], name))

    @property
    def count(self) -> int:
        """Edges."""
        return self.spellings.total()


@dataclass(frozen=True)
class Induced:
    """A schema, what it was read from, and what it lacks.

    `uses`: by the predicate's name. `rare`: predicates below the least count, with their counts. `stray_types`: those
    that hold too few of a predicate's ends: (predicate, "domain" or "range", type, ends).
    """

    schema: Schema
    uses: dict[str, Use]
    rare: dict[str, int]
    stray_types: list[tuple[str, str, str, int]]


def induce(graph: KnowledgeGraph, *, min_count: int = 1, where: str = "the graph") -> Induced:
    """The schema of a graph, its commonest predicates first. Raises InputError if there are none, or too many."""
    found = sorted(_uses(graph).values(), key=lambda use: (-use.count, use.name))
    uses = {use.name: use for use in found if use.count >= min_count}
    rare = {use.name: use.count for use in found if use.count < min_count}
    if not uses:
        raise InputError(
            "the graph gives no schema",
            where=where,
            expected=f"edges with `metadata.predicate`, {min_count} or more of one predicate",
            found=f"{len(graph.edges)} edges, {len(rare)} predicates",
            next_step="lower --min-count" if rare else "let the server learn texts first",
        )
    if len(uses) > MAX_PREDICATES:
        raise InputError(
            "the graph has too many predicates for a schema",
            where=where,
            expected=f"at most {MAX_PREDICATES}",
            found=f"{len(uses)} with {min_count} or more edges",
            next_step=f"--min-count {found[MAX_PREDICATES].count + 1} keeps fewer",
        )
    stray: list[tuple[str, str, str, int]] = []
    predicates = []
    all_ends: Counter[str] = Counter()
    for name, use in uses.items():
        domain, range_ = (_large(ends) for ends in (use.domain, use.range))
        for side, ends, kept in (("domain", use.domain, domain), ("range", use.range, range_)):
            stray += [(name, side, kind, count) for kind, count in _ranked(ends) if kind not in kept]
        all_ends += use.domain + use.range
        examples = tuple(use.examples)
        predicates.append(Predicate(name=name, domain=domain, range=range_, examples=examples, count=use.count))
    named = {kind for predicate in predicates for kind in (*predicate.domain, *predicate.range)}
    types = tuple(EntityType(name=kind) for kind, _ in _ranked(all_ends) if kind in named)
    return Induced(Schema(types=types, predicates=tuple(predicates)), uses, rare, stray)


def _uses(graph: KnowledgeGraph) -> dict[str, Use]:
    """What the graph says of each predicate, by `predicate_key`."""
    labels = _Labels(graph)
    ends = {number for edge in graph.edges if "predicate" in edge.metadata for number in (edge.source, edge.target)}
    names = {number: name_key(graph.nodes[number].content) for number in ends if number in graph.nodes}
    keys: dict[str, tuple[str, str]] = {}
    uses: dict[str, Use] = defaultdict(Use)
    shortest: dict[str, dict[Pair, tuple[Edge, int]]] = defaultdict(dict)
    for edge in graph.edges:
        pair = (names.get(edge.source, ""), names.get(edge.target, ""))
        if not edge.metadata.get("predicate") or not all(pair):
            continue
        said = str(edge.metadata["predicate"])
        if said not in keys:
            keys[said] = (predicate_key(said), _one_line(said))
        key, spelling = keys[said]
        if not spelling:
            continue
        use = uses[key]
        use.spellings[spelling] += 1
        use.domain[labels.of(edge, edge.source)] += 1
        use.range[labels.of(edge, edge.target)] += 1
        use.pairs.add(pair)
        chunk = edge.metadata.get("source_chunk")
        if isinstance(chunk, int) and chunk in graph.nodes:
            length = len(graph.nodes[chunk].content)
            if pair not in shortest[key] or length < shortest[key][pair][1]:
                shortest[key][pair] = (edge, length)
    for key, candidates in shortest.items():
        uses[key].examples = list(_examples(graph, candidates))
    return uses


def _examples(graph: KnowledgeGraph, candidates: dict[Pair, tuple[Edge, int]]) -> Iterator[Example]:
    """Those with the shortest texts that name both ends; no end twice."""
    used: set[str] = set()
    found = 0
    for pair, (edge, length) in sorted(candidates.items(), key=lambda entry: (entry[1][1], entry[0])):
        if found == NUM_EXAMPLES or length > MAX_EXAMPLE_CHARACTERS:
            return
        chunk, *names = (graph.nodes[n].content for n in (edge.metadata["source_chunk"], edge.source, edge.target))
        # Before anything is made of them: in most graphs most names stand in their texts, in some none.
        if not used.isdisjoint(pair) or not all(name in chunk for name in names):
            continue
        text, subject, object_ = map(_one_line, (chunk, *names))
        if subject and object_ and subject in text and object_ in text:
            used |= set(pair)
            found += 1
            yield Example(subject=subject, object=object_, text=text)


class _Labels:
    """The types of a graph's entities, each in its commonest spelling."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        self._nodes = graph.nodes
        self._in_chunk = {
            (edge.source, edge.target): str(edge.metadata["entity_label"])
            for edge in graph.edges
            if edge.metadata.get("entity_label") and "predicate" not in edge.metadata
        }
        said = Counter(self._in_chunk.values())
        said.update(str(label) for node in graph.nodes.values() if (label := node.metadata.get("entity_label")))
        spellings: Counter[str] = Counter()
        for label, count in said.items():
            spellings[_one_line(label)] += count
        self._commonest: dict[str, str] = {}
        for spelling, _ in _ranked(spellings):
            self._commonest.setdefault(name_key(spelling), spelling)
        self._types: dict[str, str] = {}

    def of(self, edge: Edge, number: int) -> str:
        """The label in the edge's own chunk, else the node's, else what the server calls a node of this kind."""
        node = self._nodes[number]
        chunk = edge.metadata.get("source_chunk")
        label = self._in_chunk.get((chunk, number)) if isinstance(chunk, int) else None
        label = label or str(node.metadata.get("entity_label") or server_label(node.kind))
        if label not in self._types:
            self._types[label] = self._commonest.get(name_key(_one_line(label))) or _one_line(label) or UNTYPED
        return self._types[label]


def _large(ends: Counter[str]) -> tuple[str, ...]:
    """The types that hold enough of a predicate's ends, the commonest first."""
    return tuple(kind for kind, count in _ranked(ends) if count >= MIN_TYPE_SHARE * ends.total())


def _ranked(types: Counter[str]) -> list[tuple[str, int]]:
    return sorted(types.items(), key=lambda entry: (-entry[1], entry[0]))


def _one_line(text: str) -> str:
    """Without line breaks, which a name in a prompt must not have, nor other characters that nobody sees."""
    return "".join(char for char in " ".join(text.split()) if char.isprintable())
