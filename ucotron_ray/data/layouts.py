"""Rows in other tools' layouts → this application's own: one reader a layout, by the name that `--format` takes.

A layout is detected where its keys belong to no other. Nothing is guessed: what does not fit is refused in words.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ucotron_ray.data import conversations, triples
from ucotron_ray.data.conversations import NotUsable
from ucotron_ray.data.wire import parse_prompt

Fields = dict[str, Any]


def without_nulls(value: Any) -> Any:
    """A JSON value with null read as absent, at every depth of its objects."""
    if isinstance(value, dict):
        # What a generator noted is no part of the row.
        return {
            key: inner if key == "metadata" else without_nulls(inner)
            for key, inner in value.items()
            if inner is not None
        }
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def layout_of(value: Fields) -> str | None:
    """The foreign layout of an object; None for the application's own rows and for unknown ones."""
    if "messages" in value or "expected_relations" in value:
        return None
    return next((name for name, (fits, _, _) in LAYOUTS.items() if fits(value)), None)


def as_own(value: Fields, name: str | None = None) -> tuple[Fields, str, frozenset[str]]:
    """The object as this application's own row, its layout, and what was honoured that was once dropped.

    `name`: the layout that it must be. Raises NotUsable.
    """
    value = without_nulls(value)
    if "system_prompt" in value and "system" not in value and "text" not in value:
        value["system"] = value.pop("system_prompt")
    layout = layout_of(value) if name is None else name
    honoured = set()
    if layout not in (None, OWN):
        fits, read, keys = LAYOUTS[layout]
        if not fits(value):
            raise NotUsable(
                f"no row of the layout {layout}: it has {keys}, and here are the keys {', '.join(list(value)[:8])}"
            )
        conversations.check_row_keys(value, has_turns="text" not in value)
        made = read(value)
    else:
        made = _own(value)
        if made.get("messages") != value.get("messages") and value.get("system"):
            honoured.add("system")
        if "turns" in made and "turns" not in value:
            honoured.add("system")
    if "messages" in made:
        answers = [turn for turn in made["messages"] if turn.get("role") == "assistant"]
        honoured |= {"weight"} if any(turn.get("weight") == 0 for turn in answers) else set()
        honoured |= {"weight"} if layout in (None, OWN) and len(made["messages"]) < len(value["messages"]) else set()
        honoured |= {"turns"} if sum(map(conversations.is_trained, made["messages"])) > 1 else set()
    return made, layout or OWN, frozenset(honoured)


def _own(value: Fields) -> Fields:
    """A row of the application's own kinds: keys that change its meaning are honoured or refused."""
    if "messages" in value and "expected_relations" not in value:
        conversations.check_row_keys(value, has_turns=True)
        rest = {key: inner for key, inner in value.items() if key not in ("system", *conversations.TRAINS)}
        return {**rest, "messages": conversations.turns(value["messages"], system=value.get("system"))}
    if "chosen" in value:
        conversations.check_row_keys(value, has_turns=True)
        if value.get("system") and isinstance(value.get("prompt"), str):
            return _preference(
                value, [{"role": "user", "content": value["prompt"]}], value["chosen"], value["rejected"]
            )
    elif "expected_relations" in value or ("relations" in value and "text" in value):
        conversations.check_row_keys(value, has_turns=False)
    return value


def _sharegpt(value: Fields) -> Fields:
    return {"messages": conversations.turns(value["conversations"], system=value.get("system"), at="conversations")}


def _prompt_completion(value: Fields) -> Fields:
    asked = _turns_of(value["prompt"], "user", "prompt")
    answers = _turns_of(value["completion"], "assistant", "completion")
    given = conversations.turns(asked, system=value.get("system"), at="prompt")
    # What stands in the prompt is given, answers too.
    return {"messages": [*conversations.untrained(given), *conversations.turns(answers, at="completion")]}


