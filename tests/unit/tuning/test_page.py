"""The page of a sweep: every number is the JSON's, nothing comes from outside, and a browser has nothing to complain of."""

import html
import json
import re
import shutil
import subprocess

import pytest

from tests.tuning import STEPS, begun, opened, plan, played
from ucotron_ray.tuning import png, report
from ucotron_ray.tuning.axes import scale
from ucotron_ray.tuning.drawing import Bars, Chart, Heat, Parallel
from ucotron_ray.tuning.figures import figures
from ucotron_ray.tuning.record import Record, Score
from ucotron_ray.tuning.summary import binned, summary

MARKUP = "</script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Record:
    """Two tiers, one failed trial, intervals, names with markup in them."""
    sweep = opened(tmp_path_factory.mktemp("sweep"), plan(tiers=("slm", "small")))
    failed = sweep.next()
    sweep.launched(failed.id, {"CPU": 1.0})
    sweep.ended(failed.id, "failed", f"RuntimeError: {MARKUP}")
    played(sweep)
    scores = [
        score.model_copy(update={"low": score.value * 0.9, "high": score.value * 1.1, "answer_seconds": 0.25})
        for score in sweep.record.scores
    ]
    larger = sweep.record.tiers["slm"].model_copy(update={"parameters": 5000, "bytes": 10_000})
    return sweep.record.model_copy(
        update={"scores": scores, "data": MARKUP, "tiers": {**sweep.record.tiers, "small": larger}}
    )


def shown(page: str) -> dict[str, tuple[str, object]]:
    """Path in the summary → (text on the page, the value in full)."""
    found = re.findall(r'<span data-value="([^"]+)" data-exact="([^"]*)">([^<]*)</span>', page)
    return {path: (text, json.loads(html.unescape(exact))) for path, exact, text in found}


def value_of(made: dict, path: str):
    value = made
    for key in path.split("/"):
        value = value[int(key) if isinstance(value, list) else key]
    return value


def check_numbers(page: str, made: dict) -> None:
    numbers = shown(page)
    for path, (text, exact) in numbers.items():
        wanted = value_of(made, path)
        assert exact == wanted, path
        if wanted is None:
            assert text == "–"
        elif text.endswith("%"):
            assert float(text[:-1]) == pytest.approx(100 * wanted, abs=0.5)
        else:
            places = len(text.partition(".")[2])
            assert float(text.replace(",", "")) == pytest.approx(wanted, abs=0.51 * 10**-places)
    assert {"winners/slm/value", "winners/small/low", "steps_saved", "tiers/small/parameters"} <= set(numbers)
    assert {f"table/{index}/best" for index in range(len(made["table"]))} <= set(numbers)


def test_every_number_on_the_page_is_that_of_the_json(record):
    page = report.page(record)
    check_numbers(page, summary(record))
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert json.loads(inside[1]) == summary(record)


def test_the_page_holds_everything_in_it_and_escapes_what_it_is_given(record):
    page = report.page(record)
    assert MARKUP not in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org)", page)
    assert page.count("<script") == 2


def test_it_reloads_itself_while_the_sweep_runs_and_no_longer_after_its_end(tmp_path):
    sweep = opened(tmp_path, plan())
    assert 'http-equiv="refresh"' in report.page(sweep.record)
    played(sweep, until=10)
    page = report.page(sweep.record)
    assert 'http-equiv="refresh"' in page
    assert "Winner so far" in page
    played(opened(tmp_path, plan()))
    ended = opened(tmp_path, plan()).record
    assert 'http-equiv="refresh"' not in report.page(ended)
    assert "Winner so far" not in report.page(ended)


def test_the_pictures_show_each_trial_where_its_numbers_say(record):
    made = {figure.key: figure for figure in figures(record, summary(record))}
    curves = made["curves-slm"]
    assert isinstance(curves, Chart)
    for line in curves.lines:
        assert list(line.points) == [(score.step, score.value) for score in record.curve(line.trial)]
        assert (line.ends == "cross") == (record.trial(line.trial).state == "stopped")
    (strong,) = (line.trial for line in curves.lines if line.strong)
    assert strong == summary(record)["winners"]["slm"]["trial"]
    heat = made["heat-slm"]
    assert isinstance(heat, Heat)
    assert (heat.columns, heat.rows) == (("0.0001", "0.0003", "0.001"), ("8", "16", "32"))
    for cell in heat.cells:
        if cell.value is not None:
            params = record.trial(cell.trial).params
            assert (f"{params['learning_rate']:g}", str(params["lora_rank"])) == (
                heat.columns[cell.x],
                heat.rows[cell.y],
            )
            assert cell.value == record.best(cell.trial).value
    # The trial that failed was the only one of its field.
    (failed,) = (trial.params for trial in record.trials if trial.state == "failed")
    (empty,) = (cell for cell in heat.cells if cell.value is None)
    assert (heat.columns[empty.x], heat.rows[empty.y]) == (f"{failed['learning_rate']:g}", str(failed["lora_rank"]))
    parallel = made["parallel-slm"]
    assert isinstance(parallel, Parallel)
    best = max(parallel.lines, key=lambda line: line[1][-1])
    assert (best[0], best[1]) == (strong, (1.0, 0.5, 1.0))
    assert isinstance(made["importance-slm"], Bars)
    assert made["importance-slm"].bars[0][0] == "learning_rate"
    tiers = made["tiers-parameters"]
    assert isinstance(tiers, Chart)
    assert {(dot.name, dot.x) for dot in tiers.dots} == {("slm", 1000), ("small", 5000)}


def test_every_picture_is_a_png_too(record, tmp_path):
    drawn = figures(record, summary(record))
    png.write(drawn, tmp_path)
    for figure in drawn:
        assert (tmp_path / f"{figure.key}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_sweep_with_nothing_yet_one_trial_or_one_value_has_a_page_too(tmp_path):
    wanted = plan(**{"space.sft": {"learning_rate": [1e-3], "lora_rank": []}})
    for number, record in enumerate((begun(plan()), begun(wanted, searched=["learning_rate"]))):
        (tmp_path / str(number)).mkdir()
        assert "<h1>" in report.page(record)
        name = record.trials[0].id
        scored = record.with_score(Score(trial=name, step=STEPS, value=0.0, low=0.0, high=0.0, at=1.0))
        drawn = figures(scored, summary(scored))
        assert "<svg" in report.page(scored)
        png.write(drawn, tmp_path / str(number))


def test_many_values_are_put_into_bins_and_marks_are_round():
    labels = binned([float(value) for value in range(1, 21)])
    assert len(set(labels)) == 4
    assert labels[0] == "1 to 5"
    assert scale([0.0, 0.83], from_zero=True).marks == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    logs = scale([1e3, 1e6], log=True)
    assert logs.share(1e6) > logs.share(1e3)


@pytest.mark.browser
def test_a_real_browser_shows_the_winner_and_writes_no_error(record, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    made = summary(record)
    path = tmp_path / "sweep.html"
    path.write_text(report.page(record), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", path.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    dom = result.stdout
    assert "CONSOLE" not in result.stderr, [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    # The page's own script compared every number with the JSON in it.
    root = re.search(r"<html[^>]*>", dom)[0]
    assert int(re.search(r'data-same="(\d+)"', root)[1]) == len(re.findall(r"data-value=", report.page(record)))
    assert 'data-other="0"' in root
    check_numbers(dom, made)
    won = made["winners"]["slm"]
    assert f"Winner, slm: {won['trial']}" in re.sub(r"<[^>]+>", "", dom)
    assert f">{won['value']:.3f}<" in dom
