"""Rows of other tools become our own, and what would change their meaning is honoured or refused, never dropped."""

import json

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.flags import LAYOUTS
from ucotron_ray.data import jsonl, layouts, readers, wire
from ucotron_ray.data.records import Entity, RawRow
from ucotron_ray.synthesis import validation
from ucotron_ray.training.data import model_rows
from ucotron_ray.training.pairs import model_pair

GENERATION = config.load().recipe.generation
ANN_BO = [{"text": "Ann", "type": "Peop"}, {"text": "Bo Labs", "type": "Org"}]
ANSWER = '[{"subject":"Ann","predicate":"works_at","object":"Bo Labs","confidence":0.9}]'
ASKED = wire.chat_messages("Ann works at Bo Labs.", [Entity(text="Ann"), Entity(text="Bo Labs")])
OWN_ASKED = [{"role": "system", "content": "Answer in lines."}, {"role": "user", "content": "Ann?"}]


def read(tmp_path, *values, layout=None):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return [placed.row for placed in jsonl.placed_rows(path, layout)]


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def test_the_flag_knows_every_layout_and_a_foreign_row_is_refused_under_a_name(tmp_path):
    assert LAYOUTS == layouts.NAMES
    with pytest.raises(InputError, match=r"line 1(.|\n)*no row of the layout spert: it has \"tokens\""):
        read(tmp_path, {"text": "a", "triplets": []}, layout="spert")
    assert read(tmp_path, {"text": "Ann ran.", "triplets": []}, layout="triplets")[0].text == "Ann ran."


# --- conversations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {
            "conversations": [
                {"from": "system", "value": "S"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
            ]
        },
        {"conversations": [said("user", "q"), said("model", "a")], "system": "S", "tools": "[]"},
        {"prompt": [said("system", "S"), said("user", "q")], "completion": [said("assistant", "a")]},
        {"prompt": "q", "completion": "a", "system_prompt": "S"},
        {"prompt": [said("developer", "S"), said("user", "q")], "completion": "a"},
        {"messages": [said("user", "q"), said("assistant", "a")], "system": "S"},
        {"messages": [said("system", "S"), said("user", "q"), said("assistant", "a")], "system": "S"},
        {"messages": [said("developer", "S"), said("user", ["q"]), said("assistant", [{"type": "text", "text": "a"}])]},
        {"messages": [said("system", "S"), said("user", [{"text": "q"}]), said("assistant", "a", weight=1, loss=True)]},
    ],
)
def test_conversations_of_any_layout_are_the_same_turns(tmp_path, value):
    assert [(turn.role, turn.content) for turn in read(tmp_path, value)[0].messages] == [
        ("system", "S"),
        ("user", "q"),
        ("assistant", "a"),
    ]


@pytest.mark.parametrize(
    ("messages", "trained"),
    [
        # Every answer, each behind all that was said before it.
        ([said("user", "1"), said("assistant", "a"), said("user", "2"), said("assistant", "b")], ["1>a", "1a2>b"]),
        # The thanks at the end are neither trained nor read.
        (
            [said("user", "1"), said("assistant", "a", weight=1), said("user", "2"), said("assistant", "b", weight=0)],
            ["1>a"],
        ),
        ([said("user", "1"), said("assistant", "a", weight=0), said("user", "2"), said("assistant", "b")], ["1a2>b"]),
        (
            [
                said("user", "1"),
                said("assistant", "a", train=False),
                said("user", "2"),
                said("assistant", "b", loss=1.0),
            ],
            ["1a2>b"],
        ),
        (
            [said("user", "1", weight=0), said("assistant", "", loss=False), said("user", "2"), said("assistant", "b")],
            ["12>b"],
        ),
    ],
)
def test_what_is_trained_is_what_the_weights_say_and_without_them_every_answer(tmp_path, messages, trained):
    rows = read(tmp_path, {"messages": messages})
    again = tmp_path / "again.jsonl"
    jsonl.write_rows(again, rows)
    for found in (rows, jsonl.read_training_rows(again)):
        made, counts = model_rows(found, raw_share=0.0, seed=1)
        assert ["".join(turn.content for turn in row.prompt) + ">" + row.completion for row in made] == trained
        assert counts == {"as_is": len(trained)}


def test_an_answer_in_a_prompt_is_given_and_not_trained(tmp_path):
    asked = [said("user", "1"), said("assistant", "a"), said("user", "2")]
    rows = read(
        tmp_path, {"prompt": asked, "completion": [said("assistant", "b"), said("user", "3"), said("assistant", "c")]}
    )
    made, _ = model_rows(rows, raw_share=0.0, seed=1)
    assert ["".join(turn.content for turn in row.prompt) + ">" + row.completion for row in made] == ["1a2>b", "1a2b3>c"]


