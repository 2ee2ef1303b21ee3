"""Rows written by a teacher model."""

import logging
import math
import uuid
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import canonical_hash, write_text
from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, schema_file
from ucotron_ray.data.stage import ROWS, SCHEMA, TRAIN, VAL, training_data
from ucotron_ray.synthesis import bounds
from ucotron_ray.synthesis import job as jobs
from ucotron_ray.synthesis.generator import builds_on_rows
from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.outcomes import unsettled
from ucotron_ray.synthesis.plan import Task, request_body
from ucotron_ray.synthesis.rounds import most_samples
from ucotron_ray.synthesis.rows import check_limits
from ucotron_ray.synthesis.tasks import judge as judge_task
from ucotron_ray.teacher import lengths
from ucotron_ray.teacher import stage as teachers
from ucotron_ray.teacher.endpoint import extra_body
from ucotron_ray.teacher.prices import Price
from ucotron_ray.teacher.stage import Teacher

if TYPE_CHECKING:
    from ucotron_ray.synthesis.rounds import SynthesisResult

log = logging.getLogger(__name__)

JOURNALS = "journal"
ESTIMATED_SAMPLES = 200
USUAL_SHARE = 0.25
"""Of max_tokens, that an answer usually has: the assumption of an estimate, and written beside it."""


@dataclass(frozen=True)
class SynthesisOrder:
    """A task with its count and its input."""

    task: str
    name: str
    count: int
    data: Artifact | None


def wanted(run: Run, task: str, count: int | None, reference: str | None, *, name: str | None = None) -> SynthesisOrder:
    """What is asked for, as a dataset of this name (the run's, if none is given).

    Raises ConfigError where an input is missing or not needed.
    """
    settings = run.config.recipe.generation.task(task)
    count = settings.target_samples if count is None else count
    if count < 1:
        raise ConfigError("there is nothing to make", where="--count", expected="1 or more", found=str(count))
    _warn_of_unused(run.config.recipe.generation)
    needs_input = builds_on_rows(task)
    if needs_input != (reference is not None):
        raise ConfigError(
            f"`synthesize {task}` needs relation rows to build on"
            if needs_input
            else f"`synthesize {task}` takes no input",
            where="--input",
            expected="the name of a dataset, or a JSONL file of relation rows" if needs_input else "no --input",
            found=reference,
            next_step="make some with `ucotron-ray synthesize relation_extraction`" if needs_input else None,
        )
    data = training_data(run, reference, None) if reference is not None else None
    found = SynthesisOrder(task, name or run.name, count, data)
    if data is not None:
        for file in input_files(data):
            jsonl.read_relations(Path(file))
    task_of(run, found)
    check_limits(run.config.recipe.generation.gate)
    return found


def _warn_of_unused(generation: Generation) -> None:
    """Say that two settings of the guide's file have no effect, to somebody who has changed them."""
    shipped = config.load().recipe.generation.defaults
    for name in ("temperature", "max_tokens"):
        if getattr(generation.defaults, name) != getattr(shipped, name):
            log.warning("generation.defaults.%s is not used: set generation.tasks.GENERATOR.%s", name, name)


def input_files(data: Artifact) -> tuple[str, ...]:
    """The files of a dataset with relation rows: for training and, where there are any, for validation."""
    train, val = data.path / TRAIN, data.path / VAL
    if not train.is_file():
        return (str(data.path / ROWS),)
    return (str(train), *([str(val)] if val.is_file() and val.stat().st_size else []))


def request(run: Run, want: SynthesisOrder) -> Request:
    """What synthesizing would make. Only what changes the rows counts: not the server, not its limits, no budget."""
    generation = run.config.recipe.generation
    # The only settings of the place that change an answer.
    extra = extra_body(run.config.place.api)
    task = task_of(run, want)
    fields = {
        "task": want.task,
        "version": task.version,
        "count": want.count,
        "teacher": run.config.recipe.models.generation.model_id,
        "defaults": generation.defaults.model_dump(),
        "settings": generation.task(want.task).model_dump(exclude={"target_samples"}),
        "max_answer_tokens": generation.max_answer_tokens,
        **({"extra_body": extra} if extra else {}),
        **({"schema": task.schema.content} if task.schema else {}),
        **what_is_published(generation),
    }
    return Request("dataset", want.name, fields, (want.data.as_input("input"),) if want.data else ())


def what_is_published(generation: Generation) -> dict[str, Any]:
    """The settings that decide which rows of any generator are published, and what their report and card say."""
    keys = ("seed", "val_ratio", "near_duplicate", "licence")
    return {**generation.model_dump(include=set(keys)), "gate": generation.gate.model_dump()}


