"""What travels to the processes that synthesize: a task by name with its settings, and how it is sent. No secrets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ucotron_ray.core.recipe import Generation
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.synthesis.generator import asked
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.plan import Task
from ucotron_ray.synthesis.tasks import judge
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.prices import Price


@dataclass(frozen=True)
class Sending:
    """How requests are sent: seconds and attempts of the place, and the run that pays."""

    run: str
    connect_timeout: float
    read_timeout: float
    total_timeout: float
    max_retries: int
    retry_delay: float


@dataclass(frozen=True)
class SynthesisJob:
    """One task to fill up to `count` rows."""

    task: str
    invocation: str
    """Unique: two invocations never share a ledger. (`sending.run` is what they make, in the journal.)"""
    generation: dict[str, Any]
    count: int
    max_rounds: int
    max_failures: int
    """Rounds after which a prompt that got no answer, while others did, is set aside."""
    input_files: tuple[str, ...]
    """Relation rows of training and validation, for the tasks that build on them."""
    endpoint: Endpoint
    price: Price | None
    sending: Sending
    journal: str
    directory: str
    limits: Settings
    budget: Budget
    spent: float
    """Dollars that earlier invocations paid for this task; of the budget it is a part, where tasks share one."""
    unsettled: float
    """Dollars that they perhaps paid on top, for requests that are in no journal."""
    num_actors: int
    log_file: str
    metrics_file: str
    facts: dict[str, Any] = field(default_factory=dict)
    judge: "SynthesisJob | None" = None
    """Who reads a sample of the published rows, and how that is sent; its input is the published file."""

    def make_task(self) -> Task:
        """The task itself; reads its input."""
        return task_of(self.task, Generation.model_validate(self.generation), self.input_files)


def task_of(name: str, generation: Generation, input_files: tuple[str, ...] = ()) -> Task:
    """A task by its name. Raises ConfigError or InputError for settings or inputs that cannot be used."""
    if name == judge.NAME:
        return judge.make_task(generation, judge.read_rows(input_files))
    module = asked(name)
    return module.make_task(generation, _rows(input_files) if module.BUILDS_ON_ROWS else [])


def _rows(files: tuple[str, ...]) -> list[RawRow]:
    """The rows of a training file and, if there is one, of a validation file, marked as such."""
    rows: list[RawRow] = []
    for split, file in zip(("train", "val"), files, strict=False):
        rows += [row.model_copy(update={"group": split}) for row in jsonl.read_relations(Path(file))]
    return rows
