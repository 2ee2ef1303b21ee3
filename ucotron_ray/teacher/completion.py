"""What stands in a chat completion: its text, without what was thought aloud, what it used, or an error.

The only place where answers are read: of a server, of a stream, and of a batch's results.
"""

import json
from collections.abc import Mapping
from typing import Any

from ucotron_ray.teacher.failures import error_in, kind_of_error
from ucotron_ray.teacher.lengths import estimate_tokens, prompt_tokens
from ucotron_ray.teacher.outcome import OutcomeKind, RequestOutcome, Usage
from ucotron_ray.teacher.thinking import ALL_THOUGHT, without_thinking

DETAIL_CHARACTERS = 300

_TEXT_PARTS = ("text", "output_text")
_THINKING_PARTS = ("thinking", "reasoning", "reasoning_content", "redacted_thinking")
_THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""DeepSeek, vLLM and SGLang; OpenRouter, Ollama and newer vLLM; Ollama's own interface."""


def read_completion(message: object, body: Mapping[str, Any]) -> RequestOutcome:
    """The outcome in the parsed JSON of a 200; `body` is the request."""
    error = error_in(message)
    if error is not None:
        kind, maybe_billed, words = kind_of_error(error, str(body.get("model")))
        detail = f"an error in a 200: {' '.join(words.split())}"[:DETAIL_CHARACTERS]
        return RequestOutcome(kind, maybe_billed=maybe_billed, status=200, detail=detail)
    try:
        choice = message["choices"][0]  # type: ignore[index]  # checked by the except
        said, thought, refused = _parts(choice["message"].get("content"))
        apart = next(filter(None, (choice["message"].get(name) for name in _THINKING_FIELDS)), "")
        finish = choice.get("finish_reason")
        refusal = choice["message"].get("refusal") or refused
        # Half of a surrogate pair is no text, and could not be written down.
        text, aloud = without_thinking(said.encode("utf-8", "replace").decode("utf-8"))
        hidden = f"{apart if isinstance(apart, str) else ''}{thought}{aloud}"
        usage = _usage(message, body, text, hidden)
    except (KeyError, IndexError, TypeError, AttributeError):
        detail = "a body without choices[0].message"
        return RequestOutcome(OutcomeKind.TRANSIENT, maybe_billed=True, status=200, detail=detail)
    kind, detail = _judged(text, finish, refusal, has_thought=bool(hidden or usage.hidden))
    broke_off = kind is OutcomeKind.TRANSIENT
    said = "" if broke_off else text
    return RequestOutcome(
        kind, text=said, finish=finish, usage=usage, status=200, maybe_billed=broke_off, detail=detail
    )


def join_stream(stream: str) -> dict[str, Any]:
    """The chat completion that a server-sent event stream adds up to; some servers stream whatever is asked.

    Raises ValueError for a stream that breaks off.
    """
    said: list[str] = []
    thought: list[str] = []
    finish: str | None = None
    usage: Any = None
    is_done = False
    # Not splitlines: it also splits at characters that may stand inside of a JSON string.
    for line in stream.split("\n"):
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            continue
        if data == "[DONE]":
            is_done = True
            continue
        event = json.loads(data)
        error = error_in(event)
        if error is not None:
            return {"error": error}
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            text, thinking, _ = _parts(delta.get("content"))
            said.append(text)
            thought += [thinking, next(filter(None, (delta.get(name) for name in _THINKING_FIELDS)), "")]
            finish = choice.get("finish_reason") or finish
    if finish is None and not is_done:
        raise ValueError("the stream ended before the answer did")
    message = {"content": "".join(said), "reasoning_content": "".join(thought)}
    return {"choices": [{"message": message, "finish_reason": finish or "stop"}], "usage": usage}


def _judged(text: str, finish: str | None, refusal: object, *, has_thought: bool) -> tuple[OutcomeKind, str]:
    """What kind of answer it is, and why it is no whole one."""
    is_empty = not text.strip()
    if finish == "length":
        return OutcomeKind.TRUNCATED, ALL_THOUGHT if is_empty and has_thought else finish
    if finish == "error":
        return OutcomeKind.TRANSIENT, "the server broke the answer off (finish_reason: error)"
    if refusal or finish == "content_filter":
        return OutcomeKind.REFUSED, str(refusal or finish)[:DETAIL_CHARACTERS]
    if is_empty:
        return OutcomeKind.REFUSED, "it thought, and said nothing" if has_thought else finish or "an empty answer"
    return OutcomeKind.ANSWER, ""


def _parts(content: object) -> tuple[str, str, str | None]:
    """Text, thinking and refusal in a message's content: a text, or a list of parts. Raises TypeError for others."""
    if content is None or isinstance(content, str):
        return content or "", "", None
    if not isinstance(content, list):
        raise TypeError("neither text nor parts")
    said: list[str] = []
    thought: list[str] = []
    refusal: str | None = None
    for part in content:
        kind = part.get("type", "text")
        if kind in _TEXT_PARTS:
            said.append(part["text"])
        elif kind in _THINKING_PARTS:
            thought.append(_text_in(part))
        elif kind == "refusal":
            refusal = part["refusal"]
        else:
            raise TypeError(f"a part that is no text: {kind}")
    return "".join(said), "".join(thought), refusal


def _text_in(part: object) -> str:
    """All text in a part of thinking, however it is nested (Mistral: {"thinking": [{"type": "text", "text": …}]})."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(map(_text_in, part))
    if isinstance(part, dict):
        return "".join(_text_in(value) for key, value in part.items() if key in (*_THINKING_PARTS, "text"))
    return ""


def _usage(message: Any, body: Mapping[str, Any], text: str, thought: str) -> Usage:
    usage = message.get("usage") or {}
    thinking = estimate_tokens(thought) if thought else 0
    try:
        details = usage.get("prompt_tokens_details") or {}
        prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        told = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens")
        hidden = min(thinking, completion) if told is None else int(told)
        if told and int(usage.get("total_tokens") or 0) >= prompt + completion + hidden:
            # xAI counts what was thought beside the answer, others inside of it
            # (docs.x.ai/docs/key-information/consumption-and-rate-limits).
            completion += hidden
        return Usage(prompt, int(details.get("cached_tokens") or 0), completion, hidden)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Usage(prompt_tokens(body), 0, estimate_tokens(text) + thinking, thinking, estimated=True)
