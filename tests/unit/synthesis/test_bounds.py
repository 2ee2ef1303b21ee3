"""What is said that a run costs at most is at least what it costs, whatever the teacher does."""

import random
from dataclasses import replace

import pytest

from tests.filling import fill, job_of
from tests.teacher import teaching
from ucotron_ray.core import config
from ucotron_ray.core.run import Run
from ucotron_ray.simulators.fireworks_answers import answer_to
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import bounds, journal, stage
from ucotron_ray.synthesis.job import task_of
from ucotron_ray.synthesis.plan import Answer, Ended, request_body
from ucotron_ray.synthesis.rounds import most_samples
from ucotron_ray.teacher.lengths import most_prompt_tokens
from ucotron_ray.teacher.outcome import OutcomeKind
from ucotron_ray.teacher.prices import Price, price_of

GENERATION = config.load().recipe.generation
ASKED = ("relation_extraction", "contradiction", "entity_resolution", "projection")


def worst(task, number: int) -> tuple[list[str], bounds.Most]:
    """The steps of a sample whose every answer is cut off, then cannot be read, then is mended, and what they take."""
    facts = task.sample(number)
    conversation = task.converse(facts)
    steps, took = [], bounds.Most()
    try:
        ask = next(conversation)
        while True:
            is_first = not steps or steps[-1] != ask.step
            steps.append(ask.step)
            body = request_body(TEACHER, ask, "0")
            took = bounds.Most(took.prompt + most_prompt_tokens(body), took.completion + ask.max_tokens)
            if is_first:
                answer = Answer(OutcomeKind.TRUNCATED, "")
            elif ask.json_mode and not ask.step.endswith("-repair"):
                answer = Answer(OutcomeKind.ANSWER, "no JSON at all")
            else:
                # The simulator answers by the prompt, to which a turn of repair only adds.
                plain = replace(ask, messages=ask.messages[:2])
                asked = request_body(TEACHER, plain, "0")
                answer = Answer(OutcomeKind.ANSWER, answer_to(asked, random.Random(number)).answer)
            ask = conversation.send(answer)
    except (StopIteration, Ended):
        return steps, took


@pytest.mark.parametrize("name", ASKED)
def test_no_sample_takes_more_than_its_bound_and_the_worst_one_takes_all_of_it(name):
    task = task_of(name, GENERATION)
    longest = 0
    for number in range(60):
        steps, took = worst(task, number)
        most = bounds.most_of(bounds.steps_of(task, number), GENERATION.max_answer_tokens)
        assert took.completion <= most.completion
        assert took.prompt <= most.prompt
        longest = max(longest, len(steps))
        if len(steps) == longest:
            full = took.completion == most.completion
    assert full, "every answer of the longest conversation counts as what it may be at most"


def test_the_reading_back_of_a_contradiction_is_a_step_of_its_own():
    steps = bounds.steps_of(task_of("contradiction", GENERATION), 3)
    assert [step.step for step in steps] == ["write", "read"]


def test_a_run_costs_no_more_than_the_estimate_says_with_repairs_doubled_answers_and_further_samples(tmp_path):
    count, rounds = 20, 3
    overrides = [("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none"), ("api.max_rounds", rounds)]
    overrides += [("models.generation.model_id", TEACHER)]
    run = Run(config.load(overrides=overrides), verb="synthesize", name="made")
    said = stage.estimate(run, stage.wanted(run, "relation_extraction", count, None))
    price = price_of(TEACHER)
    assert price is not None
    with teaching(faults={"length": 0.2, "malformed": 0.2, "refusal": 0.2}, garbage=0.3) as teacher:
        job = replace(job_of(teacher, tmp_path, count, max_rounds=8), price=price)
        made = fill(job)
    assert made.filled.planned > count
    kinds = [record.kind for record in journal.records(made.journal)]
    assert "truncated" in kinds
    assert any(record.step.endswith("-repair") for record in journal.records(made.journal))
    cost = journal.spent(made.journal, "run")
    assert 0 < cost <= said["usd_at_most"]
    # A part of a cent, and not more than what is planned at most.
    sample = bounds.dearest(task_of("relation_extraction", GENERATION), count, GENERATION.max_answer_tokens, price)
    assert said["usd_first_round_at_most"] == pytest.approx(count * sample, abs=1e-4)
    assert said["usd_at_most"] == pytest.approx((most_samples(count, rounds) + 3) * sample, abs=1e-4)


def test_the_budget_bounds_the_bound_and_a_judge_is_in_it(tmp_path):
    def said(*more):
        overrides = [("store", str(tmp_path)), ("tracking.mlflow_uri", "none")]
        overrides += [("models.generation.model_id", TEACHER), *more]
        run = Run(config.load(overrides=overrides), verb="synthesize", name="made")
        return stage.estimate(run, stage.wanted(run, "entity_resolution", 100, None))

    alone = said()["usd_at_most"]
    judged = said(("generation.gate.judge.model_id", TEACHER))["usd_at_most"]
    assert judged > alone
    assert said(("generation.gate.judge.model_id", "nobody/knows"))["usd_at_most"] is None
    assert said(("api.max_usd", 0.05))["usd_at_most"] == 0.05
    assert said(("api.max_rounds", 1))["usd_at_most"] < alone / 10


def test_no_answer_of_a_judge_costs_more_than_its_bound():
    price = Price(1.0, 1.0, 1.0)
    judge = GENERATION.gate.judge.model_copy(update={"model_id": TEACHER, "rows": 50})
    generation = GENERATION.model_copy(update={"gate": GENERATION.gate.model_copy(update={"judge": judge})})
    most = bounds.judge_at_most(generation, 1000, price)
    assert most is not None
    # 6,000 characters of four bytes, twice, and once more twice to mend it; each answer at most twice as long as asked.
    assert most > 50 * (4 * 6000 * 4 + 6 * judge.max_tokens) / 1e6
    assert bounds.judge_at_most(generation, 10, price) == pytest.approx(most / 5)
