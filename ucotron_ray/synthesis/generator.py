"""What the file of a generator declares. A line in `core/generators.py` registers it; verbs and estimates follow.

NAME, VERSION       its name in recipes and verbs; the version changes with its prompts
Settings            its section of a recipe, with the defaults
GUIDE, USUAL        the figures of an estimate
row_kind()          its rows: typed model, what must not repeat, what can be wrong
BUILDS_ON_ROWS, make_task(…)   if a teacher answers it
simulated(…)        if the simulator of the vendor is to answer it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ucotron_ray.core import generators
from ucotron_ray.core.recipe import Generation
from ucotron_ray.synthesis.plan import Task
from ucotron_ray.synthesis.rows import RowKind


@dataclass(frozen=True)
class GuideFigures:
    """What the guide's table «Cost and Timing Estimates» says; ranges from low to high."""

    rows: int
    usd: tuple[float, float]
    minutes: tuple[float, float]


@dataclass(frozen=True)
class UsualTokens:
    """Of one accepted row, where no finished run says it: requests, and tokens of prompts and answers.

    Those of `relation_extraction` and `preference` are as this project's prompts have them (prompts by characters / 4,
    answers a quarter of max_tokens); the others by the reference's description of the generators (one request a sample;
    `projection`: ten descriptions a request).
    """

    requests: float
    prompt: float
    completion: float


class GeneratorModule(Protocol):
    """The file of a generator."""

    NAME: str
    VERSION: int
    GUIDE: GuideFigures | None
    USUAL: UsualTokens

    def row_kind(self) -> RowKind:
        """Its rows."""
        ...


class AskedModule(GeneratorModule, Protocol):
    """The file of a generator whose requests a teacher answers."""

    BUILDS_ON_ROWS: bool

    def make_task(self, generation: Generation, rows: Sequence[Any]) -> Task:
        """The task for these settings, over these rows if it builds on some."""
        ...


def generator(name: str) -> GeneratorModule:
    """A generator by its name."""
    return cast(GeneratorModule, generators.module_of(name))


def asked(name: str) -> AskedModule:
    """A generator whose requests a teacher answers, by its name."""
    return cast(AskedModule, generators.module_of(name))


def builds_on_rows(name: str) -> bool:
    """Whether a generator needs relation rows as its input."""
    return name in generators.ASKED and asked(name).BUILDS_ON_ROWS
