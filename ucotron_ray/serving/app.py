"""The HTTP side: who may ask, how much, how long it may take, and in which shape answers and errors go back.

Plain ASGI over whatever answers (`Answering`): on Ray that is a handle to the replicas, in tests anything.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ucotron_ray.data.wire import parse_answer
from ucotron_ray.serving import openai
from ucotron_ray.serving.exchange import Answering, Piece, Question, Refusal, internal_error
from ucotron_ray.serving.gate import Gate
from ucotron_ray.serving.metrics import Metrics

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.02
"""Between looks whether the last request has left; only while the service stops."""


@dataclass(frozen=True)
class Limits:
    """What a request may be. `key_digest` None = nobody is asked for a key."""

    slots: int
    queue: int
    deadline: float
    max_body_bytes: int
    max_tokens: int
    key_digest: str | None = None


def digest_of(key: str) -> str:
    """What the front knows of the key: enough to recognise it. The key itself stays with the process that read it."""
    return hashlib.sha256(key.encode()).hexdigest()


class Front:
    """State of one endpoint: who is inside, and the figures."""

    def __init__(self, answering: Answering, limits: Limits) -> None:
        self._answering = answering
        self._limits = limits
        self.gate = Gate(limits.slots, limits.queue, limits.deadline)
        self.metrics = Metrics(self.gate)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/healthz", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _bug})

    async def drain(self, seconds: float) -> int:
        """Take nobody in any more, and wait for those inside; return how many are left at the end of the time."""
        self.gate.draining = True
        until = time.monotonic() + seconds
        while self.gate.inside and time.monotonic() < until:
            await asyncio.sleep(IDLE_SECONDS)
        return self.gate.inside

    async def _chat(self, request: Request) -> ASGIApp:
        visit = _Visit(self, time.monotonic())
        try:
            self._authorise(request)
            asked = openai.read_request(await self._body(request))
            question = asked.question(limit=self._limits.max_tokens)
            self.gate.enter()
        except Refusal as refusal:
            visit.count(refusal.code)
            return _refused(refusal)
        visit.inside = True
        pieces = self._pieces(question, visit)
        try:
            if question.stream:
                # Until the first piece is there an error can still be said by the status.
                first = await anext(pieces)
                with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
                events = self._events(first, pieces, visit, with_usage=with_usage)
                headers = {"Cache-Control": "no-cache"}
                response = StreamingResponse(events, media_type="text/event-stream", headers=headers)
                return _Sent(response, visit, events, pieces)
            parts = [piece async for piece in pieces]
            visit.done(parts)
            return _Sent(JSONResponse(openai.Reply.new().whole(parts)), visit, pieces)
        except Refusal as refusal:
            visit.count(refusal.code)
            return _Sent(_refused(refusal), visit, pieces)
        except BaseException as error:
            visit.count("client_gone" if isinstance(error, asyncio.CancelledError) else "failed")
            visit.leave()
            raise

    async def _pieces(self, question: Question, visit: "_Visit") -> AsyncGenerator[Piece, None]:
        """The parts of an answer. Raises Refusal at the deadline, by which the asker must know."""
        until = asyncio.get_running_loop().time() + self._limits.deadline - visit.seconds()
        async with aclosing(self._answering.answer(question)) as parts:
            while True:
                try:
                    async with asyncio.timeout_at(until):
                        piece = await anext(parts)
                except StopAsyncIteration:
                    return
                except TimeoutError:
                    raise Refusal(
                        503,
                        f"no answer within {self._limits.deadline:g} s",
                        code="deadline",
                        retry_after=self.gate.retry_after(),
                    ) from None
                if not visit.first_seconds:
                    visit.first_seconds = visit.seconds()
                yield piece

    async def _events(
        self, first: Piece, rest: AsyncGenerator[Piece, None], visit: "_Visit", *, with_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        reply, pieces = openai.Reply.new(), [first]
        yield reply.chunk(first.served.model, {"role": "assistant", "content": first.text})
        try:
            async for piece in rest:
                pieces.append(piece)
                if piece.text:
                    yield reply.chunk(piece.served.model, {"content": piece.text})
        except Refusal as refusal:
            # The status is gone; clients of OpenAI's raise what an event calls `error`.
            visit.count(refusal.code)
            yield openai.event(openai.error_body(refusal))
            return
        visit.done(pieces)
        for closing in reply.closing(pieces[-1], with_usage=with_usage):
            yield closing

    async def _models(self, request: Request) -> Response:
        try:
            self._authorise(request)
            return JSONResponse(openai.models(await self._answering.served()))
        except Refusal as refusal:
            return _refused(refusal)

    async def _health(self, request: Request) -> Response:
        if self.gate.draining:
            return JSONResponse({"status": "draining", "inside": self.gate.inside}, status_code=503)
        try:
            served = await self._answering.served()
        except Refusal as refusal:
            return JSONResponse({"status": refusal.code, "inside": self.gate.inside}, status_code=503)
        return JSONResponse({"status": "ok", "model": served.model, "content": served.content})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _authorise(self, request: Request) -> None:
        if self._limits.key_digest is None:
            return
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest_of(key.strip()), self._limits.key_digest):
            raise Refusal(401, "a wrong key, or none: Authorization: Bearer <key>", code="invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        limit, body = self._limits.max_body_bytes, bytearray()
        too_large = Refusal(400, f"the body is larger than {limit} bytes", code="too_large")
        declared = request.headers.get("Content-Length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise too_large
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)


class _Visit:
    """One request on its way through: its outcome is counted once, and it leaves once, however it ends."""

    def __init__(self, front: Front, began: float) -> None:
        self._front = front
        self._began = began
        self._counted = False
        self.inside = False
        """Whether it holds a place that has to be given back."""
        self.first_seconds = 0.0

    def seconds(self) -> float:
        """Since the request came."""
        return time.monotonic() - self._began

    def done(self, pieces: list[Piece]) -> None:
        """The answer is whole."""
        last = pieces[-1]
        assert last.usage is not None
        text = "".join(piece.text for piece in pieces)
        metrics = self._front.metrics
        # As the replica says it: on the way there a request may have waited in Serve's own queue too.
        self._front.gate.measured(last.usage.running_seconds)
        metrics.answered(last.usage, last.served.model, parsed=parse_answer(text) is not None)
        metrics.seconds.observe(self.seconds())
        metrics.first_seconds.observe(self.first_seconds)
        self.count("ok")

    def count(self, outcome: str) -> None:
        """Say how it ended; the first word counts."""
        if not self._counted:
            self._counted = True
            self._front.metrics.requests.labels(outcome).inc()

    def leave(self) -> None:
        """Give the place back."""
        if self.inside:
            self.inside = False
            self._front.gate.leave()


class _Sent:
    """A response after which the visitor is out: once it is sent, or as soon as the client goes."""

    def __init__(self, response: Response, visit: _Visit, *generators: AsyncGenerator[object, None]) -> None:
        self._response = response
        self._visit = visit
        self._generators = generators

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._visit.count("client_gone")
            self._visit.leave()
            for generator in self._generators:
                await generator.aclose()


def _refused(refusal: Refusal) -> Response:
    return JSONResponse(
        openai.error_body(refusal), status_code=refusal.status, headers=dict(openai.retry_header(refusal))
    )


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _refused(Refusal(status, f"{request.method} {request.url.path} is not served here", code="unknown_url"))


async def _bug(request: Request, error: Exception) -> Response:
    log.error("serve: %s failed", request.url.path, exc_info=error)
    return _refused(internal_error())
