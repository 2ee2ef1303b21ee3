"""The pictures of a sweep as inline SVG. Everything that belongs to a trial carries its name, for the page's script."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from ucotron_ray.tuning.axes import Scale, label, scale
from ucotron_ray.tuning.drawing import Bars, Chart, Figure, Heat, Parallel, Point

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 44
ROW = 24


def drawn(figure: Figure) -> str:
    """One picture with its title and note."""
    body = (
        _chart(figure)
        if isinstance(figure, Chart)
        else _heat(figure)
        if isinstance(figure, Heat)
        else _parallel(figure)
        if isinstance(figure, Parallel)
        else _bars(figure)
    )
    return (
        f'<section id="{escape(figure.key)}"><h2>{escape(figure.title)}</h2>{body}'
        f'<p class="note">{escape(figure.note)}</p></section>'
    )


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">' + "".join(parts) + "</svg>"
    )


def _tip(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _trial(name: str) -> str:
    return f' data-trial="{escape(name)}"' if name else ""


def _chart(chart: Chart) -> str:
    every = [point for line in chart.lines for point in line.points] + [(dot.x, dot.y) for dot in chart.dots]
    bounds = [value for dot in chart.dots for value in (dot.low, dot.high) if value is not None]
    across = scale([x for x, _ in every], log=chart.x_log, from_zero=not chart.x_log)
    up = scale([y for _, y in every] + bounds)

    def place(point: Point) -> tuple[float, float]:
        return (
            LEFT + across.share(point[0]) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up.share(point[1]) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_grid(across, up, chart.x_label, chart.y_label)]
    # The winner's line over the others.
    for line in sorted(chart.lines, key=lambda line: line.strong):
        points = [place(point) for point in line.points]
        path = _stairs(points) if chart.stairs else points
        width = 3 if line.strong else 1.6
        parts.append(
            f'<g class="mark"{_trial(line.trial)}><polyline fill="none" stroke="{line.color}" stroke-width="{width}" '
            f'stroke-linejoin="round" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in path)}"/>'
            f"{_end(points[-1], line.color, line.ends)}{_tip(line.text)}</g>"
        )
    for dot in chart.dots:
        x, y = place((dot.x, dot.y))
        bar = ""
        if dot.low is not None and dot.high is not None:
            (_, low), (_, high) = place((dot.x, dot.low)), place((dot.x, dot.high))
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"'
            bar = f'<line {ends} stroke="{dot.color}" stroke-width="2"/>'
        name = f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{escape(dot.name)}</text>' if dot.name else ""
        parts.append(
            f'<g class="mark"{_trial(dot.trial)}>{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if dot.name else 3}" '
            f'fill="{dot.color}"/>{name}{_tip(dot.text)}</g>'
        )
    return _svg(HEIGHT, chart.title, parts)


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    made = list(points[:1])
    for before, after in pairwise(points):
        made += [(after[0], before[1]), after]
    return made


def _end(at: tuple[float, float], color: str, ends: str) -> str:
    x, y = at
    if ends == "cross":
        return f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{color}" stroke-width="2" fill="none"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' if ends else ""


def _grid(across: Scale, up: Scale, x_label: str, y_label: str) -> str:
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for mark in up.marks:
        y = bottom - up.share(mark) * (bottom - TOP)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label(mark)}</text>'
        )
    for mark in across.marks:
        x = LEFT + across.share(mark) * (right - LEFT)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
            f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{label(mark)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle" class="axis">{escape(x_label)}</text>')
    height = (TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(13 {height:.0f}) rotate(-90)" text-anchor="middle" class="axis">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _heat(heat: Heat) -> str:
    left = 96
    width, height = (WIDTH - left - RIGHT) / len(heat.columns), min(56.0, 240 / len(heat.rows))
    bottom = TOP + height * len(heat.rows)
    parts = []
    for cell in heat.cells:
        # The first row at the bottom: larger values are higher up.
        x, y = left + cell.x * width, TOP + (len(heat.rows) - 1 - cell.y) * height
        fill = f'style="fill:{cell.color}"' if cell.value is not None else 'class="empty"'
        text = f"{cell.value:.3f}" if cell.value is not None else "–"
        shown = "on" if cell.value is not None else "off"
        parts.append(
            f'<g class="mark"{_trial(cell.trial)}><rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" '
            f'height="{height - 2:.1f}" rx="3" {fill}/><text x="{x + width / 2:.1f}" y="{y + height / 2 + 4:.1f}" '
            f'text-anchor="middle" class="{shown}">{text}</text>{_tip(cell.text)}</g>'
        )
    for index, name in enumerate(heat.rows):
        y = bottom - (index + 0.5) * height + 4
        parts.append(f'<text x="{left - 6}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
    for index, name in enumerate(heat.columns):
        x = left + (index + 0.5) * width
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{escape(name)}</text>')
    parts.append(
        f'<text x="{(left + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 36:.0f}" text-anchor="middle" class="axis">'
        f"{escape(heat.x_label)}</text>"
        f'<text transform="translate(13 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle" class="axis">'
        f"{escape(heat.y_label)}</text>"
    )
    return _svg(bottom + 44, heat.title, parts)


def _parallel(parallel: Parallel) -> str:
    left, right, top, bottom = 40, WIDTH - 56, 30, HEIGHT - 18
    xs = [left + index * (right - left) / (len(parallel.axes) - 1) for index in range(len(parallel.axes))]
    parts = []
    for trial, heights, color, text in parallel.lines:
        points = " ".join(
            f"{x:.1f},{bottom - share * (bottom - top):.1f}" for x, share in zip(xs, heights, strict=True)
        )
        parts.append(
            f'<g class="mark"{_trial(trial)}><polyline fill="none" stroke="{color}" stroke-width="2" '
            f'points="{points}"/>{_tip(text)}</g>'
        )
    for x, axis in zip(xs, parallel.axes, strict=True):
        parts.append(f'<line class="pole" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="16" text-anchor="middle" class="axis">{escape(axis.name)}</text>')
        for name, share in axis.marks:
            y = bottom - share * (bottom - top) + 4
            parts.append(f'<text x="{x + 6:.1f}" y="{y:.1f}" class="halo">{escape(name)}</text>')
    return _svg(HEIGHT, parallel.title, parts)


def _bars(bars: Bars) -> str:
    left, room = 150, 70
    most = max((value for _, value, *_ in bars.bars), default=0.0) or 1.0
    if bars.unit == "share":
        most = 1.0
    parts = []
    for index, (name, value, part, color, text) in enumerate(bars.bars):
        y = TOP + index * ROW
        width = (WIDTH - left - room) * value / most
        dark = (WIDTH - left - room) * part / most
        said = f"{value:.0%}" if bars.unit == "share" else f"{value:.0f} s"
        parts.append(
            f'<g class="mark"{_trial(name)}><text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{ROW - 6}" rx="2" style="fill:{color}"/>'
            f'<rect x="{left}" y="{y}" width="{dark:.1f}" height="{ROW - 6}" class="part"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 14}">{said}</text>{_tip(text)}</g>'
        )
    return _svg(TOP + ROW * max(1, len(bars.bars)) + 4, bars.title, parts)
