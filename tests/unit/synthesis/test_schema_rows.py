"""Rows in the vocabulary of a schema: what is drawn, asked, taken and published."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.filling import fill, job_of
from tests.teacher import teaching
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Artifact, Manifest
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.run import Run
from ucotron_ray.data import schema_file
from ucotron_ray.data.records import name_key
from ucotron_ray.data.stage import SCHEMA as SCHEMA_OF_ROWS
from ucotron_ray.data.stage import TRAIN
from ucotron_ray.export import stage as export
from ucotron_ray.graph import schema as induction
from ucotron_ray.graph.export import read_file
from ucotron_ray.simulators.demo_world import write_demo
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import stage, validation
from ucotron_ray.synthesis.job import task_of
from ucotron_ray.synthesis.plan import Answer, Done, Ended
from ucotron_ray.teacher.endpoint import endpoint_of
from ucotron_ray.teacher.outcome import OutcomeKind
from ucotron_ray.teacher.prices import Price
from ucotron_ray.teacher.stage import Teacher

SCHEMA = """\
types: {person: '', company: '', dish: ''}
predicates:
  works_at: {description: Is employed there., domain: [person], range: [company], aliases: [works_for]}
  employs: {domain: [company], range: [person], inverse: works_at}
  married_to: {domain: [person], range: [person], symmetric: true}
  likes:
    domain: [person]
    range: [dish]
    examples:
    - {subject: Ann, object: potato soup}
    - {subject: Bo, object: ramen}
    - {subject: Cy, object: plum cake}
    - {subject: Di, object: paella}
