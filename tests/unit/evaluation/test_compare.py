"""`compare` over real HTTP on loopback: an endpoint, guesses without a model, and what the page says of them."""

import json

import pytest
from aiohttp import web

from tests.registered import answer_with, base_directory, held_out_file, make_bundle, rows
from tests.teacher import serving
from ucotron_ray import cli
from ucotron_ray.core.artifacts import Store
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import Relation
from ucotron_ray.evaluation.compare import ScoredModel, compare
from ucotron_ray.evaluation.guide_prompts import guide_rows
from ucotron_ray.evaluation.page import comparison_page
from ucotron_ray.evaluation.predictions import Prediction
from ucotron_ray.evaluation.report import write_scores

SETTINGS = ["--set", "tracking.mlflow_uri=none", "--set", "evaluation.resamples=100"]


def call(store, capsys, *arguments: str) -> tuple[int, dict, str]:
    code = cli.main([*arguments, "--set", f"store={store}", *SETTINGS, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def endpoint(wrong_texts: set[str] = frozenset()) -> tuple[web.Application, list[dict]]:
    """An OpenAI-compatible server that knows the rows, but for these texts."""
    expected = {row.text: row.expected_relations for row in [*rows("Bo"), *guide_rows()]}
    asked: list[dict] = []

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body)
        text = wire.parse_prompt(body["messages"][1]["content"])[0]
        content = "[]" if text in wrong_texts else wire.format_answer(expected[text])
        choice = {"message": {"content": content}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}, {"id": "half"}]})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    application.router.add_get("/v1/models", models)
    return application, asked


def test_an_endpoint_beats_the_guesses_and_is_asked_exactly_as_the_server_asks(tmp_path, capsys):
    application, asked = endpoint()
    data = held_out_file(tmp_path)
    page = tmp_path / "out" / "report.html"
    with serving(application) as url:
        named = f"{url}/v1#m"
        code, result, err = call(
            tmp_path / "store", capsys, "compare", "co-occurrence", named, "--data", str(data), "--report", str(page)
        )
    assert code == 0, err
    assert result["models"][named]["f1"] == 1.0
    # «met » is a word of a rule of the guesses, so pairs and predicates are right, and the person comes first.
    assert 0.0 < result["models"]["co-occurrence"]["pair_f1"] <= 1.0
    assert set(result["differences"]) == {named}
    row = rows("Bo")[0]
    assert wire.server_request_body("m", row.text, row.entities)["messages"] in [body["messages"] for body in asked]
    assert {body["max_tokens"] for body in asked} == {wire.SERVER_MAX_TOKENS}
    # 60 rows, the guide's five, and all rows once more without their entities.
    assert len(asked) == 60 + 5 + 60
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") >= 4
    assert "<script" not in text
    assert "Maria lives in Berlin, studies at TU Berlin" in text


def test_answers_in_the_store_are_not_asked_for_again_but_another_name_asks_an_endpoint_again(tmp_path, capsys):
    application, asked = endpoint()
    data = held_out_file(tmp_path)
    with serving(application) as url:
        arguments = ("compare", f"{url}/v1#m", "co-occurrence", "--data", str(data))
        first = call(tmp_path / "store", capsys, *arguments)[1]
        before = len(asked)
        again = call(tmp_path / "store", capsys, *arguments)[1]
        assert (len(asked), again["artifact"]) == (before, first["artifact"])
        assert call(tmp_path / "store", capsys, *arguments, "--name", "later")[0] == 0
        assert len(asked) == 2 * before


def test_a_bundle_is_named_by_its_kind_and_decodes_as_it_is_served(tmp_path):
    from ucotron_ray.core import config
    from ucotron_ray.core.run import Run
    from ucotron_ray.evaluation.answers import model_ref

    store = Store(tmp_path / "store")
    bundle = make_bundle(store, "good", base_directory(tmp_path / "base"))
    run = Run(config.load(overrides=[("store", str(store.root))]), verb="compare", name="x")
    assert model_ref(run, "good").adapter.manifest.name == "good"
    for reference in ("bundle/good", "bundle/good@fp32", str(bundle.path)):
        found = model_ref(run, reference)
        assert (found.kind, found.variant, found.decoding) == ("bundle", "fp32", "free")
        assert found.bundle.manifest.content == bundle.manifest.content
    assert model_ref(run, "bundle/good+entities").decoding == "entities"
    assert model_ref(run, "bundle/good+entities").identity != model_ref(run, "bundle/good").identity


