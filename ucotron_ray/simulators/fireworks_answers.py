"""What the simulator of the vendor says to a prompt, and how it embeds a text."""

import hashlib
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

from ucotron_ray.core import generators
from ucotron_ray.data import wire
from ucotron_ray.simulators import fireworks_defects as defects
from ucotron_ray.simulators import fireworks_facts as facts
from ucotron_ray.simulators import fireworks_language as language
from ucotron_ray.simulators import fireworks_scenes as scenes
from ucotron_ray.simulators import fireworks_schema as schema
from ucotron_ray.simulators.fireworks_settings import STAND_IN

UNKNOWN = f"I am a simulator and know no answer. ({STAND_IN})"


def answer_to(body: dict[str, Any], rng: random.Random) -> defects.SimulatedAnswer:
    """What the simulator says to the messages of a request: the right answer, as far as it knows one."""
    system = " ".join(str(m.get("content")) for m in body["messages"] if m.get("role") == "system")
    user = next((str(m.get("content")) for m in body["messages"] if m.get("role") == "user"), "")
    asked = wire.parse_prompt(user)
    if asked is not None:
        relations = [(r[0], r[2], r[3]) for r in language.read_text(asked[0])]
        rows = [{"subject": s, "predicate": p, "object": o, "confidence": 1.0} for s, p, o in relations]
        answer = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    elif user.startswith("Text:\n"):
        readers = schema.readers_of(system)
        found = language.read_text(user.removeprefix("Text:\n"), readers or None)
        if "skim" in system or float(body.get("temperature") or 0) > 0.5:
            mistakes = {"mistakes": sorted({reader[2] for reader in readers})} if readers else {}
            found = language.hurried(found, rng, **mistakes)
        answer = json.dumps(language.extraction(found), ensure_ascii=False)
    else:
        ways = (scenes.describe, facts.write_facts, facts.name_form, language.write_text)
        written = (way(user, rng) for way in (*ways, *_of_generators()))
        answer = facts.read_values(user) or next(filter(None, written), None) or language.judged(user, rng) or UNKNOWN
    return defects.SimulatedAnswer(system, user, answer)


def _of_generators() -> list[Callable[[str, random.Random], str | None]]:
    """How generators that bring a simulated answer say it: a function of the prompt, None for another's prompt."""
    modules = map(generators.module_of, generators.ASKED)
    return [module.simulated for module in modules if hasattr(module, "simulated")]


def spoiled(answer: str, rng: random.Random, share: float) -> str:
    """The answer, or for a share of them something that is wrong."""
    return language.garbled(answer, rng) if rng.random() < share else answer


def embed(text: str) -> list[float]:
    """A unit vector that depends on the words of the text alone: texts that share words are near each other."""
    total = [0.0] * EMBEDDING_DIMENSIONS
    for word in text.lower().split():
        digest = hashlib.shake_128(word.encode()).digest(4 * EMBEDDING_DIMENSIONS)
        for index, value in enumerate(struct.unpack(f"<{EMBEDDING_DIMENSIONS}i", digest)):
            total[index] += value / 2**31
    norm = math.sqrt(sum(value * value for value in total)) or 1.0
    return [value / norm for value in total]


EMBEDDING_DIMENSIONS = 64
