"""What the generators ask, take and refuse; and what the simulator says to it."""

import json
import random

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.data import wire
from ucotron_ray.data.records import GeneratedRow, RawRow
from ucotron_ray.simulators import fireworks_language as language
from ucotron_ray.synthesis import conversation, plan, seeds
from ucotron_ray.synthesis.plan import Answer, Ask, Done, Ended, Task
from ucotron_ray.synthesis.tasks import entity_resolution, judge, preference, relation_extraction
from ucotron_ray.teacher.outcome import OutcomeKind

GENERATION = config.load().recipe.generation
TASK = relation_extraction.make_task(GENERATION)


def play(task: Task, facts, *answers: str | Answer) -> Ask | Done:
    """Where a conversation is after these answers."""
    talk = task.converse(facts)
    try:
        step: Ask | Done = next(talk)
        for answer in answers:
            step = talk.send(answer if isinstance(answer, Answer) else Answer(OutcomeKind.ANSWER, answer))
    except StopIteration as end:
        return end.value
    except Ended as end:
        return end.done
    return step


FACTS = {
    "number": 0,
    "style": "a news report",
    "split": "train",
    "relations": [
        {
            "subject": "Ana Silva",
            "subject_type": "Person",
            "relation": "works_at",
            "object": "Al Bank",
            "object_type": "Organization",
        }
    ],
}
TEXT = "In Alba, Ana Silva works at Al Bank."


def extraction(*, entities=None, relations=None) -> str:
    entities = entities or [{"text": "Ana Silva", "type": "Person"}, {"text": "al bank", "type": "organization"}]
    relations = relations or [{"subject": "ana silva", "relation": "Works At", "object": "Al Bank"}]
    return json.dumps({"entities": entities, "relations": relations})


def test_a_row_has_exactly_the_keys_of_the_generator_and_spans_of_whole_words():
    done = play(TASK, FACTS, TEXT, extraction())
    assert isinstance(done, Done)
    assert done.status == "accepted"
    row = done.row
    assert set(row) == {"text", "entities", "relations", "metadata"}
    assert row["entities"] == [
        {"text": "Ana Silva", "type": "Person", "start": 9, "end": 18},
        {"text": "Al Bank", "type": "Organization", "start": 28, "end": 35},
    ], "not the Al of Alba, and spelled as in the text"
    assert row["relations"] == [
        {
            "subject": "Ana Silva",
            "subject_type": "Person",
            "relation": "works_at",
            "object": "Al Bank",
            "object_type": "Organization",
        }
    ]
    assert row["metadata"] == {"seed_subject": "Ana Silva", "seed_object": "Al Bank", "seed_relation": "works_at"}
    trained = GeneratedRow.model_validate(row).raw()
    assert [entity.label for entity in trained.entities] == ["person", "organization"]
    assert wire.format_answer(trained.expected_relations).endswith('"confidence":1.0}]')


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("Ana works at Al Bank.", "rejected", "name as given"),
        ("Ana Silva works at Al Banking.", "rejected", "name as given"),
        ("Here is a text: Ana Silva works at Al Bank.", "rejected", "not a text alone"),
        (TEXT * 50, "rejected", "longer"),
        (TEXT + " <|im_end|>", "quarantined", "turn marker"),
        (Answer(OutcomeKind.POISON), "quarantined", "does not take"),
        (Answer(OutcomeKind.REFUSED), "quarantined", "refused"),
    ],
)
def test_texts_that_cannot_be_used(text, status, reason):
    done = play(TASK, FACTS, text)
    assert isinstance(done, Done)
    assert done.status == status
    assert reason in (done.reason or "")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            extraction(relations=[{"subject": "Ana Silva", "relation": "friend_of", "object": "Al Bank"}]),
            "drawn relation",
        ),
        (extraction(relations=[{"subject": "Ana Silva", "relation": "zaps", "object": "Al Bank"}]), "drawn relation"),
        (
            extraction(entities=[{"text": "Ana Silva", "type": "Alien"}, {"text": "Al Bank", "type": "Organization"}]),
            "drawn",
        ),
        (
            extraction(relations=[{"subject": "Ana Silva", "relation": "works_at", "object": "Nobody"}]),
            "drawn relation",
        ),
    ],
)
def test_an_extraction_without_the_drawn_relation_is_rejected(answer, reason):
    done = play(TASK, FACTS, TEXT, answer)
    assert isinstance(done, Done)
    assert done.status == "rejected"
    assert reason in (done.reason or "")


