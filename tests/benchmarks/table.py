"""README's results table, made from the result files."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

LABELS = {"demo": "generated demo graph, {part}", "real_graph": "real sentences (Text2KGBench, Wikidata-TekGen)"}


def table(directory: Path = RESULTS) -> str:
    """One line a result: base and tuned F1 with intervals, rows, minutes, seed, commit."""
    lines = [
        "| data | base F1 | tuned F1 | valid answers | rows trained / scored | minutes | seed | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in LABELS:
        path = directory / f"{name}.json"
        if path.is_file():
            lines += _lines(name, json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(lines)


def _lines(name: str, result: dict[str, Any]) -> list[str]:
    lines = []
    for part, scores in result["parts"].items():
        base, tuned = scores["base"], scores["tuned"]
        lines.append(
            f"| {LABELS[name].format(part=f'`{part}`')} | {_f1(base)} | {_f1(tuned)} | {tuned['valid_answers']:.0%} "
            f"| {result['rows_trained']} / {tuned['rows']:.0f} | {result['minutes']:.1f} | {result['seed']} "
            f"| {result['commit'][:7]} |"
        )
    return lines


def _f1(scores: dict[str, float]) -> str:
    return f"{scores['f1']:.2f} ({scores['f1_low']:.2f}–{scores['f1_high']:.2f})"
