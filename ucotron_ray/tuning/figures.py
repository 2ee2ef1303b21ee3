"""The pictures of a sweep as data: what is drawn, not how. `svg.py` and `png.py` draw the same ones."""

from collections.abc import Sequence
from typing import Any

from ucotron_ray.tuning.drawing import Axis, Bars, Cell, Chart, Dot, Figure, Heat, Line, Parallel
from ucotron_ray.tuning.record import Record, Trial, rungs
from ucotron_ray.tuning.summary import best_so_far, binned, importance, shown

SCALE = ("#3b4cc0", "#2f86c1", "#1aa39a", "#4fb84a", "#e3a008")
"""From the worst score to the best."""

STOPPED, FAILED, PLAIN = "#8b95a1", "#c5303c", "#2f86c1"


def figures(record: Record, summary: dict[str, Any]) -> list[Figure]:
    """All pictures of a sweep, tier by tier, then across tiers. Those without anything to show are left out."""
    made: list[Figure] = []
    for tier in record.tiers:
        trials = [trial for trial in record.of_tier(tier) if record.curve(trial.id)]
        if not trials:
            continue
        colors = _colors(record, trials)
        of = f" · {tier}" if len(record.tiers) > 1 else ""
        won = summary["winners"].get(tier, {}).get("trial")
        made += [
            _curves(record, trials, colors, won, tier, of),
            *_heat(record, trials, tier, of),
            _parallel(record, trials, colors, tier, of),
            _importance(record, tier, of),
            _compute(record, trials, colors, tier, of),
        ]
    made += _cost(record)
    return made + _tiers(record, summary)


def words(trial: Trial) -> str:
    """A trial in words."""
    said = ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
    return f"{trial.id}: {said}" + (f", seed {trial.seed}" if trial.of else "")


def _metric(record: Record) -> str:
    return "F1" if record.higher_is_better else "validation loss"


def _best(record: Record, trial: Trial) -> float:
    best = record.best(trial.id)
    assert best is not None
    return best.value


def _colors(record: Record, trials: Sequence[Trial]) -> dict[str, str]:
    """A colour for each trial by its best score, between the worst and the best of them."""
    values = {trial.id: _best(record, trial) for trial in trials}
    low, high = min(values.values()), max(values.values())
    sign = record.higher_is_better
    shares = {name: (value - low) / (high - low) if high > low else 1.0 for name, value in values.items()}
    return {name: color(share if sign else 1 - share) for name, share in shares.items()}


def color(share: float) -> str:
    """The scale's colour at a share from 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    index = min(int(at), len(SCALE) - 2)
    first, second = (tuple(int(text[i : i + 2], 16) for i in (1, 3, 5)) for text in SCALE[index : index + 2])
    mixed = [round(a + (b - a) * (at - index)) for a, b in zip(first, second, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _curves(
    record: Record, trials: Sequence[Trial], colors: dict[str, str], won: str | None, tier: str, of: str
) -> Chart:
    lines = tuple(
        Line(
            trial.id,
            tuple((float(score.step), score.value) for score in record.curve(trial.id)),
            colors[trial.id],
            f"{words(trial)} — best {_best(record, trial):.3f}, {trial.state}",
            strong=trial.id == won,
            ends="cross" if trial.state in ("stopped", "failed") else "dot",
        )
        for trial in trials
    )
    note = "A line a trial; × is where one was stopped or failed. The thick one is the winner. Colour: its best score."
    facts = record.tiers[tier]
    stops = rungs(facts.grace_steps, record.reduction_factor, facts.steps)
    if record.scheduler != "none" and stops:
        note += f" Trials are compared at steps {', '.join(map(str, stops))}."
    return Chart(f"curves-{tier}", f"{_metric(record)} over steps{of}", note, "optimizer step", _metric(record), lines)


def _heat(record: Record, trials: Sequence[Trial], tier: str, of: str) -> list[Heat]:
    """The two settings that matter by custom, rate and rank, else the first two that are searched."""
    wanted: list[str] = [name for name in ("learning_rate", "lora_rank", "hidden_dim") if name in record.searched]
    wanted += [name for name in record.searched if name not in wanted]
    if len(wanted) < 2:
        return []
    search = [trial for trial in trials if trial.of is None]
    across, down = ([trial.params[name] for trial in search] for name in wanted[:2])
    columns, column_of = _labels(across)
    rows, row_of = _labels(down)
    best: dict[tuple[int, int], Trial] = {}
    for trial, x, y in zip(search, column_of, row_of, strict=True):
        held = best.get((x, y))
        if held is None or _better(record, trial, held):
            best[x, y] = trial
    values = [_best(record, trial) for trial in best.values()]
    low, high = min(values), max(values)
    cells = []
    for x in range(len(columns)):
        for y in range(len(rows)):
            trial_there = best.get((x, y))
            if trial_there is None:
                cells.append(Cell(x, y, None, "", "not tried", ""))
                continue
            value = _best(record, trial_there)
            share = (value - low) / (high - low) if high > low else 1.0
            shade = color(share if record.higher_is_better else 1 - share)
            text = f"{words(trial_there)} — {value:.3f}, {trial_there.state}"
            cells.append(Cell(x, y, value, shade, text, trial_there.id))
    note = (
        f"The best {_metric(record)} of the trials in a field; one that was stopped counts with the best that it had."
    )
    title = f"{wanted[0]} × {wanted[1]}{of}"
    return [Heat(f"heat-{tier}", title, note, wanted[0], wanted[1], tuple(columns), tuple(rows), tuple(cells))]


def _better(record: Record, trial: Trial, held: Trial) -> bool:
    ours, theirs = record.best(trial.id), record.best(held.id)
    assert ours is not None
    assert theirs is not None
    return record.rank(ours) > record.rank(theirs)


def _labels(values: Sequence[Any]) -> tuple[list[str], list[int]]:
    """The different labels of values in their order, and the number of each value's label."""
    labels = binned(values)
    pairs = sorted(zip(values, labels, strict=True), key=lambda pair: (str(type(pair[0])), pair[0]))
    order = list(dict.fromkeys(label for _, label in pairs))
    return order, [order.index(label) for label in labels]


