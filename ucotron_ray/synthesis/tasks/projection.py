"""Descriptions of images that nobody took, for the projection from CLIP's text space to MiniLM's (reference §8).

One request a description, each with details drawn for it: asked two thousand times for «a landscape», a model says the
same a hundred times over. Encoding is another stage.
"""

import random
from collections.abc import Sequence
from functools import partial

from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.sections import Count, SampledTask, Share, Temperature
from ucotron_ray.data.records import DescriptionRow, RawRow
from ucotron_ray.synthesis.conversation import alone, whole
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Facts, Task
from ucotron_ray.synthesis.rows import RowKind
from ucotron_ray.synthesis.scenes import CATEGORIES, LIGHT, MOODS, PERSPECTIVES, WEATHER
from ucotron_ray.synthesis.seeds import is_held_out

NAME = "projection"
VERSION = 1
BUILDS_ON_ROWS = False

GUIDE = GuideFigures(rows=50000, usd=(5, 10), minutes=(60, 60))
USUAL = UsualTokens(requests=0.1, prompt=20, completion=30)


class Settings(SampledTask):
    """`generation.tasks.projection`: one description a request."""

    temperature: Temperature = 0.9
    max_tokens: Count = 256
    top_p: Share | None = 0.95
    target_samples: Count = 50000


MIN_CHARACTERS, MAX_WORDS = 40, 58
"""CLIP reads 77 tokens with its two marks, about 1.3 a word: of a longer text it would see the beginning only."""

SYSTEM = (
    "You describe scenes as if you looked at a picture of them. Write one paragraph of two to four sentences and at "
    "most 50 words, with specific visual detail: objects, colours, materials, places of things. No list, no title, no "
    "word about camera, photo or image. Answer with the description only."
)


def make_task(generation: Generation, rows: Sequence[RawRow] = ()) -> Task:
    """The task for these settings; it builds on no rows."""
    return Task(NAME, VERSION, partial(_sample, generation), partial(_converse, generation), row_kind())


def row_kind() -> RowKind:
    """Descriptions by category, every category as often."""
    return RowKind(
        name=NAME,
        model=DescriptionRow,
        identity=lambda row: str(row["description"]),
        labels=lambda row: [row["category"]],
        vocabulary=tuple(CATEGORIES),
        defects=lambda row: [] if row["category"] in (*CATEGORIES, "mixed", "general") else ["outside_vocabulary"],
    )


def _sample(generation: Generation, number: int) -> Facts:
    rng = random.Random(f"{generation.seed}/{NAME}/{number}")
    category = tuple(CATEGORIES)[number % len(CATEGORIES)]
    held_out = is_held_out(number, seed=generation.seed, val_ratio=generation.val_ratio)
    return {
        "number": number,
        "category": category,
        "subjects": rng.sample(CATEGORIES[category], 2),
        "light": rng.choice(LIGHT),
        "weather": rng.choice(WEATHER),
        "mood": rng.choice(MOODS),
        "perspective": rng.choice(PERSPECTIVES),
        "split": "val" if held_out else "train",
    }


def _converse(generation: Generation, facts: Facts) -> Conversation:
    task = generation.task(NAME)
    first, second = facts["subjects"]
    user = (
        f"Scene: {facts['category']}\nIn it: {first}; {second}\nLight: {facts['light']}\nWeather: {facts['weather']}\n"
        f"Mood: {facts['mood']}\nSeen: {facts['perspective']}"
    )
    messages = (("system", SYSTEM), ("user", user))
    ask = Ask("describe", messages, task.temperature, task.max_tokens, task.top_p)
    text = alone((yield from whole(ask, cap=generation.max_answer_tokens)), longest=MAX_WORDS * 12)
    if len(text) < MIN_CHARACTERS or len(text.split()) > MAX_WORDS:
        return Done("rejected", reason=f"it has less than {MIN_CHARACTERS} characters or more than {MAX_WORDS} words")
    return Done("accepted", row={"description": text, "category": facts["category"]})
