"""Rows, tokens, dollars, hours and GPU memory before a run: rows × tokens × price, measured rates, stated guesses.

Every figure names its basis: `measured` (a finished run of the store says it), `price file`, `limit` (the vendor's), or
`assumed` (`guide_tables.yaml`). What the guide says stands beside, and whether the two agree.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core import generators
from ucotron_ray.core.config import Config, read_yaml
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.models.shape import KNOWN, Shape
from ucotron_ray.planning.rates import Rates
from ucotron_ray.synthesis.generator import generator
from ucotron_ray.teacher import prices
from ucotron_ray.training import plan

TIERS = ("slm", "small", "medium")
POINT_TOLERANCE = 1.5
"""A single figure of the guide's («~15 min») agrees with ours if neither is more than so many times the other."""

_MILLION = 1e6
LABEL_SHARE = 0.25
"""Of a row's positions, for which the loss head computes all logits (only label positions need them)."""


@dataclass(frozen=True)
class Figures:
    """An estimate. None = not known. `basis` says what each part stands on."""

    what: str
    rows: int
    tokens: float
    usd: float | None
    minutes: float | None
    basis: str
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    requests: float = 0.0
    memory_gb: float | None = None


def tables() -> dict[str, Any]:
    """The guide's tables, and what is assumed."""
    return read_yaml(Path(__file__).with_name("guide_tables.yaml"))


def synthesis(settings: Config, task: str, rows: int, rates: Rates) -> Figures:
    """What a generator would ask and cost for so many accepted rows."""
    facts = tables()
    api = settings.place.api
    rate = rates.synthesis.get(task)
    per_row = {name: float(value) for name, value in asdict(generator(task).USUAL).items()}
    basis = "tokens assumed"
    if rate is not None:
        per_row = {"requests": rate.requests, "prompt": rate.prompt, "completion": rate.completion}
        basis = "tokens measured"
    prompt, completion, requests = (per_row[key] * rows for key in ("prompt", "completion", "requests"))
    model, price, date = _teacher_price(settings, facts)
    usd = price.cost(round(prompt), 0, round(completion)) if price else None
    basis += f"; priced as {model.rpartition('/')[2]} of {date}" if price else "; no price is known"
    teacher = settings.recipe.models.generation.model_id
    if rate is not None and rate.teacher == teacher:
        minutes = (rate.other_seconds + rows / rate.rows_per_second) / 60
        basis += "; time measured"
    else:
        limit = api.generated_tokens_per_minute or float(facts["generated_tokens_per_minute"])
        minutes = max(completion / limit, requests / api.requests_per_minute if api.requests_per_minute else 0.0)
        basis += f"; time by the limit of {limit:,.0f} generated tokens a minute"
    return Figures(task, rows, prompt + completion, usd, minutes, basis, prompt, completion, requests)


def remote_training(settings: Config, tier: str, method: str, rows: int, epochs: int, rates: Rates) -> Figures:
    """A job at the vendor: tokens of the dataset × epochs × the price for the model's size."""
    facts = tables()
    file = _price_file(settings)
    per_row = rates.remote_tokens_per_row.get(method) or _tokens_per_row(facts, method, rates)
    tokens = rows * epochs * per_row
    price = prices.training_price(KNOWN[facts["models"][tier]].total / 1e9, method, file)
    usd = None if price is None else tokens * price / _MILLION
    basis = "no training price" if price is None else f"${price:g} per million tokens of {prices.date_of(file)}"
    if method in rates.remote:
        minutes: float | None = tokens / rates.remote[method] / 60
        basis += "; time measured"
    else:
        minutes = _scaled_guide_minutes(facts, tier, method, rows * epochs)
        basis += "; time scaled from the guide"
    return Figures(f"{method} {tier}", rows, tokens, usd, minutes, basis)


def local_training(settings: Config, tier: str, rows: int, epochs: int, context: int, rates: Rates) -> Figures:
    """SFT with LoRA on one machine: `minutes` on this one if it was measured, else on the assumed GPU."""
    facts = tables()
    tokens = rows * epochs * _tokens_per_row(facts, "sft", rates)
    settings_of_tier = getattr(settings.recipe.training.sft, tier)
    shape = KNOWN[facts["models"][tier]]
    memory = training_memory_gb(shape, settings_of_tier, context=context)
    seconds, basis = training_seconds(settings, shape.total, tokens, rates, facts["assumed_gpu"])
    return Figures(f"local sft {tier}", rows, tokens, 0.0, seconds / 60, basis, memory_gb=memory)


def training_seconds(
    settings: Config, params: float, tokens: float, rates: Rates, gpu: Mapping[str, Any]
) -> tuple[float, str]:
    """Seconds of LoRA training, and their basis. 4 operations a parameter and token: forward 2, backward 2 more.

    (Kaplan et al. 2020, section 2.1, less the gradients of the frozen weights.) A rate that was measured with another
    model of this machine is scaled by the number of parameters.
    """
    rate = rates.training.get("sft")
    known = measured_billions(settings, rate.base) if rate else None
    if rate is not None and known:
        per_second = rate.tokens_per_second * known * 1e9 / params
        return (
            tokens / per_second,
            f"time measured on this machine ({rate.tokens_per_second:.0f} tokens/s at {known:g}B)",
        )
    return 4 * params * tokens / float(
        gpu["flops"]
    ), f"time assumed: {gpu['name']} at {gpu['flops'] / 1e12:.0f} TFLOP/s"


