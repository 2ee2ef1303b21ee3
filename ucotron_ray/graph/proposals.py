"""What a person may want to merge or mark in the schema of a graph: predicates that look alike, and directions.

Thresholds were set by the 83 predicates of a graph of Wikidata facts: award_received and nominated_for share 17 % of
their pairs, narrative_location and filming_location 20 %, and are not the same; tributary and mouth_of_the_watercourse
share 8 % with the ends exchanged, and are inverse.
"""

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import combinations
from typing import Literal

from ucotron_ray.core.sections import Section
from ucotron_ray.data.schema import Predicate, Schema, snake_case
from ucotron_ray.graph.schema import Induced, Pair

MAX_PROPOSALS = 200
"""More than that nobody reads."""

MIN_SHARED = 2
MIN_SHARE_OF_SAME = 0.5
"""Of the rarer predicate's pairs, that the other has too: many facts go along with another one that is not the same."""
MIN_SHARE_OF_INVERSE = 0.05
"""With the ends exchanged: few predicates hold in the other direction of another one unless they are its inverse."""
MIN_SHARE_OF_SYMMETRIC = 0.5
MIN_LIKENESS = 0.9
"""Of the letters of two names, by difflib: one letter of ten."""

_SMALL_WORDS = {
    "a", "an", "the", "of", "at", "in", "on", "by", "for", "to", "with",
    "is", "are", "was", "were", "be", "been", "has", "have", "had",
}  # fmt: skip
"""Not `from`: moved_from is not moved_to."""


class Proposal(Section):
    """Something to look at, and why."""

    kind: Literal["alias", "inverse", "symmetric"]
    predicates: list[str]
    reason: str


def proposals(induced: Induced) -> list[Proposal]:
    """Aliases, inverses and symmetric predicates that the graph hints at; nothing is changed."""
    found = [*_symmetric(induced), *_by_pairs(induced)]
    known = {frozenset(proposal.predicates) for proposal in found}
    by_name = [proposal for proposal in _by_name(induced.schema) if frozenset(proposal.predicates) not in known]
    return [*found, *by_name][:MAX_PROPOSALS]


def _symmetric(induced: Induced) -> Iterator[Proposal]:
    for name, use in induced.uses.items():
        ends = {frozenset(pair) for pair in use.pairs if pair[0] != pair[1]}
        both = sum(all(pair in use.pairs for pair in _directions(pair)) for pair in use.pairs if pair[0] < pair[1])
        if both >= MIN_SHARED and both >= MIN_SHARE_OF_SYMMETRIC * len(ends):
            reason = f"{both} of {len(ends)} pairs stand in both directions"
            yield Proposal(kind="symmetric", predicates=[name], reason=reason)


def _by_pairs(induced: Induced) -> Iterator[Proposal]:
    """Predicates that hold between the same pairs, or between the same with the ends exchanged."""
    of_pair: dict[Pair, list[str]] = defaultdict(list)
    for name, use in induced.uses.items():
        for pair in use.pairs:
            of_pair[pair].append(name)
    same: Counter[tuple[str, str]] = Counter()
    turned: Counter[tuple[str, str]] = Counter()
    for pair, names in of_pair.items():
        same.update(combinations(names, 2))
        if pair[0] < pair[1] and pair[::-1] in of_pair:
            others = of_pair[pair[::-1]]
            turned.update((one, other) for one in names for other in others if one != other)
    place = {name: index for index, name in enumerate(induced.uses)}
    both = {tuple(sorted(names, key=place.__getitem__)) for names in (*same, *turned)}
    for one, other in sorted(both, key=lambda names: [place[name] for name in names]):
        as_it_is, exchanged = same[one, other], turned[one, other] + turned[other, one]
        fewer = min(len(induced.uses[name].pairs) for name in (one, other))
        if as_it_is >= MIN_SHARED and as_it_is >= MIN_SHARE_OF_SAME * fewer and as_it_is >= exchanged:
            reason = f"{as_it_is} of {fewer} pairs are pairs of both"
            yield Proposal(kind="alias", predicates=[one, other], reason=reason)
        elif exchanged >= MIN_SHARED and exchanged >= MIN_SHARE_OF_INVERSE * fewer and exchanged > as_it_is:
            reason = f"{exchanged} of {fewer} pairs stand in the other with the ends exchanged"
            yield Proposal(kind="inverse", predicates=[one, other], reason=reason)


def _by_name(schema: Schema) -> Iterator[Proposal]:
    """Predicates that are called nearly the same, and whose ends can have the same types."""
    words = {predicate.name: snake_case(predicate.name).split("_") for predicate in schema.predicates}
    content = {name: " ".join(_stem(word) for word in said if word not in _SMALL_WORDS) for name, said in words.items()}
    by_letter: dict[str, list[Predicate]] = defaultdict(list)
    for predicate in schema.predicates:
        if content[predicate.name]:
            # Nobody mistypes the first letter, and a thousand predicates have half a million pairs.
            by_letter[content[predicate.name][0]].append(predicate)
    for alike in by_letter.values():
        for one, other in combinations(alike, 2):
            if not _are_alike(content[one.name], content[other.name]):
                continue
            is_turned = ("by" in words[one.name]) != ("by" in words[other.name])
            if is_turned and _meet(one.domain, other.range) and _meet(one.range, other.domain):
                reason = "the names say the same, once active and once passive"
                yield Proposal(kind="inverse", predicates=[one.name, other.name], reason=reason)
            elif _meet(one.domain, other.domain) and _meet(one.range, other.range):
                reason = "the names are alike, and so are the types; look at the direction"
                yield Proposal(kind="alias", predicates=[one.name, other.name], reason=reason)


def _are_alike(one: str, other: str) -> bool:
    if one == other:
        return True
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return all(
        likeness() >= MIN_LIKENESS for likeness in (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    )


def _stem(word: str) -> str:
    """A word without an English ending: lives, lived and living are one."""
    return re.sub(r"(?<=\w{3})(ing|ed|es|s|e)$", "", word)


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return not one or not other or not set(one).isdisjoint(other)


def _directions(pair: Pair) -> tuple[Pair, Pair]:
    return pair, (pair[1], pair[0])
