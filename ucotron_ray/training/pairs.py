"""Preference rows → token ids of two answers to one prompt. The prompt is the server's wherever the row allows it."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.hyperparameters import DpoSettings
from ucotron_ray.data.records import Entity, Message, ModelRow, PreferenceRow, Relation
from ucotron_ray.data.wire import chat_messages, format_answer, parse_answer, parse_prompt
from ucotron_ray.training.data import Example, example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE = re.compile(r"\AExtract (?:entities and )?relations from: (?P<text>.+)\Z", re.DOTALL)


@dataclass(frozen=True)
class Pair:
    """Two examples that begin with the same prompt."""

    chosen: Example
    rejected: Example


def model_pair(row: PreferenceRow) -> tuple[ModelRow, ModelRow, str]:
    """Both answers as the model sees them, and how the prompt was read.

    `server`: it is the server's prompt. `rendered`: a sentence whose entities the row's ground truth knows, put into
    the server's prompt, the answers rewritten as its array. `as_is`: the string becomes the user's turn.
    """
    if row.turns:
        return *_rows(row.turns, row.chosen, row.rejected), "as_is"
    asked = parse_prompt(row.prompt)
    if asked is not None:
        return *_rows(_messages(*asked), row.chosen, row.rejected), "server"
    sentence = _SENTENCE.match(row.prompt)
    entities = _known_entities(row.ground_truth)
    if sentence and entities:
        messages = _messages(sentence["text"], entities)
        return *_rows(messages, _as_array(row.chosen), _as_array(row.rejected)), "rendered"
    return *_rows([Message(role="user", content=row.prompt)], row.chosen, row.rejected), "as_is"


def pairs(
    rows: Sequence[PreferenceRow],
    tokenizer: "PreTrainedTokenizerBase",
    settings: DpoSettings,
    *,
    needed: bool = True,
) -> tuple[list[Pair], dict[str, int]]:
    """All pairs tokenized, and counts. A pair with an answer beyond the context, or with two equal answers, is dropped.

    With `max_longer_share` so many of the pairs whose chosen answer is the longer one are dropped too that «the longer
    one is better» is right no more often than that: else a model can learn lengths. Raises InputError if none is left
    and they are `needed`.
    """
    counts: Counter[str] = Counter()
    kept = []
    for row in rows:
        chosen_row, rejected_row, how = model_pair(row)
        pair = Pair(example(chosen_row, tokenizer), example(rejected_row, tokenizer))
        longest = max(len(pair.chosen.input_ids), len(pair.rejected.input_ids))
        if pair.chosen.input_ids == pair.rejected.input_ids:
            counts["equal"] += 1
        elif longest > settings.max_context_length:
            counts["too_long"] += 1
        else:
            counts[how] += 1
            kept.append(pair)
    kept, counts["for_balance"] = _balanced(kept, settings)
    if not kept and not needed:
        return [], dict(counts)
    if not kept:
        balanced = bool(counts["for_balance"])
        raise InputError(
            "no preference pair can be trained on",
            where=f"training.dpo.<tier>.{'max_longer_share' if balanced else 'max_context_length'}",
            expected="pairs whose chosen answer is not always the longer one"
            if balanced
            else "pairs of two different answers that fit into the context",
            found=", ".join(f"{number} {name}" for name, number in counts.items()) or "no rows",
        )
    counts["rows"] = len(kept)
    counts["longest"] = max(max(len(pair.chosen.input_ids), len(pair.rejected.input_ids)) for pair in kept)
    counts["tokens"] = sum(len(pair.chosen.input_ids) + len(pair.rejected.input_ids) for pair in kept)
    counts["chosen_longer"] = sum(map(_chosen_longer, kept))
    return kept, dict(counts)


def _chosen_longer(pair: Pair) -> bool:
    return len(pair.chosen.input_ids) > len(pair.rejected.input_ids)


def _balanced(kept: list[Pair], settings: DpoSettings) -> tuple[list[Pair], int]:
    """The pairs without the surplus of longer chosen answers, in their order, and how many were dropped."""
    share = settings.max_longer_share
    longer = [index for index, pair in enumerate(kept) if _chosen_longer(pair)]
    if share is None or share == 1:
        return kept, 0
    allowed = math.floor(share / (1 - share) * (len(kept) - len(longer)) + 1e-9)
    surplus = set(random.Random(settings.seed).sample(longer, max(0, len(longer) - allowed)))
    return [pair for index, pair in enumerate(kept) if index not in surplus], len(surplus)


def _messages(text: str, entities: Sequence[Entity]) -> list[Message]:
    return [Message.model_validate(message) for message in chat_messages(text, entities)]


def _rows(prompt: list[Message], chosen: str, rejected: str) -> tuple[ModelRow, ModelRow]:
    return (
        ModelRow(layout="chat", prompt=prompt, completion=chosen),
        ModelRow(layout="chat", prompt=prompt, completion=rejected),
    )


def _known_entities(ground_truth: str | None) -> list[Entity]:
    try:
        found = json.loads(ground_truth or "{}").get("entities") or []
        return [
            Entity(text=entry["text"], label=entry.get("label") or entry.get("type") or "concept") for entry in found
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _as_array(answer: str) -> str:
    """An answer with entities and relations as the server's array; anything else as it is."""
    try:
        value: Any = json.loads(answer)
        relations = [
            Relation(
                subject=entry["subject"], predicate=entry.get("predicate") or entry["relation"], object=entry["object"]
            )
            for entry in value["relations"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        parsed = parse_answer(answer)
        return answer if parsed is None else format_answer(parsed)
    return format_answer(relations)
