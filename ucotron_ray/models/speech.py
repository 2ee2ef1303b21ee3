"""The side of a model that knows text: prompts, grammars, and when an answer is over. For models of transformers.

`served.BundleModel` has the same methods for bundles. Serving and scoring ask through one of the two.
"""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ucotron_ray.models import base as base_models
from ucotron_ray.models.constrain import Constraint, Grammars
from ucotron_ray.models.decoding import Answer, closed
from ucotron_ray.models.prompts import chat_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Speech(Protocol):
    """What serving and scoring ask of it."""

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model begins to answer."""
        ...

    def constraint(self, prompt: str, decoding: str) -> Constraint | None:
        """The grammar of the answer to the server's prompt; None for another layout."""
        ...

    def answer(
        self, ids: Sequence[int], *, max_new_tokens: int, constraint: Constraint | None, to_array_end: bool
    ) -> Answer:
        """An answer that has not begun. It ends with its JSON array, or only with the end token."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        ...

    def finished(self, answer: Answer) -> str:
        """The text of an answer that is over."""
        ...


def speech_of(tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel") -> "TokenizerSpeech":
    """The speech of a model in memory, whether its tokenizer came from a hub, a directory or a GGUF file."""
    own = model.generation_config.eos_token_id if model.generation_config else None
    eos = base_models.end_tokens(int(tokenizer.eos_token_id), own)
    with tempfile.TemporaryDirectory() as directory:
        # llguidance reads the file that tokenizers write.
        tokenizer.save_pretrained(directory)
        return TokenizerSpeech(tokenizer, Path(directory) / "tokenizer.json", model.config.vocab_size, eos)


class TokenizerSpeech:
    """A tokenizer of transformers, with the same methods as a bundle's own."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", tokenizer_file: Path, num_words: int, eos: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._eos = tuple(eos)
        self._grammars = Grammars(tokenizer_file, num_words=num_words, eos=self._eos)
        self._piece = cache(lambda token: str(tokenizer.decode([token], skip_special_tokens=True)))

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return chat_ids(messages, self._tokenizer)

    def constraint(self, prompt: str, decoding: str) -> Constraint | None:
        # An adapter has no list of predicates beside it: `vocabulary` holds the names alone.
        return None if decoding == "free" else self._grammars.of_prompt(prompt)

    def answer(
        self, ids: Sequence[int], *, max_new_tokens: int, constraint: Constraint | None, to_array_end: bool
    ) -> Answer:
        piece = self._piece if to_array_end else None
        return Answer(ids, max_new_tokens=max_new_tokens, eos=self._eos, piece=piece, constraint=constraint)

    def text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def finished(self, answer: Answer) -> str:
        text = self.text(answer.tokens)
        return closed(text) if answer.constrained and answer.reason == "length" else text
