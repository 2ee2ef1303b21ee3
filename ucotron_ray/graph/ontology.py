"""An ontology in OWL or RDFS, as Turtle or RDF/XML → a schema: classes become types, object properties predicates.

What a schema has no place for is left out: class expressions other than unions, data properties, cardinalities, and
`owl:imports`, which would have to be fetched.
"""

import logging
import re
import xml.sax
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rdflib import OWL, RDF, RDFS, SKOS, XSD, Graph, URIRef
from rdflib.collection import Collection
from rdflib.exceptions import ParserError

from ucotron_ray.core.errors import InputError
from ucotron_ray.data.records import name_key
from ucotron_ray.data.schema import EntityType, Predicate, Schema, predicate_key, snake_case

log = logging.getLogger(__name__)

LANGUAGES = ("en", None)
"""Of labels and comments: English, else those without a language, else the first by its name."""


def read(path: Path) -> Schema:
    """The schema of an ontology's file. Nothing is fetched. Raises InputError."""
    graph = _parsed(path)
    classes = _Classes(graph)
    predicates = _predicates(graph, classes)
    if not predicates:
        raise InputError(
            "the ontology gives no schema",
            where=str(path),
            expected="properties of the type owl:ObjectProperty, or rdf:Property whose range is no literal",
            found=f"{len(graph)} statements, {len(classes.names)} classes",
        )
    return Schema(types=tuple(classes.types()), predicates=tuple(predicates))


def _parsed(path: Path) -> Graph:
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Both are found under .owl.
        layout = "xml" if re.match(r"\s*<(\?xml|!|[\w-]+:RDF\b|RDF\b)", text) else "turtle"
        return Graph().parse(data=text, format=layout, publicID=path.absolute().as_uri() + "#")
    except (OSError, UnicodeDecodeError, ValueError, SyntaxError, ParserError, xml.sax.SAXException) as error:
        raise InputError(
            "the ontology cannot be read",
            where=str(path),
            expected="Turtle or RDF/XML",
            found=str(error)[:500],
            next_step="convert other formats first, OWL/XML for example with ROBOT: robot convert --output x.ttl",
        ) from error