def test_adapters_by_name_stand_beside_their_base(tmp_path, capsys, monkeypatch):
    store, base = Store(tmp_path / "store"), base_directory(tmp_path / "base")
    make_bundle(store, "good", base)
    answer_with(monkeypatch, {"base": 0.2, "good": 0.8})
    data = held_out_file(tmp_path)
    code, result, err = call(store.root, capsys, "compare", str(base), "good", "--data", str(data))
    assert code == 0, err
    found = result["differences"]["good"]
    assert found["low"] > 0
    assert found["difference"] == pytest.approx(result["models"]["good"]["f1"] - result["models"]["base"]["f1"])
    assert result["wins"]["good"] > result["wins"]["base"]
    assert sum(result["wins"].values()) + result["ties"] == 60


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (["co-occurrence"], "two models are needed"),
        (["co-occurrence", "co-occurrence"], "stands there twice"),
        (["co-occurrence", "http://127.0.0.1:9/v1"], "model is not named"),
        (["co-occurrence", "bundle/nothing"], "no bundle 'nothing'"),
        (["co-occurrence", "bundle/good@int8"], "has no int8"),
        (["co-occurrence", "bundle/good@int2"], "no variant"),
        (["co-occurrence", "bundle/good+wild"], "no way to decode"),
        (["co-occurrence", "http://127.0.0.1:9/v1#m"], "cannot be reached"),
    ],
)
def test_mistakes_end_before_anything_is_asked(tmp_path, capsys, models, said):
    make_bundle(Store(tmp_path / "store"), "good", base_directory(tmp_path / "base"))
    code, _, err = call(tmp_path / "store", capsys, "compare", *models, "--data", str(held_out_file(tmp_path)))
    assert (code, said in err) == (2, True), err


def answered(directory, label: str, answers: list[str], asked) -> ScoredModel:
    from ucotron_ray.core import config

    directory.mkdir()
    settings = config.load(overrides=[("evaluation.resamples", 50)]).recipe.evaluation
    predictions = [Prediction(index, "chat", text, 3, False) for index, text in enumerate(answers)]
    return ScoredModel(label, write_scores(directory, asked, predictions, settings), answers)


def test_the_page_escapes_what_rows_and_models_say(tmp_path):
    asked = [*rows("Bo", 3), *guide_rows()]
    nasty = Relation(subject="<script>alert(1)</script>", predicate="met", object="Bo")
    answers = [wire.format_answer([nasty])] * len(asked)
    models = [
        answered(tmp_path / "a", "<b>first</b>", answers, asked),
        answered(tmp_path / "b", "second", ["[]"] * len(asked), asked),
    ]
    comparison = compare(asked, models, resamples=20, seed=1)
    text = comparison_page(comparison)
    assert "<script>" not in text
    assert "<b>first</b>" not in text
    assert "&lt;script&gt;alert(1)" in text
    jsonl.write_rows(tmp_path / "rows.jsonl", asked)
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_guides_five_count_in_no_difference_and_answers_must_be_whole(tmp_path):
    asked = [*rows("Bo", 4), *guide_rows()]
    right = [wire.format_answer(row.expected_relations) for row in asked]
    only_guide_wrong = [*right[:4], *["[]"] * 5]
    models = [
        answered(tmp_path / "a", "a", only_guide_wrong, asked),
        answered(tmp_path / "b", "b", right, asked),
    ]
    comparison = compare(asked, models, resamples=20, seed=1)
    assert comparison["differences"]["b"]["difference"] == 0.0
    assert (comparison["wins"], comparison["ties"]) == ({"a": 0, "b": 0}, 4)
    assert [row["winner"] for row in comparison["guide"]] == ["b"] * 5
    with pytest.raises(ValueError, match="zip"):
        compare(asked, [models[0], ScoredModel("c", models[1].scores, right[:3])], resamples=20, seed=1)


def test_the_teachers_key_goes_to_the_teachers_host_alone(tmp_path, monkeypatch):
    from ucotron_ray.core import config
    from ucotron_ray.core.run import Run
    from ucotron_ray.evaluation.answers import model_ref

    monkeypatch.setenv("TEACHERS_KEY", "fw-canary")
    application, _ = endpoint()
    with serving(application) as url:
        for teacher, key in (("https://api.example.com/v1", None), (f"{url}/v1", "TEACHERS_KEY")):
            values = {"store": str(tmp_path), "api.inference_base_url": teacher, "api.key_variable": "TEACHERS_KEY"}
            run = Run(config.load(overrides=list(values.items())), verb="compare", name="x")
            assert model_ref(run, f"{url}/v1#m").endpoint.key_variable == key
