"""Training rows → token ids and labels. The loss sees the answer only."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.hyperparameters import SftSettings
from ucotron_ray.data.jsonl import TrainingRow
from ucotron_ray.data.records import ChatRow, Message, ModelRow, RawRow
from ucotron_ray.data.wire import relations_of_chat
from ucotron_ray.models.prompts import prompt_ids, server_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a position that has no part in the loss (PyTorch's cross entropy)."""


@dataclass(frozen=True)
class Example:
    """One row as the model sees it. Labels are IGNORED on the whole prompt."""

    input_ids: list[int]
    labels: list[int]


def model_rows(rows: Sequence[TrainingRow], *, raw_share: float, seed: int) -> tuple[list[ModelRow], dict[str, int]]:
    """Every row in the server's prompt, a share of them without chat template, and how many there are of each.

    A chat row whose prompt or answer is in a foreign layout trains as it is, with an example for each of its answers,
    behind all that was said before it. Which rows train raw is drawn per text, so that adding rows does not change the
    others.
    """
    counts: Counter[str] = Counter()
    made = []
    for row in rows:
        relation_row = row if isinstance(row, RawRow) else relations_of_chat(row)
        if relation_row is None:
            assert isinstance(row, ChatRow)
            turns = [Message(role=turn.role, content=turn.content) for turn in row.messages]
            made += [ModelRow(layout="chat", prompt=turns[:n], completion=turns[n].content) for n in row.trained()]
            counts["as_is"] += len(row.trained())
            continue
        layout = "raw" if random.Random(f"{seed}/{relation_row.text}").random() < raw_share else "chat"
        counts[layout] += 1
        made.append(server_row(relation_row, layout))
    return made, dict(counts)


def example(row: ModelRow, tokenizer: "PreTrainedTokenizerBase") -> Example:
    """Prompt, answer, end token; labels on the answer and the end token only."""
    prompt = prompt_ids(row, tokenizer)
    answer = [*tokenizer.encode(row.completion, add_special_tokens=False), tokenizer.eos_token_id]
    return Example([*prompt, *answer], [IGNORED] * len(prompt) + answer)


def examples(
    rows: Sequence[TrainingRow], tokenizer: "PreTrainedTokenizerBase", settings: SftSettings
) -> tuple[list[Example], dict[str, int]]:
    """All rows tokenized, and counts of rows and tokens. A row longer than the context is dropped and counted.

    Raises InputError if no row is left: cutting would take the answer away, which is what there is to learn.
    """
    made, counts = model_rows(rows, raw_share=settings.raw_share, seed=settings.seed)
    every = [example(row, tokenizer) for row in made]
    kept = [entry for entry in every if len(entry.input_ids) <= settings.max_context_length]
    if not kept:
        shortest = min((len(entry.input_ids) for entry in every), default=0)
        raise InputError(
            "no row fits into the context",
            where="training.sft.<tier>.max_context_length",
            expected=f"at least {shortest} tokens, the length of the shortest row",
            found=str(settings.max_context_length),
            next_step="raise max_context_length, or lower graph.max_text_length",
        )
    counts |= {
        "rows": len(kept),
        "too_long": len(every) - len(kept),
        "tokens": sum(len(entry.input_ids) for entry in kept),
        "label_tokens": sum(sum(label != IGNORED for label in entry.labels) for entry in kept),
        "longest": max(len(entry.input_ids) for entry in kept),
    }
    return kept, counts


def epoch_order(lengths: Sequence[int], *, global_batch: int, seed: int, epoch: int) -> list[int]:
    """Row indices of one epoch: shuffled, then rows of similar length put into the same global batch.

    It depends on the recipe alone, so that any number of workers sees the same batches. The last batch is filled up
    with rows from the beginning of the order.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order += [order[index % len(order)] for index in range(-len(order) % global_batch)]
    # Sorting within 16 batches, not over all rows, keeps an epoch's order random while padding nearly vanishes.
    window = global_batch * 16
    batches = []
    for start in range(0, len(order), window):
        block = sorted(order[start : start + window], key=lambda index: (-lengths[index], index))
        batches += [block[at : at + global_batch] for at in range(0, len(block), global_batch)]
    rng.shuffle(batches)
    return [index for batch in batches for index in batch]