def training_memory_gb(shape: Shape, settings: LoraSettings, *, context: int) -> float:
    """GPU memory of LoRA training in GB (1e9 bytes), by the plan of a training (`training/plan.py`).

    With a base in bf16, one row of the whole context a pass, and activations recomputed.
    """
    labels = round(context * LABEL_SHARE)
    row = plan.Work(
        rows=1,
        steps=1,
        tokens=context,
        label_tokens=labels,
        padded_tokens=context,
        label_slots=labels,
        longest=context,
        step_tokens=context,
        step_label_slots=labels,
        seen_rows=1,
    )
    parts = plan.memory_of(shape, settings, row, bytes_per_value=2, gradient_checkpointing=True, on_gpu=True)
    return sum(parts.values()) / plan.GB


def agreement(guide: list[float], ours: float | None) -> str:
    """`agrees`, `below` or `above`: inside of the guide's range, or within a factor of 1.5 of its single figure."""
    if ours is None:
        return "unknown"
    low, high = float(guide[0]), float(guide[1])
    if low == high:
        low, high = low / POINT_TOLERANCE, high * POINT_TOLERANCE
    return "below" if ours < low else "above" if ours > high else "agrees"


def beside_the_guide(settings: Config, rates: Rates) -> list[dict[str, Any]]:
    """Every row of the guide's three tables with our own figure, and whether they agree."""
    facts = tables()
    guide = facts["guide"]
    lines = []
    for task in generators.NAMES:
        row = generator(task).GUIDE
        if row is not None:
            lines.append(_beside("generation", asdict(row), synthesis(settings, task, row.rows, rates)))
    for tier in TIERS:
        for method, row in guide["remote"][tier].items():
            asked = guide["remote_rows"][method]
            ours = remote_training(settings, tier, method, asked["rows"], asked["epochs"], rates)
            # The guide's own time is no second opinion on itself.
            known = ours if "measured" in ours.basis else Figures(**{**asdict(ours), "minutes": None})
            lines.append(_beside("remote", row, known))
    for tier in TIERS:
        row, asked = guide["local"][tier], guide["local_rows"]
        context = getattr(settings.recipe.training.sft, tier).max_context_length
        # The guide means a GPU of that size: not the machine that asks.
        ours = local_training(settings, tier, asked["rows"], asked["epochs"], context, Rates())
        line = _beside("local", row, ours)
        fits = ours.memory_gb is not None and ours.memory_gb <= row["memory_gb"]
        lines.append({**line, "guide_memory_gb": row["memory_gb"], "memory": "agrees" if fits else "above"})
    return lines


def overview(settings: Config, rates: Rates, *, rows: int | None = None) -> list[Figures]:
    """The recipe's own targets: every generator, and training per tier at the vendor and here.

    `rows` to train on; None = the guide's.
    """
    guide = tables()["guide"]
    recipe = settings.recipe
    figures = []
    for task in generators.NAMES:
        target = recipe.generation.task(task).target_samples
        figures.append(synthesis(settings, task, target, rates))
    for tier in TIERS:
        for method in ("sft", "dpo"):
            epochs = getattr(getattr(recipe.training, method), tier).epochs
            asked = rows or guide["remote_rows"][method]["rows"]
            figures.append(remote_training(settings, tier, method, asked, epochs, rates))
    for tier in TIERS:
        tier_settings = getattr(recipe.training.sft, tier)
        asked = rows or guide["local_rows"]["rows"]
        figures.append(
            local_training(settings, tier, asked, tier_settings.epochs, tier_settings.max_context_length, rates)
        )
    return figures


def _beside(table: str, row: Mapping[str, Any], ours: Figures) -> dict[str, Any]:
    line: dict[str, Any] = {"table": table, **asdict(ours), "guide_minutes": row["minutes"]}
    line["time"] = agreement(row["minutes"], ours.minutes)
    if "usd" in row:
        line |= {"guide_usd": row["usd"], "cost": agreement(row["usd"], ours.usd)}
    return line


def _teacher_price(settings: Config, facts: Mapping[str, Any]) -> tuple[str, prices.Price | None, str]:
    """The model whose price is taken, the price, and its day. A teacher without a price has a stand-by."""
    file = _price_file(settings)
    model = settings.recipe.models.generation.model_id
    price = prices.price_of(model, file)
    if price is None:
        model = str(facts["priced_as"])
        price = prices.price_of(model, file)
    return model, price, prices.date_of(file)


def _tokens_per_row(facts: Mapping[str, Any], method: str, rates: Rates) -> float:
    rate = rates.training.get(method)
    return rate.tokens_per_row if rate else float(facts["tokens_per_row"][method])


def _scaled_guide_minutes(facts: Mapping[str, Any], tier: str, method: str, rows: float) -> float:
    asked = facts["guide"]["remote_rows"][method]
    low, high = facts["guide"]["remote"][tier][method]["minutes"]
    return float((low + high) / 2 * rows / (asked["rows"] * asked["epochs"]))


def measured_billions(settings: Config, reference: str) -> float | None:
    """Parameters of the recipe's model in billions, as its tier says («0.135B»), if it is the one that was measured."""
    for tier in TIERS:
        model = getattr(settings.recipe.models.fine_tuning, tier)
        if model.local_model == reference and model.params is not None:
            count = parameters(model.params)
            return count / 1e9 if count is not None else None
    return None


def parameters(text: object) -> float | None:
    """How many parameters a tier says that it has («1.5B», «494M», «135000000»); None if that says no number."""
    spelt = str(text or "").strip().upper()
    try:
        return float(spelt.rstrip("BM")) * {"B": 1e9, "M": 1e6}.get(spelt[-1:], 1.0)
    except ValueError:
        return None


def _price_file(settings: Config) -> Path | None:
    file = settings.place.api.prices
    return Path(file) if file else None
