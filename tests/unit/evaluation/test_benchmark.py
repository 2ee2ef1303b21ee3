"""`benchmark`: what each protocol asks, what each measure counts, and the report with its neighbours."""

import json

import pytest
from aiohttp import web

from tests import public_sets
from tests.teacher import serving
from ucotron_ray import cli
from ucotron_ray.data import wire
from ucotron_ray.evaluation import baselines
from ucotron_ray.evaluation.benchmark import protocols
from ucotron_ray.evaluation.benchmark.protocols import END_TO_END, ENTITIES_GIVEN, PAIRS, measures, questions
from ucotron_ray.evaluation.benchmark.published import published
from ucotron_ray.evaluation.benchmark.sets import layouts, read_set
from ucotron_ray.evaluation.benchmark.spans import occurrences

QUIET = {"has_spans": True}


def answer(*triples: tuple[str, str, str]) -> str:
    return json.dumps([dict(zip(("subject", "predicate", "object"), triple, strict=True)) for triple in triples])


def perfect(data, protocol) -> list[str]:
    return [wire.format_answer(question.raw.expected_relations) for question in questions(data.rows, protocol)]


def measured(data, protocol, answers, **changes):
    return measures(data, questions(data.rows, protocol), answers, protocol, **(QUIET | changes))


@pytest.mark.parametrize("protocol", [ENTITIES_GIVEN, PAIRS])
@pytest.mark.parametrize("name", ["scierc", "crossre", "docred", "nyt", "text2kgbench"])
def test_right_answers_have_every_point(tmp_path, name, protocol):
    data = read_set(name, getattr(public_sets, name)(tmp_path))
    has_spans = layouts()[name].has_spans
    made = measured(data, protocol, perfect(data, protocol), has_spans=has_spans)
    assert {values["f1"] for values in made.values() if values} == {1.0}
    if protocol == ENTITIES_GIVEN:
        assert (made["boundaries"] is not None) == has_spans


def test_end_to_end_has_no_strict_measure_since_answers_have_no_types(tmp_path):
    data = read_set("conll04", public_sets.conll04(tmp_path))
    made = measured(data, END_TO_END, perfect(data, END_TO_END))
    assert made["strict"] is None
    # Not all of the right names can be placed without the entities: that is what the measure is for.
    assert made["boundaries"]["f1"] < made["names"]["f1"] == 1.0


def test_of_two_entities_with_one_name_the_closer_is_meant_and_the_ceiling_says_what_that_costs(tmp_path, capsys):
    directory = public_sets.conll04(tmp_path / "set")
    data = read_set("conll04", directory)
    # «From Rome , Cy went to work for Rome in Bern»: the Rome before Cy is closer, the one behind is right.
    made = measured(data, ENTITIES_GIVEN, perfect(data, ENTITIES_GIVEN))
    assert (made["boundaries"]["f1"], made["names"]["f1"]) == (0.75, 1.0)
    _, result, out, _ = call(tmp_path, capsys, "conll04", "--data", str(directory))
    assert result["ceiling"] == 0.75
    assert "0.750 at most" in out
    _, result, _, _ = call(tmp_path, capsys, "nyt", "--data", str(public_sets.nyt(tmp_path / "nyt")))
    assert result["ceiling"] is None


def test_a_name_that_is_right_at_the_wrong_place_counts_for_names_only(tmp_path):
    data = read_set("conll04", public_sets.conll04(tmp_path))
    answers = ["[]", "[]", answer(("Ida", "live in", "Oslo")), "[]"]
    assert measured(data, ENTITIES_GIVEN, answers)["boundaries"]["recall"] == 0.25
    made = measured(data, END_TO_END, answers)
    assert (made["boundaries"]["recall"], made["names"]["recall"]) == (0.0, 0.25)
    assert made["boundaries"]["relations_predicted"] == 1.0


@pytest.mark.parametrize("written", ["Live_In", "live in", "LIVE-IN", "liveIn"])
def test_a_predicate_is_the_sets_own_if_its_letters_are(tmp_path, written):
    data = read_set("conll04", public_sets.conll04(tmp_path))
    answers = [answer(("Ann", written, "Rome")), "[]", "[]", "[]"]
    made = measured(data, ENTITIES_GIVEN, answers)
    assert [made[key]["recall"] for key in ("strict", "boundaries", "names")] == [0.25] * 3
    other = [answer(("Ann", written + "x", "Rome")), "[]", "[]", "[]"]
    assert measured(data, ENTITIES_GIVEN, other)["names"]["f1"] == 0