"""


def generation_of(path: Path, text: str = SCHEMA, **settings):
    path.write_text(text, encoding="utf-8")
    generation = config.load(overrides=[("generation.schema", str(path))]).recipe.generation
    chosen = generation.task("relation_extraction").model_copy(update=settings)
    return generation.model_copy(update={"tasks": {"relation_extraction": chosen}})


def end_of(task, facts, *answers: str) -> Done:
    talk = task.converse(facts)
    try:
        next(talk)
        for answer in answers:
            talk.send(Answer(OutcomeKind.ANSWER, answer))
    except StopIteration as end:
        return end.value
    except Ended as end:
        return end.done
    raise AssertionError("it asks for more")


def extraction(*relations: tuple[str, str, str]) -> str:
    types = {"Marta Ruiz": "Person", "Bo Lind": "person", "Kite Labs": "company"}
    entities = [{"text": name, "type": types[name]} for name in types]
    keys = ("subject", "relation", "object")
    return json.dumps({"entities": entities, "relations": [dict(zip(keys, r, strict=True)) for r in relations]})


FACTS = {
    "number": 0,
    "style": "an e-mail",
    "split": "train",
    "relations": [
        {
            "subject": "Marta Ruiz",
            "subject_type": "person",
            "relation": "works_at",
            "object": "Kite Labs",
            "object_type": "company",
        }
    ],
}
TEXT = "Marta Ruiz, wife of Bo Lind, works at Kite Labs."


def test_what_is_drawn_is_of_the_schema_and_no_name_is_on_both_sides(tmp_path):
    task = task_of("relation_extraction", generation_of(tmp_path / "s.yaml"))
    facts = [task.sample(number) for number in range(1500)]
    drawn = [relation for fact in facts for relation in fact["relations"]]
    assert {relation["relation"] for relation in drawn} == {"works_at", "married_to", "likes"}
    ends = {(r["subject_type"], r["relation"], r["object_type"]) for r in drawn}
    assert ends == {("person", "works_at", "company"), ("person", "married_to", "person"), ("person", "likes", "dish")}
    assert {r["object"] for r in drawn if r["relation"] == "likes"} == {"potato soup", "ramen", "plum cake", "paella"}
    names = {
        split: {
            name_key(r[s]) for f in facts if f["split"] == split for r in f["relations"] for s in ("subject", "object")
        }
        for split in ("train", "val")
    }
    assert names["val"]
    assert not names["val"] & names["train"]


def test_the_teacher_is_told_what_predicates_mean_and_between_what_they_hold(tmp_path):
    task = task_of("relation_extraction", generation_of(tmp_path / "s.yaml"))
    talk = task.converse(FACTS)
    assert 'works_at "Kite Labs" (company): Is employed there.' in next(talk).messages[1][1]
    system = talk.send(Answer(OutcomeKind.ANSWER, TEXT)).messages[0][1]
    assert "Entity types: person, company, dish." in system
    assert "- works_at (person → company): Is employed there.\n" in system
    assert "- married_to (person → person, in either direction)\n" in system
    assert "employs" not in system


def test_aliases_inverses_and_directions_are_written_as_one(tmp_path):
    task = task_of("relation_extraction", generation_of(tmp_path / "s.yaml"))
    said = [("Kite Labs", "employs", "Marta Ruiz"), ("Marta Ruiz", "worksFor", "Kite Labs")]
    answer = extraction(*said, ("Marta Ruiz", "married to", "Bo Lind"), ("Bo Lind", "knows", "Marta Ruiz"))
    done = end_of(task, FACTS, TEXT, answer)
    assert done.status == "accepted"
    found = [
        (r["subject"], r["subject_type"], r["relation"], r["object"], r["object_type"]) for r in done.row["relations"]
    ]
    assert found == [
        ("Marta Ruiz", "person", "works_at", "Kite Labs", "company"),
        ("Bo Lind", "person", "married_to", "Marta Ruiz", "person"),
    ]
    assert "outside_vocabulary" in done.notes, "`knows` is not of the schema"
    assert list(task.rows.defects(done.row)) == []


def test_ends_that_the_schema_does_not_allow_are_counted_and_no_reason_to_reject(tmp_path):
    generation = generation_of(tmp_path / "s.yaml")
    task = task_of("relation_extraction", generation)
    answer = extraction(("Marta Ruiz", "works_at", "Kite Labs"), ("Kite Labs", "likes", "Bo Lind"))
    done = end_of(task, FACTS, TEXT, answer)
    assert done.status == "accepted"
    assert list(task.rows.defects(done.row)) == ["wrong_types"]
    assert "wrong_types" not in generation.gate.defects


def test_a_type_without_names_is_refused_unless_nothing_of_it_is_asked_for(tmp_path):
    text = SCHEMA.replace("range: [dish]", "range: [dish]").split("    examples:")[0]
    with pytest.raises(ConfigError, match="dish") as refused:
        task_of("relation_extraction", generation_of(tmp_path / "s.yaml", text))
    assert "person" not in str(refused.value).splitlines()[0]
    task_of("relation_extraction", generation_of(tmp_path / "s.yaml", text, relations=["works_at"]))


def test_only_the_relations_that_are_asked_for_must_occur(tmp_path):
    generation = generation_of(tmp_path / "s.yaml", relations=["married_to", "works_at"])
    assert task_of("relation_extraction", generation).rows.vocabulary == ("works_at", "married_to")
    built_in = generation.model_copy(update={"schema_file": None})
    assert task_of("relation_extraction", built_in).rows.vocabulary == ("works_at", "married_to")
    with pytest.raises(ConfigError, match="employs"):
        task_of("relation_extraction", generation_of(tmp_path / "s.yaml", relations=["employs"]))


def test_the_content_of_a_schema_and_not_its_path_is_what_rows_are_known_by(tmp_path):
    def asked(task: str, file: Path | None) -> str:
        overrides = [("store", str(tmp_path)), ("tracking.mlflow_uri", "none")]
        overrides += [("generation.schema", str(file))] if file else []
        run = Run(config.load(overrides=overrides), verb="synthesize", name="rows")
        return stage.request(run, stage.wanted(run, task, 9, None)).recipe

    one, same, other = tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "c.yaml"
    one.write_text(SCHEMA, encoding="utf-8")
    same.write_text("# the same\n" + SCHEMA, encoding="utf-8")
    other.write_text(SCHEMA.replace("Is employed there.", "Has a job there."), encoding="utf-8")
    rows = [asked("relation_extraction", file) for file in (None, one, same, other)]
    assert rows[1] == rows[2]
    assert len(set(rows)) == 3
    assert asked("contradiction", None) == asked("contradiction", one), "it reads no schema"


def test_rows_in_the_schema_of_a_graph_pass_all_gates(tmp_path):
    graph, _ = write_demo(tmp_path, num_chunks=400, num_held_out=10, seed=1)
    induced = induction.induce(read_file(graph)).schema
    # One that the simulator has no sentences for.
    renamed = [p.model_copy(update={"name": "payrollOf"}) if p.name == "works_at" else p for p in induced.predicates]
    induced = induced.model_copy(update={"predicates": tuple(renamed)})
    file = tmp_path / "schema.yaml"
    file.write_text(schema_file.write(induced), encoding="utf-8")
    with teaching() as teacher:
        job = job_of(teacher, tmp_path, 200)
        result = fill(job.__class__(**{**job.__dict__, "generation": {**job.generation, "schema": str(file)}}))
    report = json.loads("\n".join(result.lines("report.json")))
    assert report["state"] == "ok", report["failures"]
    assert report["rows"] == 200
    assert report["labels"]["payrollOf"] > 0
    assert set(report["labels"]) == set(induced.vocabulary)
    assert not report["caught"]["outside_vocabulary"]["rows"]


def test_a_bundle_has_the_predicates_of_the_schema_that_its_rows_are_written_in(tmp_path, monkeypatch):
    relations = [
        {"subject": "Ann", "predicate": p, "object": "Bo"} for p in ("works_at", "married_to", "married_to", "x")
    ]
    entities = [{"text": "Ann", "label": "person"}, {"text": "Bo", "label": "person"}]
    row = {"text": "Ann, Bo.", "entities": entities, "expected_relations": relations}
    (tmp_path / TRAIN).write_text(json.dumps(row) + "\n", encoding="utf-8")
    manifest = Manifest(
        kind="dataset", name="rows", state="ok", content="c", recipe="r", recipe_fields={}, inputs=[], files=[]
    )
    monkeypatch.setattr(export, "data_of", lambda run, adapter: Artifact(tmp_path, manifest))
    run = Run(
        config.load(overrides=[("store", str(tmp_path)), ("tracking.mlflow_uri", "none")]), verb="export", name="e"
    )
    assert export.predicates(run, None) == ("married_to", "works_at", "x"), "no schema: what the rows have"
    (tmp_path / SCHEMA_OF_ROWS).write_text(SCHEMA, encoding="utf-8")
    assert export.predicates(run, None) == ("married_to", "works_at", "likes")


def test_a_file_of_rows_is_validated_in_the_vocabulary_of_the_recipe(tmp_path):
    generation = generation_of(tmp_path / "s.yaml")
    done = end_of(
        task_of("relation_extraction", generation), FACTS, TEXT, extraction(("Marta Ruiz", "works_at", "Kite Labs"))
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(done.row) + "\n", encoding="utf-8")
    assert validation.validate([rows], generation)["findings"] == []
    built_in = validation.validate([rows], generation.model_copy(update={"schema_file": None}))
    assert built_in["findings"][0]["defects"] == ["outside_vocabulary"]


def test_the_schema_travels_in_the_dataset_and_not_as_a_path_of_the_users(tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text(SCHEMA, encoding="utf-8")
    overrides = [("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none"), ("generation.schema", str(file))]
    run = Run(config.load(overrides=overrides), verb="synthesize", name="rows")
    want = stage.wanted(run, "relation_extraction", 40, None)

    def fill_here(run, job, teacher):
        file.unlink()
        made = fill(job)
        lines = {TRAIN: len(made.lines(TRAIN))}
        return SimpleNamespace(
            counts={"accepted": 40}, files=lines, requests=0, usd=0.0, prompt_tokens=0, completion_tokens=0,
            asking_seconds=0.0, set_aside=SimpleNamespace(prompts=0), failures=[],
        )  # fmt: skip

    monkeypatch.setattr(stage, "_fill", fill_here)
    with teaching() as server:
        place = run.config.place.api.model_copy(update={"inference_base_url": server.base_url})
        teacher = Teacher(endpoint_of(place, TEACHER), Price(1.0, 1.0, 1.0))
        made = stage.synthesize(run, want, teacher)
    assert set(schema_file.read(made.path / SCHEMA_OF_ROWS).vocabulary) == {"works_at", "married_to", "likes"}
    assert made.manifest.recipe_fields["schema"] == schema_file.read(made.path / SCHEMA_OF_ROWS).content
    assert len((made.path / "relation_extraction.jsonl").read_text(encoding="utf-8").splitlines()) == 40
