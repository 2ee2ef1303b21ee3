"""Scores as one HTML page: its pictures inside, no script, nothing from outside. Every string of a row is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ucotron_ray.evaluation import drawing

HEADLINE = (
    ("f1", "strict F1"),
    ("f1_low", "from"),
    ("f1_high", "to"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("macro_f1", "macro F1"),
    ("relaxed_f1", "relaxed F1"),
    ("pair_f1", "pair F1"),
    ("predicate_accuracy", "predicate of a right pair"),
    ("exact_f1", "exact F1"),
)
FORM = (
    ("valid_answers", "read by the server"),
    ("valid_answers_low", "from"),
    ("valid_answers_high", "to"),
    ("json_answers", "an array and nothing else"),
    ("schema_answers", "keeps the schema"),
    ("invented_entities", "names not given"),
    ("names_not_in_text", "names not in the text"),
    ("unknown_predicates", "predicates that no row expects"),
    ("false_positives_on_empty", "triples where there is no relation"),
    ("false_positives_on_empty_low", "from"),
    ("false_positives_on_empty_high", "to"),
    ("cut_answers", "cut at the limit"),
)
MOST_PREDICATES = 25
SHOWN_ROWS = 40

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:.3rem 0}
table{border-collapse:collapse;margin:.5rem 0}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #dde3ea;
vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.side{display:flex;flex-wrap:wrap;gap:1.5rem}.wide{overflow-x:auto}svg{max-width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:#1c2733}.axis{stroke:#9aa7b4;stroke-width:1}.note{color:#5b6b7a}
code{background:#f2f5f8;padding:0 .2rem;overflow-wrap:anywhere}.win{font-weight:600}
@media (prefers-color-scheme:dark){body{background:#141a21;color:#dfe6ee}svg text{fill:#dfe6ee}
th,td{border-color:#2c3743}code{background:#222c36}.note{color:#93a4b5}}
"""

Scores = Mapping[str, Any]