def synthesize(
    run: Run, want: SynthesisOrder, teacher: Teacher | None = None, *, after: Sequence[Request] = ()
) -> Artifact:
    """Teacher → `dataset/<name>` with the files of `synthesis/selection.py`, the gate's report and a card.

    What the requests that it comes `after` have cost counts for the same budget.
    The dataset is `rejected` where the gate says so. Raises ConfigError or InputError before anything is paid: no key,
    no such model, no price for a paid run.
    """
    what = request(run, want)
    # Before anything is begun: a mistake must leave nothing behind that a corrected command would run into.
    if teacher is None and will_run(run, what):
        teacher = teachers.checked(run)

    def build(build: Build) -> BuildResult:
        asked = teacher or teachers.checked(run)
        from ucotron_ray.synthesis import journal

        with ExitStack() as held:
            for folder in _journals(run, want.task):
                held.enter_context(journal.held(folder))
            made = _fill(run, _job(run, want, build, asked, after), asked)
        counts = {**made.counts, "train": made.files.get(TRAIN, 0), "val": made.files.get(VAL, 0)}
        metrics = {"requests": float(made.requests), "cost_usd": made.usd}
        metrics |= {"prompt_tokens": float(made.prompt_tokens), "completion_tokens": float(made.completion_tokens)}
        metrics["asking_seconds"] = made.asking_seconds
        if made.set_aside.prompts:
            metrics |= {"set_aside": float(made.set_aside.prompts), "set_aside_usd_at_most": made.set_aside.usd}
        notes = made.failures or [f"teacher {asked.endpoint.model} at {asked.endpoint.base_url}"]
        return BuildResult(metrics, counts, notes, state="rejected" if made.failures else "ok")

    return run.make("synthesize", what, build)


def accepted(run: Run, want: SynthesisOrder, *, after: Sequence[Request] = ()) -> Artifact:
    """The same for a chain that goes on with the rows: what the gate rejected is refused, as the store does it."""
    synthesize(run, want, after=after)
    return run.store.get("dataset", want.name, accept_rejected=run.accept_rejected)


def will_run(run: Run, what: Request) -> bool:
    """Whether asking for this starts something."""
    action = run.store.plan(what)
    return action in ("run", "resume") or (action == "conflict" and run.replace)


def _fill(run: Run, job: jobs.SynthesisJob, teacher: Teacher) -> "SynthesisResult":
    run.connect(workers=False)
    from ucotron_ray.synthesis import on_ray

    if teacher.shared is None:
        return on_ray.synthesize_on_ray(job)
    if teacher.shared.governor is None:
        teacher.shared.governor = run.enter(on_ray.governed(job))
    return on_ray.fill(job, teacher.shared.governor)


def spent_on(run: Run, what: Request) -> tuple[float, float]:
    """Dollars that a request has cost so far: by the journal, and perhaps on top of it."""
    from ucotron_ray.synthesis import journal

    folders = [folder for folder in _journals(run, str(what.fields["task"])) if folder.is_dir()]
    paid = sum(journal.spent(folder, what.recipe) for folder in folders)

    def journaled(rids: Collection[str]) -> set[str]:
        return {rid for folder in folders for rid in journal.settled(folder, what.recipe, rids)}

    return paid, unsettled(run.store.partial(what.kind, what.name), journaled)


def _journals(run: Run, task: str) -> list[Path]:
    """Where the answers of a task are kept, and those of its judge if it has one."""
    judge = [judge_task.NAME] if run.config.recipe.generation.gate.judge.model_id else []
    return [run.store.root / JOURNALS / name for name in (task, *judge)]


def estimate(run: Run, want: SynthesisOrder) -> dict[str, Any]:
    """Requests, tokens and dollars before anything is paid, from the first samples of the plan.

    `usd_at_most` is a bound: each answer asked for twice and mended, and as many further samples as rounds may plan.
    """
    task, generation, api = task_of(run, want), run.config.recipe.generation, run.config.place.api
    numbers = range(min(ESTIMATED_SAMPLES, want.count))
    asks = [ask for number in numbers for ask in bounds.steps_of(task, number)]
    bodies = [request_body("", ask, "0") for ask in asks]
    prompt = sum(lengths.prompt_tokens(body) for body in bodies) / len(numbers) * want.count
    completion = sum(ask.max_tokens for ask in asks) * USUAL_SHARE / len(numbers) * want.count
    teacher = run.config.recipe.models.generation.model_id
    price = teachers.price_for(run, teacher)
    limit = api.requests_per_minute
    num_requests = math.ceil(len(asks) / len(numbers) * want.count)
    return {
        "task": want.task,
        "teacher": teacher,
        "rows": want.count,
        "requests": num_requests,
        "prompt_tokens": round(prompt),
        "completion_tokens": round(completion),
        "assumption": f"answers of {USUAL_SHARE:.0%} of max_tokens, every sample accepted; at most: every answer cut "
        f"off, asked for again and mended, {most_samples(want.count, api.max_rounds) / want.count:.0f} samples a row, "
        f"{api.hidden_tokens or 0} tokens of reasoning a request (api.hidden_tokens)",
        **({"price": "not known: a paid run is refused without it, see api.prices"} if price is None else {}),
        "usd": None if price is None else round(price.cost(round(prompt), 0, round(completion)), 4),
        **_at_most(run, want, task, generation, price),
        "minutes_at_least": None if limit is None else round(num_requests / limit, 1),
        "action": run.store.plan(request(run, want)),
    }


