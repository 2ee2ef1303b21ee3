"""Runs an exported ONNX language model with numpy and onnxruntime alone: a batch of rows and their KV cache.

Names and dimensions are read from the graph, since exporters and configs disagree on them (for example on the head
dimension of Qwen3). A batch is a value: `step` takes one and gives the next, `pick` makes one of any rows of others,
so that a server can let rows come and go between two steps.

Suffixes: B rows, T columns of the cache, S tokens of this step, K key heads, D head dimension, V words.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

NUM_LOGITS = "num_logits"
"""Input of the graph with a default, see `export/surgery.py`: for how many last tokens of a step there are logits."""

SLIDING_WINDOW = "sliding_window"
"""Entry of the graph's metadata: layers see so many last columns. Then no row may have a hole in its columns."""

LONGEST_STEP = "longest_step"
"""Entry of the graph's metadata: how many tokens it can read at once. Without it as many as there are."""


@dataclass(frozen=True)
class State:
    """A batch that has read its tokens. A column that is no token of a row, wherever it lies, is 0 in its mask."""

    cache: Mapping[str, onnxruntime.OrtValue]
    """What layers remember, by the names of the graph's inputs, float32: keys and values, each [B, K, T, D], and of
    recurrent layers states without T."""
    mask_BT: Integers
    logits_BV: Floats
    """Of the last token of each row."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.mask_BT)

    @property
    def lengths_B(self) -> Integers:
        """How many tokens each row has read."""
        lengths_B: Integers = self.mask_BT.sum(axis=1)
        return lengths_B


class OnnxRunner:
    """A loaded graph with inputs `input_ids, attention_mask, position_ids, past_key_values.*`. Threads may share it."""

    def __init__(self, path: Path, *, num_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self.outputs = [entry.name for entry in self._session.get_outputs()]
        self._past = [name for name in self.inputs if name.startswith("past_key_values.")]
        self._last_only = NUM_LOGITS in {entry.name for entry in self._session.get_overridable_initializers()}
        self._recurrent = any(not _grows(name) for name in self._past)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._windowed = SLIDING_WINDOW in metadata
        self._longest_step = int(metadata.get(LONGEST_STEP, sys.maxsize))

    def prefill(self, prompts: Sequence[Sequence[int]]) -> State:
        """A new batch that has read these prompts, the shorter ones padded at the left."""
        return self.step(self._empty(len(prompts)), prompts)

    def step(self, state: State, tokens: Sequence[Sequence[int]]) -> State:
        """The batch after every row has read one token or more. The given state stays as it was."""
        even = len({len(row) for row in tokens}) == 1
        if not even and (self._recurrent or (self._windowed and state.mask_BT.shape[1])):
            return self._step_by_length(state, tokens)
        state, _ = self._step(state, tokens, every=False)
        return state

    def _step_by_length(self, state: State, tokens: Sequence[Sequence[int]]) -> State:
        """A step for each number of tokens.

        What pads a shorter row would go into the state of recurrent layers, and would move its window's tokens away.
        """
        parts: list[tuple[State, Sequence[int]]] = []
        order: list[int] = []
        for length in sorted({len(row) for row in tokens}):
            rows = [index for index, row in enumerate(tokens) if len(row) == length]
            after, _ = self._step(pick([(state, rows)]), [tokens[index] for index in rows], every=False)
            parts.append((after, range(len(rows))))
            order += rows
        return pick([(pick(parts), np.argsort(order).tolist())])

    def logits(self, ids: Sequence[int], *, last: int | None = None) -> Floats:
        """Logits [S, V] of one sequence, of its last tokens alone if their number is given."""
        if last is None or last >= len(ids):
            return self.logits_of([ids])[0]
        # So many are wanted of the last part: what lies before it is read without them.
        state = self.step(self._empty(1), [ids[:-last]])
        _, logits_1SV = self._step(state, [ids[-last:]], every=True)
        logits_SV: Floats = logits_1SV[0]
        return logits_SV

    def logits_of(self, rows: Sequence[Sequence[int]]) -> list[Floats]:
        """Logits [S, V] of each sequence, all of them in one left-padded pass if no layer is recurrent."""
        if self._recurrent and len(rows) > 1:
            return [self.logits(ids) for ids in rows]
        _, logits_BSV = self._step(self._empty(len(rows)), rows, every=True)
        return [logits_SV[logits_BSV.shape[1] - len(ids) :] for ids, logits_SV in zip(rows, logits_BSV, strict=True)]

    def stepwise_logits(self, ids: Sequence[int], *, num_prefill: int) -> Floats:
        """The same logits, made by a first pass over `num_prefill` tokens and single steps with the cache after it."""
        state, logits_BSV = self._step(self._empty(1), [ids[:num_prefill]], every=True)
        parts = [logits_BSV[0]]
        for token in ids[num_prefill:]:
            state = self.step(state, [[token]])
            parts.append(state.logits_BV)
        return np.concatenate(parts)

    def greedy(self, ids: Sequence[int], *, max_new_tokens: int, eos: int) -> list[int]:
        """The most likely tokens one after the other, up to and without the end token."""
        answer: list[int] = []
        state = self.prefill([ids])
        while len(answer) < max_new_tokens and (token := int(state.logits_BV[0].argmax())) != eos:
            answer.append(token)
            state = self.step(state, [[token]])
        return answer

    def _step(self, state: State, tokens: Sequence[Sequence[int]], *, every: bool) -> tuple[State, Floats]:
        """The next state and logits [B, S, V], of every token of the step or of the last ones."""
        parts = []
        for start in range(0, max(len(row) for row in tokens), self._longest_step):
            part = [row[start : start + self._longest_step] for row in tokens]
            state, logits_BSV = self._run_step(state, part, every=every)
            parts.append(logits_BSV)
        return state, np.concatenate(parts, axis=1) if every else parts[-1]

    def _run_step(self, state: State, tokens: Sequence[Sequence[int]], *, every: bool) -> tuple[State, Floats]:
        longest = max(len(row) for row in tokens)
        ids_BS = np.zeros((len(tokens), longest), dtype=np.int64)
        new_BS = np.zeros_like(ids_BS)
        for index, row in enumerate(tokens):
            ids_BS[index, longest - len(row) :] = row
            new_BS[index, longest - len(row) :] = 1
        mask_BT = np.concatenate([state.mask_BT, new_BS], axis=1)
        positions_BS = np.maximum(state.lengths_B[:, None] + new_BS.cumsum(axis=1) - 1, 0)
        feed = {"input_ids": ids_BS, "attention_mask": mask_BT, "position_ids": positions_BS}
        values = {name: _value(array) for name, array in feed.items() if name in self.inputs} | dict(state.cache)
        if self._last_only and not every:
            values[NUM_LOGITS] = _value(np.ones(1, dtype=np.int64))
        found = self._session.run_with_ort_values(self.outputs, values)
        named = dict(zip(self.outputs, found, strict=True))
        cache = {name: named[name.replace("past_key_values.", "present.", 1)] for name in self._past}
        logits_BSV: Floats = named["logits"].numpy()
        return State(cache, mask_BT, logits_BSV[:, -1]), logits_BSV

    def _empty(self, rows: int) -> State:
        shapes = {name: self.inputs[name].shape for name in self._past}
        cache = {
            name: _value(np.zeros((rows, *(size if isinstance(size, int) else 0 for size in shape[1:])), np.float32))
            for name, shape in shapes.items()
        }
        return State(cache, np.zeros((rows, 0), dtype=np.int64), np.zeros((rows, 0), dtype=np.float32))


def pick(parts: Sequence[tuple[State, Sequence[int]]]) -> State:
    """One batch of these rows of these batches, in their order, without the columns that none of them needs.

    Each row's tokens are moved to the right: keys are rotated already, so columns may move.
    """
    picked = [(state, row) for state, rows in parts for row in rows]
    columns = [np.flatnonzero(state.mask_BT[row]) for state, row in picked]
    width = max(len(row_columns) for row_columns in columns)
    mask_BT = np.zeros((len(picked), width), dtype=np.int64)
    for index, row_columns in enumerate(columns):
        mask_BT[index, width - len(row_columns) :] = 1
    cache = {}
    for name in picked[0][0].cache:
        sources = {id(state): state.cache[name].numpy() for state, _ in parts}
        if not _grows(name):
            cache[name] = _value(np.stack([sources[id(state)][row] for state, row in picked]))
            continue
        first_BKTD = sources[id(picked[0][0])]
        packed_BKTD = np.empty((len(picked), first_BKTD.shape[1], width, first_BKTD.shape[3]), dtype=np.float32)
        for index, ((state, row), row_columns) in enumerate(zip(picked, columns, strict=True)):
            filled = width - len(row_columns)
            packed_BKTD[index, :, :filled] = 0
            packed_BKTD[index, :, filled:] = sources[id(state)][row][:, _run(row_columns)]
        cache[name] = _value(packed_BKTD)
    return State(cache, mask_BT, np.stack([state.logits_BV[row] for state, row in picked]))


def _grows(name: str) -> bool:
    """Whether a tensor of the cache has a column for each token."""
    return name.endswith((".key", ".value"))


def _run(columns: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Columns without a hole as a slice, which is copied at the speed of memory."""
    whole = len(columns) and columns[-1] - columns[0] + 1 == len(columns)
    return slice(columns[0], columns[-1] + 1) if whole else columns


def _value(array: NDArray[np.generic]) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