@pytest.mark.parametrize(
    "bad", ["[]", "no JSON", '{"entities": null, "relations": []}', '{"entities": ["Ana"], "relations": []}']
)
def test_a_bad_extraction_gets_one_more_turn_that_says_what_was_wrong(bad):
    again = play(TASK, FACTS, TEXT, bad)
    assert isinstance(again, Ask)
    assert again.step == "extract-repair"
    assert again.messages[-2] == ("assistant", bad)
    good = play(TASK, FACTS, TEXT, bad, extraction())
    assert isinstance(good, Done)
    assert (good.status, good.notes) == ("accepted", (conversation.ASKED_AGAIN,))
    lost = play(TASK, FACTS, TEXT, bad, bad)
    assert isinstance(lost, Done)
    assert lost.status == "quarantined"
    assert (lost.reason or "").startswith("extract: ")


@pytest.mark.parametrize(
    ("answer", "repaired"),
    [
        ("```json\n" + extraction() + "\n```", False),
        ("Sure: " + extraction() + " Done.", False),
        (extraction().replace("}]", "},]"), True),
        (extraction()[:-2], True),
    ],
)
def test_fences_and_prose_are_taken_off_and_mended_json_is_marked(answer, repaired):
    done = play(TASK, FACTS, TEXT, answer)
    assert isinstance(done, Done)
    assert done.status == "accepted"
    assert (conversation.REPAIRED in done.notes) == repaired


def test_a_truncated_answer_is_asked_again_with_twice_the_tokens_and_then_given_up():
    cut = Answer(OutcomeKind.TRUNCATED, '{"entities": [')
    again = play(TASK, FACTS, TEXT, cut)
    assert isinstance(again, Ask)
    assert again.max_tokens == 2 * GENERATION.task("relation_extraction").extract.max_tokens
    done = play(TASK, FACTS, TEXT, cut, cut)
    assert isinstance(done, Done)
    assert done.status == "quarantined"


def test_samples_are_the_same_in_a_longer_run_and_names_are_split():
    assert TASK.sample(17) == TASK.sample(17)
    facts = [TASK.sample(number) for number in range(3000)]
    names = {"train": set(), "val": set()}
    for fact in facts:
        for relation in fact["relations"]:
            names[fact["split"]] |= {relation["subject"], relation["object"]}
            assert relation["subject"] != relation["object"]
    assert not names["train"] & names["val"]
    val = sum(fact["split"] == "val" for fact in facts) / 3000
    assert 0.08 < val < 0.12
    drawn = {(r["subject"], r["relation"], r["object"]) for fact in facts for r in fact["relations"]}
    assert len(drawn) > 0.97 * sum(len(fact["relations"]) for fact in facts)
    assert {r["relation"] for fact in facts for r in fact["relations"]} == set(seeds.RELATION_TYPES)


def test_request_ids_hold_what_changes_the_answer():
    ask = play(TASK, FACTS)
    assert isinstance(ask, Ask)
    base = plan.request_id(TASK, "m", FACTS, ask, [])
    assert base == plan.request_id(TASK, "m", dict(reversed(FACTS.items())), ask, [])
    others = [
        plan.request_id(TASK, "another", FACTS, ask, []),
        plan.request_id(TASK, "m", {**FACTS, "number": 1}, ask, []),
        plan.request_id(TASK, "m", FACTS, ask, [Answer(OutcomeKind.ANSWER, "x")]),
        plan.request_id(Task(TASK.name, 2, TASK.sample, TASK.converse, TASK.rows), "m", FACTS, ask, []),
        plan.request_id(TASK, "m", FACTS, Ask(ask.step, ask.messages, 0.1, ask.max_tokens), []),
    ]
    assert len({base, *others}) == 6
    body = plan.request_body("m", ask, base)
    assert 0 <= body["seed"] < 2**31
    assert body["messages"][0]["role"] == "system", "what never changes comes first"


def test_a_relation_that_the_generator_does_not_have_is_refused():
    settings = GENERATION.task("relation_extraction").model_copy(update={"relations": ["works_at", "zaps"]})
    tasks = {"relation_extraction": settings}
    with pytest.raises(ConfigError, match="zaps"):
        relation_extraction.make_task(GENERATION.model_copy(update={"tasks": tasks}))


# ---- preference ------------------------------------------------------------------------------------------------------

ROW = RawRow.model_validate(
    {
        "text": TEXT,
        "entities": [{"text": "Ana Silva", "label": "person"}, {"text": "Al Bank", "label": "organization"}],
        "expected_relations": [{"subject": "Ana Silva", "predicate": "works_at", "object": "Al Bank"}],
    }
)
PAIRS = preference.make_task(GENERATION, [ROW])


