"""Runs an exported ONNX language model with numpy and onnxruntime alone: full forward passes and greedy decoding.

Names and dimensions are read from the graph, since exporters and configs disagree on them (for example on the head
dimension of Qwen3).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class OnnxRunner:
    """A loaded graph with inputs `input_ids, attention_mask, position_ids, past_key_values.*`."""

    def __init__(self, path: Path, *, num_threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {entry.name: entry for entry in self._session.get_inputs()}
        self.outputs = [entry.name for entry in self._session.get_outputs()]
        self._past = [name for name in self.inputs if name.startswith("past_key_values.")]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [tokens, vocabulary] of one sequence in one pass."""
        logits_TV, _ = self._step(np.array([ids], dtype=np.int64), self._empty_cache(), 0)
        return logits_TV

    def stepwise_logits(self, ids: Sequence[int], *, num_prefill: int) -> NDArray[np.float32]:
        """The same logits, made by a first pass over `num_prefill` tokens and single steps with the cache after it."""
        logits_TV, cache = self._step(np.array([ids[:num_prefill]], dtype=np.int64), self._empty_cache(), 0)
        parts = [logits_TV]
        for position in range(num_prefill, len(ids)):
            logits_TV, cache = self._step(np.array([[ids[position]]], dtype=np.int64), cache, position)
            parts.append(logits_TV)
        return np.concatenate(parts)

    def greedy(self, ids: Sequence[int], *, max_new_tokens: int, eos: int) -> list[int]:
        """The most likely tokens one after the other, up to and without the end token."""
        answer: list[int] = []
        cache, step, past = self._empty_cache(), np.array([ids], dtype=np.int64), 0
        while len(answer) < max_new_tokens:
            logits_TV, cache = self._step(step, cache, past)
            token = int(logits_TV[-1].argmax())
            if token == eos:
                break
            answer.append(token)
            past += step.shape[1]
            step = np.array([[token]], dtype=np.int64)
        return answer

    def _step(
        self, ids_1T: NDArray[np.int64], cache: dict[str, NDArray[np.float32]], past: int
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        num_tokens = ids_1T.shape[1]
        feed: dict[str, NDArray[np.generic]] = {
            "input_ids": ids_1T,
            "attention_mask": np.ones((1, past + num_tokens), dtype=np.int64),
            "position_ids": np.arange(past, past + num_tokens, dtype=np.int64)[None],
            **cache,
        }
        values = self._session.run(None, {name: value for name, value in feed.items() if name in self.inputs})
        named = dict(zip(self.outputs, values, strict=True))
        grown = {name: named[name.replace("past_key_values.", "present.")] for name in self._past}
        return named["logits"][0], grown

    def _empty_cache(self) -> dict[str, NDArray[np.float32]]:
        shapes = {name: self.inputs[name].shape for name in self._past}
        return {name: np.zeros((1, shape[1], 0, shape[3]), dtype=np.float32) for name, shape in shapes.items()}
