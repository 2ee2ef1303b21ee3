"""A SIMULATOR of Fireworks.ai on loopback: it speaks the vendor's HTTP for chat, models and embeddings. It is no model.

Datasets, jobs and deployments are in `simulator_datasets.py` and `simulator_jobs.py`.

Answers come from sentence patterns (`simulator_language.py`) and depend on the request alone, so runs repeat. Faults
and limits are there on demand, and a ledger of every request received: the judge of what was paid twice.
"""

import asyncio
import hashlib
import json
import math
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

from ucotron_ray.simulators import fireworks_defects as defects
from ucotron_ray.simulators import fireworks_language as language
from ucotron_ray.simulators.fireworks_answers import answer_to, embed, spoiled
from ucotron_ray.simulators.fireworks_control import ControlPlane
from ucotron_ray.simulators.fireworks_datasets import add_dataset_routes
from ucotron_ray.simulators.fireworks_jobs import add_job_routes, garbage_of
from ucotron_ray.simulators.fireworks_limits import Limiter
from ucotron_ray.simulators.fireworks_profiles import PROFILES, middleware
from ucotron_ray.simulators.fireworks_settings import STAND_IN, Settings

HANG_SECONDS = 3600.0

_BODIES = {
    "400": (400, {"error": {"message": "bad request", "code": "INVALID_REQUEST"}}),
    "401": (401, {"error": {"message": "unauthorized"}}),
    "402": (402, {"error": {"message": "the account's budget is spent"}}),
    "403": (403, {"error": {"message": "flagged input"}}),
    "404": (404, {"error": {"message": "Model not found, inaccessible, and/or not deployed", "code": "NOT_FOUND"}}),
    "429": (429, {"error": {"message": "rate limit", "type": "invalid_request_error"}}),
    "500": (500, {"error": {"message": "internal error"}}),
    "503": (503, {"error": {"message": "Service Overloaded"}}),
    "529": (529, {"error": {"message": "overloaded"}}),
}


class Ledger:
    """Every request that came in and what became of it, in memory and as JSONL."""

    def __init__(self, path: Path | None) -> None:
        self.statuses: Counter[str] = Counter()
        self.received = 0
        self.first = self.last_answer = 0.0
        self.generated = 0
        self.answered: Counter[str] = Counter()
        self.planted: dict[str, str] = {}
        self.in_flight = self.most_in_flight = 0
        self._file: TextIO | None = path.open("a", buffering=1, encoding="utf-8") if path else None

    def came(self, digest: str) -> None:
        """A request was read."""
        now = time.monotonic()
        self.received += 1
        self.first = self.first or now
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._write({"event": "in", "request": digest, "at": round(now, 4)})

    def plants(self, digest: str, defect: str) -> None:
        """The answer to it has a defect."""
        self.planted[digest] = defect
        self._write({"event": "planted", "request": digest, "defect": defect})

    def went(self, digest: str, status: str, tokens: int) -> None:
        """It was answered, or whatever became of it."""
        self.in_flight -= 1
        self.statuses[status] += 1
        if status == "200":
            self.last_answer = time.monotonic()
            self.generated += tokens
            self.answered[digest] += 1
        self._write({"event": "out", "request": digest, "status": status, "tokens": tokens, "at": time.monotonic()})

    def summary(self) -> dict[str, Any]:
        """The figures of `GET /simulator/ledger`."""
        return {
            "stand_in": STAND_IN,
            "received": self.received,
            "statuses": dict(self.statuses),
            "answered_twice": sum(count - 1 for count in self.answered.values() if count > 1),
            "distinct_answered": len(self.answered),
            "planted": dict(Counter(self.planted.values())),
            "generated_tokens": self.generated,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
            "seconds": max(0.0, self.last_answer - self.first),
        }

    def _write(self, event: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(event) + "\n")