def test_any_name_of_a_documents_entity_is_that_entity_and_only_one_of_them_counts(tmp_path):
    data = read_set("docred", public_sets.docred(tmp_path))
    said = answer(("Skai TV", "owned by", "It"), ("Skai TV", "owned by", "Skai Group"))
    for measure in ("boundaries", "names"):
        figures = measured(data, ENTITIES_GIVEN, [said])[measure]
        assert (figures["relations_predicted"], figures["recall"]) == (1.0, 0.5)


def test_pairs_are_asked_alone_and_only_their_own_direction_counts(tmp_path):
    data = read_set("nyt", public_sets.nyt(tmp_path))
    asked = questions(data.rows, PAIRS)
    assert [[entity.text for entity in question.raw.entities] for question in asked] == [
        ["Lee", "Oslo"],
        ["Lee", "Bergen"],
    ]
    other_way = answer(("Oslo", "place_of_birth", "Lee"))
    figures = measured(data, PAIRS, [other_way, "[]"], has_spans=False)["pairs"]
    assert (figures["relations_predicted"], figures["f1"], figures["accuracy"]) == (0.0, 0.0, 0.5)
    invented = answer(("Lee", "place_of_birth", "Bergen"))
    figures = measured(data, PAIRS, [perfect(data, PAIRS)[0], invented], has_spans=False)["pairs"]
    assert (figures["precision"], figures["recall"], figures["negatives"]) == (0.5, 1.0, 1.0)


def test_the_macro_average_of_pairs_is_over_the_relations_that_the_set_has(tmp_path):
    data = read_set("crossre", public_sets.crossre(tmp_path))
    # One pair with the relations part-of and role: the first is found, the second not, and a third is invented.
    said = answer(("Phil Sim", "part of", "Leic"), ("Phil Sim", "named", "Leic"))
    figures = measured(data, PAIRS, [said])["pairs"]
    assert (figures["f1"], figures["macro_f1"], figures["accuracy"]) == (0.5, 0.5, 0.0)


def test_text2kgbench_leaves_out_relations_that_no_right_triple_has(tmp_path):
    data = read_set("text2kgbench", public_sets.text2kgbench(tmp_path))
    said = answer(("BernFilm", "director", "ann"), ("Bern Film", "screenwriter", "Ann"))
    made = measured(data, END_TO_END, [said], has_spans=False)
    assert made["sentences"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert made["names"]["precision"] == 0.0


def test_a_name_stands_at_whole_words_and_in_its_own_case_if_there():
    assert occurrences("rome", "Rome, rome and romero") == [(6, 10)]
    assert occurrences("ROME", "Rome, rome and romero") == [(0, 4), (6, 10)]
    assert occurrences("New  York", "in New York.") == [(3, 11)]
    assert occurrences("C++ (17)", "not C++ (17)x but C++ (17)") == [(18, 26)]
    assert occurrences(" ", "a b") == []


def test_every_published_figure_names_a_layout_a_protocol_and_its_source():
    for entry in published():
        assert set(entry.sets) <= set(layouts())
        assert entry.protocol in protocols.PROTOCOLS
    assert {entry.f1 for entry in published("conll04", END_TO_END)} >= {0.693, 0.781}
    assert [entry.f1 for entry in published("scierc", PAIRS)] == [0.83]


def test_the_flags_name_every_layout_and_protocol():
    parser = next(action for action in cli._parser([])._actions if action.dest == "verb").choices["benchmark"]
    choices = {action.dest: action for action in parser._actions}
    assert tuple(choices["protocol"].choices) == protocols.PROTOCOLS
    assert all(name in choices["layout"].help for name in layouts())


def call(tmp_path, capsys, *words: str) -> tuple[int, dict, str, str]:
    settings = ["--set", f"store={tmp_path / 'store'}", "--set", "tracking.mlflow_uri=none"]
    code = cli.main(["benchmark", *words, *settings, "--set", "evaluation.resamples=50", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), out, err


def knowing(rows, seen: list[list[dict]] | None = None) -> tuple[web.Application, list[str]]:
    """An endpoint that knows the right triples of these rows, and the prompts that it was asked."""
    expected = {row.text: row.expected_relations for row in rows}
    asked: list[str] = []

    async def chat(request: web.Request) -> web.Response:
        turns = (await request.json())["messages"]
        if seen is not None:
            seen.append(turns)
        prompt = turns[-1]["content"]
        asked.append(prompt)
        content = wire.format_answer(expected[wire.parse_prompt(prompt)[0]])
        choice = {"message": {"content": content}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 9}})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat)
    application.router.add_get("/v1/models", models)
    return application, asked