def pair(chosen: str, hurried: str) -> Done:
    done = play(PAIRS, PAIRS.sample(0), chosen, hurried)
    assert isinstance(done, Done)
    return done


def wrong() -> str:
    return extraction(relations=[{"subject": "Ana Silva", "relation": "relates_to", "object": "Al Bank"}])


def test_a_pair_is_kept_only_if_chosen_is_better_by_the_margin():
    assert pair(extraction(), wrong()).status == "accepted"
    assert pair(extraction(), extraction()).status == "rejected"
    assert pair(wrong(), extraction()).status == "rejected"


def test_a_pair_trains_in_the_servers_prompt_and_answers():
    row = pair(extraction(), wrong()).row
    assert row is not None
    assert row["prompt"] == f"Extract entities and relations from: {TEXT}"
    assert set(row["metadata"]) == {"source", "text_length"}
    assert json.loads(row["ground_truth"])["relations"][0]["predicate"] == "works_at"
    train = row["train"]
    assert train["prompt"] == wire.user_prompt(ROW.text, ROW.entities)
    assert wire.parse_answer(train["chosen"]) == ROW.expected_relations
    assert train["chosen"] != train["rejected"]
    vendor = preference.vendor_row(train)
    assert vendor["input"]["messages"][1]["content"] == train["prompt"]
    assert vendor["preferred_output"][0]["content"] == train["chosen"]
    assert vendor["non_preferred_output"][0]["content"] == train["rejected"]


def test_the_two_sides_are_asked_as_the_config_says():
    chosen = play(PAIRS, PAIRS.sample(0))
    hurried = play(PAIRS, PAIRS.sample(0), extraction())
    assert isinstance(chosen, Ask)
    assert isinstance(hurried, Ask)
    assert (chosen.temperature, chosen.max_tokens) == (0.0, 300)
    assert (hurried.temperature, hurried.max_tokens) == (0.7, 150)


def test_rows_of_a_graph_are_asked_for_the_graphs_own_relations():
    director = ROW.expected_relations[0].model_copy(update={"predicate": "Film Director"})
    row = ROW.model_copy(update={"expected_relations": [director]})
    task = preference.make_task(GENERATION, [row])
    facts = task.sample(0)
    assert facts["relations"] == ["Film Director"]
    asked = play(task, facts)
    assert isinstance(asked, Ask)
    assert "Relations: Film Director.\n" in asked.messages[0][1]
    stated = extraction(relations=[{"subject": "Ana Silva", "relation": "film_director", "object": "Al Bank"}])
    done = play(task, facts, stated, wrong())
    assert isinstance(done, Done)
    assert done.row is not None
    # Spelt as the graph spells it.
    assert wire.parse_answer(done.row["train"]["chosen"]) == [director]
    # Of hundreds of names the usual ones are asked for, and those of the row.
    many = [
        ROW.model_copy(
            update={"text": f"{TEXT} {n}", "expected_relations": [director.model_copy(update={"predicate": f"r{n}"})]}
        )
        for n in range(100)
    ]
    task = preference.make_task(GENERATION, many)
    for number in range(100):
        facts = task.sample(number)
        assert facts["expected"][0]["predicate"] in facts["relations"]
        assert len(facts["relations"]) <= preference.MOST_RELATIONS + 1


def test_another_pass_over_the_rows_asks_anew():
    assert PAIRS.sample(0) != PAIRS.sample(1)
    assert PAIRS.sample(1)["pass"] == 1


def test_hostile_text_of_an_input_file_is_never_sent():
    hostile = preference.make_task(GENERATION, [ROW.model_copy(update={"text": TEXT + "<|im_start|>system"})])
    done = play(hostile, hostile.sample(0))
    assert isinstance(done, Done)
    assert (done.status, done.notes) == ("quarantined", ("special_token",))


# ---- the simulator's language -----------------------------------------------------------------------------------------


def test_the_stand_in_reads_what_it_writes():
    for number in range(500):
        facts = TASK.sample(number)
        prompt = play(TASK, facts)
        assert isinstance(prompt, Ask)
        text = language.write_text(prompt.messages[-1][1], random.Random(number))
        assert text is not None
        found = {(r[0], r[2], r[3]) for r in language.read_text(text)}
        assert found >= {(r["subject"], r["relation"], r["object"]) for r in facts["relations"]}, text


# ---- hostile answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (TEXT + "<|im_end|>", "turn marker"),
        ("\u202e" + TEXT, "invisible"),
        (TEXT + " The key is fw_abcdefghijklmnopqrst.", "key or a password"),
        ("x" * 5_000_000, "longer"),
    ],
)
def test_hostile_text_is_quarantined_before_any_further_request_holds_it(text, word):
    done = play(TASK, FACTS, text)
    assert isinstance(done, Done)
    assert done.status == "quarantined"
    assert word in (done.reason or "")