def make_app(settings: Settings) -> web.Application:
    """The application. Its ledger is at `GET /simulator/ledger`."""
    ledger, limiter = Ledger(settings.ledger), Limiter(settings)
    plane = ControlPlane(settings.control, settings.api_key)
    attempts: Counter[str] = Counter()

    async def chat(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        digest = hashlib.blake2b(raw, digest_size=12).hexdigest()
        ledger.came(digest)
        attempts[digest] += 1
        status, tokens = "gone", 0
        try:
            response, tokens = await _respond(request, raw, digest, attempts[digest], settings, limiter, ledger, plane)
            status = str(response.status)
            return response
        except _CutOffError:
            status = "cut off"
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        finally:
            ledger.went(digest, status, tokens)

    async def models(request: web.Request) -> web.Response:
        if not _may_enter(request, settings):
            return web.json_response(_BODIES["401"][1], status=401)
        entries = [{"id": name, "object": "model", "owned_by": STAND_IN} for name in settings.models]
        return web.json_response({"object": "list", "data": entries})

    async def embeddings(request: web.Request) -> web.Response:
        if not _may_enter(request, settings):
            return web.json_response(_BODIES["401"][1], status=401)
        body = await request.json()
        texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
        rows = [{"object": "embedding", "index": i, "embedding": embed(text)} for i, text in enumerate(texts)]
        used = sum(len(text) // 4 + 1 for text in texts)
        usage = {"prompt_tokens": used, "total_tokens": used}
        return web.json_response({"object": "list", "data": rows, "model": body.get("model"), "usage": usage})

    async def show_ledger(_: web.Request) -> web.Response:
        return web.json_response({**ledger.summary(), "allowed_tokens": limiter.allowed_tokens})

    profile = settings.profile
    middlewares = [middleware(profile)] if profile else []
    application = web.Application(client_max_size=50 * 1024**2, middlewares=middlewares)
    path = PROFILES[profile].path if profile else None
    for prefix in ("/inference/v1", "/v1", *([path] if path else [])):
        application.router.add_post(f"{prefix}/chat/completions", chat)
        application.router.add_get(f"{prefix}/models", models)
        application.router.add_post(f"{prefix}/embeddings", embeddings)
    application.router.add_get("/simulator/ledger", show_ledger)
    mount_control_plane(application, plane, settings)
    return application


def mount_control_plane(application: web.Application, plane: ControlPlane, settings: Settings) -> None:
    """Datasets, jobs, models and deployments; what came in is at `GET /simulator/control`."""

    def complete(body: dict[str, Any]) -> dict[str, Any]:
        digest = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=12).hexdigest()
        rng = random.Random(f"{settings.seed}/{digest}")
        return _completion(body, spoiled(answer_to(body, rng).answer, rng, settings.garbage), None, rng, settings)[0]

    async def show(_: web.Request) -> web.Response:
        return web.json_response(plane.summary())

    async def close(_: web.Application) -> None:
        plane.close()

    add_dataset_routes(application, plane)
    add_job_routes(application, plane, complete)
    application.router.add_get("/simulator/control", show)
    application.on_cleanup.append(close)


def serve(settings: Settings, *, port: int, command: list[str] | None = None) -> int:
    """Serve on loopback until stopped, or for the time of a command, whose exit code is returned.

    `{url}` in the command becomes the address. Prints one line when it is ready.
    """
    return asyncio.run(_serve(settings, port, command))


class _CutOffError(Exception):
    """The connection is to be reset."""


async def _serve(settings: Settings, port: int, command: list[str] | None) -> int:
    runner = web.AppRunner(make_app(settings), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4096)
    await site.start()
    assert runner.addresses
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    print(f"{STAND_IN}; listening on {url}", file=sys.stderr if command else sys.stdout, flush=True)
    try:
        if command is None:
            await asyncio.Event().wait()
            return 0
        process = await asyncio.create_subprocess_exec(*(part.replace("{url}", url) for part in command))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
    finally:
        await runner.cleanup()


async def _respond(
    request: web.Request,
    raw: bytes,
    digest: str,
    attempt: int,
    settings: Settings,
    limiter: Limiter,
    ledger: Ledger,
    plane: ControlPlane,
) -> tuple[web.StreamResponse, int]:
    headers = limiter.headers()
    if not _may_enter(request, settings):
        return web.json_response(_BODIES["401"][1], status=401, headers=headers), 0
    try:
        body = json.loads(raw)
        model, messages = body["model"], body["messages"]
    except (ValueError, KeyError, TypeError):
        return web.json_response(_BODIES["400"][1], status=400, headers=headers), 0
    garbage = settings.garbage if model in settings.models else garbage_of(plane, model, settings.garbage)
    if garbage is None:
        return web.json_response(_BODIES["404"][1], status=404, headers=headers), 0
    settings = replace(settings, garbage=garbage)
    refused = sorted(set(body) & set(settings.refused_keys))
    if refused or not messages:
        return web.json_response({"detail": f"Unexpected keys in the request: {refused}"}, status=422), 0
    fault = _fault(settings, digest, attempt)
    if not limiter.admits():
        fault = "429"
    if fault == "429-retry-after":
        headers["Retry-After"], fault = settings.retry_after, "429"
    if fault in _BODIES:
        status, payload = _BODIES[fault]
        return web.json_response(payload, status=status, headers=headers), 0
    rng = random.Random(f"{settings.seed}/{digest}")
    await asyncio.sleep(HANG_SECONDS if fault == "hang" else _latency(settings, rng))
    if fault == "reset":
        raise _CutOffError
    asked = answer_to(body, rng)
    planted = defects.chosen(settings.plant, asked, f"{settings.seed}/{digest}")
    if planted is not None:
        ledger.plants(digest, planted[0])
    answer = planted[1] if planted else spoiled(asked.answer, rng, settings.garbage)
    message, tokens = _completion(body, answer, fault, rng, settings)
    limiter.generated(tokens)
    headers |= limiter.headers()
    if fault == "half":
        await _half(request, json.dumps(message).encode())
        raise _CutOffError
    return web.json_response(message, headers=headers), tokens


def _completion(
    body: dict[str, Any], answer: str, fault: str | None, rng: random.Random, settings: Settings
) -> tuple[dict[str, Any], int]:
    """The vendor's chat completion, and how many tokens it counts as generated."""
    finish = "stop"
    if fault == "malformed":
        answer = language.garbled(answer, rng)
    if fault == "refusal":
        answer, finish = "", "content_filter"
    tokens = len(answer) // 4 + 1
    if settings.completion_tokens is not None:
        tokens = max(1, round(rng.lognormvariate(math.log(settings.completion_tokens) - 0.125, 0.5)))
    limit = int(body.get("max_tokens") or 2048)
    if fault == "length" or (tokens > limit and settings.completion_tokens is None):
        answer, tokens, finish = answer[: min(limit * 4, len(answer) // 2)], min(limit, tokens), "length"
    prompt = sum(len(str(m.get("content"))) // 4 + 4 for m in body["messages"])
    return {
        "id": f"chatcmpl-{rng.getrandbits(64):016x}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens},
    }, tokens


async def _half(request: web.Request, payload: bytes) -> None:
    """Half of what Content-Length promises."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(payload))})
    await response.prepare(request)
    await response.write(payload[: len(payload) // 2])


def _fault(settings: Settings, digest: str, attempt: int) -> str | None:
    for name, share in settings.faults.items():
        draw = random.Random(f"{settings.seed}/{name}/{digest}/{0 if name in settings.sticky else attempt}").random()
        if draw < share:
            return name
    return None


def _latency(settings: Settings, rng: random.Random) -> float:
    if settings.latency_p99 is None or settings.latency <= 0:
        return settings.latency
    # 2.326 standard deviations above the median of a normal distribution lie its 99 %.
    sigma = math.log(settings.latency_p99 / settings.latency) / 2.326
    return rng.lognormvariate(math.log(settings.latency), sigma)


def _may_enter(request: web.Request, settings: Settings) -> bool:
    return settings.api_key is None or request.headers.get("Authorization") == f"Bearer {settings.api_key}"
