"""Rounds until there are as many rows as asked for, whatever becomes of single prompts: with the real sender and files."""

import json
from collections import Counter

import pytest

from tests.filling import fill, job_of
from tests.teacher import teaching
from ucotron_ray.core.errors import InputError, StageFailed, Stopped
from ucotron_ray.synthesis import journal, outcomes
from ucotron_ray.synthesis.rounds import Crew, Tally, most_samples, run_rounds
from ucotron_ray.synthesis.watch import Progress

COUNT = 60


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    with teaching(seed=3) as teacher:
        return fill(job_of(teacher, tmp_path_factory.mktemp("straight"), COUNT))


@pytest.mark.parametrize(("fault", "requests"), [("500", 4), ("403", 1), ("hang", 2)])
def test_a_prompt_that_never_gets_an_answer_is_replaced_and_its_cost_is_said(tmp_path, straight, fault, requests):
    share, rounds = 0.02, 3
    with teaching(faults={fault: share}, sticky=(fault,), seed=3) as teacher:
        patience = {"total": 0.5, "max_retries": 1} if fault == "hang" else {}
        made = fill(job_of(teacher, tmp_path, COUNT, **patience))
        ledger = teacher.ledger()
    aside = made.filled.aside
    assert 0 < aside.prompts < 10
    assert len(made.lines("relation_extraction.jsonl")) == COUNT
    # What the other prompts gave is what it would have been without them.
    rows = set(straight.lines("relation_extraction.jsonl"))
    assert len(rows & set(made.lines("relation_extraction.jsonl"))) >= COUNT - aside.prompts
    rejected = [json.loads(line) for line in made.lines("rejected.jsonl")]
    said = [line["reason"] for line in rejected if line["status"] == "quarantined"]
    assert len(said) == aside.prompts
    assert all(reason.startswith(f"no answer in {rounds} rounds") for reason in said)
    in_vain = ledger["received"] - ledger["statuses"]["200"]
    # One of the next samples, which show that the server answers, may be such a prompt itself.
    assert aside.prompts * rounds * requests <= in_vain <= (aside.prompts + 1) * rounds * requests
    assert ledger["answered_twice"] == 0
    # A 500 and a 403 are not billed; a request that timed out may be, and counts at its worst.
    lost_usd = sum(r.cost_usd for r in journal.records(made.journal) if r.kind in ("transient", "rejected"))
    assert (lost_usd > 0) is (fault == "hang")
    assert aside.usd > 0 or not lost_usd
    assert made.status["usd"] == pytest.approx(journal.spent(made.journal, "run"))
    card = (made.directory / "DATASET_CARD.md").read_text(encoding="utf-8")
    assert f"prompts without an answer: {aside.prompts} ({aside.requests} requests, {aside.usd:.6f} dollars" in card


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "403", "hang"])
def test_one_poisoned_prompt_in_a_thousand(tmp_path, fault):
    with teaching(faults={fault: 0.001}, sticky=(fault,), seed=1) as teacher:
        made = fill(job_of(teacher, tmp_path, 1000, total=3.0, max_in_flight=128))
        ledger = teacher.ledger()
    print(fault, made.filled.aside, made.filled.tally.counts, ledger["statuses"])
    assert 1 <= made.filled.aside.prompts <= 6
    assert len(made.lines("relation_extraction.jsonl")) == 1000
    assert ledger["answered_twice"] == 0


def crew_of(answers: dict[int, str], asked: list[list[int]], *, answered=lambda numbers: len(numbers)) -> Crew:
    """A crew for which each sample has a status; `pending` ones never get an answer."""
    done: dict[int, str] = {}
    heard = [0]
    aside: list[int] = []

    def ask(first, again, planned):
        numbers = [*again, *range(first, planned)]
        asked.append(numbers)
        done.update({number: answers.get(number, "accepted") for number in numbers if number not in aside})
        heard[0] += answered([number for number in numbers if done.get(number) != "pending"])

    def tally(planned):
        counts = Counter(done[number] for number in range(planned))
        pending = tuple(number for number in range(planned) if done[number] == "pending")
        return Tally(Counter(accepted=0) | counts, pending, 10 - counts["accepted"])

    def set_aside(numbers):
        aside.extend(numbers)
        done.update(dict.fromkeys(numbers, "quarantined"))
        return outcomes.SetAside(len(numbers), 4 * len(numbers), 0.1)

    return Crew(ask, tally, lambda: heard[0], set_aside, lambda: False)


