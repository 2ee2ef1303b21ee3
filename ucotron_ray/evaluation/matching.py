"""How close a prediction is beyond equality: relaxed names, pairs without their predicate, and the form of the answer.

Definitions: reference §4.9. Names come here normalised (`scoring.normalise`).
"""

import json
from collections.abc import Collection, Sequence

from ucotron_ray.data.wire import answer_items

Triple = tuple[str, str, str]

SYMMETRIC = (
    "married to",
    "spouse",
    "spouse of",
    "sibling of",
    "friend of",
    "partner of",
    "colleague of",
    "met",
    "related to",
    "associated with",
    "communicated with",
    "borders",
)
"""Predicates that mean the same in both directions, as `normalise` writes them."""

MIN_TOKEN_F1 = 0.5
ANSWER_KEYS = ("subject", "predicate", "object", "confidence")


def relaxed_matches(predicted: Collection[Triple], expected: Collection[Triple], *, either_way: bool) -> int:
    """How many predicted triples can each be paired with an expected one of its own: a largest bipartite matching.

    A pair needs the same predicate and close subjects and objects; with `either_way` a symmetric predicate may have its
    ends swapped.
    """
    wanted = sorted(expected)
    edges = [
        [index for index, other in enumerate(wanted) if _close(triple, other, either_way=either_way)]
        for triple in sorted(predicted)
    ]
    return _largest_matching(edges, len(wanted))


def same_name(name: str, other: str) -> bool:
    """Equal, one within the other, or half of their words in common (F1 of the words)."""
    if name == other or (name and other and (name in other or other in name)):
        return True
    words, others = set(name.split()), set(other.split())
    common = len(words & others)
    return bool(common) and 2 * common / (len(words) + len(others)) >= MIN_TOKEN_F1


def is_whole_array(answer: str) -> bool:
    """Whether the answer is a JSON array and nothing else. The server's parser forgives text around it."""
    try:
        return isinstance(json.loads(answer), list)
    except (ValueError, RecursionError):
        return False


def keeps_schema(answer: str) -> bool:
    """Whether every item has three strings that say something, a confidence in [0, 1], and no other key."""
    items = answer_items(answer)
    return items is not None and all(_is_relation(item) for item in items)


def squashed(text: str) -> str:
    """Letters and digits alone, case folded: what is left of a name that lost a space or gained a quote."""
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def _is_relation(item: object) -> bool:
    if not isinstance(item, dict) or set(item) != set(ANSWER_KEYS):
        return False
    names = [item[key] for key in ("subject", "predicate", "object")]
    confidence = item["confidence"]
    is_number = isinstance(confidence, (int, float)) and not isinstance(confidence, bool)
    return all(isinstance(name, str) and name.strip() for name in names) and is_number and 0 <= confidence <= 1


def _close(triple: Triple, other: Triple, *, either_way: bool) -> bool:
    if triple[1] != other[1]:
        return False
    if same_name(triple[0], other[0]) and same_name(triple[2], other[2]):
        return True
    swappable = either_way and triple[1] in SYMMETRIC
    return swappable and same_name(triple[0], other[2]) and same_name(triple[2], other[0])


def _largest_matching(edges: Sequence[Sequence[int]], num_right: int) -> int:
    """Augmenting paths (Kuhn 1955). A row has a handful of triples: anything faster would not be noticed."""
    owner: list[int | None] = [None] * num_right

    def place(left: int, tried: set[int]) -> bool:
        for right in edges[left]:
            if right in tried:
                continue
            tried.add(right)
            holder = owner[right]
            if holder is None or place(holder, tried):
                owner[right] = left
                return True
        return False

    return sum(place(left, set()) for left in range(len(edges)))
