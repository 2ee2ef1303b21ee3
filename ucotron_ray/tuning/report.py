"""The page of a sweep: one HTML file, nothing from outside. While the sweep runs it reloads itself.

Point at a trial anywhere and it is lit everywhere. Every number that counts stands in an element with `data-value`, its
name in `summary.json`, and is in the page in full as JSON too.
"""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from ucotron_ray.tuning.figures import figures
from ucotron_ray.tuning.record import Record
from ucotron_ray.tuning.summary import shown, summary
from ucotron_ray.tuning.svg import drawn

FILE, SUMMARY = "sweep.html", "summary.json"
RELOAD_SECONDS = 10

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root{--ink:#1b2530;--soft:#5b6875;--paper:#f6f8fa;--card:#fff;--line:#d9e0e7;--good:#0f7a43;--bad:#c5303c}
@media(prefers-color-scheme:dark){:root{--ink:#e4ebf2;--soft:#94a3b2;--paper:#0f151b;--card:#182029;--line:#2c3844;
--good:#5fd08f;--bad:#ff7a85}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0}
main{max-width:1240px;margin:0 auto;padding:1.2rem 1rem 3rem}h1{font-size:1.5rem;margin:0}
h2{font-size:1rem;margin:0 0 .4rem}.sub{color:var(--soft);margin:.2rem 0 1rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,470px),1fr));gap:1rem}
section,.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.9rem 1rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:1rem;margin-bottom:1rem}
.card b{display:block;font-size:1.7rem;line-height:1.2;font-variant-numeric:tabular-nums}
.card small{color:var(--soft)}.winner{border-left:5px solid var(--good)}.winner code{font-size:.95rem}
.note{color:var(--soft);font-size:.85rem;margin:.4rem 0 0}svg{width:100%;height:auto;display:block}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg .axis{fill:var(--ink);font-size:12px}
svg .grid{stroke:var(--line)}svg .pole{stroke:var(--soft)}svg .on{fill:#fff;font-weight:600;font-size:12px}
svg .empty{fill:var(--line)}svg .part{fill:#0006}svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:3px}
.lit .mark{opacity:.13}.lit .mark.hot{opacity:1}.mark{transition:opacity .12s}
.wide{overflow-x:auto;margin-top:1rem}table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{text-align:left;padding:.3rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.why{white-space:normal;min-width:14rem;color:var(--soft)}
tr.hot{background:color-mix(in srgb,var(--good) 14%,transparent)}tr.best td:first-child{font-weight:700}
.state-failed{color:var(--bad)}.state-finished{color:var(--good)}.run{color:var(--good)}
"""

SCRIPT = """
const root=document.documentElement;
const light=name=>{root.classList.toggle('lit',!!name);
for(const e of document.querySelectorAll('.hot'))e.classList.remove('hot');
if(name)for(const e of document.querySelectorAll('[data-trial="'+CSS.escape(name)+'"]'))e.classList.add('hot');};
document.addEventListener('pointerover',e=>{const t=e.target.closest('[data-trial]');light(t&&t.dataset.trial)});
const all=query=>document.querySelectorAll(query);
const data=JSON.parse(document.getElementById('data').textContent);
const value=path=>path.split('/').reduce((v,k)=>v===null||v===undefined?v:v[k],data);
let same=0,other=0;
for(const e of all('[data-value]'))JSON.parse(e.dataset.exact)===value(e.dataset.value)?same++:other++;
root.dataset.same=same;root.dataset.other=other;
try{const key='scroll:'+location.pathname,at=sessionStorage.getItem(key);if(at)scrollTo(0,+at);
addEventListener('pagehide',()=>sessionStorage.setItem(key,scrollY));}catch(error){}
"""


def page(record: Record) -> str:
    """The whole document."""
    made = summary(record)
    title = escape(f"Sweep {record.name}: {record.stage}")
    reload = "" if made["over"] else f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">'
    state = "done" if made["over"] else '<span class="run">running</span>'
    drawings = "".join(drawn(figure) for figure in figures(record, made))
    # `<` cannot end the script element from inside a string.
    data = json.dumps(made, ensure_ascii=False).replace("<", "\\u003c")
    searched = ", ".join(record.searched)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{reload}'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><main>"
        f'<h1>{title}</h1><p class="sub">{state} · {escape(record.data)} · {escape(record.search)} search over '
        f"{escape(searched)} · scheduler {escape(record.scheduler)}</p>"
        f"{_cards(made)}"
        f'<div class="grid">{drawings}</div>'
        f"{_tiers(made)}{_table(made)}</main>"
        f'<script type="application/json" id="data">{data}</script><script>{SCRIPT}</script></body></html>\n'
    )


def _value(made: Mapping[str, Any], path: str, form: str) -> str:
    """A number of the summary, as text; in full beside it."""
    value: Any = made
    for key in path.split("/"):
        value = value[int(key) if isinstance(value, list) else key]
    text = "–" if value is None else format(value, form)
    exact = escape(json.dumps(value))
    return f'<span data-value="{escape(path)}" data-exact="{exact}">{text}</span>'


def _cards(made: Mapping[str, Any]) -> str:
    metric = "F1" if made["metric"] == "f1" else "Validation loss"
    cards = []
    for tier, won in made["winners"].items():
        path = f"winners/{tier}"
        interval = ""
        if won["low"] is not None:
            interval = f" ({_value(made, f'{path}/low', '.3f')} to {_value(made, f'{path}/high', '.3f')})"
        settings = "<br>".join(
            f"<code>{escape(name)}: {escape(shown(value))}</code>" for name, value in won["params"].items()
        )
        several = (
            f", mean over {len(won['seeds'])} seeds {_value(made, f'{path}/mean', '.3f')}"
            if len(won["seeds"]) > 1
            else ""
        )
        so_far = "" if made["over"] else " so far"
        cards.append(
            f'<div class="card winner" data-trial="{escape(won["trial"])}"><small>Winner{so_far}, {escape(tier)}: '
            f"{escape(won['trial'])}</small><b>{_value(made, f'{path}/value', '.3f')}</b><small>{metric}{interval}, "
            f"step {_value(made, f'{path}/step', 'd')} of {_value(made, f'{path}/steps', 'd')}{several}</small><br>"
            f"{settings}</div>"
        )
    states = ", ".join(
        f"{_value(made, f'states/{name}', 'd')} {name}" for name, count in made["states"].items() if count
    )
    cards.append(
        f'<div class="card"><small>Trials</small><b>{_value(made, "trials", "d")}</b><small>{states}</small></div>'
    )
    cards.append(
        f'<div class="card"><small>Steps saved</small><b>{_value(made, "steps_saved", ".0%")}</b><small>'
        f"of the trials that ran to their end or were stopped; "
        f"{_value(made, 'steps_run', ',d')} of {_value(made, 'steps_full', ',d')} made</small></div>"
    )
    cards.append(
        f'<div class="card"><small>Seconds of all trials</small><b>{_value(made, "seconds", ",.0f")}</b><small>'
        f"{_value(made, 'fixed_seconds_median', '.1f')} s of a trial are fixed cost (median)</small></div>"
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _tiers(made: Mapping[str, Any]) -> str:
    rows = []
    for tier, facts in made["tiers"].items():
        path = f"tiers/{tier}"
        cells = [
            (f"{path}/value", ".3f") if facts.get("value") is not None else None,
            (f"{path}/parameters", ",d"),
            (f"{path}/bytes", ",d"),
            (f"{path}/answer_seconds", ".3f") if facts.get("answer_seconds") is not None else None,
            (f"{path}/rows", ",d"),
            (f"{path}/steps", ",d"),
        ]
        texts = "".join(f'<td class="n">{_value(made, *cell) if cell else "–"}</td>' for cell in cells)
        rows.append(f"<tr><td>{escape(tier)}</td><td>{escape(facts['model'])}</td>{texts}</tr>")
    head = "".join(
        f'<th class="n">{name}</th>' for name in ("best", "parameters", "bytes", "s an answer", "rows", "steps")
    )
    head = f"<tr><th>tier</th><th>base</th>{head}</tr>"
    return f'<section class="wide"><h2>Tiers</h2><table>{head}{"".join(rows)}</table></section>'


def _table(made: Mapping[str, Any]) -> str:
    best = {won["trial"] for won in made["winners"].values()}
    sign = -1 if made["metric"] == "f1" else 1
    order = sorted(
        range(len(made["table"])),
        key=lambda index: (made["table"][index]["best"] is None, sign * (made["table"][index]["best"] or 0.0)),
    )
    rows = []
    for index in order:
        row, path = made["table"][index], f"table/{index}"
        settings = ", ".join(f"{name} {shown(value)}" for name, value in row["params"].items())
        held = ", ".join(f"{amount:g} {kind}" for kind, amount in row["resources"].items())
        numbers = "".join(
            f'<td class="n">{_value(made, f"{path}/{key}", ".3f")}</td>' for key in ("best", "low", "high")
        )
        chosen = "best" if row["id"] in best else ""
        rows.append(
            f'<tr data-trial="{escape(row["id"])}" class="{chosen}"><td>{escape(row["id"])}</td>'
            f'<td class="state-{row["state"]}">{row["state"]}</td><td>{escape(settings)}</td>'
            f'<td class="n">{row["seed"]}</td>{numbers}'
            f'<td class="n">{_value(made, f"{path}/last_step", "d")} / {row["steps"]}</td>'
            f'<td class="n">{_value(made, f"{path}/seconds", ".0f")}</td><td>{escape(held)}</td>'
            f'<td class="why">{escape(row["cause"] or "")}</td></tr>'
        )
    names: tuple[tuple[str, str], ...] = (
        ("trial", ""),
        ("state", ""),
        ("settings", ""),
        ("seed", "n"),
        ("best", "n"),
        ("low", "n"),
        ("high", "n"),
    )
    names += (("step", "n"), ("seconds", "n"), ("holds", ""), ("why", ""))
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in names)
    return f'<section class="wide"><h2>Trials</h2><table><tr>{head}</tr>{"".join(rows)}</table></section>'
