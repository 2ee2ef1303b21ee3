"""A model that is shown examples reads them before the question, in the server's own words."""

from ucotron_ray.data import jsonl
from ucotron_ray.evaluation import generate
from ucotron_ray.evaluation.predictions import PredictJob
from ucotron_ray.models import base as base_models
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.simulators import demo_world


def test_the_prompt_of_a_job_with_examples_holds_them_and_ends_with_the_question(tiny_model, tmp_path, monkeypatch):
    row, *examples = demo_world.rows(demo_world.graph_world(1), 3, seed=1)
    jsonl.write_rows(tmp_path / "rows.jsonl", [row])
    jsonl.write_rows(tmp_path / "examples.jsonl", examples)
    asked: list[list[int]] = []

    def note(model, answers, **_):
        asked.extend(answer.prompt for answer in answers)

    monkeypatch.setattr(generate.generation, "answer", note)
    for name, file in (("with", "examples.jsonl"), ("without", None)):
        job = PredictJob(
            base=str(tiny_model),
            adapter=None,
            rows_file=str(tmp_path / "rows.jsonl"),
            questions=((0, "chat"),),
            output_file=str(tmp_path / f"{name}.jsonl"),
            max_new_tokens=4,
            batch_size=1,
            dtype="float32",
            num_threads=None,
            decoding="free",
            examples_file=str(tmp_path / file) if file else None,
        )
        generate.predict(job)
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    assert asked == [
        prompt_ids(server_row(row, "chat", examples), tokenizer),
        prompt_ids(server_row(row, "chat"), tokenizer),
    ]
    text = tokenizer.decode(asked[0])
    places = [text.index(shown.text) for shown in (*examples, row)]
    assert places == sorted(places)
