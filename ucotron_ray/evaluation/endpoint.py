"""A served model asked over HTTP, its answers scored by triples; keyword hits, the guide's measure, beside them.

The prompt is the server's own (`wire.py`), so the score says what a Ucotron server would get from that endpoint. A
model that echoes its prompt has 0.82 of the keywords and no triple: the winner of a comparison is told by triples.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ucotron_ray.core.errors import AuthError, FireworksError, NotFoundError
from ucotron_ray.core.place import Api
from ucotron_ray.data import wire
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation.scoring import RowScore, score_row, summary
from ucotron_ray.teacher.chat import client_timeout
from ucotron_ray.teacher.client import Client
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.outcome import FATAL, FINAL, UNANSWERABLE, OutcomeKind, RequestOutcome
from ucotron_ray.teacher.window import Window

IN_FLIGHT = 8
"""Questions at once at the start; more once they are answered."""

CUT = 0.5
MOST_REFUSED = 12
CONNECT_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True)
class Asking:
    """How a model is asked. None = what the server itself sends."""

    system_prompt: str | None = None
    max_tokens: int = wire.SERVER_MAX_TOKENS
    temperature: float = wire.SERVER_TEMPERATURE
    timeout: float = 120.0
    max_retries: int = 3
    retry_delay: float = 2.0
    max_in_flight: int = 256


def asking_of(api: Api, **changes: Any) -> Asking:
    """As the place asks; `changes` are fields of `Asking`."""
    patient = {name: getattr(api, name) for name in ("timeout", "max_retries", "retry_delay", "max_in_flight")}
    return Asking(**{**patient, **changes})


@dataclass(frozen=True)
class Reply:
    """What came back for one row; `error` where nothing did."""

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None
    refused: bool = False
    """The server will not answer this question, however often it is asked; others it may."""


def _ignore(index: int, reply: Reply) -> None:
    pass


def replies(
    endpoint: Endpoint,
    questions: Sequence[Sequence[Mapping[str, str]]],
    asking: Asking,
    each: Callable[[int, Reply], None] = _ignore,
) -> list[Reply]:
    """Answers to lists of messages, in their order; `each` is told the number of a question and its reply at once.

    Raises AuthError, NotFoundError or FireworksError where no question would fare better.
    """
    return asyncio.run(_replies(endpoint, questions, asking, each))


def question(row: RawRow, asking: Asking, examples: Sequence[RawRow] = ()) -> list[dict[str, str]]:
    """The server's messages for a row, with another system line if one is given, and examples before the question."""
    messages = wire.chat_messages(row.text, row.entities, examples)
    return [{"role": "system", "content": asking.system_prompt}, *messages[1:]] if asking.system_prompt else messages


def tested(endpoint: Endpoint, rows: Sequence[RawRow], asking: Asking) -> dict[str, Any]:
    """Ask a model all rows; its scores, and every answer with its own."""
    answers = replies(endpoint, [question(row, asking) for row in rows], asking)
    entries: list[dict[str, Any]] = []
    scores: list[RowScore] = []
    for row, reply in zip(rows, answers, strict=True):
        score = score_row(row, reply.text)
        scores.append(score)
        entries.append({"prompt": row.text, **entry_of(reply), **_triples(score), **keyword_hits(row, reply.text)})
    shares = [entry["keyword_score"] for entry in entries]
    return {
        "model": endpoint.model,
        "answers": entries,
        "summary": {
            **summary(scores),
            "keyword_score": sum(shares) / len(shares),
            "errors": sum(entry["error"] is not None for entry in entries),
        },
    }


