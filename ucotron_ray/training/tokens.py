"""Tokenized rows as files, made once for all workers, attempts and trials on the same rows and model.

    train.safetensors, val.safetensors    the ids of all rows behind one another; tokens and labels of each
    counts.json                           what was kept, what was dropped, and how many tokens there are

A row's labels are its last tokens, so that their number says which they are. Nothing is pickled.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ucotron_ray.core.files import write_json
from ucotron_ray.core.hyperparameters import DpoSettings, SftSettings
from ucotron_ray.data.jsonl import read_preferences, read_training_rows
from ucotron_ray.training.data import IGNORED, Example, examples, model_rows
from ucotron_ray.training.pairs import Pair, pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = 3.35
"""Of a token, in the server's prompts and answers (SmolLM2's tokenizer on 24 rows of the demo)."""

TRAIN, VAL, COUNTS = "train.safetensors", "val.safetensors", "counts.json"


@dataclass(frozen=True)
class Tokens:
    """Training and validation rows, and the counts of the training rows. A pair is two rows, chosen first."""

    train: list[Example]
    val: list[Example]
    counts: dict[str, int]


def of_rows(train: Path, val: Path | None, tokenizer: "PreTrainedTokenizerBase", settings: SftSettings) -> Tokens:
    """Relation and chat rows tokenized. Raises InputError if no row is left."""
    kept, counts = examples(read_training_rows(train)[: settings.max_rows], tokenizer, settings)
    if val is None or settings.eval_rows == 0:
        return Tokens(kept, [], counts)
    return Tokens(kept, examples(read_training_rows(val)[: settings.eval_rows], tokenizer, settings)[0], counts)


def of_pairs(train: Path, val: Path | None, tokenizer: "PreTrainedTokenizerBase", settings: DpoSettings) -> Tokens:
    """Preference pairs tokenized. Raises InputError if none is left to train on; with none held out none is judged."""
    kept, counts = pairs(read_preferences(train)[: settings.max_rows], tokenizer, settings)
    if val is None or settings.eval_rows == 0:
        return Tokens(_flat(kept), [], counts)
    # What the model is judged by is balanced like what it learns from.
    held_out, held_out_counts = pairs(read_preferences(val)[: settings.eval_rows], tokenizer, settings, needed=False)
    counts |= {f"val_{name}": held_out_counts.get(name, 0) for name in ("rows", "chosen_longer")}
    return Tokens(_flat(kept), _flat(held_out), counts)


def guessed(train: Path, settings: SftSettings) -> Tokens:
    """Rows as long as their characters let expect, for a plan without the model's tokenizer. The ids mean nothing."""
    rows, counts = model_rows(read_training_rows(train)[: settings.max_rows], raw_share=settings.raw_share, seed=1)
    sizes = [
        (math.ceil(sum(len(message.content) for message in row.prompt) / CHARACTERS), len(row.completion))
        for row in rows
    ]
    every = [Example([0] * (prompt + math.ceil(answer / CHARACTERS)), []) for prompt, answer in sizes]
    kept = [
        Example(row.input_ids, [IGNORED] * prompt + [0] * (len(row.input_ids) - prompt))
        for row, (prompt, _) in zip(every, sizes, strict=True)
        if len(row.input_ids) <= settings.max_context_length
    ]
    return Tokens(kept or [Example([0], [0])], [], counts | {"rows": len(kept), "too_long": len(rows) - len(kept)})


def as_pairs(rows: Sequence[Example]) -> list[Pair]:
    """Chosen and rejected rows as pairs again."""
    return [Pair(chosen, rejected) for chosen, rejected in zip(rows[::2], rows[1::2], strict=True)]


def write(directory: Path, tokens: Tokens) -> None:
    """Write the three files."""
    _write_rows(directory / TRAIN, tokens.train)
    _write_rows(directory / VAL, tokens.val)
    write_json(directory / COUNTS, tokens.counts)


def read(directory: Path) -> Tokens:
    """What `write` wrote."""
    counts = json.loads((directory / COUNTS).read_text(encoding="utf-8"))
    return Tokens(_read_rows(directory / TRAIN), _read_rows(directory / VAL), counts)


def lengths(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Tokens of each row, and how many of them are labels."""
    return [len(row.input_ids) for row in rows], [sum(label != IGNORED for label in row.labels) for row in rows]


def pair_lengths(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Tokens and labels of each pair in a forward pass, where both answers are padded to the longer one."""
    row_lengths, label_lengths = lengths(rows)
    pairs_of = [list(zip(values[::2], values[1::2], strict=True)) for values in (row_lengths, label_lengths)]
    longest, labels = ([2 * max(both) for both in values] for values in pairs_of)
    return longest, labels


def _write_rows(path: Path, rows: Sequence[Example]) -> None:
    from safetensors.numpy import save_file  # noqa: PLC0415 - only where rows are written or read

    row_lengths, label_lengths = lengths(rows)
    for row, count in zip(rows, label_lengths, strict=True):
        # The labels are always the end of a row, so that their number says it all.
        assert row.labels[len(row.labels) - count :] == row.input_ids[len(row.input_ids) - count :]
    arrays: Mapping[str, Any] = {
        "ids": np.array([token for row in rows for token in row.input_ids], dtype=np.int32),
        "rows": np.array(row_lengths, dtype=np.int32),
        "labels": np.array(label_lengths, dtype=np.int32),
    }
    save_file(dict(arrays), str(path))


def _read_rows(path: Path) -> list[Example]:
    from safetensors.numpy import load_file  # noqa: PLC0415

    arrays = load_file(str(path))
    ids = np.split(arrays["ids"], np.cumsum(arrays["rows"])[:-1]) if len(arrays["rows"]) else []
    made = []
    for row, count in zip(ids, arrays["labels"].tolist(), strict=True):
        tokens = row.tolist()
        made.append(Example(tokens, [IGNORED] * (len(tokens) - count) + tokens[len(tokens) - count :]))
    return made


def _flat(kept: Sequence[Pair]) -> list[Example]:
    return [row for pair in kept for row in (pair.chosen, pair.rejected)]
