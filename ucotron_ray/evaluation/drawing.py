"""The pictures of the evaluation page as inline SVG: intervals, grouped bars, differences, reliability."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

COLORS = ("#3b6ea8", "#d1495b", "#2f9e6e", "#b9770e", "#7d5ba6", "#4f7f8c", "#a14f7a", "#6b6b6b")
LABEL_WIDTH, BAR_WIDTH, VALUE_WIDTH = 300, 460, 150
ROW_HEIGHT, THIN_HEIGHT = 22, 9
SQUARE, MARGIN = 220, 34


def color(index: int) -> str:
    """The colour of the n-th model."""
    return COLORS[index % len(COLORS)]


def intervals(bars: Mapping[str, Mapping[str, float]]) -> str:
    """A bar of F1 a line, with its 95 % interval as a whisker."""
    parts = _scale(len(bars) * ROW_HEIGHT)
    for index, (label, values) in enumerate(bars.items()):
        top = index * ROW_HEIGHT
        low, high = _x(values["f1_low"]), _x(values["f1_high"])
        middle = top + ROW_HEIGHT / 2
        parts += [
            f'<text x="{LABEL_WIDTH - 8}" y="{top + 15}" text-anchor="end">{escape(_short(label))}</text>',
            f'<rect x="{LABEL_WIDTH}" y="{top + 3}" width="{_x(values["f1"]) - LABEL_WIDTH:.1f}" '
            f'height="{ROW_HEIGHT - 6}" fill="{COLORS[0]}" opacity="0.75"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
            f'stroke="{COLORS[1]}" stroke-width="1.5"/>',
            f'<text x="{LABEL_WIDTH + BAR_WIDTH + 10}" y="{top + 15}">{values["f1"]:.3f} '
            f"({values['f1_low']:.2f} to {values['f1_high']:.2f})</text>",
        ]
    return _picture(len(bars) * ROW_HEIGHT + 20, "strict F1 with its interval", parts)


def grouped(groups: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> str:
    """A block of thin bars a group, one a model."""
    block = len(labels) * THIN_HEIGHT + 10
    parts = _scale(len(groups) * block)
    for number, (name, values) in enumerate(groups.items()):
        top = number * block
        parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{top + 14}" text-anchor="end">{escape(_short(name))}</text>')
        for index, label in enumerate(labels):
            value = values[label]
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{top + 5 + index * THIN_HEIGHT}" width="{_x(value) - LABEL_WIDTH:.1f}" '
                f'height="{THIN_HEIGHT - 1}" fill="{color(index)}"><title>{escape(label)}: {value:.3f}</title></rect>'
            )
    return _picture(len(groups) * block + 20, "F1 by group and model", parts) + _legend(labels)


def differences(entries: Mapping[str, Mapping[str, float]]) -> str:
    """A point and its interval a line, beside the line of no difference."""
    reach = max((abs(entry[key]) for entry in entries.values() for key in ("low", "high")), default=0.0) or 0.01
    height = len(entries) * ROW_HEIGHT

    def x(value: float) -> float:
        return LABEL_WIDTH + BAR_WIDTH / 2 + value / reach * (BAR_WIDTH / 2 - 10)

    parts = [f'<path class="axis" d="M{x(0):.1f} 0V{height}"/>']
    for index, (label, entry) in enumerate(entries.items()):
        middle = index * ROW_HEIGHT + ROW_HEIGHT / 2
        parts += [
            f'<text x="{LABEL_WIDTH - 8}" y="{middle + 4}" text-anchor="end">{escape(_short(label))}</text>',
            f'<path d="M{x(entry["low"]):.1f} {middle}H{x(entry["high"]):.1f}" stroke="{COLORS[0]}" stroke-width="2"/>',
            f'<circle cx="{x(entry["difference"]):.1f}" cy="{middle}" r="4" fill="{COLORS[1]}"/>',
            f'<text x="{LABEL_WIDTH + BAR_WIDTH + 10}" y="{middle + 4}">{entry["difference"]:+.3f}</text>',
        ]
    return _picture(height + 6, "difference in strict F1 with its interval", parts)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share of right triples over mean confidence; the diagonal is what a calibrated model has."""
    most = max(entry["triples"] for entry in bins)
    side = SQUARE + 2 * MARGIN

    def place(entry: Mapping[str, Any]) -> str:
        x = MARGIN + entry["confidence"] * SQUARE
        y = MARGIN + (1 - entry["accuracy"]) * SQUARE
        radius = 3 + 5 * (entry["triples"] / most) ** 0.5
        hint = f"{entry['triples']} triples: confidence {entry['confidence']:.3f}, right {entry['accuracy']:.3f}"
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{COLORS[0]}" opacity="0.8">'
            f"<title>{escape(hint)}</title></circle>"
        )

    corner = MARGIN + SQUARE
    frame = f"M{MARGIN} {MARGIN}V{corner}H{corner}M{MARGIN} {corner}L{corner} {MARGIN}"
    parts = [
        f'<path class="axis" fill="none" d="{frame}"/>',
        *map(place, bins),
        f'<text x="{MARGIN}" y="{corner + 16}">0</text><text x="{corner - 8}" y="{corner + 16}">1</text>',
        f'<text x="{MARGIN + SQUARE / 2 - 34}" y="{corner + 16}">confidence</text>',
        f'<text x="4" y="{MARGIN - 8}">share of right triples</text><text x="{MARGIN - 14}" y="{MARGIN + 10}">1</text>',
    ]
    size = f'width="{side}" height="{side}" viewBox="0 0 {side} {side}"'
    return f'<svg {size} role="img" aria-label="reliability diagram">{"".join(parts)}</svg>'


def _scale(height: float) -> list[str]:
    """Lines at 0, 0.25, … 1 with their numbers below."""
    marks = (0.0, 0.25, 0.5, 0.75, 1.0)
    lines = [f'<path class="axis" opacity="0.5" d="M{_x(mark):.1f} 0V{height}"/>' for mark in marks]
    return lines + [f'<text x="{_x(mark) - 8:.1f}" y="{height + 15}">{mark:g}</text>' for mark in marks]


def _x(value: float) -> float:
    return LABEL_WIDTH + value * BAR_WIDTH


def _picture(height: float, name: str, parts: Sequence[str]) -> str:
    width = LABEL_WIDTH + BAR_WIDTH + VALUE_WIDTH
    size = f'width="{width}" height="{height:.0f}" viewBox="0 0 {width} {height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def _legend(labels: Sequence[str]) -> str:
    entries = [f'<span style="color:{color(index)}">■</span> {escape(label)}' for index, label in enumerate(labels)]
    return f"<p>{'&emsp;'.join(entries)}</p>"


def _short(label: str) -> str:
    return label if len(label) <= 42 else label[:41] + "…"
