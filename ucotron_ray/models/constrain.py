"""Grammars for answers: a JSON array whose names can only be the entities of this very request, copied byte for byte.

Small models spoil names (spaces lost, letters changed) and the server drops such relations. The grammar is made from
the entities that `wire.parse_prompt` reads back from the prompt; a prompt in another layout has none and is answered
freely. llguidance says which tokens may follow and which must; it needs neither torch nor a network.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import llguidance
import llguidance.numpy
import numpy as np
from numpy.typing import NDArray

from ucotron_ray.core.errors import StageFailed
from ucotron_ray.data.records import Entity
from ucotron_ray.data.wire import parse_prompt

MIN_ITEMS, MAX_ITEMS = 4, 64
"""The array holds at most one relation for each ordered pair of names, within these bounds: a model that repeats itself
would never end."""

_BETWEEN = {
    "subject": '{"subject":',
    "predicate": ',"predicate":',
    "object": ',"object":',
    "confidence": ',"confidence":',
    "end": "}",
}
_FREE_PREDICATE = r'/"[^"\\\x00-\x1F\x7F]{1,64}"/'
_CONFIDENCE = r"/0\.[0-9]{1,2}|1\.0/"


class Grammars:
    """Constraints for one tokenizer. `predicates` empty = a predicate may be any short string."""

    def __init__(
        self, tokenizer_file: Path, *, num_words: int, eos: Sequence[int], predicates: Sequence[str] = ()
    ) -> None:
        self._tokenizer = _tokenizer(tokenizer_file, num_words, eos)
        self._num_words = num_words
        self._predicates = tuple(predicates)

    def limited_to(self, predicates: Sequence[str]) -> "Grammars":
        """The same for these predicates alone."""
        other = copy.copy(self)
        other._predicates = tuple(predicates)
        return other

    def of_prompt(self, prompt: str) -> "Constraint | None":
        """The constraint of one request; None if the prompt has another layout than the server's, or no entities."""
        asked = parse_prompt(prompt)
        return self.of_entities(asked[1]) if asked and asked[1] else None

    def of_entities(self, entities: Sequence[Entity]) -> "Constraint":
        """The constraint for these entities. Raises StageFailed if llguidance refuses the grammar."""
        names = list(dict.fromkeys(entity.text for entity in entities))
        matcher = llguidance.LLMatcher(self._tokenizer, grammar(names, self._predicates), log_level=0)
        if matcher.is_error():
            raise StageFailed("the grammar of an answer is refused", found=matcher.get_error())
        return Constraint(matcher, self._num_words)


class Constraint:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self._bits_1W = llguidance.numpy.allocate_token_bitmask(1, num_words)
        self._num_words = num_words

    @property
    def ended(self) -> bool:
        """Whether nothing but the end token may follow."""
        return bool(self._matcher.is_stopped())

    def takes(self, tokens: Sequence[int]) -> bool:
        """Whether these are a whole answer from here on. The constraint itself does not move."""
        matcher = self._matcher.deep_copy()
        return bool(matcher.consume_tokens(list(tokens)) and matcher.is_accepting())

    def forced(self) -> list[int]:
        """The tokens that must follow, if there is only one way to go on: no step of the model is needed for them."""
        return list(self._matcher.compute_ff_tokens())

    def allowed_V(self) -> NDArray[np.bool_]:
        """Which tokens may follow."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits_1W)
        bits = np.unpackbits(self._bits_1W[0].view(np.uint8), bitorder="little")
        return bits[: self._num_words].astype(np.bool_)

    def read(self, tokens: Sequence[int]) -> None:
        """Go on by these tokens. Raises StageFailed for one that may not follow."""
        if not self._matcher.consume_tokens(list(tokens)):
            raise StageFailed("a token that the grammar does not allow", found=self._matcher.get_error())


def known_tokens(tokenizer_file: Path, num_words: int) -> str:
    """A `tokenizer.json` without the added tokens that the model has no row for: their text is spelled like any other.

    Left in they would be asked of the model, or of the grammar, and neither has them.
    """
    contents = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    contents["added_tokens"] = [token for token in contents["added_tokens"] if token["id"] < num_words]
    return json.dumps(contents)


def _tokenizer(file: Path, num_words: int, eos: Sequence[int]) -> llguidance.LLTokenizer:
    try:
        return llguidance.LLTokenizer(str(file), n_vocab=num_words, eos_token=list(eos))
    except ValueError:
        # It refuses fewer words than tokens. Any other mistake is raised by this one too.
        return llguidance.LLTokenizer(known_tokens(file, num_words), n_vocab=num_words, eos_token=list(eos))


def grammar(names: Sequence[str], predicates: Sequence[str]) -> str:
    """A grammar in llguidance's Lark dialect for the layout of `wire.format_answer`; `[]` alone below two names."""
    if len(names) < 2:
        return 'start: "[]"'
    further = min(MAX_ITEMS, max(MIN_ITEMS, len(names) * (len(names) - 1))) - 1
    keys = {key: _literal(text) for key, text in _BETWEEN.items()}
    return "\n".join(
        [
            f'start: "[" (item ("," item){{0,{further}}})? "]"',
            "item: {subject} NAME {predicate} PREDICATE {object} NAME {confidence} CONFIDENCE {end}".format(**keys),
            f"NAME: {_one_of(names)}",
            f"PREDICATE: {_one_of(predicates) if predicates else _FREE_PREDICATE}",
            f"CONFIDENCE: {_CONFIDENCE}",
        ]
    )


def _one_of(strings: Sequence[str]) -> str:
    return " | ".join(_literal(json.dumps(text, ensure_ascii=False)) for text in strings)


def _literal(text: str) -> str:
    """A string of the grammar that stands for exactly this text. The dialect reads strings as JSON does."""
    return json.dumps(text, ensure_ascii=False)
