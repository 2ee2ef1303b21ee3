"""What rounding and decoding cost and bring: triple F1 on held-out rows, agreement with float32, size, speed.

float32 answers every row. A variant reads each row with float32's answer once: where its most likely token is float32's
at every position its own answer is the same, and only the other rows are decoded (of the demo's model and int8 one in
twenty). A way of decoding is asked likewise: where its grammar lets float32's free answer pass, that is its answer.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ucotron_ray.core.recipe import Export
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import chat_messages, user_prompt
from ucotron_ray.evaluation import scoring
from ucotron_ray.export import noninferiority
from ucotron_ray.models import served
from ucotron_ray.models.decoding import Answer
from ucotron_ray.models.runner import Integers

TIMED_ROWS, TIMED_TOKENS = 4, 32
BATCH = 16

Greedy = Callable[[Sequence[int], int], Integers]
"""Token ids, and a count: the most likely token after each of so many last ones."""

Decode = Callable[[Sequence[int]], list[Answer]]
"""Rows by their index: their answers."""


@dataclass(frozen=True)
class Reference:
    """What the float32 graph says to the held-out rows, freely, for others to be compared with."""

    rows: list[RawRow]
    prompts: list[list[int]]
    answers: list[Answer]
    scores: list[scoring.RowScore]
    figures: dict[str, float]


def rows_for(settings: Export) -> int:
    """How many held-out rows the gates ask for: the recipe's number, else what margins and power need."""
    eight, four = "int8" in settings.variants, "int4" in settings.variants or "q4_k_m" in settings.gguf
    margins = [(settings.max_int8_f1_drop, noninferiority.PAIRED_SD)] if eight else []
    margins += [(settings.max_int4_f1_drop, noninferiority.FOUR_BITS_SD)] if four else []
    needed = [noninferiority.rows_needed(margin, power=settings.power, sd=sd) for margin, sd in margins if margin]
    return settings.task_rows if settings.task_rows is not None else max(needed, default=1)