class _Classes:
    """The named classes of an ontology, by the names that they have as types."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        declared = {*graph.subjects(RDF.type, OWL.Class), *graph.subjects(RDF.type, RDFS.Class)}
        nodes = declared | {end for both in graph.subject_objects(RDFS.subClassOf) for end in both}
        for side in (RDFS.domain, RDFS.range):
            nodes |= {member for node in graph.objects(None, side) for member in self._members(node)}
        found = sorted(node for node in nodes if _is_named(node) and not _is_literal_type(node))
        # Of two classes with one name the words of the second one's label do not count, but both are this type.
        spelling: dict[str, str] = {}
        self.names = {}
        for node in found:
            name = snake_case(_label(graph, node)).replace("_", " ") or _fragment(node)
            self.names[node] = spelling.setdefault(name_key(name), name)
        self._below: dict[Any, set[Any]] = defaultdict(set)
        for lower, upper in graph.subject_objects(RDFS.subClassOf):
            self._below[upper].add(lower)

    def types(self) -> Iterator[EntityType]:
        """Each name once, with the first description that one of its classes has."""
        said: dict[str, str] = {}
        for node, name in self.names.items():
            said[name] = said.get(name) or _comment(self._graph, node)
        return (EntityType(name=name, description=said[name]) for name in sorted(said))

    def allowed(self, nodes: Iterable[Any]) -> tuple[str, ...]:
        """The types of a domain or range: its classes with all below them; several statements narrow each other."""
        choices = [members for node in nodes if OWL.Thing not in (members := self._members(node))]
        sets = [found for members in choices if (found := set.union(*map(self._with_below, members)))]
        # What nothing can be in was meant as a choice, whatever RDFS says.
        return tuple(sorted(set.intersection(*sets) or set.union(*sets))) if sets else ()

    def _members(self, node: Any) -> list[Any]:
        """A class, or those of a union."""
        unions = list(self._graph.objects(node, OWL.unionOf))
        return [member for union in unions for member in Collection(self._graph, union)] or [node]

    def _with_below(self, node: Any) -> set[str]:
        found, open_ends = set(), {node}
        while open_ends:
            one = open_ends.pop()
            found.add(one)
            open_ends |= self._below[one] - found
        return {self.names[one] for one in found if one in self.names}


def _predicates(graph: Graph, classes: _Classes) -> list[Predicate]:
    names = _names(graph)
    inverse = _inverses(graph, names)
    symmetric = set(graph.subjects(RDF.type, OWL.SymmetricProperty))
    taken = {predicate_key(name) for name in names.values()}
    made = []
    for node, name in sorted(names.items(), key=lambda entry: entry[1]):
        domain, range_ = (classes.allowed(graph.objects(node, side)) for side in (RDFS.domain, RDFS.range))
        if node in symmetric:
            domain = range_ = tuple(sorted({*domain, *range_}))
        elif node in inverse:
            # An inverse often says no more than that.
            main = inverse[node]
            domain = domain or classes.allowed(graph.objects(main, RDFS.range))
            range_ = range_ or classes.allowed(graph.objects(main, RDFS.domain))
        aliases = []
        for alias in sorted({snake_case(str(said)) for said in graph.objects(node, SKOS.altLabel)} - {""}):
            if alias not in taken:
                aliases.append(alias)
            elif alias != name:
                log.warning("%s: the name %s is taken by another property; not an alias", name, alias)
            taken.add(alias)
        made.append(
            Predicate(
                name=name,
                description=_comment(graph, node),
                domain=domain,
                range=range_,
                symmetric=node in symmetric,
                inverse=names[inverse[node]] if node in inverse else None,
                aliases=tuple(aliases),
            )
        )
    return made


def _names(graph: Graph) -> dict[Any, str]:
    """The object properties and their names: by label, or by the end of the address where two have one label."""
    kinds = (OWL.ObjectProperty, OWL.SymmetricProperty, OWL.TransitiveProperty, OWL.InverseFunctionalProperty)
    nodes = {node for kind in kinds for node in graph.subjects(RDF.type, kind)}
    plain = set(graph.subjects(RDF.type, RDF.Property)) - set(graph.subjects(RDF.type, OWL.AnnotationProperty))
    nodes |= {node for node in plain if not any(map(_is_literal_type, graph.objects(node, RDFS.range)))}
    data = set(graph.subjects(RDF.type, OWL.DatatypeProperty))
    if data:
        log.info("%d data properties are left out: their objects are values, not entities", len(data))
    names: dict[Any, str] = {}
    for node in sorted(node for node in nodes - data if _is_named(node)):
        candidates = [snake_case(_label(graph, node)), snake_case(_fragment(node)), _fragment(node)]
        free = [name for name in candidates if name and name not in names.values()]
        if not free:
            other = next(one for one, name in names.items() if name in candidates)
            raise InputError(
                "two properties of the ontology have one name",
                where=f"{other} and {node}",
                expected="another label, or another end of the address",
                found=candidates[0] or candidates[1],
                next_step="give one of them an rdfs:label of its own",
            )
        names[node] = free[0]
    return names


def _inverses(graph: Graph, names: dict[Any, str]) -> dict[Any, Any]:
    """Property → the one that is written instead of it, each of which is no inverse itself.

    `A owl:inverseOf B` keeps B; where both say it, the first by name.
    """
    symmetric = set(graph.subjects(RDF.type, OWL.SymmetricProperty))
    said = [(one, other) for one, other in graph.subject_objects(OWL.inverseOf) if one in names and other in names]
    found: dict[Any, Any] = {}
    for one, other in sorted(said, key=lambda both: (names[both[1]], names[both[0]])):
        if one == other or found.get(other) == one or symmetric & {one, other}:
            continue
        if one in found or other in found or one in found.values():
            log.warning("%s: that it is the inverse of %s is left out: one inverse is enough", names[one], names[other])
            continue
        found[one] = other
    return found


def _label(graph: Graph, node: Any) -> str:
    return _said(graph, node, RDFS.label) or _fragment(node)


def _comment(graph: Graph, node: Any) -> str:
    return " ".join((_said(graph, node, RDFS.comment) or _said(graph, node, SKOS.definition)).split())


def _said(graph: Graph, node: Any, how: Any) -> str:
    """What is said of a node in the language that comes first; empty if nothing is."""
    texts = [text for text in graph.objects(node, how) if hasattr(text, "language")]

    def rank(text: Any) -> tuple[int, str, str]:
        language = text.language.split("-")[0].lower() if text.language else None
        place = LANGUAGES.index(language) if language in LANGUAGES else len(LANGUAGES)
        return place, language or "", str(text)

    return str(min(texts, key=rank)) if texts else ""


def _fragment(node: Any) -> str:
    """The end of an address, after the last `#`, `/` or `:`."""
    return re.split(r"[#/:]", str(node).rstrip("#/:"))[-1]


def _is_named(node: Any) -> bool:
    return isinstance(node, URIRef) and node not in (OWL.Thing, OWL.Nothing, RDFS.Resource)


def _is_literal_type(node: Any) -> bool:
    return node == RDFS.Literal or str(node).startswith(str(XSD))