def scores_page(scores: Scores) -> str:
    """The page of one model's scores."""
    overall = scores["overall"]
    title = f"Scores, {overall['rows']:.0f} rows"
    return _document(title, _sections({"this model": scores}, scores.get("baselines") or {}))


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The page of models side by side; the first one is what the others are compared with."""
    models: Mapping[str, Scores] = comparison["models"]
    first = next(iter(models))
    title = f"{len(models)} models on the same {models[first]['overall']['rows']:.0f} rows"
    body = [
        *_sections(models, comparison.get("baselines") or {}),
        f"<h2>Difference in strict F1 from {escape(first)}</h2>",
        '<p class="note">Paired bootstrap by row: both models are drawn by the same rows. The line is 95 %.</p>',
        drawing.differences(comparison["differences"]),
        _differences(comparison["differences"]),
        "<h2>The guide's five prompts</h2>",
        _answers(comparison["guide"], list(models)),
        "<h2>Rows on which the models differ</h2>",
        f"<p>Won: {_wins(comparison)}</p>",
        _answers(comparison["rows"][:SHOWN_ROWS], list(models)),
    ]
    return _document(title, body)


def _sections(models: Mapping[str, Scores], baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    overall = {label: scores["overall"] for label, scores in models.items()}
    return [
        "<h2>Triples, entities given as the server gives them</h2>",
        drawing.intervals(_parts(models)),
        _table(overall, HEADLINE),
        *_baselines(baselines),
        "<h2>Form of the answers</h2>",
        _table(overall, FORM),
        *_end_to_end(models),
        "<h2>F1 by predicate</h2>",
        _by_predicate(models),
        "<h2>Confidence against truth</h2>",
        _calibration(models),
    ]


def _parts(models: Mapping[str, Scores]) -> dict[str, Mapping[str, float]]:
    """Every bar of the first picture: the whole set, its groups and the other ways to ask, model by model."""
    bars: dict[str, Mapping[str, float]] = {}
    for label, scores in models.items():
        parts = {"": scores["overall"], **scores["groups"], "raw layout": scores["raw"]}
        parts |= {"no entities given": scores.get("end_to_end"), "guide's five": scores["guide"]}
        bars |= {f"{label} {part}".strip(): values for part, values in parts.items() if values}
    return bars


def _end_to_end(models: Mapping[str, Scores]) -> list[str]:
    asked = {label: scores["end_to_end"] for label, scores in models.items() if scores.get("end_to_end")}
    if not asked:
        return []
    note = "The same prompt with an empty list of entities: the model finds the names itself. The server never asks so."
    return ["<h2>End to end</h2>", f'<p class="note">{note}</p>', _table(asked, (*HEADLINE, *FORM[:-1]))]


def _baselines(baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not baselines:
        return []
    note = "Guesses from the given entities and counts of the training rows alone; they read no sentence."
    return ["<h2>What has to be beaten</h2>", f'<p class="note">{note}</p>', _table(baselines, HEADLINE)]


def _table(rows: Mapping[str, Mapping[str, float]], columns: Sequence[tuple[str, str]]) -> str:
    head = "".join(f'<th class="n">{escape(name)}</th>' for _, name in columns)
    lines = []
    for label, values in rows.items():
        cells = "".join(
            f'<td class="n">{values[key]:.3f}</td>' if key in values else '<td class="n"></td>' for key, _ in columns
        )
        lines.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def _by_predicate(models: Mapping[str, Scores]) -> str:
    expected: dict[str, float] = {}
    for scores in models.values():
        expected |= {name: entry["expected"] for name, entry in scores["by_predicate"].items() if entry["expected"]}
    names = sorted(expected, key=lambda name: (-expected[name], name))
    shown = {
        f"{name} ({expected[name]:.0f})": {
            label: float(scores["by_predicate"].get(name, {}).get("f1", 0.0)) for label, scores in models.items()
        }
        for name in names[:MOST_PREDICATES]
    }
    more = len(names) - MOST_PREDICATES
    return drawing.grouped(shown, list(models)) + (f"<p>and {more} rarer predicates</p>" if more > 0 else "")


def _calibration(models: Mapping[str, Scores]) -> str:
    figures = []
    for label, scores in models.items():
        for kind, entry in (scores.get("calibration") or {}).items():
            if entry:
                figures.append(_reliability(f"{label}, {kind}", entry))
    note = "Each point holds the same number of triples; on the diagonal the confidence is the share of right ones."
    empty = "<p>No model predicted a triple.</p>"
    return f'<p class="note">{note}</p><div class="side">{"".join(figures)}</div>' if figures else empty


def _reliability(label: str, entry: Mapping[str, Any]) -> str:
    warning = " Too few different values to say anything." if entry["degenerate"] else ""
    caption = (
        f"ECE {entry['ece']:.3f}, Brier {entry['brier']:.3f}, AURC {entry['aurc']:.3f}, {entry['triples']} triples, "
        f"{entry['distinct']} different values.{warning}"
    )
    return f"<div><h3>{escape(label)}</h3>{drawing.reliability(entry['bins'])}<p>{escape(caption)}</p></div>"


def _differences(differences: Mapping[str, Mapping[str, float]]) -> str:
    names = (
        ("difference", "difference"),
        ("low", "from"),
        ("high", "to"),
        ("p_not_better", "p of «not better»"),
        ("p_not_worse", "p of «not worse»"),
    )
    return _table(differences, names)


def _wins(comparison: Mapping[str, Any]) -> str:
    wins = [f"{escape(label)} {count}" for label, count in comparison["wins"].items()]
    return ", ".join([*wins, f"ties {comparison['ties']}"])


def _answers(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """A line a row: its text, what was expected, and what each model said."""
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    lines = []
    for row in rows:
        cells = []
        for label in labels:
            answer = row["models"][label]
            won = ' class="win"' if row["winner"] == label else ""
            cells.append(f"<td{won}>F1 {answer['f1']:.2f}<br>{_triples(answer['predicted'])}</td>")
        lines.append(f"<tr><td>{escape(row['text'])}</td><td>{_triples(row['expected'])}</td>{''.join(cells)}</tr>")
    if not lines:
        return "<p>none</p>"
    return f'<div class="wide"><table><tr><th>text</th><th>expected</th>{head}</tr>{"".join(lines)}</table></div>'


def _triples(relations: Sequence[Mapping[str, Any]] | None) -> str:
    if relations is None:
        return "no array"
    shown = [f"{r['subject']} · {r['predicate']} · {r['object']}" for r in relations]
    return "<br>".join(f"<code>{escape(text)}</code>" for text in shown) or "[]"


def _document(title: str, body: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