def compare(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Models side by side, the first one the base: who wins each row by F1 of its triples, and in all."""
    rows = []
    wins = {model["model"]: 0 for model in models}
    ties = 0
    for entries in zip(*(model["answers"] for model in models), strict=True):
        best = max(entry["f1"] for entry in entries)
        first = [model["model"] for model, entry in zip(models, entries, strict=True) if entry["f1"] == best]
        winner = first[0] if len(first) == 1 else "tie"
        ties += winner == "tie"
        if winner != "tie":
            wins[winner] += 1
        shown = {model["model"]: entry for model, entry in zip(models, entries, strict=True)}
        rows.append({"prompt": entries[0]["prompt"], "models": shown, "winner": winner})
    base = models[0]["summary"]["f1"]
    improvements = {model["model"]: round(model["summary"]["f1"] - base, 3) for model in models[1:]}
    summaries = {model["model"]: model["summary"] for model in models}
    return {"comparisons": rows, "summary": summaries, "wins": wins, "ties": ties, "improvement": improvements}


def keyword_hits(row: RawRow, answer: str) -> dict[str, Any]:
    """The guide's measure: which names and predicates of the expected triples occur anywhere in the answer."""
    wanted: dict[str, None] = {}
    for relation in row.expected_relations:
        wanted |= dict.fromkeys((relation.subject, relation.object, relation.predicate))
    hits = [word for word in wanted if word.lower() in answer.lower()]
    share = len(hits) / len(wanted) if wanted else 0.0
    return {"expected_keywords": list(wanted), "keyword_hits": hits, "keyword_score": share}


def report(compared: Mapping[str, Any]) -> str:
    """The comparison as text."""
    lines = ["Model Comparison Report", ""]
    for number, row in enumerate(compared["comparisons"], 1):
        lines.append(f"{number}. {row['prompt'][:90]}")
        for model, entry in row["models"].items():
            if entry["error"]:
                lines.append(f"   {model}: ERROR: {entry['error']}")
                continue
            hits = f"{len(entry['keyword_hits'])}/{len(entry['expected_keywords'])} keywords"
            lines.append(f"   {model}: {entry['right']}/{entry['expected']} triples, F1 {entry['f1']:.2f}, {hits}")
        lines.append(f"   Winner: {row['winner']}")
    lines.append("")
    for model, scores in compared["summary"].items():
        lines.append(
            f"{model}: F1 {scores['f1']:.3f} ({scores['f1_low']:.3f}-{scores['f1_high']:.3f}), "
            f"valid answers {scores['valid_answers']:.0%}, keywords {scores['keyword_score']:.1%}, "
            f"wins {compared['wins'][model]}"
        )
    lines.append(f"ties: {compared['ties']}")
    lines += [f"improvement of {model}: {value:+.3f} F1" for model, value in compared["improvement"].items()]
    return "\n".join(lines)


def entry_of(reply: Reply) -> dict[str, Any]:
    """A reply in the guide's words."""
    return {
        "response": reply.text,
        "finish_reason": reply.finish,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "error": reply.error,
    }


def _triples(score: RowScore) -> dict[str, Any]:
    total = score.predicted + score.expected
    f1 = 2 * score.right / total if total else 1.0
    counts = {"right": score.right, "predicted": score.predicted, "expected": score.expected}
    return {**counts, "f1": f1 if score.valid else 0.0, "valid": score.valid}


class _Asked:
    """Asks one server, as many questions at a time as it bears (`teacher/window.py`), and repeats what may pass."""

    def __init__(self, endpoint: Endpoint, client: Client, asking: Asking, each: Callable[[int, Reply], None]) -> None:
        self._endpoint, self._client, self._asking, self._each = endpoint, client, asking, each
        self._window = Window(IN_FLIGHT, asking.max_in_flight)
        self._running, self._room = 0, asyncio.Condition()
        self._answered = self._refused = 0

    async def ask(self, index: int, messages: Sequence[Mapping[str, str]]) -> Reply:
        """The reply to one question, repeats included."""
        body = {
            "model": self._endpoint.model,
            "messages": list(messages),
            "temperature": self._asking.temperature,
            **self._endpoint.extra_body,
        }
        for number in range(self._asking.max_retries + 1):
            outcome = await self._once({**body, "max_tokens": self._asking.max_tokens + self._client.room})
            if outcome.kind in (*FINAL, *FATAL, *UNANSWERABLE):
                break
            longest = min(MAX_BACKOFF_SECONDS, self._asking.retry_delay * 2**number)
            if number < self._asking.max_retries:
                asked = outcome.retry_after
                await asyncio.sleep(asked if asked is not None else random.uniform(0, longest))
        reply = _reply(outcome, self._endpoint)
        self._refuse_all_refused(outcome)
        self._each(index, reply)
        return reply

    async def _once(self, body: Mapping[str, Any]) -> RequestOutcome:
        async with self._room:
            await self._room.wait_for(lambda: self._running < max(1, int(self._window.size)))
            self._running += 1
        permitted_at = time.monotonic()
        try:
            outcome = await self._client.ask(body)
        finally:
            async with self._room:
                self._running -= 1
                self._room.notify_all()
        self._turn(outcome, permitted_at)
        return outcome

    def _turn(self, outcome: RequestOutcome, permitted_at: float) -> None:
        """Open or close the window by what came back."""
        now, failed = time.monotonic(), outcome.kind is OutcomeKind.TRANSIENT
        overloaded = self._window.seems_overloaded(permitted_at=permitted_at, failed=failed)
        if outcome.kind in (OutcomeKind.RATE_LIMITED, OutcomeKind.OVERLOADED) or (failed and overloaded):
            self._window.cut(now, CUT)
        elif outcome.kind in FINAL:
            self._window.grow()

    def _refuse_all_refused(self, outcome: RequestOutcome) -> None:
        """A server that refuses every question will not bear the rest either."""
        self._answered += outcome.kind in FINAL
        self._refused += outcome.kind in UNANSWERABLE
        if not self._answered and self._refused >= MOST_REFUSED:
            raise FireworksError(
                f"the server refused the first {self._refused} questions and answered none",
                where=self._endpoint.chat_url,
                found=outcome.detail,
                next_step="ask it one question by hand, with the same model",
            )


async def _replies(
    endpoint: Endpoint,
    questions: Sequence[Sequence[Mapping[str, str]]],
    asking: Asking,
    each: Callable[[int, Reply], None],
) -> list[Reply]:
    timeout = client_timeout(connect=CONNECT_SECONDS, read=asking.timeout, total=asking.timeout * 4)
    client = Client(endpoint)
    await client.open(timeout)
    try:
        asked = _Asked(endpoint, client, asking, each)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asked.ask(index, messages)) for index, messages in enumerate(questions)]
        return [task.result() for task in tasks]
    except ExceptionGroup as errors:
        # The first one says it; the others were cancelled, or met the same refusal.
        raise errors.exceptions[0] from None
    finally:
        await client.close()


def _reply(outcome: RequestOutcome, endpoint: Endpoint) -> Reply:
    # Without the model's name it is the address: none of these prompts has anything that a server would not find.
    if outcome.status == 404:
        raise NotFoundError(
            f"the vendor does not serve '{endpoint.model}'",
            where=endpoint.chat_url,
            found=outcome.detail,
            next_step="a trained adapter is served on a deployment only: add --deploy (billed by the GPU second)",
        )
    if outcome.kind is OutcomeKind.AUTH:
        raise AuthError("the vendor refuses the key", where=endpoint.chat_url, found=outcome.detail)
    if outcome.kind in FATAL:
        raise FireworksError("the vendor refuses the request", where=endpoint.chat_url, found=outcome.detail)
    usage = outcome.usage
    error = None if outcome.kind in FINAL else outcome.detail or str(outcome.kind)
    refused = outcome.kind in UNANSWERABLE
    return Reply(outcome.text, outcome.finish, usage.prompt, usage.completion, error, refused)
