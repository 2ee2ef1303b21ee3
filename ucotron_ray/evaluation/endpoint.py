"""A served model asked over HTTP, its answers scored by triples; keyword hits, the guide's measure, beside them.

The prompt is the server's own (`wire.py`), so the score says what a Ucotron server would get from that endpoint. A
model that echoes its prompt has 0.82 of the keywords and no triple: the winner of a comparison is told by triples.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ucotron_ray.core.errors import AuthError, FireworksError, NotFoundError
from ucotron_ray.data import wire
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation.scoring import RowScore, score_row, summary
from ucotron_ray.teacher.chat import client_timeout
from ucotron_ray.teacher.client import Client
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.outcome import FATAL, FINAL, UNANSWERABLE, OutcomeKind, RequestOutcome

IN_FLIGHT = 8
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


@dataclass(frozen=True)
class Reply:
    """What came back for one row; `error` where nothing did."""

    text: str
    finish: str | None
    prompt_tokens: int
    completion_tokens: int
    error: str | None = None


def replies(endpoint: Endpoint, questions: Sequence[Sequence[Mapping[str, str]]], asking: Asking) -> list[Reply]:
    """Answers to lists of messages, in their order. Raises AuthError or NotFoundError where none would fare better."""
    return asyncio.run(_replies(endpoint, questions, asking))


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


async def _replies(endpoint: Endpoint, questions: Sequence[Sequence[Mapping[str, str]]], asking: Asking) -> list[Reply]:
    timeout = client_timeout(connect=CONNECT_SECONDS, read=asking.timeout, total=asking.timeout * 4)
    client, gate = Client(endpoint), asyncio.Semaphore(IN_FLIGHT)
    await client.open(timeout)
    try:

        async def one(messages: Sequence[Mapping[str, str]]) -> Reply:
            body = {
                "model": endpoint.model,
                "messages": list(messages),
                "max_tokens": asking.max_tokens,
                "temperature": asking.temperature,
                **endpoint.extra_body,
            }
            async with gate:
                body["max_tokens"] = asking.max_tokens + client.room
                for number in range(asking.max_retries + 1):
                    outcome = await client.ask(body)
                    is_last = number == asking.max_retries
                    if outcome.kind in (*FINAL, *FATAL, *UNANSWERABLE) or is_last:
                        break
                    longest = min(MAX_BACKOFF_SECONDS, asking.retry_delay * 2**number)
                    asked = outcome.retry_after
                    await asyncio.sleep(asked if asked is not None else random.uniform(0, longest))
            return _reply(outcome, endpoint)

        return list(await asyncio.gather(*(one(messages) for messages in questions)))
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
    return Reply(outcome.text, outcome.finish, usage.prompt, usage.completion, error)
