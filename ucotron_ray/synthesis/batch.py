"""The vendor's batch lane for a task: which requests are open, the file that asks them, and its results as records.

The same plan and the same journal as online: a request is known by the same id, so what a batch answered is never asked
online again, and the other way round. A conversation has several steps, so a task is a few waves: each asks what is
open after the ones before.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import canonical_hash, write_json, write_text
from ucotron_ray.synthesis.journal import Reader, Record
from ucotron_ray.synthesis.plan import Answer, Ask, Ended, Facts, Task, request_body, request_id
from ucotron_ray.teacher.completion import read_completion
from ucotron_ray.teacher.endpoint import Endpoint, without_refused
from ucotron_ray.teacher.lengths import most_prompt_tokens
from ucotron_ray.teacher.outcome import FINAL, OutcomeKind
from ucotron_ray.teacher.prices import BATCH_SHARE, Price

MAX_BYTES = 450 * 1024**2
"""Of one file: the vendor's pages say 500 MB, and 1 GB on newer ones."""

WAVES = "batch"


@dataclass(frozen=True)
class OpenRequest:
    """A request that the journal has no answer to."""

    rid: str
    ask: Ask

    def body(self, endpoint: Endpoint) -> dict[str, Any]:
        """The body of a line. The model is the job's, not the line's."""
        room = endpoint.hidden_tokens or 0
        body = request_body(endpoint.model, self.ask, self.rid, endpoint.extra_body, room=room)
        del body["model"]
        return without_refused(body, endpoint.refused_keys or ())


@dataclass(frozen=True)
class Wave:
    """What one job asks. Its file and this record are written before the job is created."""

    directory: Path
    digest: str

    @property
    def file(self) -> Path:
        """The requests, one a line."""
        return self.directory / f"{self.digest}.jsonl"

    @property
    def record(self) -> Path:
        """{"model", "run", "usd_at_most", "steps": {rid: step}, "collected": bool}: whom it asks, for which run."""
        return self.directory / f"{self.digest}.json"

    def recorded(self) -> dict[str, Any]:
        """The record."""
        read: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        return read


def open_requests(task: Task, endpoint: Endpoint, numbers: Sequence[int], reader: Reader) -> Iterator[OpenRequest]:
    """The next request of every sample that has not ended."""
    for number in numbers:
        facts = task.sample(number)
        found = _next(task, endpoint, facts, reader)
        if found is not None:
            yield found


def write_wave(directory: Path, endpoint: Endpoint, run: str, requests: Sequence[OpenRequest], *, usd: float) -> Wave:
    """The intent on disk: whatever is killed from here on, the same job is found and collected. `usd`: at most.

    Requests that an earlier wave asked in vain make another wave, with another name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    asked = [request.rid for request in requests]
    names = (canonical_hash([asked, attempt])[:20] for attempt in itertools.count())
    wave = next(wave for wave in (Wave(directory, name) for name in names) if not wave.record.exists())
    lines = [{"custom_id": request.rid, "body": request.body(endpoint)} for request in requests]
    write_text(wave.file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    steps = {request.rid: request.ask.step for request in requests}
    record = {"model": endpoint.model, "run": run, "usd_at_most": usd, "steps": steps, "collected": False}
    write_json(wave.record, record)
    return wave


def waves_to_collect(directory: Path) -> list[Wave]:
    """Waves of earlier commands, whatever model they ask, whose results are not in the journal yet."""
    waves = [Wave(directory, path.stem) for path in sorted(directory.glob("*.json"))]
    return [wave for wave in waves if not wave.recorded()["collected"]]


def collected(wave: Wave) -> None:
    """Note that the journal has all that the wave brought; its requests are not needed any more."""
    write_json(wave.record, {**wave.recorded(), "collected": True})
    wave.file.unlink(missing_ok=True)


def records(wave: Wave, results: bytes, price: Price | None, reader: Reader) -> Iterator[Record]:
    """A record for every answer that the journal does not have yet. Order and completeness are not relied upon."""
    recorded = wave.recorded()
    steps = recorded["steps"]
    for line in results.decode("utf-8", "replace").split("\n"):
        row = _object(line)
        rid = str(row.get("custom_id"))
        if rid not in steps or reader.get(rid) is not None:
            continue
        response = row.get("response")
        # Seen both ways: the completion itself, and one inside of {"status_code", "body"}.
        message = response["body"] if isinstance(response, dict) and "body" in response else response
        outcome = read_completion(message, {"model": recorded["model"], "messages": []})
        if outcome.kind not in FINAL:
            continue
        usage = outcome.usage
        usd = price.cost(usage.prompt, usage.cached, usage.completion) * BATCH_SHARE if price else 0.0
        yield Record(
            rid=rid,
            kind=str(outcome.kind),
            text=outcome.text,
            finish=outcome.finish,
            run=recorded["run"],
            step=steps[rid],
            model=recorded["model"],
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            completion_tokens=usage.completion,
            estimated=usage.estimated,
            cost_usd=usd,
            attempts=1,
        )


def worst_usd(request: OpenRequest, endpoint: Endpoint, price: Price | None) -> float:
    """The most that a request can cost in a batch."""
    if price is None:
        return 0.0
    most = request.ask.max_tokens + (endpoint.hidden_tokens or 0)
    body = request_body(endpoint.model, request.ask, request.rid)
    return price.cost(most_prompt_tokens(body), 0, most) * BATCH_SHARE


def _next(task: Task, endpoint: Endpoint, facts: Facts, reader: Reader) -> OpenRequest | None:
    conversation = task.converse(facts)
    answers: list[Answer] = []
    try:
        ask = next(conversation)
        while True:
            rid = request_id(task, endpoint.model, facts, ask, answers, endpoint.extra_body)
            known = reader.get(rid)
            if known is None:
                return OpenRequest(rid, ask)
            answers.append(Answer(OutcomeKind(known.kind), known.text))
            ask = conversation.send(answers[-1])
    except (StopIteration, Ended):
        return None
    finally:
        conversation.close()


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
