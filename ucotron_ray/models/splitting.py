"""How a byte-level BPE tokenizer splits a text before its merges, by the names that llama.cpp has for it.

GGUF files carry such a name (`tokenizer.ggml.pre`) instead of the rule itself; `tokenizer.json` carries the rule.
Patterns: `llama-vocab.cpp` of llama.cpp, and the tokenizer files of the models.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_PATTERNS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Qwen3.5: accents that are characters of their own belong to the word.
    "qwen35": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # Words end where small letters are followed by a capital one: Phi-4-mini, and Mistral's "tekken".
    "gpt-4o": f"{_CASED}{_SHORT}|{_UPPER}{_SHORT}|\\p{{N}}{{1,3}}|{_MARKS}",
    "tekken": f"{_CASED}|{_UPPER}|\\p{{N}}|{_MARKS}",
}
NAMES = ("gpt-2", "smollm", *_PATTERNS)
APPROXIMATE = ("gpt-4o", "tekken")
"""llama.cpp has no classes of capital and small letters: it splits otherwise where an accent is a character of its own,
in Devanagari, and at accented letters within a word of both."""


def by_name(name: str) -> "PreTokenizer | None":
    """The rule of a name; None for one that is not known here."""
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415 - only where a tokenizer is made

    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name in _PATTERNS:
        split = pre_tokenizers.Split(Regex(_PATTERNS[name]), behavior="isolated")
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, bytes_only])
    return None


def name_of(pre_tokenizer: Mapping[str, Any]) -> str | None:
    """The name of the rule in a `tokenizer.json`; None for one that llama.cpp has no known name for."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    kinds = [step.get("type") for step in steps[:-1]]
    if not kinds:
        return "gpt-2" if last.get("use_regex", True) else None
    if kinds == ["Digits"] and steps[0].get("individual_digits"):
        return "smollm" if last.get("use_regex", True) else None
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split"] else None
    return next((name for name, known in _PATTERNS.items() if pattern == known), None)
