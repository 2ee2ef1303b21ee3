"""Other servers' habits over the simulator's answers: what they refuse, and the form in which they answer.

Each imitates what the server's documentation or its users' reports say; none of them is the server.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

Body = dict[str, Any]
Refusal = tuple[int, dict[str, Any]]

THOUGHT = "The user wants it short. Something like {} would do. "
HIDDEN_TOKENS = 700
BUSY_EVERY = 40
AZURE_VERSION = "2024-10-21"


@dataclass(frozen=True)
class Profile:
    """A kind of server. `path` is where it has its interface, beside those of the simulator."""

    answers: Callable[[Body, Body], Body | str] = lambda _, message: message
    """Request and the simulator's completion → what this server sends; a text is an event stream."""
    refuses: Callable[[Body, web.Request], Refusal | None] = lambda *_: None
    is_busy: Callable[[int, int], bool] = lambda *_: False
    """Number of the request, and of the attempt → whether it says so, in a 200."""
    path: str | None = None


def middleware(name: str) -> Middleware:
    """What an application of the simulator needs to behave like the server of this name."""
    profile = PROFILES[name]
    attempts: Counter[bytes] = Counter()

    @web.middleware
    async def imitate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.endswith("/chat/completions"):
            return await handler(request)
        raw = await request.read()
        body: Body = json.loads(raw)
        refusal = profile.refuses(body, request)
        if refusal is not None:
            return web.json_response(refusal[1], status=refusal[0])
        attempts[raw] += 1
        if profile.is_busy(len(attempts), attempts[raw]):
            return web.json_response({"choices": None, "error": {"message": "Provider is busy", "code": 429}})
        response = await handler(request)
        if response.status != 200 or not isinstance(response, web.Response) or not isinstance(response.body, bytes):
            return response
        said = profile.answers(body, json.loads(response.body))
        if isinstance(said, str):
            return web.Response(text=said, content_type="text/event-stream")
        return web.Response(text="\n \n" + json.dumps(said), content_type="application/json")

    return imitate


def _with(message: Body, changes: Mapping[str, Any], *, hidden: int | None = None) -> Body:
    """The completion with another message; `hidden` tokens of reasoning are counted in its usage."""
    (choice,) = message["choices"]
    usage = dict(message["usage"])
    if hidden is not None:
        usage["completion_tokens"] += hidden
        usage["completion_tokens_details"] = {"reasoning_tokens": hidden}
    return {**message, "choices": [{**choice, "message": {**choice["message"], **changes}}], "usage": usage}


def _text(message: Body) -> str:
    return str(message["choices"][0]["message"]["content"])


def _unsupported(body: Body, keys: Mapping[str, str]) -> Refusal | None:
    """OpenAI's words for the first of the keys that a request has."""
    key = next((key for key in keys if key in body), None)
    error = {"message": keys[key] if key else "", "type": "invalid_request_error", "param": key}
    return (400, {"error": error}) if key else None


def _openai_refuses(body: Body, _: web.Request) -> Refusal | None:
    instead = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    return _unsupported(
        body,
        {
            "context_length_exceeded_behavior": "Unrecognized request argument: context_length_exceeded_behavior",
            "max_tokens": instead,
            "temperature": "Unsupported value: 'temperature' does not support 0.7 with this model.",
            "top_p": "Unsupported parameter: 'top_p' is not supported with this model.",
        },
    )


def _openai_answers(body: Body, message: Body) -> Body:
    """Reasoning is not shown, and takes its tokens from the same budget."""
    left = int(body["max_completion_tokens"]) - HIDDEN_TOKENS
    if left < int(message["usage"]["completion_tokens"]):
        cut = _with(message, {"content": ""}, hidden=0)
        spent = int(body["max_completion_tokens"])
        usage = {"completion_tokens": spent, "completion_tokens_details": {"reasoning_tokens": spent}}
        choices = [{**cut["choices"][0], "finish_reason": "length"}]
        return {**cut, "choices": choices, "usage": {**cut["usage"], **usage}}
    return _with(message, {}, hidden=HIDDEN_TOKENS)


def _azure_refuses(body: Body, request: web.Request) -> Refusal | None:
    if request.query.get("api-version") != AZURE_VERSION:
        return 404, {"error": {"code": "404", "message": "Resource not found"}}
    if "api-key" not in request.headers:
        return 401, {"error": {"code": "401", "message": "Access denied due to missing subscription key."}}
    words = "Unrecognized request argument supplied: context_length_exceeded_behavior"
    return _unsupported(body, {"context_length_exceeded_behavior": words})


def _mistral_refuses(body: Body, _: web.Request) -> Refusal | None:
    extra = sorted(body.keys() & {"context_length_exceeded_behavior", "seed"})
    detail = [
        {"type": "extra_forbidden", "loc": ["body", key], "msg": "Extra inputs are not permitted"} for key in extra
    ]
    return (422, {"object": "error", "message": {"detail": detail}}) if extra else None


def _lm_studio_refuses(body: Body, _: web.Request) -> Refusal | None:
    is_json = body.get("response_format", {}).get("type") == "json_object"
    return (400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}) if is_json else None


def _parts(_: Body, message: Body) -> Body:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}
    return _with(message, {"content": [thinking, {"type": "text", "text": _text(message)}]})


def _stream(_: Body, message: Body) -> str:
    """Two parts with pings between them, and no finish_reason."""
    text = _text(message)
    events = [{"choices": [{"delta": {"content": part}}]} for part in (text[:20], text[20:])]
    lines = [": ping", 'event: ping\r\ndata: {"type": "ping"}', *(f"data: {json.dumps(event)}" for event in events)]
    return "\r\n\r\n".join(
        [*lines, f"data: {json.dumps({'choices': [], 'usage': message['usage']})}", "data: [DONE]", ""]
    )


def _reasoning(_: Body, message: Body) -> Body:
    return _with(message, {"reasoning": THOUGHT})


def _reasoning_content(_: Body, message: Body) -> Body:
    return _with(message, {"reasoning_content": THOUGHT}, hidden=40)


def _closed_only(_: Body, message: Body) -> Body:
    """The chat template has opened the block, so that it is no part of what the model wrote."""
    return _with(message, {"content": f"{THOUGHT}\n</think>\n\n{_text(message)}"})


def _block(_: Body, message: Body) -> Body:
    return _with(message, {"content": f"<think>{THOUGHT}</think>{_text(message)}"})


def _now_and_then(number: int, attempt: int) -> bool:
    return number % BUSY_EVERY == 0 and attempt == 1


PROFILES = {
    "openai-reasoning": Profile(_openai_answers, _openai_refuses),
    "azure": Profile(refuses=_azure_refuses, path="/openai/deployments/teacher"),
    "openrouter": Profile(_reasoning, is_busy=_now_and_then),
    "mistral": Profile(_parts, _mistral_refuses),
    "lm-studio": Profile(refuses=_lm_studio_refuses),
    "ollama": Profile(_reasoning),
    "sglang": Profile(_reasoning_content),
    "vllm-no-parser": Profile(_closed_only),
    "llama-cpp": Profile(_block),
    "streams": Profile(_stream),
}
"""Servers by name."""
