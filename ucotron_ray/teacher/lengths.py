"""How many tokens texts and requests have, without a tokenizer."""

from collections.abc import Mapping
from typing import Any

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for servers that report no usage."""


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return len(text) // CHARACTERS_PER_TOKEN + 1


def most_prompt_tokens(body: Mapping[str, Any]) -> int:
    """How many tokens the messages can have at most: no tokenizer makes more than one of a byte."""
    return sum(len(message["content"].encode("utf-8", "replace")) + 16 for message in body["messages"])


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens the messages of a request have, with a few for the turns' markers."""
    return sum(estimate_tokens(message["content"]) + 4 for message in body["messages"])
