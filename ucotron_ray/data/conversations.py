"""Conversations as people have them → the turns of a chat row. What would change the meaning is honoured or refused.

Weights are those of OpenAI's fine-tuning files: an answer with `weight: 0` is read and not trained.
https://platform.openai.com/docs/guides/supervised-fine-tuning
"""

from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    # OpenAI's newer name of the system turn.
    "developer": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "ipython")
TOOL_KEYS = ("tools", "functions", "tool_calls", "function_call", "tool_call_id")
TRAINS = ("weight", "loss", "train", "trainable", "loss_weight")
"""Keys that say whether something is trained: 0 or 1, false or true."""


class NotUsable(ValueError):
    """An object that cannot be read as a row, in words that name its part."""


def turns(messages: object, *, system: object = None, at: str = "messages") -> list[dict[str, Any]]:
    """Turns with `role`, `content` and, on an answer that is not trained, `weight: 0`.

    Behind the last trained answer nothing is kept, where weights say that. Raises NotUsable.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise NotUsable(f"{at}: Input should be a valid list of turns")
    made = [_turn(message, f"{at}.{number}") for number, message in enumerate(messages)]
    if system is not None:
        made = _with_system(made, system, at)
    if not any("weight" in turn for turn in made):
        return made
    trained = [number for number, turn in enumerate(made) if is_trained(turn)]
    if not trained:
        raise NotUsable(f"{at}: every answer has weight 0, so there is nothing to learn; remove the row")
    return made[: trained[-1] + 1]


def is_trained(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is an answer that is trained."""
    return turn["role"] == "assistant" and turn.get("weight") != 0


def untrained(made: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same turns, read and not trained."""
    return [{**turn, "weight": 0} if turn["role"] == "assistant" else dict(turn) for turn in made]


def check_row_keys(value: Mapping[str, Any], *, has_turns: bool) -> None:
    """Raise NotUsable for keys beside the row's own that would change its meaning and cannot be honoured."""
    refuse_tools(value, "the row")
    trains = _trains(value, "the row")
    if trains is False:
        raise NotUsable("the row says that it is not to be trained; remove it")
    if has_turns and value.get("label") is False:
        raise NotUsable("label: false: the answer is one that should not be given; a pair with a better one trains DPO")
    if not has_turns and _has_text(value.get("system")):
        raise NotUsable(
            "system: a relation row gets the server's own system turn; write the row as messages to train another one"
        )


def refuse_tools(value: Mapping[str, Any], at: str) -> None:
    """Raise NotUsable for calls of tools, which no relation extractor makes."""
    for key in TOOL_KEYS:
        if value.get(key) not in (None, "", "[]", [], {}):
            raise NotUsable(f"{at}: {key}: calls of tools are not trained here; write the answer as content")


def text_of(content: object, at: str) -> str:
    """A content as text; parts of text are joined. Raises NotUsable for pictures, sounds and files."""
    if isinstance(content, str):
        return content
    if content is None:
        raise NotUsable(f"{at}: the content is absent")
    if not isinstance(content, list):
        raise NotUsable(f"{at}: Input should be a valid string, and is a {type(content).__name__}")
    parts = []
    for number, part in enumerate(content):
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or (isinstance(part, dict) and part.get("type", "text") != "text"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise NotUsable(f"{at}.{number}: only parts of text can be trained, and this is {kind}")
        parts.append(text)
    return "".join(parts)


def _turn(message: dict[str, Any], at: str) -> dict[str, Any]:
    said = str(message.get("role", message.get("from")))
    if said in TOOL_ROLES:
        raise NotUsable(f"{at}.role: {said}: calls of tools are not trained here; leave these turns out")
    refuse_tools(message, at)
    role = ROLES.get(said, said)
    turn = {"role": role, "content": text_of(message.get("content", message.get("value")), f"{at}.content")}
    trains = _trains(message, at)
    if trains and role != "assistant":
        raise NotUsable(f"{at}: {role} turns are never trained, and this one is marked as trained")
    return {**turn, "weight": 0} if trains is False and role == "assistant" else turn


def _trains(value: Mapping[str, Any], at: str) -> bool | None:
    """What the keys of TRAINS say; None where there is none."""
    said = {}
    for key in TRAINS:
        mark = value.get(key)
        # A generator's rows hold a row under `train`.
        if mark is None or isinstance(mark, dict):
            continue
        if not isinstance(mark, (bool, int, float)) or mark not in (0, 1):
            raise NotUsable(f"{at}.{key}: {mark!r}: an answer is trained whole or not at all, 1 or 0")
        said[key] = bool(mark)
    if len(set(said.values())) > 1:
        raise NotUsable(f"{at}: {', '.join(said)} contradict each other")
    return next(iter(said.values()), None)


def _with_system(made: list[dict[str, Any]], system: object, at: str) -> list[dict[str, Any]]:
    text = text_of(system, "system")
    if not text.strip():
        return made
    first = next((turn for turn in made if turn["role"] == "system"), None)
    if first is None:
        return [{"role": "system", "content": text}, *made]
    if first["content"] != text:
        raise NotUsable(f"system: another text than the system turn in {at}; keep one of them")
    return made


def _has_text(value: object) -> bool:
    return value is not None and value != ""