def _parallel(record: Record, trials: Sequence[Trial], colors: dict[str, str], tier: str, of: str) -> Parallel:
    axes, heights = [], []
    for name in record.searched:
        values = [trial.params[name] for trial in trials]
        different = sorted(set(values), key=lambda value: (str(type(value)), value))
        place = {
            value: index / (len(different) - 1) if len(different) > 1 else 0.5 for index, value in enumerate(different)
        }
        every = max(1, -(-len(different) // 8))
        axes.append(Axis(name, tuple((shown(value), place[value]) for value in different[::every])))
        heights.append([place[value] for value in values])
    best = [_best(record, trial) for trial in trials]
    low, high = min(best), max(best)
    axes.append(
        Axis(_metric(record), ((f"{low:.3f}", 0.0), (f"{high:.3f}", 1.0)) if high > low else ((f"{low:.3f}", 0.5),))
    )
    heights.append([(value - low) / (high - low) if high > low else 0.5 for value in best])
    lines = tuple(
        (trial.id, tuple(column[index] for column in heights), colors[trial.id], f"{words(trial)} — {best[index]:.3f}")
        for index, trial in enumerate(trials)
    )
    note = "A line a trial through the values of its settings (by rank, not by size) to its best score."
    return Parallel(f"parallel-{tier}", f"Settings and score{of}", note, tuple(axes), lines)


def _importance(record: Record, tier: str, of: str) -> Bars:
    shares = importance(record, tier)
    bars = tuple(
        (name, share, 0.0, PLAIN, f"{name} alone explains {share:.0%}")
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
    )
    note = (
        f"Share of the variance of the trials' best {_metric(record)} that a setting explains alone, less chance (ε²)."
    )
    return Bars(f"importance-{tier}", f"Importance{of}", note, "share", bars)


def _compute(record: Record, trials: Sequence[Trial], colors: dict[str, str], tier: str, of: str) -> Chart:
    path = best_so_far(record, tier)
    line = Line(
        "", tuple((float(steps), value) for steps, value in path), PLAIN, "best score so far", strong=True, ends=""
    )
    steps: dict[str, int] = {}
    dots = []
    named = {trial.id: trial for trial in trials}
    for score in record.scores:
        if score.trial in named:
            steps[score.trial] = max(score.step, steps.get(score.trial, 0))
            text = f"{score.trial} step {score.step}: {score.value:.3f}"
            dots.append(Dot(score.trial, float(sum(steps.values())), score.value, colors[score.trial], text))
    note = "Every score at the steps that all trials together had made by then; the line is the best so far."
    title = f"{_metric(record)} against compute{of}"
    return Chart(
        f"compute-{tier}", title, note, "steps of all trials", _metric(record), (line,), tuple(dots), stairs=True
    )


def _cost(record: Record) -> list[Figure]:
    bars = tuple(
        (
            trial.id,
            trial.seconds,
            min(trial.fixed_seconds or 0.0, trial.seconds),
            FAILED if trial.state == "failed" else STOPPED if trial.state == "stopped" else PLAIN,
            f"{trial.id}: {trial.seconds:.0f} s"
            + (f", {trial.fixed_seconds:.0f} s of them fixed" if trial.fixed_seconds is not None else "")
            + f", {trial.state}",
        )
        for trial in record.trials
        if trial.seconds
    )
    note = "Seconds of each trial; dark: what it costs beside its steps and scores. Grey: stopped early. Red: failed."
    return [Bars("cost", "Cost of each trial", note, "seconds", bars)] if bars else []


def _tiers(record: Record, summary: dict[str, Any]) -> list[Figure]:
    """F1 against parameters, size and latency, where there is more than one tier to compare."""
    known = [(tier, facts) for tier, facts in summary["tiers"].items() if facts.get("value") is not None]
    if len(known) < 2:
        return []
    metric = _metric(record)
    wanted = (
        ("parameters", "parameters of the base", 1.0, True),
        ("bytes", "size of the base, MB", 1e-6, True),
        ("answer_seconds", "seconds an answer, in batches", 1.0, False),
    )
    made: list[Figure] = []
    for key, label, factor, log in wanted:
        dots = tuple(
            Dot(
                summary["winners"][tier]["trial"],
                facts[key] * factor,
                facts["value"],
                PLAIN,
                f"{tier}: {facts['value']:.3f}",
                facts["low"],
                facts["high"],
                tier,
            )
            for tier, facts in known
            if facts.get(key)
        )
        if dots:
            note = "The winner of each tier with the 95 % interval of its score by row."
            made.append(Chart(f"tiers-{key}", f"{metric} against {label}", note, label, metric, (), dots, x_log=log))
    return made
