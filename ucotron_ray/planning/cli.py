"""The verb `estimate`, and its tables."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags


def add_estimate(verbs: Any) -> None:
    """`estimate`: cost, time and memory before anything is paid."""
    parser = flags.verb(
        verbs,
        "estimate",
        "Rows, tokens, dollars, hours and GPU memory of synthesis and training, beside the guide's tables.",
        _estimate,
    )
    parser.add_argument("--rows", type=int, help="training rows (default: the guide's)")
    parser.add_argument("--calibrate", type=Path, metavar="STORE", help="rates of another store (default: this one)")
    parser.add_argument("--run", action="store_true", help="only the stages of a `pipeline` with this recipe and name")


def _estimate(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core.artifacts import Store
    from ucotron_ray.planning import estimate, forecast, rates

    with flags.run_of(args) as run:
        known = rates.measured(Store(args.calibrate) if args.calibrate else run.store)
        if args.run:
            from ucotron_ray import pipeline

            stages = forecast.before(run, pipeline.chain(run, pipeline.Options()), known)
            for line in forecast.table(stages):
                print(line)
            return {"status": "estimated", "stages": forecast.shown(stages)}
        figures = estimate.overview(run.config, known, rows=args.rows)
        beside = estimate.beside_the_guide(run.config, known)
    _print_figures(figures)
    print()
    _print_beside(beside)
    return {"status": "estimated", "figures": [asdict(figure) for figure in figures], "guide": beside}


def _print_figures(figures: list[Any]) -> None:
    print(f"{'':<22} {'rows':>7} {'tokens':>12} {'dollars':>9} {'hours':>8} {'GPU GB':>7}  basis")
    for figure in figures:
        usd = "?" if figure.usd is None else f"{figure.usd:.2f}"
        hours = "?" if figure.minutes is None else f"{figure.minutes / 60:.2f}"
        memory = "" if figure.memory_gb is None else f"{figure.memory_gb:.1f}"
        rows, tokens = f"{figure.rows:,}", f"{figure.tokens:,.0f}"
        print(f"{figure.what:<22} {rows:>7} {tokens:>12} {usd:>9} {hours:>8} {memory:>7}  {figure.basis}")


def _print_beside(lines: list[dict[str, Any]]) -> None:
    print("Beside the guide's tables (a single figure of the guide's agrees within a factor of 1.5):")
    print(f"{'':<22} {'guide $':>10} {'ours':>8} {'':<8} {'guide min':>10} {'ours':>8} {'':<8} GB, or basis")
    for line in lines:
        usd = _range(line.get("guide_usd"))
        ours = "" if line.get("guide_usd") is None else _number(line["usd"], 2)
        memory = f"{line['guide_memory_gb']} / {line['memory_gb']:.1f} {line['memory']}" if line.get("memory") else ""
        print(
            f"{line['what']:<22} {usd:>10} {ours:>8} {line.get('cost', ''):<8} {_range(line['guide_minutes']):>10} "
            f"{_number(line['minutes'], 0):>8} {line['time']:<8} {memory or line['basis']}"
        )


def _range(values: list[float] | None) -> str:
    if values is None:
        return ""
    return f"{values[0]:g}" if values[0] == values[1] else f"{values[0]:g}-{values[1]:g}"


def _number(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"