def test_a_server_answer_before_thanks_of_weight_0_trains_as_a_relation_row(tmp_path):
    turns = [
        *ASKED,
        said("assistant", ANSWER, weight=1),
        said("user", "thanks"),
        said("assistant", "Welcome.", weight=0),
    ]
    row = wire.relations_of_chat(read(tmp_path, {"messages": turns})[0])
    assert row is not None
    assert row.expected_relations[0].predicate == "works_at"
    both = [*turns[:-1], said("assistant", "Welcome.")]
    assert wire.relations_of_chat(read(tmp_path, {"messages": both})[0]) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"messages": [*ASKED, said("assistant", ANSWER, weight=0)]}, "nothing to learn"),
        ({"messages": [*ASKED, said("assistant", ANSWER, loss=False)]}, "nothing to learn"),
        ({"messages": [*ASKED, said("assistant", ANSWER, weight=0.3)]}, "messages.2.weight: 0.3"),
        ({"messages": [*ASKED, said("assistant", ANSWER, weight=1, train=False)]}, "contradict"),
        ({"messages": [ASKED[0], {**ASKED[1], "weight": 1}, said("assistant", ANSWER)]}, "messages.1: user turns"),
        ({"messages": [*ASKED, said("assistant", ANSWER)], "weight": 0}, "not to be trained"),
        ({"messages": [*ASKED, said("assistant", ANSWER)], "weight": 2}, "the row.weight: 2"),
        ({"messages": [*ASKED, said("assistant", ANSWER)], "tools": [{"type": "function"}]}, "the row: tools"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}]},
            "messages.2: tool_calls",
        ),
        ({"messages": [*ASKED, said("assistant", ANSWER, function_call={"name": "f"})]}, "function_call"),
        ({"messages": [*ASKED, said("tool", "x"), said("assistant", ANSWER)]}, "messages.2.role: tool"),
        ({"messages": [*ASKED, {"role": "assistant", "content": None}]}, "messages.2.content: the content is absent"),
        ({"messages": [*ASKED, said("assistant", [{"type": "image_url", "image_url": "x"}])]}, "image_url"),
        ({"messages": [*ASKED, said("assistant", ANSWER)], "system": "Other."}, "another text"),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"}]},
            "function_call",
        ),
        ({"text": "Ann ran.", "entities": [], "expected_relations": [], "system": "S"}, "system"),
        ({"text": "Ann ran.", "entities": [], "expected_relations": [], "train": False}, "not to be trained"),
        ({"text": "Ann ran.", "entities": [], "expected_relations": [], "tool_calls": [1]}, "tool_calls"),
        ({"text": "Ann ran.", "triplets": [], "weight": 0.5}, "weight: 0.5"),
        ({"prompt": "p", "completion": "c", "label": False}, "label: false"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "weight": 0}, "not to be trained"),
    ],
)
def test_what_would_change_the_meaning_is_refused_with_line_and_part_by_sft_and_validate(tmp_path, value, found):
    good = {"messages": [*ASKED, said("assistant", ANSWER)]}
    with pytest.raises(InputError, match=f"line 2(.|\n)*{found}"):
        read(tmp_path, good, value)
    report = validation.validate([tmp_path / "rows.jsonl"], GENERATION)
    assert [row["where"] for row in report["findings"]] == ["line 2"]
    assert found.split(".")[0].split(":")[0] in report["findings"][0]["found"]
    assert any("sft refuses the file: line 2" in failure for failure in report["failures"])


def test_keys_that_change_nothing_are_no_reason_to_refuse(tmp_path):
    row = {"messages": [*ASKED, said("assistant", ANSWER, name="x")], "weight": 1, "train": True, "id": 3, "tools": []}
    assert len(read(tmp_path, row)) == 1
    # A generator's rows hold a row under `train`.
    assert len(read(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "r", "train": {"prompt": "p"}})) == 1


# --- pairs -----------------------------------------------------------------------------------------------------------


def pair(layout, asked, system=None):
    answers = [said("assistant", ANSWER)], [said("assistant", "[]")]
    if layout == "explicit":
        return {"prompt": asked, "chosen": answers[0], "rejected": answers[1]}
    if layout == "implicit":
        return {"chosen": [*asked, *answers[0]], "rejected": [*asked, *answers[1]]}
    if layout == "texts":
        return {"prompt": asked, "chosen": ANSWER, "rejected": "[]"}
    return {
        "input": {"messages": asked, "tools": []},
        "preferred_output": answers[0],
        "non_preferred_output": answers[1],
    }


