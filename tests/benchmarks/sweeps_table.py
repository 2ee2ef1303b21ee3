"""README's table of sweeps, from `results/sweep_*.json`. Empty where they were not measured."""

import json
from typing import Any

from tests.benchmarks.table import RESULTS


def sweeps_table() -> str:
    """One line a claim."""
    read = {path.stem.removeprefix("sweep_"): json.loads(path.read_text()) for path in RESULTS.glob("sweep_*.json")}
    lines = [*_grid(read.get("grid")), *_replay(read.get("replay")), *_live(read.get("live"))]
    return "\n".join(["| what | measured | commit |", "|---|---|---|", *lines]) if lines else ""


def _grid(made: dict[str, Any] | None) -> list[str]:
    if made is None:
        return []
    won, fixed = made["winner"], made["fixed_seconds"]
    chosen = ", ".join(f"{name} {value:g}" for name, value in won["params"].items())
    text = f"F1 {made['worst']:.2f} to {made['best']:.2f}; best {chosen} ({won['low']:.2f}–{won['high']:.2f})"
    return [
        f"| grid of {len(made['curves'])} configurations, {made['trained_rows']} rows each, {made['minutes']:.0f} minutes | "
        f"{text} | {made['commit'][:7]} |",
        f"| fixed cost of a trial: process, imports, model, end | {fixed['median']:.0f} s ({fixed['low']:.0f}–"
        f"{fixed['high']:.0f}) | {made['commit'][:7]} |",
    ]


def _replay(made: dict[str, Any] | None) -> list[str]:
    if made is None:
        return []
    found = made["variants"][made["default"]]
    saved, regret = found["steps_saved"], found["regret"]
    return [
        f"| halving over the grid's curves in {made['orders']} orders: steps saved | {saved['median']:.0%} "
        f"({saved['low']:.0%}–{saved['high']:.0%}) | {made['commit'][:7]} |",
        f"| the same: F1 lost against the grid's best, points | {100 * regret['median']:.1f} "
        f"({100 * regret['low']:.1f}–{100 * regret['high']:.1f}) | {made['commit'][:7]} |",
    ]


def _live(made: dict[str, Any] | None) -> list[str]:
    if made is None:
        return []
    text = f"{made['steps_saved']:.0%} of the steps, {made['minutes']:.0f} minutes; F1 lost: {100 * made['regret']:.1f} points"
    return [f"| the same sweep once live: saved | {text} | {made['commit'][:7]} |"]