def spread(rows: Sequence[RawRow], count: int) -> list[RawRow]:
    """So many rows from the whole of a file: held-out files have their groups one after the other."""
    picked = range(len(rows)) if count >= len(rows) else [index * len(rows) // count for index in range(count)]
    return [rows[index] for index in picked]


def reference(model: served.BundleModel, rows: Sequence[RawRow], settings: Export) -> Reference:
    """The float32 graph's free answers to the rows in the chat layout, and their scores."""
    prompts = [model.chat_ids(chat_messages(row.text, row.entities)) for row in rows]
    began = time.monotonic()
    answers = decode(model, prompts, rows, range(len(rows)), settings, decoding="free")
    seconds = time.monotonic() - began
    scores = [scoring.score_row(row, model.finished(answer)) for row, answer in zip(rows, answers, strict=True)]
    figures = {
        **_figures(scores),
        "tokens_per_second": sum(len(answer.tokens) for answer in answers) / seconds,
        **speed(model, prompts, answers),
    }
    return Reference(list(rows), prompts, answers, scores, figures)


def decode(
    model: served.BundleModel,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[RawRow],
    indices: Sequence[int],
    settings: Export,
    *,
    decoding: str,
) -> list[Answer]:
    """Answers to these rows in batches of like length, in the order of the indices."""
    asked = {
        index: model.answer(
            prompts[index],
            max_new_tokens=settings.task_new_tokens,
            constraint=model.constraint(user_prompt(rows[index].text, rows[index].entities), decoding),
        )
        for index in indices
    }
    by_length = sorted(indices, key=lambda index: len(prompts[index]))
    for start in range(0, len(by_length), BATCH):
        for _ in model.run([asked[index] for index in by_length[start : start + BATCH]]):
            pass
    return [asked[index] for index in indices]


def variant(
    bundle: Path, name: str, model: served.BundleModel, expected: Reference, settings: Export, *, num_threads: int
) -> dict[str, float]:
    """The figures of a rounded graph beside float32: those of `compared`, `load_seconds`, and `speed`."""
    began = time.monotonic()
    rounded = served.load(bundle, variant=name, num_threads=num_threads)
    figures = {"load_seconds": time.monotonic() - began}

    def greedy(ids: Sequence[int], count: int) -> Integers:
        found_S: Integers = rounded.runner.logits(ids, last=count).argmax(-1)
        return found_S

    def decoded(indices: Sequence[int]) -> list[Answer]:
        return decode(rounded, expected.prompts, expected.rows, indices, settings, decoding="free")

    figures |= compared(model, expected, greedy, decoded)
    return figures | speed(rounded, expected.prompts, expected.answers)


def compared(model: served.BundleModel, expected: Reference, greedy: Greedy, decode: Decode) -> dict[str, float]:
    """How far another model's answers are from float32's, and what that costs.

    Returns:
        `agreement` (share of the answers' positions with the same most likely token, the answer so far being
        float32's), `same_answers` (share of rows with that at every position), the scores' figures, and `f1_drop`
        with its upper bound, spread and rows as in `noninferiority.Loss`.
    """
    agreeing = [
        _agreeing(model, prompt, answer, greedy)
        for prompt, answer in zip(expected.prompts, expected.answers, strict=True)
    ]
    others = [index for index, same in enumerate(agreeing) if not same.all()]
    scores = list(expected.scores)
    for index, answer in zip(others, decode(others) if others else [], strict=True):
        scores[index] = scoring.score_row(expected.rows[index], model.finished(answer))
    loss = noninferiority.loss(scoring.counts_of(expected.scores), scoring.counts_of(scores))
    return {
        "agreement": float(np.concatenate(agreeing).mean()),
        "same_answers": 1 - len(others) / len(agreeing),
        **_figures(scores),
        "f1_drop": loss.f1_drop,
        "f1_drop_upper": loss.upper,
        "f1_drop_sd": loss.sd,
    }


def _agreeing(model: served.BundleModel, prompt: Sequence[int], answer: Answer, greedy: Greedy) -> Integers:
    """Whether each choice of an answer is the other model's too; the end token is one where the answer has it."""
    said = [*answer.tokens, *(model.eos[:1] if answer.reason == "end" else [])]
    found = greedy([*prompt, *said[:-1]], len(said))
    wanted = np.array(said)
    if answer.reason == "end":
        found[-1] = wanted[-1] if found[-1] in model.eos else found[-1]
    return np.asarray(found == wanted)


def decodings(model: served.BundleModel, expected: Reference, settings: Export) -> dict[str, dict[str, float]]:
    """The figures of each way of decoding. A free answer that a grammar lets pass is the answer under it."""
    made: dict[str, dict[str, float]] = {}
    for name in settings.decodings:
        changed = [
            index for index in range(len(expected.rows)) if name != "free" and not _passes(model, expected, index, name)
        ]
        scores = list(expected.scores)
        answers = decode(model, expected.prompts, expected.rows, changed, settings, decoding=name)
        for index, answer in zip(changed, answers, strict=True):
            scores[index] = scoring.score_row(expected.rows[index], model.finished(answer))
        made[name] = {**_figures(scores), "changed_answers": len(changed) / len(expected.rows)}
    return made


def _passes(model: served.BundleModel, expected: Reference, index: int, decoding: str) -> bool:
    row, answer = expected.rows[index], expected.answers[index]
    constraint = model.constraint(user_prompt(row.text, row.entities), decoding)
    return constraint is None or (answer.reason != "length" and constraint.takes(answer.tokens))


def speed(model: served.BundleModel, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> dict[str, float]:
    """Tokens a second of reading prompts and of answering, one row at a time.

    The answers are given, so that every variant does the same work: one that stops early would seem slow.
    """
    asked = sorted(zip(prompts, answers, strict=True), key=lambda pair: -len(pair[1].tokens))[:TIMED_ROWS]
    read = fed = 0
    seconds = {"read": 0.0, "fed": 0.0}
    for prompt, answer in asked:
        began = time.perf_counter()
        state = model.runner.prefill([prompt])
        between = time.perf_counter()
        for token in answer.tokens[:TIMED_TOKENS]:
            state = model.runner.step(state, [[token]])
        seconds["read"] += between - began
        seconds["fed"] += time.perf_counter() - between
        read += len(prompt)
        fed += len(answer.tokens[:TIMED_TOKENS])
    return {
        "prompt_tokens_per_second": read / seconds["read"] if read else 0.0,
        "single_tokens_per_second": fed / seconds["fed"] if fed else 0.0,
    }


def _figures(scores: Sequence[scoring.RowScore]) -> dict[str, float]:
    summary = scoring.summary(scores)
    return {name: summary[name] for name in ("f1", "f1_low", "f1_high", "valid_answers", "invented_entities", "rows")}


def too_lossy(name: str, figures: Mapping[str, float], margin: float, settings: Export) -> list[str]:
    """Why a variant is withheld, in words; nothing if its loss is surely within the margin. NaN is not within it."""
    if figures["f1_drop_upper"] <= margin:
        return []
    lost = f"{name} loses {figures['f1_drop']:.4f} F1, at most {figures['f1_drop_upper']:.4f}; {margin:.4f} is allowed"
    if not figures["f1_drop_sd"] > 0:
        return [lost]
    needed = noninferiority.rows_needed(margin, power=settings.power, sd=figures["f1_drop_sd"])
    return [f"{lost} ({figures['rows']:.0f} rows; {needed} would show no loss with power {settings.power:g})"]


def withheld(variants: Mapping[str, Mapping[str, float]], settings: Export) -> dict[str, list[str]]:
    """The rounded graphs that miss a gate, each with its reasons. Written so that NaN misses."""
    margins = {"int8": settings.max_int8_f1_drop, "int4": settings.max_int4_f1_drop}
    reasons = {name: too_lossy(name, variants[name], margins[name], settings) for name in variants if name in margins}
    int8 = variants.get("int8")
    if int8 is not None:
        if not int8["agreement"] >= settings.min_int8_agreement:
            reasons["int8"].append(f"int8 agreement {int8['agreement']:.4f} < {settings.min_int8_agreement:.4f}")
        if not int8["size_ratio"] <= settings.max_int8_size:
            reasons["int8"].append(f"int8 size {int8['size_ratio']:.3f} of float32 > {settings.max_int8_size:.3f}")
    return {name: found for name, found in reasons.items() if found}


def best_decoding(decodings: Mapping[str, Mapping[str, float]]) -> str:
    """The one with the best F1; of equal ones the one that keeps names without limiting predicates."""
    order = [name for name in ("entities", "free", "vocabulary") if name in decodings]
    return max(order, key=lambda name: decodings[name]["f1"]) if order else "free"
