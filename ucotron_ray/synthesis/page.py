"""The report of a gate as a page: one HTML file with its pictures in it, no script, nothing from outside.

Every string of a row or a file is escaped: rows can hold markup.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ucotron_ray.synthesis.rows import DEFECTS

BAR_HEIGHT, LABEL_WIDTH, BAR_WIDTH, COUNT_WIDTH = 18, 210, 420, 130
COLUMN_HEIGHT, COLUMN_WIDTH = 140, 30
MOST_BARS = 60
"""Labels that a picture shows; an open vocabulary can have thousands."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #dde3ea}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.ok{color:#11663a}.rejected{color:#a3182c;font-weight:600}.state{font-size:1.1rem}
svg{max-width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:#1c2733}.bar{fill:#3b6ea8}.over{fill:#b8324a}
code{background:#f2f5f8;padding:0 .2rem;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){body{background:#141a21;color:#dfe6ee}svg text{fill:#dfe6ee}.bar{fill:#6fa3dd}
.ok{color:#6fd09a}.rejected{color:#ff8296}th,td{border-color:#2c3743}code{background:#222c36}}
"""


def page(title: str, report: Mapping[str, Any]) -> str:
    """The whole document."""
    state = str(report["state"])
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="state {escape(state)}">{escape(state)}: {report["rows"]:,} rows of kind '
        f"<code>{escape(str(report['kind']))}</code></p>",
        _failures(report["failures"]),
        "<h2>Rows by split</h2>",
        bars({str(key): int(value) for key, value in report["splits"].items()}),
    ]
    if report["labels"]:
        body += ["<h2>Labels</h2>", bars(dict(report["labels"])), _vocabulary(report["vocabulary"])]
    if report["lengths"]["histogram"]:
        body += ["<h2>Length in characters</h2>", columns(report["lengths"]["histogram"]), _lengths(report["lengths"])]
    body += ["<h2>Defects in the rows</h2>", _table(report["defects"], "rows")]
    if report["samples"]:
        body.append(f"<h2>Found and kept out, of {report['samples']:,} samples</h2>")
        body.append(_table(report["caught"], "samples"))
    if report["judge"]:
        body += ["<h2>Judge</h2>", _judge(report["judge"])]
    body += ["<h2>Where</h2>", _examples(report["defects"])]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def bars(counts: Mapping[str, int]) -> str:
    """One horizontal bar a label, with its count and share, as an inline picture."""
    total, most = sum(counts.values()), max(counts.values(), default=0)
    shown = list(counts.items())[:MOST_BARS]
    height = len(shown) * (BAR_HEIGHT + 4) + 4
    parts = []
    for index, (label, count) in enumerate(shown):
        top = 4 + index * (BAR_HEIGHT + 4)
        width = BAR_WIDTH * count / most if most else 0
        share = count / total if total else 0
        name = escape(_short(label))
        parts.append(
            f'<text x="{LABEL_WIDTH - 8}" y="{top + 13}" text-anchor="end">{name}</text>'
            f'<rect class="bar" x="{LABEL_WIDTH}" y="{top}" width="{width:.1f}" height="{BAR_HEIGHT}"/>'
            f'<text x="{LABEL_WIDTH + width + 6:.1f}" y="{top + 13}">{count:,} ({share:.1%})</text>'
        )
    left_out = len(counts) - len(shown)
    more = f"<p>and {left_out:,} more labels</p>" if left_out else ""
    return _picture(LABEL_WIDTH + BAR_WIDTH + COUNT_WIDTH, height, "counts by label", parts) + more


def columns(histogram: Sequence[Mapping[str, int]]) -> str:
    """One column a range of the histogram, as an inline picture."""
    most = max(int(bar["rows"]) for bar in histogram)
    parts = []
    for index, bar in enumerate(histogram):
        height = COLUMN_HEIGHT * int(bar["rows"]) / most
        left = 10 + index * (COLUMN_WIDTH + 4)
        hint = f"{bar['from']} to {bar['to']}: {bar['rows']:,} rows"
        parts.append(
            f'<rect class="bar" x="{left}" y="{10 + COLUMN_HEIGHT - height:.1f}" width="{COLUMN_WIDTH}" '
            f'height="{height:.1f}"><title>{escape(hint)}</title></rect>'
        )
        if index % 4 == 0:
            parts.append(f'<text x="{left}" y="{COLUMN_HEIGHT + 28}">{bar["from"]}</text>')
    return _picture(20 + len(histogram) * (COLUMN_WIDTH + 4), COLUMN_HEIGHT + 36, "rows by length", parts)


def _picture(width: float, height: float, name: str, parts: Sequence[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def _failures(failures: Sequence[str]) -> str:
    if not failures:
        return "<p>Every share is within its limit.</p>"
    return "<ul>" + "".join(f'<li class="rejected">{escape(failure)}</li>' for failure in failures) + "</ul>"


def _vocabulary(vocabulary: Mapping[str, Any]) -> str:
    if not vocabulary["size"]:
        return ""
    absent = ", ".join(escape(str(label)) for label in vocabulary["missing"]) or "none"
    return f"<p>{vocabulary['found']} of {vocabulary['size']} labels occur; missing: {absent}</p>"


def _lengths(lengths: Mapping[str, Any]) -> str:
    return f"<p>from {lengths['min']} to {lengths['max']}, median {lengths['median']:g}, mean {lengths['mean']:g}</p>"


def _table(entries: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    lines = []
    for name, entry in entries.items():
        limit = "" if entry["limit"] is None else f"{entry['limit']:.2%}"
        over = entry["limit"] is not None and entry["share"] > entry["limit"]
        lines.append(
            f'<tr class="{"rejected" if over else ""}"><td>{escape(name.replace("_", " "))}</td>'
            f"<td>{escape(DEFECTS.get(name, ''))}</td>"
            + "".join(f'<td class="n">{cell}</td>' for cell in (f"{entry['rows']:,}", f"{entry['share']:.2%}", limit))
            + "</tr>"
        )
    head = "<tr><th>what</th><th>means</th>" + "".join(
        f'<th class="n">{name}</th>' for name in (unit, "share", "at most")
    )
    return f"<table>{head}</tr>{''.join(lines)}</table>"


def _judge(judge: Mapping[str, Any]) -> str:
    marks = bars({f"mark {mark}": int(count) for mark, count in judge["marks"].items()})
    return f"<p>{escape(str(judge['model']))} gave {judge['mean']:.2f} on average to {judge['rows']} rows.</p>{marks}"


def _examples(defects: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, entry in defects.items():
        if entry["examples"]:
            places = "; ".join(
                escape(example["where"]) + (f" (<code>{escape(example['found'])}</code>)" if "found" in example else "")
                for example in entry["examples"]
            )
            parts.append(f"<li>{escape(name.replace('_', ' '))}: {places}</li>")
    return f"<ul>{''.join(parts)}</ul>" if parts else "<p>No row has a defect.</p>"


def _short(label: str) -> str:
    return label if len(label) <= 26 else label[:25] + "…"