@pytest.mark.parametrize("layout", ["explicit", "implicit", "texts", "sharegpt", "vendor"])
def test_pairs_of_any_layout_ask_what_they_asked(tmp_path, layout):
    server, own = read(tmp_path, pair(layout, ASKED), pair(layout, OWN_ASKED))
    chosen, rejected, how = model_pair(server)
    assert (chosen.completion, rejected.completion, how) == (ANSWER, "[]", "server")
    assert [turn.content for turn in chosen.prompt] == [turn["content"] for turn in ASKED]
    chosen, _, how = model_pair(own)
    assert ([turn.model_dump() for turn in chosen.prompt], how) == (OWN_ASKED, "as_is")
    jsonl.write_rows(tmp_path / "again.jsonl", [server, own])
    assert jsonl.read_preferences(tmp_path / "again.jsonl") == [server, own]


def test_a_pair_that_brings_its_better_answer_as_messages_is_one_under_its_name_alone(tmp_path):
    value = {**pair("implicit", OWN_ASKED), "messages": [*OWN_ASKED, said("assistant", ANSWER)]}
    assert [type(read(tmp_path, value, layout=name)[0]).__name__ for name in (None, "dpo-turns")] == [
        "ChatRow",
        "PreferenceRow",
    ]


def test_a_system_text_beside_a_pair_is_its_first_turn(tmp_path):
    row = read(tmp_path, {"system": "Answer in lines.", "prompt": "Ann?", "chosen": "a", "rejected": "b"})[0]
    assert [turn.model_dump() for turn in model_pair(row)[0].prompt] == OWN_ASKED


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (
            {
                "chosen": [said("user", "p"), said("assistant", "a")],
                "rejected": [said("user", "q"), said("assistant", "b")],
            },
            "part before",
        ),
        (
            {"prompt": [said("user", "p")], "chosen": [said("user", "a")], "rejected": [said("assistant", "b")]},
            "chosen: its last",
        ),
        ({"chosen": [said("assistant", "a")], "rejected": [said("assistant", "b")]}, "not the user's"),
        (
            {"input": {"messages": OWN_ASKED, "tools": [1]}, "preferred_output": "a", "non_preferred_output": "b"},
            "tools",
        ),
    ],
)
def test_a_pair_without_one_prompt_and_two_answers_is_refused(tmp_path, value, found):
    with pytest.raises(InputError, match=found):
        read(tmp_path, value)


# --- relations -------------------------------------------------------------------------------------------------------

TOKENS = ["Ann", "works", "at", "Bo", "Labs", "."]
NINE = """
3\tO\t0\tO\tDT\tThe\tO\tO\tO
3\tPeop\t1\tO\tNNP\tAnn\tO\tO\tO
3\tO\t2\tO\tVB\tworks\tO\tO\tO
3\tOrg\t3\tO\tNNP/NNP\tBo/Labs\tO\tO\tO
3\tO\t4\tO\t,\tCOMMA\tO\tO\tO

1\t3\tWork_For

4\tLoc\t0\tO\tNNP\tRome\tO\tO\tO
4\tO\t1\tO\tNN\tand/or\tO\tO\tO

"""
MULTI_HEAD = """#doc 1
0\tAnn\tB-Peop\t['Work_For']\t[4]
1\tworks\tO\t['N']\t[1]
2\tat\tO\t['N']\t[2]
3\tBo\tB-Org\t['N']\t[3]
4\tLabs\tI-Org\t['N']\t[4]
#doc 2
0\tRome\tB-Loc\t['N']\t[0]
"""


