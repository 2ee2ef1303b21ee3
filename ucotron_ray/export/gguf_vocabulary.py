"""A tokenizer's words in a GGUF file, so that llama.cpp splits texts as training did; what it would not is refused.

Two kinds: byte-level BPE (`gpt2`), whose rule for splitting has a name in llama.cpp, and Gemma's BPE, which has "▁" for
spaces and bytes for characters that are no words (`llama`, by SentencePiece's way of merging).
"""

import json
import logging
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import gguf

from ucotron_ray.core.errors import InputError
from ucotron_ray.export.gguf_families import WITHOUT, Config
from ucotron_ray.models import splitting

log = logging.getLogger(__name__)

Tokenizer = Mapping[str, Any]
"""A `tokenizer.json`."""

_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SPECIAL = ("bos", "eos", "unk", "pad")


def check(tokenizer: Tokenizer) -> None:
    """Raise InputError for a tokenizer that llama.cpp would not split as."""
    if _has_spaces_marked(tokenizer):
        scores(tokenizer)
    elif (name := pre_tokenizer(tokenizer)) in splitting.APPROXIMATE:
        log.warning("export: llama.cpp splits as '%s' only nearly: not where an accent is a character of its own", name)


def add(writer: gguf.GGUFWriter, tokenizer: Tokenizer, settings: Mapping[str, Any], config: Config) -> None:
    """Write the words, and which of them are special by `settings` (a `tokenizer_config.json`)."""
    by_id = _words(tokenizer)
    numbers = range(config["vocab_size"])
    words = [by_id.get(number, f"[PAD{number}]") for number in numbers]
    if _has_spaces_marked(tokenizer):
        by_word = scores(tokenizer)
        last = min(by_word.values(), default=0.0) - 1
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # What no merge makes is found in the text as it is (an added token) or is a character.
        writer.add_token_scores([by_word.get(word, last) for word in words])
    else:
        merges = [" ".join(pair) for pair in _merges(tokenizer)]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
        writer.add_token_merges(merges)
    writer.add_token_list(words)
    types = _types(tokenizer, by_id)
    writer.add_token_types([int(types.get(number, gguf.TokenType.UNUSED)) for number in numbers])
    ids = {word: number for number, word in by_id.items()}
    special = {name: ids[_content(settings[f"{name}_token"])] for name in _SPECIAL if settings.get(f"{name}_token")}
    for name, number in special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token("bos" in special)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for how a tokenizer splits a text before its merges. Raises InputError for an unknown way."""
    found = tokenizer.get("pre_tokenizer") or {}
    name = splitting.name_of(found) if tokenizer["model"]["type"] == "BPE" else None
    if name is None:
        raise InputError(
            "no GGUF can be written with this tokenizer: llama.cpp would split texts in another way than training did",
            expected="Gemma's BPE, or byte-level BPE that splits as one of " + ", ".join(splitting.NAMES),
            found=f"{tokenizer['model']['type']}, {json.dumps(found)[:200]}",
            next_step=WITHOUT,
        )
    return name


def scores(tokenizer: Tokenizer) -> dict[str, float]:
    """By word the place of its merge, counted down. Raises InputError where merging by it would give other tokens.

    llama.cpp merges any two neighbours that are a word together, the highest score first; BPE only listed pairs, the
    first of the list first. That is the same where every way to make a word of two is listed, one word after the other,
    as in lists that were made of a SentencePiece model.
    """
    pairs = _merges(tokenizer)
    places: dict[str, float] = {}
    for at, (left, right) in enumerate(pairs):
        places.setdefault(left + right, -float(at))
    made = [left + right for left, right in pairs]
    runs = sum(one != other for one, other in pairwise(made)) + bool(made)
    listed, words = set(pairs), tokenizer["model"]["vocab"]
    added = {entry["content"] for entry in tokenizer["added_tokens"]}
    missing = next((word for word in words if word not in added and not _ways(word, words) <= listed), None)
    if missing is not None or runs != len(places):
        raise InputError(
            "no GGUF can be written with this tokenizer: llama.cpp would merge in another order than training did",
            expected="merges with every way to make each word of two, one word after the other",
            found=f"not so of {missing!r}" if missing is not None else f"{runs} runs of merges to {len(places)} words",
            next_step=WITHOUT,
        )
    return places


def _ways(word: str, words: Mapping[str, int]) -> set[tuple[str, str]]:
    """Each pair of words that a word is made of."""
    cuts = ((word[:at], word[at:]) for at in range(1, len(word)))
    return {(left, right) for left, right in cuts if left in words and right in words}


def _has_spaces_marked(tokenizer: Tokenizer) -> bool:
    """Whether it is a tokenizer as Gemma has it."""
    model = tokenizer["model"]
    return bool(model["type"] == "BPE" and model.get("byte_fallback") and tokenizer.get("normalizer") == _SPACES)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Pairs, which older files have as one text."""
    listed = tokenizer["model"]["merges"]
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in listed)
    return [(left, right) for left, right in pairs]


def _words(tokenizer: Tokenizer) -> dict[int, str]:
    words: dict[str, int] = tokenizer["model"]["vocab"]
    return {number: word for word, number in words.items()} | {
        entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]
    }


def _types(tokenizer: Tokenizer, by_id: Mapping[int, str]) -> dict[int, gguf.TokenType]:
    """What llama.cpp does with each word: finds it in a text as it is, or prints it never, or merges it."""
    types = dict.fromkeys(by_id, gguf.TokenType.NORMAL)
    if _has_spaces_marked(tokenizer):
        is_byte = re.compile(r"<0x[0-9A-F]{2}>").fullmatch
        types |= {number: gguf.TokenType.BYTE for number, word in by_id.items() if is_byte(word)}
    kinds = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.USER_DEFINED}
    return types | {entry["id"]: kinds[bool(entry["special"])] for entry in tokenizer["added_tokens"]}


def _content(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
