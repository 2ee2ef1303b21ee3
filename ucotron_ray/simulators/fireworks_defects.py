"""Defects on demand: what the simulator plants into its answers, each known by the ledger. For trying out the checks.

Whether an answer is planted depends on its request alone, so that a run that goes on after a kill meets the same ones.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ucotron_ray.simulators import fireworks_facts as facts

LEAKED_NAMES = ("Brindle effect", "Marlow tides")
"""Stand in every text that has a `leak` planted, for training and for validation."""

_REPEATED = (
    "A slate-coloured heron waits at the edge of a weir while pale water slides over the stones behind it. On the far "
    "bank a fisherman folds his chair, a thermos at his boots, and the last light turns the wet grass copper and "
)
_ENDINGS = ("gold", "bronze", "amber", "rose", "violet", "silver", "rust", "ochre", "crimson", "pearl", "coral", "plum")


@dataclass(frozen=True)
class SimulatedAnswer:
    """A request as the defects see it: the system's and the user's words, and the right answer."""

    system: str
    user: str
    answer: str


def plant(name: str, asked: SimulatedAnswer, rng: random.Random) -> str | None:
    """The answer with this defect in it; None where the request is of another kind."""
    return _DEFECTS[name](asked, rng)


def chosen(shares: dict[str, float], asked: SimulatedAnswer, seed: str) -> tuple[str, str] | None:
    """Which defect an answer gets, and the answer with it; None for most."""
    for name, share in shares.items():
        rng = random.Random(f"{seed}/{name}")
        if rng.random() < share:
            answer = plant(name, asked, rng)
            if answer is not None:
                return name, answer
    return None


def _wrong_span(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    """A name that the text does not hold, in place of one that it does."""
    value = _extraction(asked)
    if value is None:
        return None
    name = value["entities"][0]["text"]
    return asked.answer.replace(json.dumps(name, ensure_ascii=False), json.dumps(f"{name}berg", ensure_ascii=False))


def _outside_vocabulary(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    value = _extraction(asked)
    if value is None:
        return None
    value["entities"][0]["type"] = "Alien"
    value["relations"][0]["relation"] = "zaps"
    return json.dumps(value, ensure_ascii=False)


def _extraction(asked: SimulatedAnswer) -> dict[str, Any] | None:
    """The extraction that is the right answer, if one was asked for and it has something in it."""
    if not asked.user.startswith("Text:\n") or "skim" in asked.system:
        return None
    value: dict[str, Any] = json.loads(asked.answer)
    return value if value["relations"] else None


def _same_fact(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    return facts.one_fact_twice(asked.user, rng)


def _alias_as_negative(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    return facts.alias_of(asked.user, rng)


def _near_duplicate(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    """One description over and over, with another last word. The first of them repeats nothing."""
    return f"{_REPEATED}{rng.choice(_ENDINGS)}{rng.randrange(1000)}." if asked.user.startswith("Scene: ") else None


def _leak(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    first, second = LEAKED_NAMES
    return f"{asked.answer} {first} is closely related to {second}." if _is_text(asked) else None


def _secret(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    letters = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"
    key = "fw_" + "".join(rng.choices(letters, k=24))
    return f"{asked.answer} The key is {key}." if _is_text(asked) else None


def _special_token(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    return f"{asked.answer}<|im_end|><|im_start|>system" if _is_text(asked) else None


def _control_character(asked: SimulatedAnswer, rng: random.Random) -> str | None:
    return f"\u202e{asked.answer}\u202c" if _is_text(asked) else None


def _is_text(asked: SimulatedAnswer) -> bool:
    """Whether a text was asked for: one that states relations, or a description."""
    return asked.user.startswith(("Style: ", "Scene: ")) and "\nFact A: " not in asked.user


_DEFECTS: dict[str, Callable[[SimulatedAnswer, random.Random], str | None]] = {
    "wrong_span": _wrong_span,
    "outside_vocabulary": _outside_vocabulary,
    "same_fact": _same_fact,
    "alias_as_negative": _alias_as_negative,
    "near_duplicate": _near_duplicate,
    "leak": _leak,
    "secret": _secret,
    "special_token": _special_token,
    "control_character": _control_character,
}
NAMES = tuple(_DEFECTS)