@pytest.mark.parametrize(
    "value",
    [
        {
            "tokens": TOKENS,
            "entities": [{"type": "Peop", "start": 0, "end": 1}, {"type": "Org", "start": 3, "end": 5}],
            "relations": [{"type": "works_at", "head": 0, "tail": 1}],
            "orig_id": 7,
        },
        {"tokens": TOKENS, "entities": [[0, 1, "PER"], [3, 5, "ORG"]], "relations": [[0, "works_at", 1]]},
        {
            "text": "Ann works at Bo Labs .",
            "triplets": [
                {"head": "Ann", "type": "works_at", "tail": "Bo Labs", "head_type": "per", "tail_type": "Org"}
            ],
        },
        {"text": "Ann works at Bo Labs .", "entities": ANN_BO, "triples": [["Ann", "works_at", "Bo Labs"]]},
        {
            "text": "Ann works at Bo Labs .",
            "entities": ANN_BO,
            "relations": [{"head": "Ann", "type": "works_at", "tail": "Bo Labs"}],
        },
        {
            "text": "Ann works at Bo Labs .",
            "entities": ANN_BO,
            "relations": [{"head": 0, "relation": "works_at", "tail": {"text": "Bo Labs"}}],
        },
        {
            "text": "Ann works at Bo Labs .",
            "entities": ANN_BO,
            "relations": [{"subject": "Ann", "predicate": "works_at", "object": "Bo Labs"}],
        },
    ],
)
def test_relations_of_any_layout_are_the_same_row(tmp_path, value):
    assert read(tmp_path, value) == [
        RawRow.model_validate(
            {
                "text": "Ann works at Bo Labs .",
                "entities": [
                    {"text": "Ann", "label": "person", "start": 0, "end": 3},
                    {"text": "Bo Labs", "label": "organization", "start": 13, "end": 20},
                ],
                "expected_relations": [{"subject": "Ann", "predicate": "works_at", "object": "Bo Labs"}],
            }
        )
    ]


@pytest.mark.parametrize(
    ("text", "layout"),
    [(NINE, None), (NINE, "conll04"), (MULTI_HEAD, None), (MULTI_HEAD.replace("\n", "\r\n"), "conll04")],
)
def test_conll04_files_are_read_as_their_sentences(tmp_path, text, layout):
    path = tmp_path / "conll04.corp"
    path.write_bytes(text.encode())
    first, second = jsonl.placed_rows(path, layout)
    assert first.row.text in ("The Ann works Bo Labs ,", "Ann works at Bo Labs")
    assert [(e.text, e.label) for e in first.row.entities] == [("Ann", "person"), ("Bo Labs", "organization")]
    assert [(r.subject, r.predicate, r.object) for r in first.row.expected_relations] == [
        ("Ann", "Work_For", "Bo Labs")
    ]
    assert all(first.row.text[e.start : e.end] == e.text for e in first.row.entities)
    assert (second.row.entities[0].text, second.row.expected_relations) == ("Rome", [])
    assert second.row.text in ("Rome and/or", "Rome")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (
            {"tokens": TOKENS, "entities": [{"type": "Org", "start": 3, "end": 9}], "relations": []},
            "entities.0: tokens 3 to 9",
        ),
        (
            {"tokens": TOKENS, "entities": [[0, 1, "PER"]], "relations": [{"type": "x", "head": 0, "tail": 1}]},
            "relations.0.tail: entity 1",
        ),
        (
            {"tokens": TOKENS, "entities": [[0, 1, "PER"]], "relations": [{"type": 7, "head": 0, "tail": 0}]},
            "relations.0: its type is 7",
        ),
        ({"text": "Ann.", "entities": ANN_BO, "relations": [{"head": -1, "type": "x", "tail": 0}]}, "entity -1"),
        ({"text": "Ann.", "triplets": [{"head": "Ann", "tail": "Bo"}]}, "triplets.0: its type"),
    ],
)
def test_an_end_that_is_not_there_is_refused_and_not_dropped(tmp_path, value, found):
    with pytest.raises(InputError, match=f"line 1(.|\n)*{found}"):
        read(tmp_path, value)


def test_a_generators_row_without_relations_and_head_tail_rows_without_them_are_told_apart(tmp_path):
    spans = {"text": "Ann ran.", "entities": [{"text": "Ann", "type": "Person", "start": 0, "end": 3}], "relations": []}
    bare = {"text": "Ann ran.", "entities": [{"text": "Ann", "type": "person"}], "relations": []}
    assert [type(row).__name__ for row in read(tmp_path, spans, bare)] == ["GeneratedRow", "RawRow"]


def test_what_was_read_as_what_is_said_with_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [
        said("user", "1"),
        said("assistant", "a"),
        said("user", "2"),
        said("assistant", "b", weight=0),
        said("user", "3"),
        said("assistant", "c"),
    ]
    values = [{"text": "Ann ran.", "triplets": []}] * 2 + [{"messages": turns}]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    said_ = readers.says((placed.layout, placed.honoured) for placed in jsonl.placed_rows(path))
    for words in (
        "read 2 of layout triplets",
        "1 in the own layout",
        "1 row(s) with answers of weight 0, which are not trained",
        "1 row(s) with several answers, each of which is trained",
    ):
        assert words in str(said_)
    path.write_text(json.dumps({"text": "a", "entities": [], "expected_relations": []}), encoding="utf-8")
    assert readers.says((placed.layout, placed.honoured) for placed in jsonl.placed_rows(path)) is None