def test_an_endpoint_that_knows_the_set_beats_the_baselines_and_stands_beside_published_figures(tmp_path, capsys):
    directory = public_sets.conll04(tmp_path / "set")
    application, asked = knowing([row.raw() for row in read_set("conll04", directory).rows])
    with serving(application) as url:
        words = ["conll04", "--data", str(directory), "--model", f"{url}/v1#m"]
        code, result, out, err = call(tmp_path, capsys, *words)
        assert code == 0, err
        assert [result["measures"][key]["f1"] for key in ("strict", "boundaries", "names")] == [0.75, 0.75, 1.0]
        assert len(asked) == 4
        assert '- "Rome" (location)' in asked[0]
        code, again, _, _ = call(tmp_path, capsys, *words)
        assert (code, again["measures"], len(asked)) == (0, result["measures"], 4), "the store has these answers"
        code, result, out, err = call(tmp_path, capsys, *words, "--protocol", "end-to-end")
    assert code == 0, err
    assert len(asked) == 8
    assert "Entities found:\n\n\nFor each" in asked[-1]
    assert result["rows_in_training"] == 1
    assert result["without_training_texts"]["names"]["rows"] == 3.0
    assert set(result["baselines"]) == {
        f"{name} (entities given)" for name in (baselines.EVERY_PAIR, baselines.BY_TYPES)
    }
    assert all(0 < values["names"]["f1"] < 1 for values in result["baselines"].values())
    assert "ReLiK-Large: 0.781 (RE+ micro F1; arXiv 2408.00103)" in out
    report = json.loads((tmp_path / "store/scores" / result["artifact"].rsplit("/", 1)[1] / "report.json").read_text())
    assert report["measures"] == result["measures"]


def test_a_changed_set_is_another_recipe(tmp_path, capsys):
    directory = public_sets.conll04(tmp_path / "set")
    assert call(tmp_path, capsys, "conll04", "--data", str(directory))[0] == 0
    public_sets.array(directory / "conll04_test.json", public_sets.CONLL04["test"][:2])
    code, _, _, err = call(tmp_path, capsys, "conll04", "--data", str(directory))
    assert code == 3
    assert "benchmark.files" in err


def test_dry_run_says_what_would_be_asked_and_makes_nothing(tmp_path, capsys):
    directory = public_sets.nyt(tmp_path / "set")
    code, result, out, _ = call(tmp_path, capsys, "nyt", "--data", str(directory), "--protocol", "pairs", "--dry-run")
    assert code == 0
    assert (result["rows"], result["relations"], result["questions"]) == (1, 1, 2)
    assert result["vocabulary"] == ["place_of_birth"]
    assert '- "Oslo" (location)' in result["first_question"]
    assert result["first_question"] in out
    assert not (tmp_path / "store").exists()


def test_a_sample_is_the_same_for_every_model(tmp_path, capsys):
    directory = public_sets.conll04(tmp_path / "set")
    seen = [
        call(tmp_path, capsys, "conll04", "--data", str(directory), "--max-rows", "2", "--name", name)[1]["relations"]
        for name in ("one", "two")
    ]
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tacred"], "no such layout"),
        (["docred"], "does not hold docred"),
        (["docred", "--split", "test"], "no split of this name"),
        (["conll04", "--max-rows", "0"], "no row would be asked"),
        (["conll04", "--protocol", "end-to-end"], "only relates entities that are given"),
    ],
)
def test_a_mistake_ends_with_two_before_anything_is_made(tmp_path, capsys, words, problem):
    directory = public_sets.conll04(tmp_path / "set")
    code, result, _, err = call(tmp_path, capsys, words[0], "--data", str(directory), *words[1:])
    assert (code, result["exit_code"]) == (2, 2)
    assert problem in err
    assert not list((tmp_path / "store").glob("scores/*"))


def test_pairs_without_a_pair_are_refused(tmp_path, capsys):
    public_sets.array(tmp_path / "conll04_test.json", public_sets.CONLL04["test"][-1:])
    code, _, _, err = call(tmp_path, capsys, "conll04", "--data", str(tmp_path), "--protocol", "pairs")
    assert code == 2
    assert "no row has a pair" in err


def test_an_endpoint_can_be_shown_training_rows_of_the_set(tmp_path, capsys):
    directory = public_sets.conll04(tmp_path / "set")
    seen: list[list[dict]] = []
    application, _ = knowing([row.raw() for row in read_set("conll04", directory).rows], seen)
    with serving(application) as url:
        words = ["conll04", "--data", str(directory), "--model", f"{url}/v1#m", "--set", "evaluation.few_shots=2"]
        code, _result, _, err = call(tmp_path, capsys, *words, "--protocol", "end-to-end")
    assert code == 0, err
    texts = {row.text for row in read_set("conll04", directory, "train").rows}
    for turns in seen:
        assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 2, "user"]
        shown = {wire.parse_prompt(turn["content"])[0] for turn in turns[1:-1:2]}
        # The third training row stands in the test split too.
        assert shown == texts - {"Ann lives in Rome ."}
        assert all(wire.parse_prompt(turn["content"])[1] == [] for turn in turns[1::2])