def _at_most(run: Run, want: SynthesisOrder, task: Task, generation: Generation, price: Price | None) -> dict[str, Any]:
    """Dollars at most: of a run whose first samples are all accepted, and of any run. `api.max_usd` bounds both."""
    api, judge = run.config.place.api, generation.gate.judge.model_id
    room = api.hidden_tokens or 0
    judging = bounds.judge_at_most(generation, want.count, teachers.price_for(run, judge) if judge else None, room)
    if price is None or judging is None:
        return {"usd_first_round_at_most": None, "usd_at_most": None}
    sample = bounds.dearest(task, want.count, generation.max_answer_tokens, price, room)
    # Those that show whether the server answers at all, while it leaves a prompt without an answer.
    samples = most_samples(want.count, api.max_rounds) + api.max_failures_of_a_prompt
    budget = math.inf if api.max_usd is None else api.max_usd
    figures = {"usd_first_round_at_most": sample * want.count, "usd_at_most": sample * samples}
    return {name: min(budget, math.ceil((usd + judging) * 10_000) / 10_000) for name, usd in figures.items()}


def task_of(run: Run, want: SynthesisOrder) -> Task:
    """The task of a request, with its input read."""
    return jobs.task_of(want.task, run.config.recipe.generation, input_files(want.data) if want.data else ())


def _job(run: Run, want: SynthesisOrder, build: Build, teacher: Teacher, after: Sequence[Request]) -> jobs.SynthesisJob:
    api, generation = run.config.place.api, run.config.recipe.generation
    run_key, shared = build.request.recipe, teacher.shared
    schema = task_of(run, want).schema
    if schema is not None:
        # In the dataset: other nodes have no such file of the user's, and the bundle's vocabulary comes from it.
        write_text(build.path / SCHEMA, schema_file.write(schema))
        generation = generation.model_copy(update={"schema_file": str(build.path / SCHEMA)})
    own = spent_on(run, build.request)
    before = [own, *(spent_on(run, other) for other in after)]
    spent, perhaps = (shared.spent, shared.unsettled) if shared else map(sum, zip(*before, strict=True))
    job = jobs.SynthesisJob(
        task=want.task,
        invocation=shared.invocation if shared else f"{run_key[:16]}-{uuid.uuid4().hex[:8]}",
        generation=generation.model_dump(),
        count=want.count,
        max_rounds=api.max_rounds,
        max_failures=api.max_failures_of_a_prompt,
        input_files=input_files(want.data) if want.data else (),
        endpoint=teacher.endpoint,
        price=teacher.price,
        sending=Sending(
            run=run_key,
            connect_timeout=api.connect_timeout,
            read_timeout=api.timeout,
            total_timeout=api.total_timeout,
            max_retries=api.max_retries,
            retry_delay=api.retry_delay,
        ),
        journal=str(run.store.root / JOURNALS / want.task),
        directory=str(build.path),
        limits=Settings(
            first_in_flight=api.first_in_flight,
            max_in_flight=api.max_in_flight,
            requests_per_minute=api.requests_per_minute,
            prompt_tokens_per_minute=api.prompt_tokens_per_minute,
            generated_tokens_per_minute=api.generated_tokens_per_minute,
            give_up_after=api.give_up_after,
        ),
        budget=Budget(teacher.dearest, api.max_usd, spent_before=spent, unsettled_before=perhaps),
        spent=sum(own),
        unsettled=own[1],
        num_actors=api.num_actors,
        log_file=run.log_file,
        metrics_file=str(run.store.root / "tracking" / "metrics" / f"{want.name}.jsonl"),
        facts={
            "name": want.name,
            "task": want.task,
            "made by": "ucotron_ray synthesize",
            "teacher": teacher.endpoint.model,
            "recipe": canonical_hash(build.request.fields)[:16],
            "seed": generation.seed,
        },
    )
    return replace(job, judge=_judge_of(run, want, build, job, teacher)) if generation.gate.judge.model_id else job


def _judge_of(
    run: Run, want: SynthesisOrder, build: Build, job: jobs.SynthesisJob, teacher: Teacher
) -> jobs.SynthesisJob:
    """The job that reads a sample of the rows: of the same server, ledger and budget, with a journal of its own."""
    judge = run.config.recipe.generation.gate.judge
    return replace(
        job,
        task=judge_task.NAME,
        count=min(judge.rows, want.count),
        input_files=(str(build.path / f"{want.task}.jsonl"),),
        endpoint=replace(teacher.endpoint, model=str(judge.model_id)),
        price=teacher.judge_price,
        journal=str(run.store.root / JOURNALS / judge_task.NAME),
        directory=str(build.path / judge_task.NAME),
    )
