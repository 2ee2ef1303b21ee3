"""The one-page report of a training: what, how long, how fast, and its curves, in one HTML file without scripts."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

CURVES = (
    (("loss", "eval_loss"), "Loss"),
    (("eval_f1",), "F1 of the triples on validation rows"),
    (("accuracy", "eval_accuracy"), "Pairs whose chosen answer is preferred"),
    (("margin", "eval_margin"), "Margin of chosen over rejected, log-probability against the reference"),
    (("learning_rate",), "Learning rate"),
    (("grad_norm",), "Norm of the gradient"),
    (("tokens_per_second",), "Tokens a second, padding not counted"),
)
COLORS = ("#1f6feb", "#d1495b")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 200, 64, 26, 12

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "h1{font-size:1.5rem}h2{font-size:1rem;margin:0 0 .3rem}main{display:flex;flex-wrap:wrap;gap:1.5rem}"
    "table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}td+td{font-family:monospace}"
    "svg{background:#fafbfc;border:1px solid #d8dee4}text{font:11px monospace;fill:#57606a}"
    "@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}svg{background:#161b22;"
    "border-color:#30363d}text{fill:#8b949e}}"
)

Point = tuple[float, float]


def page(record: Mapping[str, Any]) -> str:
    """The report of what `training.json` holds: base, settings, counts, metrics, history."""
    history: Sequence[Mapping[str, Any]] = record["history"]
    drawn = [(title, _series(history, names)) for names, title in CURVES]
    figures = "".join(_figure(title, series) for title, series in drawn if any(len(points) for _, points in series))
    tables = "".join(_table(name, record.get(name) or {}) for name in ("metrics", "counts", "settings"))
    title = escape(f"Training, {record['base']}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>MFU is in the convention 4N: 4 FLOPs for each parameter of the frozen blocks and token, no padding, no "
        f"recomputation; its peak: {escape(str(record.get('peak') or 'not known'))}.</p>{_kept(record)}"
        f"<main>{figures}</main><main>{tables}</main></body></html>\n"
    )


def _kept(record: Mapping[str, Any]) -> str:
    """Which step the adapter is; nothing in records of before."""
    found = record.get("adapter")
    if not found:
        return ""
    return f"<p>The adapter is that of step {found['step']} of {found['of']}: {escape(found['because'])}.</p>"


def _series(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, list[Point]]]:
    return [
        (name, [(float(entry["step"]), float(entry[name])) for entry in history if name in entry]) for name in names
    ]


def _figure(title: str, series: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """One curve a series, over the step."""
    every = [point for _, points in series for point in points]
    (left, right), (low, high) = _range([x for x, _ in every]), _range([y for _, y in every])

    def place(point: Point) -> str:
        x = LEFT + (point[0] - left) / (right - left) * (WIDTH - LEFT - 12)
        y = TOP + (high - point[1]) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for color, (name, points) in zip(COLORS, series, strict=False):
        if not points:
            continue
        parts.append(
            f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{" ".join(map(place, points))}"/>'
        )
        parts += [
            f'<circle cx="{x}" cy="{y}" r="2" fill="{color}"/>' for x, y in (place(p).split(",") for p in points[-1:])
        ]
        at = LEFT + 8 + 120 * len(parts) // 2
        parts.append(f'<text x="{at}" y="{TOP + 10}" style="fill:{color}">{escape(name)}</text>')
    axis = (
        f'<text x="4" y="{TOP + 8}">{high:.4g}</text><text x="4" y="{HEIGHT - BOTTOM}">{low:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">step {left:.0f}</text>'
        f'<text x="{WIDTH - 76}" y="{HEIGHT - 8}">step {right:.0f}</text>'
    )
    return (
        f'<section><h2>{escape(title)}</h2><svg width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{axis}{"".join(parts)}</svg></section>'
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The span of the values, never empty."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _table(name: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(_shown(value))}</td></tr>" for key, value in values.items()
    )
    return f"<section><h2>{escape(name)}</h2><table>{rows}</table></section>" if rows else ""


def _shown(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
