"""How sure a model was of each triple: the mean log-probability of the tokens of its subject, predicate and object.

Stated confidences are what the training rows had, often one value for all; this is the model's own (reference §4.9).
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence

from ucotron_ray.data.wire import parse_answer

_PART = re.compile(r'"(?:subject|predicate|object)"\s*:\s*"((?:[^"\\]|\\.)*)"')


def token_confidence(answer: str, pieces: Sequence[str], logprobs: Sequence[float]) -> list[float] | None:
    """exp(mean log-probability) of every relation of the answer, in the order of `parse_answer`.

    `pieces` are the texts of the tokens, which make up the answer, and `logprobs` theirs. None where the answer has no
    relation, or where its relations cannot be told apart.
    """
    relations = parse_answer(answer)
    if not relations or "".join(pieces) != answer:
        return None
    items = _items(answer)
    kept = [span for item, span in items if parse_answer(json.dumps([item]))]
    if len(kept) != len(relations):
        return None
    ends: list[int] = []
    for piece in pieces:
        ends.append((ends[-1] if ends else 0) + len(piece))
    return [_mean_probability(answer, span, ends, logprobs) for span in kept]


def pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], answer: str) -> list[str]:
    """The text of each token. Where letters are split over tokens, what each adds to the text before it."""
    alone = [decode([token]) for token in tokens]
    if "".join(alone) == answer:
        return alone
    grown = [decode(tokens[:end]) for end in range(len(tokens) + 1)]
    # An unfinished letter shows as a sign of its own and goes with the next token.
    whole = [text.rstrip("\ufffd") for text in grown]
    return [after[len(before) :] for before, after in itertools.pairwise(whole)]


def _items(answer: str) -> list[tuple[object, tuple[int, int]]]:
    """The objects of the array and where they stand."""
    decoder = json.JSONDecoder()
    items: list[tuple[object, tuple[int, int]]] = []
    position = answer.find("{", answer.find("["))
    while position >= 0:
        try:
            item, end = decoder.raw_decode(answer, position)
        except ValueError:
            break
        items.append((item, (position, end)))
        position = answer.find("{", end)
    return items


def _mean_probability(answer: str, span: tuple[int, int], ends: Sequence[int], logprobs: Sequence[float]) -> float:
    values = [match.span(1) for match in _PART.finditer(answer, *span)]
    starts = [0, *ends[:-1]]
    chosen = [
        logprob
        for start, end, logprob in zip(starts, ends, logprobs, strict=True)
        if any(start < value_end and end > value_start for value_start, value_end in values)
    ]
    return math.exp(sum(chosen) / len(chosen)) if chosen else 0.0