@pytest.mark.parametrize("escaped", ["\\u202e", "<|im_start|>", "\\u0000"])
def test_hostile_text_hidden_in_json_escapes_is_quarantined_too(escaped):
    answer = extraction().replace("Ana Silva", f"Ana {escaped}Silva")
    done = play(TASK, FACTS, TEXT, answer)
    assert isinstance(done, Done)
    assert done.status == "quarantined"


@pytest.mark.parametrize(
    "bad",
    [
        extraction().replace('"relations"', '"confidence": NaN, "relations"'),
        extraction().replace('"relations"', '"entities": [], "relations"'),
    ],
)
def test_json_that_is_none_gets_a_turn_of_repair_and_is_not_mended(bad):
    again = play(TASK, FACTS, TEXT, bad)
    assert isinstance(again, Ask)
    assert again.step == "extract-repair"


def test_markup_and_shell_in_a_text_stay_text():
    text = "Ana Silva works at Al Bank; $(rm -rf /) <b>../../etc</b>"
    done = play(TASK, FACTS, text, extraction())
    assert isinstance(done, Done)
    assert done.row["text"] == text


def test_what_could_not_be_taken_of_an_extraction_is_noted_by_the_name_of_the_defect():
    entities = [*json.loads(extraction())["entities"], {"text": "Nobody", "type": "Alien"}]
    done = play(TASK, FACTS, TEXT, extraction(entities=entities))
    assert isinstance(done, Done)
    assert (done.status, done.notes) == ("accepted", ("wrong_span", "outside_vocabulary"))


# ---- a judge ---------------------------------------------------------------------------------------------------------


def test_a_judge_reads_a_sample_and_its_marks_are_counted():
    rows = [("projection", line, {"description": f"row {line} <|im_end|>"}) for line in range(1, 100)]
    task = judge.make_task(GENERATION, rows)
    ask = play(task, task.sample(0))
    assert isinstance(ask, Ask)
    assert ask.messages[-1][1].startswith("Row of kind projection:\n{")
    assert len({task.sample(number)["line"] for number in range(GENERATION.gate.judge.rows)}) == 50
    done = play(task, task.sample(0), '{"score": 4, "reason": "fine"}')
    assert isinstance(done, Done)
    assert done.row["score"] == 4
    assert isinstance(play(task, task.sample(0), '{"score": 9}'), Ask), "no such mark"
    assert judge.marks("m", [{"score": 4}, {"score": 5}]) == {
        "model": "m",
        "rows": 2,
        "mean": 4.5,
        "marks": {"1": 0, "2": 0, "3": 0, "4": 1, "5": 1},
    }


def test_the_name_that_a_pair_is_mixed_up_with_is_a_name_of_the_split_too():
    kind = entity_resolution.row_kind()
    pair = {"canonical": "Genoa", "variant": "Geneva", "is_duplicate": False}
    assert kind.names(pair) == ["Genoa", "Geneva"]
    assert kind.names({**pair, "variant": "GENOA", "is_duplicate": True}) == ["Genoa"]


def test_a_default_that_no_generator_uses_is_said(tmp_path, caplog):
    from ucotron_ray.core.run import Run
    from ucotron_ray.synthesis import stage

    overrides = [("generation.defaults.temperature", 0.3), ("store", str(tmp_path))]
    run = Run(config.load(overrides=overrides), verb="synthesize", name="d")
    stage.wanted(run, "relation_extraction", 3, None)
    assert "generation.defaults.temperature is not used" in caplog.text
    caplog.clear()
    stage.wanted(Run(config.load(), verb="synthesize", name="d"), "relation_extraction", 3, None)
    assert not caplog.records


def test_what_the_place_adds_to_requests_makes_another_dataset_and_nothing_else_of_it_does(tmp_path):
    from ucotron_ray.core.run import Run
    from ucotron_ray.synthesis import stage

    def recipe(**settings: object) -> str:
        overrides = [("store", str(tmp_path)), *((f"api.{key}", value) for key, value in settings.items())]
        run = Run(config.load(overrides=overrides), verb="synthesize", name="d")
        return stage.request(run, stage.wanted(run, "relation_extraction", 3, None)).recipe

    plain = recipe()
    assert plain == recipe(proxy="http://proxy:3128", hidden_tokens=512, query={"a": "b"}, dialect="openai")
    assert len({plain, recipe(reasoning_effort="low"), recipe(extra_body={"top_k": 20})}) == 3
