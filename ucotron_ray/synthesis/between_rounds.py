"""What is done with the outcomes between two rounds and after the last one, each in a process of its own.

Functions of a job alone. They load scipy: the driver and the actors that send do without it.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.recipe import Generation
from ucotron_ray.synthesis import compaction, journal, outcomes
from ucotron_ray.synthesis.job import SynthesisJob
from ucotron_ray.synthesis.outcomes import SetAside
from ucotron_ray.synthesis.rounds import Tally

if TYPE_CHECKING:
    from ucotron_ray.synthesis.publish import Publication


def write_rows(job: SynthesisJob, planned: int) -> None:
    """The rows alone, for a judge to read."""
    from ucotron_ray.synthesis import selection

    directory, kind = Path(job.directory), job.make_task().rows
    selection.write_files(
        directory, kind, selection.select(directory, kind, job.count, job.generation["near_duplicate"], planned)
    )


def tally_samples(job: SynthesisJob, planned: int) -> Tally:
    """Counts by status, the samples that had no final answer yet, and how many rows are missing."""
    from ucotron_ray.synthesis import selection

    kind = job.make_task().rows
    verdicts = selection.select(Path(job.directory), kind, job.count, job.generation["near_duplicate"], planned)
    unfinished = tuple(v.number for v in verdicts if v.status == "pending" and v.reason != selection.NOT_NEEDED)
    reasons = selection.reasons(v for v in verdicts if v.reason != selection.NOT_NEEDED)
    return Tally(
        selection.counts(verdicts, planned),
        unfinished,
        selection.missing(verdicts, kind, job.count),
        reason=next((f"{reason} ({count})" for reason, count in reasons.most_common(1)), None),
    )


def set_aside(job: SynthesisJob, numbers: Collection[int]) -> SetAside:
    """Quarantine samples whose prompts never got an answer: others take their places."""
    return outcomes.set_aside(Path(job.directory), numbers)


def publish_dataset(
    job: SynthesisJob, planned: int, aside: SetAside, marks: dict[str, Any] | None = None
) -> "Publication":
    """Write the dataset's files, and make shards of the journal's segments. Too few rows: the rejected ones only."""
    from ucotron_ray.synthesis import publish, selection

    directory, folder = Path(job.directory), Path(job.journal)
    task = job.make_task()
    verdicts = selection.select(directory, task.rows, job.count, job.generation["near_duplicate"], planned)
    counts = selection.counts(verdicts, planned)
    facts = {**job.facts, "prompts' version": task.version, **journal.paid(folder, job.sending.run), **counts}
    if aside.prompts:
        asked = f"{aside.requests} requests, {aside.usd:.6f} dollars at most"
        facts["prompts without an answer"] = f"{aside.prompts} ({asked}); others took their places"
    generation = Generation.model_validate(job.generation)
    published = publish.publish(directory, task.rows, verdicts, generation, facts, marks=marks)
    compaction.compact(folder)
    if job.judge is not None:
        compaction.compact(Path(job.judge.journal))
    return published
