"""A sample that ends its process: real processes, one after the other, as Ray starts them."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.teacher import teaching
from tests.unit.synthesis.test_worker import sample
from ucotron_ray.core import config
from ucotron_ray.synthesis.plan import Ask, Conversation, Facts, Task
from ucotron_ray.synthesis.poison import Mark
from ucotron_ray.synthesis.tasks import relation_extraction

DEADLY, COUNT = 7, 20


def deadly_task() -> Task:
    """The real task, but for one sample: what it does with its answer ends the process."""
    task = relation_extraction.make_task(config.load().recipe.generation)
    facts_of_deadly = task.sample(DEADLY)

    def deadly(conversation: Iterator[Ask]) -> Conversation:
        yield next(conversation)
        os._exit(139)

    def converse(facts: Facts) -> Conversation:
        conversation = task.converse(facts)
        return deadly(conversation) if facts == facts_of_deadly else conversation

    return replace(task, converse=converse)


def answer_all(teacher, directory: Path) -> None:
    results, _ = sample(teacher, directory, range(COUNT), task=deadly_task())
    ends = {result.number: [result.done.status, result.done.reason] for result in results}
    (directory / "ends.json").write_text(json.dumps(ends), encoding="utf-8")


def in_a_process(teacher, directory: Path) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=answer_all, args=(teacher, directory))
    process.start()
    process.join(60)
    return process.exitcode


def test_a_sample_that_ends_two_processes_is_set_aside_and_the_others_are_made(tmp_path):
    with teaching() as teacher:
        assert [in_a_process(teacher, tmp_path) for _ in range(3)] == [139, 139, 0]
    ends = json.loads((tmp_path / "ends.json").read_text(encoding="utf-8"))
    assert ends.pop(str(DEADLY)) == ["quarantined", "2 processes ended over it"]
    assert len(ends) == COUNT - 1
    assert {status for status, _ in ends.values()} == {"accepted"}


def test_one_death_a_mark_of_its_own_and_a_step_that_fails_are_no_proof(tmp_path):
    dead, other = Mark(tmp_path), Mark(tmp_path)
    # As a kill leaves it: in the middle of a step.
    killed = (5).to_bytes(8, "little", signed=True)
    next(tmp_path.glob("*.at")).write_bytes(killed)
    assert not {*dead.killers(), *other.killers()}
    living = Mark(tmp_path)
    assert living.at(5, living.killers) == set()
    assert living.at(0, lambda: "made") == "made"
    (tmp_path / "second.at").write_bytes(killed)
    assert living.killers() == {5}
    living.close()
    assert len(list(tmp_path.glob("*.at"))) == 3
