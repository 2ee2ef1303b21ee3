"""The two ways to run a model: ONNX Runtime on a bundle, transformers on a base model with or without an adapter."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.models import served
from ucotron_ray.models.runner import Floats, OnnxRunner, State, pick
from ucotron_ray.models.speech import Speech, speech_of
from ucotron_ray.serving.batcher import Stepper
from ucotron_ray.serving.target import Target

DECODED_ROWS = 8
"""Rows of the products by which a processor's faster precision is chosen: decoding multiplies a row per answer."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. `context` = the most tokens that prompt and answer may have together."""

    speech: Speech
    stepper: Stepper[Any]
    context: int


class OnnxStepper:
    """The runner of `models/runner.py`, as the batcher calls it."""

    def __init__(self, runner: OnnxRunner) -> None:
        self._runner = runner

    def prefill(self, prompts: Sequence[Sequence[int]]) -> State:
        return self._runner.prefill(prompts)

    def step(self, batch: State, tokens: Sequence[Sequence[int]]) -> State:
        return self._runner.step(batch, tokens)

    def pick(self, parts: Sequence[tuple[State, Sequence[int]]]) -> State:
        return pick(parts)

    def logits(self, batch: State) -> Floats:
        return batch.logits_BV


def load(target: Target, *, num_threads: int) -> LoadedModel:
    """Load what is to be served. Raises InputError if it cannot be."""
    return _load_bundle(target, num_threads) if target.backend == "onnx" else _load_transformers(target, num_threads)


def _load_bundle(target: Target, num_threads: int) -> LoadedModel:
    assert target.path is not None
    directory = Path(target.path)
    model = served.load(directory, variant=target.variant, num_threads=num_threads)
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return LoadedModel(model, OnnxStepper(model.runner), int(settings["max_position_embeddings"]))


def _load_transformers(target: Target, num_threads: int) -> LoadedModel:
    import torch  # noqa: PLC0415 - a bundle is served without it

    from ucotron_ray.models import base as base_models  # noqa: PLC0415
    from ucotron_ray.models import lora, precision  # noqa: PLC0415
    from ucotron_ray.serving import torch_model  # noqa: PLC0415

    base = base_models.located(target.base)
    adapter = Path(target.path) / "adapter" if target.path else None
    tokenizer = base_models.load_tokenizer(base)
    if num_threads:
        torch.set_num_threads(num_threads)
    model = lora.load_for_inference(base, adapter, precision.compute_dtype(target.dtype, rows=DECODED_ROWS))
    speech = speech_of(tokenizer, model)
    return LoadedModel(speech, torch_model.TorchStepper(model), int(model.config.max_position_embeddings))
