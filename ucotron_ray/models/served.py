"""A bundle as it answers: graph, tokenizer and chat template. numpy, onnxruntime and tokenizers; no PyTorch."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from tokenizers import Tokenizer

from ucotron_ray.core.errors import InputError
from ucotron_ray.models import templates
from ucotron_ray.models.constrain import Constraint, Grammars, known_tokens
from ucotron_ray.models.decoding import Answer, answered, closed
from ucotron_ray.models.runner import OnnxRunner

GRAPHS: dict[str, str] = {"fp32": "model.onnx", "int8": "model_int8.onnx", "int4": "model_int4.onnx"}
"""Graph file of each variant in a bundle; its weights lie beside it in a file of the same name plus `_data`."""

IO_CONTRACT, RELATIONS, DECODING = "io_contract.json", "relations.json", "decoding.json"

DECODINGS = ("free", "entities", "vocabulary")
"""Free; names from the request's entities; and also predicates from the bundle's `relations.json`."""


@dataclass(frozen=True)
class BundleModel:
    """Everything that turns messages into an answer. Threads may share it."""

    runner: OnnxRunner
    tokenizer: Tokenizer
    template: jinja2.Template
    special: dict[str, str]
    """`bos_token`, `eos_token` and so on, as templates ask for them."""
    bos: int | None
    eos: tuple[int, ...]
    num_words: int
    piece: Callable[[int], str]
    """The text of one token. Parts of a letter come out as U+FFFD, which ends no array."""
    entities: Grammars
    vocabulary: Grammars

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation, up to where the model begins to answer."""
        return self.ids(templates.render(self.template, messages, self.special))

    def raw_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt without template, after BOS if the tokenizer has one: what llama.cpp is given."""
        return [*([self.bos] if self.bos is not None else []), *self.ids(prompt)]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it read as such."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def constraint(self, prompt: str, decoding: str) -> Constraint | None:
        """The constraint for the server's prompt (the user's message); None for `free` and for any other layout."""
        if decoding == "free":
            return None
        grammars = {"entities": self.entities, "vocabulary": self.vocabulary}
        return grammars[decoding].of_prompt(prompt)

    def answer(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        constraint: Constraint | None = None,
        to_array_end: bool = True,
    ) -> Answer:
        """An answer to these ids that has not begun. It ends with its JSON array, or only with the end token."""
        return Answer(
            ids,
            max_new_tokens=max_new_tokens,
            eos=self.eos,
            piece=self.piece if to_array_end else None,
            constraint=constraint,
        )

    def finished(self, answer: Answer) -> str:
        """The text of an answer; a constrained one that was cut keeps its whole items."""
        text = self.text(answer.tokens)
        return closed(text) if answer.constrained and answer.reason == "length" else text

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        constraints: Sequence[Constraint | None] | None = None,
        to_array_end: bool = True,
    ) -> list[list[int]]:
        """Answer ids of each prompt as one batch, without the end token."""
        answers = [
            self.answer(ids, max_new_tokens=max_new_tokens, constraint=constraint, to_array_end=to_array_end)
            for ids, constraint in zip(prompts, constraints or [None] * len(prompts), strict=True)
        ]
        for _ in self.run(answers):
            pass
        return [answer.tokens for answer in answers]

    def run(self, answers: Sequence[Answer]) -> Iterator[Answer]:
        """Bring a batch of answers to their ends; give each as soon as it is over."""
        return answered(self.runner, answers)


def load(bundle: Path, *, variant: str = "fp32", num_threads: int = 0) -> BundleModel:
    """Load a variant of a bundle. Raises InputError if the bundle has none. 0 threads = as many as processors."""
    graph = bundle / GRAPHS.get(variant, variant)
    if not graph.is_file():
        have = [name for name, file in GRAPHS.items() if (bundle / file).is_file()]
        raise InputError(
            f"the bundle has no variant '{variant}'",
            where=str(bundle),
            expected="one of " + ", ".join(GRAPHS),
            found=", ".join(have) or "no graph at all",
            next_step="export it again with this variant in export.variants",
        )
    contract = _read(bundle / IO_CONTRACT)
    settings = _read(bundle / "tokenizer_config.json")
    tokenizer_file = bundle / "tokenizer.json"
    special = _special(settings)
    eos = contract["eos_token_id"]
    eos = tuple(eos) if isinstance(eos, list) else (int(eos),)
    num_words = int(contract["vocabulary"])
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    if tokenizer.get_vocab_size() > num_words:
        tokenizer = Tokenizer.from_str(known_tokens(tokenizer_file, num_words))
    relations = bundle / RELATIONS
    predicates = _read(relations)["predicates"] if relations.is_file() else ()
    grammars = Grammars(tokenizer_file, num_words=num_words, eos=eos)
    return BundleModel(
        runner=OnnxRunner(graph, num_threads=num_threads),
        tokenizer=tokenizer,
        template=templates.template(_template_text(bundle, settings)),
        special=special,
        bos=tokenizer.token_to_id(special["bos_token"]) if "bos_token" in special else None,
        eos=eos,
        num_words=num_words,
        piece=cache(lambda token: str(tokenizer.decode([token], skip_special_tokens=True))),
        entities=grammars,
        vocabulary=grammars.limited_to(predicates),
    )


def default_decoding(bundle: Path) -> str:
    """The way of decoding that won when the bundle was made; `free` for a bundle that compared none."""
    file = bundle / DECODING
    return str(_read(file)["default"]) if file.is_file() else "free"


def _template_text(bundle: Path, settings: dict[str, Any]) -> str:
    # Of several the default has this file; the others lie in a folder beside it.
    file = bundle / "chat_template.jinja"
    return file.read_text(encoding="utf-8") if file.is_file() else templates.default_of(settings.get("chat_template"))


def _special(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens by name, as transformers reads them: those called `*_token`, and those that are listed."""
    found = {name: value for name, value in settings.items() if name.endswith("_token")}
    for listed in ("extra_special_tokens", "model_specific_special_tokens"):
        # A list has no names.
        found |= settings[listed] if isinstance(settings.get(listed), dict) else {}
    return {name: token for name, value in found.items() if (token := _token(value)) is not None}


def _token(value: object) -> str | None:
    """A special token stands as its text, or as a mapping that describes it; `add_bos_token` and the like are none."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _read(path: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return contents
