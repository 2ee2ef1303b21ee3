"""What rounding and decoding cost and bring: agreement with float32, triple F1 on held-out rows, size, speed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ucotron_ray.core.recipe import Export
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation import bootstrap, onnx_answers, scoring
from ucotron_ray.models import served

TIMED_PROMPTS = 4
RESAMPLES, SEED = 1000, 42
BATCH = 16


@dataclass(frozen=True)
class Score:
    """Triples of a model on the task's rows: figures, and right, predicted, expected of every row."""

    figures: dict[str, float]
    counts_N3: NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """What the float32 graph says, for others to agree with."""

    prompts: list[list[int]]
    answers: list[list[int]]
    score: Score


def spread(rows: Sequence[RawRow], count: int) -> list[RawRow]:
    """So many rows from the whole of a file: held-out files have their groups one after the other."""
    picked = range(len(rows)) if count >= len(rows) else [index * len(rows) // count for index in range(count)]
    return [rows[index] for index in picked]


def score(model: served.BundleModel, rows: Sequence[RawRow], settings: Export, *, decoding: str) -> Score:
    """Answer the rows in the chat layout and score the triples."""
    questions = [(index, "chat") for index in range(len(rows))]
    began = time.monotonic()
    batches = onnx_answers.answers(
        model, rows, questions, decoding=decoding, max_new_tokens=settings.task_new_tokens, batch_size=BATCH
    )
    predictions = [prediction for batch in batches for prediction in batch]
    seconds = time.monotonic() - began
    scores = [scoring.score_row(rows[entry.row], entry.answer) for entry in sorted(predictions, key=lambda e: e.row)]
    summary = scoring.summary(scores, resamples=RESAMPLES, seed=SEED)
    figures = {
        name: summary[name] for name in ("f1", "f1_low", "f1_high", "valid_answers", "invented_entities", "rows")
    }
    figures["tokens_per_second"] = sum(entry.num_tokens for entry in predictions) / seconds
    figures["answers_per_second"] = len(rows) / seconds
    return Score(figures, scoring.counts_of(scores))


def reference(
    model: served.BundleModel, prompts: Sequence[Sequence[int]], rows: Sequence[RawRow], settings: Export
) -> Reference:
    """The float32 graph's greedy answers to the parity prompts, and its F1."""
    answers = model.generate(prompts, max_new_tokens=settings.parity_new_tokens, to_array_end=False)
    return Reference([list(ids) for ids in prompts], answers, score(model, rows, settings, decoding="free"))


def variant(
    bundle: Path,
    name: str,
    float32: served.BundleModel,
    expected: Reference,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[RawRow],
    settings: Export,
    *,
    num_threads: int,
) -> dict[str, float]:
    """The figures of a rounded graph beside float32.

    Returns:
        `load_seconds`, `agreement` (share of the answers' positions with the same most likely token, the answer so far
        being float32's), `mean_kl` (nats a position of the answers), `greedy_match`, `single_tokens_per_second` (one
        answer at a time), the task's figures, and `f1_drop` with the ends of its paired bootstrap interval.
    """
    began = time.monotonic()
    model = served.load(bundle, variant=name, num_threads=num_threads)
    figures = {"load_seconds": time.monotonic() - began}
    figures |= _agreement(float32, model, expected)
    answers = model.generate(prompts, max_new_tokens=settings.parity_new_tokens, to_array_end=False)
    figures["greedy_match"] = float(np.mean([a == b for a, b in zip(answers, expected.answers, strict=True)]))
    figures["single_tokens_per_second"] = single_speed(model, prompts, settings)
    scored = score(model, rows, settings, decoding="free")
    return figures | scored.figures | f1_drop(expected.score.counts_N3, scored.counts_N3)


def single_speed(model: served.BundleModel, prompts: Sequence[Sequence[int]], settings: Export) -> float:
    """Tokens a second of greedy answers one at a time, the reading of the prompt included."""
    began, tokens = time.perf_counter(), 0
    for ids in prompts[:TIMED_PROMPTS]:
        tokens += len(model.runner.greedy(ids, max_new_tokens=settings.parity_new_tokens, eos=model.eos[0])) + 1
    return tokens / (time.perf_counter() - began)


def _agreement(one: served.BundleModel, other: served.BundleModel, expected: Reference) -> dict[str, float]:
    # What the model would have said in place of the prompt is of no use to anybody: there the most likely of many
    # unlikely tokens changes at the least rounding (SmolLM2, int8: 96.7 % with the prompts, KL 0.005).
    same, divergences = [], []
    for prompt, answer in zip(expected.prompts, expected.answers, strict=True):
        ids, said = [*prompt, *answer], slice(len(prompt) - 1, -1)
        one_SV, other_SV = one.runner.logits(ids)[said], other.runner.logits(ids)[said]
        same.append(one_SV.argmax(-1) == other_SV.argmax(-1))
        p_SV, q_SV = _log_softmax(one_SV), _log_softmax(other_SV)
        divergences.append((np.exp(p_SV) * (p_SV - q_SV)).sum(-1))
    return {
        "agreement": float(np.concatenate(same).mean()),
        "mean_kl": float(np.concatenate(divergences).mean()),
    }


def _log_softmax(logits_SV: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted_SV = logits_SV - logits_SV.max(-1, keepdims=True)
    result_SV: NDArray[np.float32] = shifted_SV - np.log(np.exp(shifted_SV).sum(-1, keepdims=True))
    return result_SV


def f1_drop(before_N3: NDArray[np.float64], after_N3: NDArray[np.float64]) -> dict[str, float]:
    """How much lower the second F1 is, with the ends of 95 % of the bootstrap resamples of the same rows."""
    drop = bootstrap.paired(before_N3, after_N3, resamples=RESAMPLES, seed=SEED)
    return {"f1_drop": drop.difference, "f1_drop_low": drop.low, "f1_drop_high": drop.high}


def failures(variants: Mapping[str, Mapping[str, float]], settings: Export) -> list[str]:
    """What int8 misses, in words. int4 is reported. Written so that NaN misses."""
    figures = variants.get("int8")
    if figures is None:
        return []
    missed = []
    if not figures["agreement"] >= settings.min_int8_agreement:
        missed.append(f"int8 agreement {figures['agreement']:.4f} < {settings.min_int8_agreement:.4f}")
    if not figures["f1_drop_low"] <= settings.max_int8_f1_drop:
        missed.append(
            f"int8 F1 drop {figures['f1_drop']:.4f}, surely > {settings.max_int8_f1_drop:.4f} "
            f"(interval from {figures['f1_drop_low']:.4f})"
        )
    if not figures["size_ratio"] <= settings.max_int8_size:
        missed.append(f"int8 size {figures['size_ratio']:.3f} of float32 > {settings.max_int8_size:.3f}")
    return missed


def best_decoding(decodings: Mapping[str, Mapping[str, float]]) -> str:
    """The one with the best F1; of equal ones the one that keeps names without limiting predicates."""
    order = [name for name in ("entities", "free", "vocabulary") if name in decodings]
    return max(order, key=lambda name: decodings[name]["f1"]) if order else "free"