@pytest.fixture
def job(tmp_path):
    with teaching() as teacher:
        return job_of(teacher, tmp_path, 10)


def test_a_prompt_is_given_up_after_rounds_in_which_the_next_samples_are_answered(job):
    asked: list[list[int]] = []
    filled = run_rounds(job, crew_of({4: "pending"}, asked), Progress(10))
    assert asked == [[*range(10)], [4, 10], [4, 11], [10, 11]]
    assert (filled.tally.missing, filled.planned, filled.aside.prompts) == (-1, 12, 1)


def test_while_nobody_is_answered_no_prompt_is_given_up_and_the_run_can_go_on(job):
    asked: list[list[int]] = []
    crew = crew_of(dict.fromkeys(range(3, 60), "pending"), asked, answered=lambda numbers: 0)
    filled = run_rounds(job, crew, Progress(10))
    assert filled.aside.prompts == 0
    assert len(filled.tally.unfinished) == 7
    assert len(asked) == 5


def test_no_more_samples_are_planned_than_the_estimate_says(job):
    answers = dict.fromkeys(range(1, 10000), "rejected")
    asked: list[list[int]] = []
    filled = run_rounds(job, crew_of(answers, asked), Progress(10))
    assert filled.planned == most_samples(10, job.max_rounds) == 200
    assert sorted(number for numbers in asked for number in numbers) == [*range(200)]


@pytest.mark.parametrize("fault", ["400", "403"])
def test_a_dozen_refusals_and_no_answer_stop_the_run_with_the_servers_words(tmp_path, fault):
    with teaching(faults={fault: 1.0}, latency=0.05) as teacher:
        with pytest.raises(InputError) as error:
            fill(job_of(teacher, tmp_path, 500))
        received = teacher.ledger()["received"]
    assert {"400": "bad request", "403": "flagged input"}[fault] in str(error.value)
    assert error.value.exit_code == 2
    # A 400 is asked again with fewer keys before it is believed.
    assert received <= (12 + 10) * {"400": 12, "403": 1}[fault]
    assert journal.spent(tmp_path / "journal", "run") == 0


def test_refusals_that_an_earlier_invocation_met_do_not_stop_the_next_one(tmp_path):
    """One prompt in five is refused for good. The rows that were answered are there, and the rest is asked again."""
    with teaching(faults={"403": 0.1}, sticky=("403",)) as teacher:
        first = fill(job_of(teacher, tmp_path / "a", 100))
        assert first.filled.aside.prompts > 12
        # As after a kill at the very end: the journal is there, the dataset is not.
        (tmp_path / "a" / "dataset").rename(tmp_path / "a" / "before")
        again = fill(job_of(teacher, tmp_path / "a", 100))
        assert teacher.ledger()["answered_twice"] == 0
    assert again.lines("relation_extraction.jsonl") == (
        (tmp_path / "a" / "before" / "relation_extraction.jsonl").read_text(encoding="utf-8").splitlines()
    )


def test_the_most_frequent_reason_stands_in_the_last_error(tmp_path):
    with teaching(faults={"500": 1.0}) as teacher, pytest.raises(Stopped) as error:
        fill(job_of(teacher, tmp_path / "a", 5, max_retries=1, give_up_after=60))
    assert "most failures: HTTP 500" in str(error.value)
    assert "internal error" in str(error.value)
    with teaching(faults={"refusal": 1.0}) as teacher, pytest.raises(StageFailed) as failed:
        fill(job_of(teacher, tmp_path / "b", 30))
    assert "most often: quarantined: write: the teacher refused or said nothing (30)" in str(failed.value)
