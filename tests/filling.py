"""A task filled up to its count as on Ray, without Ray: the rounds, the sender, the limiter and the files are the real ones."""

import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.teacher import Teacher
from ucotron_ray.core import config
from ucotron_ray.core.recipe import Generation
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import between_rounds, outcomes, watch
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.job import Sending, SynthesisJob
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.outcomes import OUTCOMES, append_outcomes, line_of
from ucotron_ray.synthesis.rounds import Crew, Filled, raise_stopped, run_rounds, too_few
from ucotron_ray.synthesis.watch import Progress
from ucotron_ray.synthesis.worker import Worker
from ucotron_ray.teacher.endpoint import endpoint_of
from ucotron_ray.teacher.prices import Price


@dataclass(frozen=True)
class Result:
    filled: Filled
    status: dict[str, Any]
    directory: Path
    journal: Path

    def lines(self, name: str) -> list[str]:
        return (self.directory / name).read_text(encoding="utf-8").splitlines()


def job_of(
    teacher: Teacher, place: Path, count: int, *, task: str = "relation_extraction", **changes: Any
) -> SynthesisJob:
    """A job as `synthesis/stage.py` makes it; `changes` are of `Sending`, the job's own fields, and the recipe."""
    loaded = config.load()
    generation: Generation = loaded.recipe.generation
    endpoint = endpoint_of(loaded.place.api.model_copy(update={"inference_base_url": teacher.base_url}), TEACHER)
    limits = Settings(8, changes.get("max_in_flight", 64), None, None, None, changes.get("give_up_after", 20.0))
    total = changes.get("total", 30.0)
    price = Price(1.0, 1.0, 1.0)
    return SynthesisJob(
        task=task,
        invocation=uuid.uuid4().hex,
        generation=generation.model_dump(),
        count=count,
        max_rounds=changes.get("max_rounds", 5),
        max_failures=changes.get("max_failures", 3),
        input_files=(),
        endpoint=endpoint,
        price=price,
        sending=Sending("run", 10.0, total, total, changes.get("max_retries", 3), 0.01),
        journal=str(place / "journal"),
        directory=str(place / "dataset"),
        limits=limits,
        budget=Budget(price, changes.get("max_usd")),
        spent=0.0,
        unsettled=0.0,
        num_actors=1,
        log_file="",
        metrics_file="",
        facts={"name": "made", "task": task},
    )


def fill(job: SynthesisJob) -> Result:
    """Raises what `on_ray.fill` raises."""
    directory, run = Path(job.directory), job.invocation
    (directory / OUTCOMES).mkdir(parents=True)
    governor = Governor(job.limits, time.monotonic)
    governor.join(run, job.budget, job.limits)
    task = job.make_task()

    async def exchange(name, finished, needs, trouble):
        governor.driver_is_alive(run)
        return governor.exchange(run, name, finished, needs, trouble)

    def ask(first: int, again: Collection[int], planned: int) -> None:
        file = directory / OUTCOMES / f"{uuid.uuid4().hex}.jsonl"
        marks = directory / OUTCOMES
        worker = Worker(task, job.endpoint, job.price, job.sending, Path(job.journal), marks, exchange, tuple(again))
        try:
            results = worker.run([*again, *range(first, planned)])
        finally:
            worker.close()
        append_outcomes(file, [line_of(result, task.sample(result.number)["split"]) for result in results])

    def status() -> dict[str, Any]:
        return watch.status_of(governor, run)

    crew = Crew(
        ask=ask,
        tally=lambda planned: between_rounds.tally_samples(job, planned),
        answered=lambda: status()["answered"],
        set_aside=lambda numbers: between_rounds.set_aside(job, numbers),
        is_stopped=lambda: status()["stop"] is not None,
    )
    filled = run_rounds(job, crew, Progress(job.count))
    outcomes.keep_unsettled(directory, job.unsettled, status()["open"])
    if filled.tally.missing > 0:
        raise_stopped(job, status(), filled.tally)
        raise too_few(job, status(), filled.tally, filled.planned)
    between_rounds.publish_dataset(job, filled.planned, filled.aside)
    return Result(filled, status(), directory, Path(job.journal))