def _chosen_rejected(value: Fields) -> Fields:
    chosen, rejected = (_turns_of(value[key], "assistant", key) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise NotUsable("chosen and rejected part before their last turns: one answer to one conversation is compared")
    common = chosen[:-1]
    # `messages` may be the conversation with its answer: they are the prompt where nothing else is.
    names = ("prompt", "conversations", *(() if common else ("messages",)))
    key = next((key for key in names if key in value), None)
    asked = _turns_of(value[key], "user", key) if key else []
    if asked and common and common != asked:
        raise NotUsable("chosen: turns before the answer that are not those of the prompt")
    return _preference(value, asked or common, chosen[-1], rejected[-1])


def _vendor_pair(value: Fields) -> Fields:
    given = value["input"]
    asked = given.get("messages") if isinstance(given, dict) else None
    if isinstance(given, dict):
        conversations.refuse_tools(given, "input")
    answers = []
    for key in ("preferred_output", "non_preferred_output"):
        made = _turns_of(value[key], "assistant", key)
        if len(made) != 1:
            raise NotUsable(f"{key}: {len(made)} turns, and an answer is one")
        answers.append(made[0])
    return _preference(value, asked, *answers)


def _preference(value: Fields, asked: object, chosen: Any, rejected: Any) -> Fields:
    """A pair of answers. A prompt that is more than one user's turn is kept as `turns`, but for the server's own."""
    given = conversations.turns(asked, system=value.get("system"), at="prompt")
    answers = []
    for key, answer in (("chosen", chosen), ("rejected", rejected)):
        turn = conversations.turns([answer], at=key)[0] if isinstance(answer, dict) else None
        if turn is not None and turn["role"] != "assistant":
            raise NotUsable(f"{key}: its last turn is the {turn['role']}'s, and an answer is the assistant's")
        answers.append(turn["content"] if turn else answer)
    users = [turn["content"] for turn in given if turn["role"] == "user"]
    if not users or given[-1]["role"] != "user":
        raise NotUsable("prompt: its last turn is not the user's")
    row = {"prompt": "\n".join(users), "chosen": answers[0], "rejected": answers[1]}
    if "ground_truth" in value:
        row["ground_truth"] = value["ground_truth"]
    if len(given) > 1 and not (len(users) == 1 and parse_prompt(users[0])):
        row["turns"] = [{"role": turn["role"], "content": turn["content"]} for turn in given]
    return row


def _turns_of(value: Any, role: str, at: str) -> list[Any]:
    """Turns, or one of a text's own."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        raise NotUsable(f"{at}: a text, or a list of turns")
    return turns


def _turns(value: Mapping[str, Any], key: str) -> bool:
    found = value.get(key)
    return isinstance(found, list) and bool(found) and all(isinstance(turn, dict) for turn in found)


def _is_sharegpt(value: Fields) -> bool:
    return _turns(value, "conversations")


def _is_prompt_completion(value: Fields) -> bool:
    return "prompt" in value and "completion" in value


def _is_chosen_rejected(value: Fields) -> bool:
    if "chosen" not in value or "rejected" not in value:
        return False
    return isinstance(value["chosen"], dict) or any(_turns(value, key) for key in ("prompt", "chosen", "conversations"))


def _is_vendor_pair(value: Fields) -> bool:
    return "input" in value and "preferred_output" in value and "non_preferred_output" in value


OWN = "own"

LAYOUTS: dict[str, tuple[Callable[[Fields], bool], Callable[[Fields], Fields], str]] = {
    "prompt-completion": (_is_prompt_completion, _prompt_completion, '"prompt" and "completion"'),
    "dpo-turns": (_is_chosen_rejected, _chosen_rejected, '"chosen" and "rejected", they or the prompt lists of turns'),
    "sharegpt": (_is_sharegpt, _sharegpt, '"conversations" with "from" and "value"'),
    "dpo-vendor": (_is_vendor_pair, _vendor_pair, '"input", "preferred_output" and "non_preferred_output"'),
    "spert": (triples.is_spert, triples.spert, '"tokens", "entities" and "relations"'),
    "triplets": (triples.is_triplets, triples.triplets, '"text" and "triplets"'),
    "head-tail": (triples.is_head_tail, triples.head_tail, '"text", "entities", "relations" of "head", "type", "tail"'),
    "triple-columns": (triples.is_columns, triples.columns, '"text", "subject", "predicate", "object", one a line'),
}
"""Of every layout of single objects whether an object is of it, how it is read, and what it has, for messages.

In the order in which they are tried. A reader raises NotUsable.
"""

NAMES = (OWN, *LAYOUTS, "conll04")
"""What `--format` takes (`core/flags.py` lists them too). `conll04` is no JSON: `conll.py` reads it."""

GROUPED = "triple-columns"
"""The layout whose rows with one text are one row."""
