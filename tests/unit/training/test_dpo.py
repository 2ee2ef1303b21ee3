"""Preference training without Ray, on tiny random models: identities that must hold."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.training_jobs import changed, workers
from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import file_hash
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import PreferenceRow
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import checkpoints, dpo, pairs
from ucotron_ray.training.data import IGNORED
from ucotron_ray.training.job import DpoJob, TrainingJob

RAW = [row for row in demo_world.rows(demo_world.graph_world(2), 40, seed=2) if row.expected_relations][:16]
ROWS = [
    PreferenceRow(
        prompt=wire.user_prompt(row.text, row.entities),
        chosen=wire.format_answer(row.expected_relations),
        rejected="[]",
    )
    for row in RAW
]
SETTINGS = config.load().recipe.dpo.model_copy(
    update={"epochs": 2, "learning_rate": 5e-3, "batch_size": 4, "save_steps": 3, "eval_rows": 4, "lora_rank": 4}
)
WEIGHTS = "adapter/adapter_model.safetensors"


def jobs(directory: Path, model: Path) -> tuple[TrainingJob, DpoJob]:
    """What computes the reference, and what trains."""
    for name in ("reference", "run"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    jsonl.write_rows(directory / "pairs.jsonl", ROWS)
    jsonl.write_rows(directory / "val.jsonl", ROWS[:6])
    common = TrainingJob(
        base=str(model),
        train_file=str(directory / "pairs.jsonl"),
        val_file=str(directory / "val.jsonl"),
        directory=str(directory / "reference"),
        settings=SETTINGS.model_dump(),
        workers=workers(per_device_batch=None),
        num_threads=1,
    )
    fields = {**asdict(common), "directory": str(directory / "run")}
    return common, DpoJob(**fields, reference=common.directory)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_model) -> tuple[Path, list[dict]]:
    directory = tmp_path_factory.mktemp("dpo")
    reference, job = jobs(directory, tiny_model)
    dpo.write_reference(reference)
    reports: list[dict] = []
    dpo.train(job, lambda metrics: reports.append(dict(metrics)))
    return directory, reports


def test_at_the_first_step_the_policy_is_the_reference_and_the_loss_ln_2(straight):
    first = next(report for report in straight[1] if "loss" in report)
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["margin"] == pytest.approx(0.0, abs=1e-3)


def test_what_lengths_alone_would_reach_is_said_beside_the_accuracy(tmp_path, tiny_model, caplog):
    reference, job = jobs(tmp_path, tiny_model)
    dpo.write_reference(reference)
    with caplog.at_level("INFO"):
        metrics = dpo.train(job, lambda metrics: None)
    assert metrics["longer_wins"] == metrics["eval_longer_wins"] == 1.0
    assert "held-out pairs: 100 % preferred rightly; the longer answer is the chosen one in 100 %" in caplog.text
    assert "the length alone tells" in caplog.text


def test_training_prefers_what_was_chosen(straight):
    record = json.loads((straight[0] / "run" / "training.json").read_text())
    assert record["metrics"]["train_loss_last"] < math.log(2) - 0.05
    assert record["metrics"]["margin"] > 0.5
    assert record["metrics"]["eval_accuracy"] == 1.0
    assert record["counts"] == {**record["counts"], "server": 16, "rows": 16, "chosen_longer": 16}


def test_it_trains_in_the_type_of_its_reference_whatever_the_machine_would_choose(tmp_path, tiny_model):
    """Log-probabilities in bfloat16 are others: the first loss would not be ln 2."""
    reference, job = jobs(tmp_path, tiny_model)
    dpo.write_reference(changed(reference, dtype="float32"))
    reports: list[dict] = []
    dpo.train(changed(job, dtype="bfloat16"), lambda metrics: reports.append(dict(metrics)))
    assert json.loads((tmp_path / "run" / "checkpoints" / "compute_dtype.json").read_text()) == "float32"
    first = next(report for report in reports if "loss" in report)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_the_kept_reference_is_what_the_disabled_adapter_says(straight, tiny_model):
    directory, _ = straight
    base = base_models.resolve(str(tiny_model))
    tokenizer = base_models.load_tokenizer(base)
    model = lora.attach(base_models.load_model(base, "float32"), SETTINGS)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    made, _ = pairs.pairs(ROWS, tokenizer, SETTINGS)
    with model.disable_adapter():
        inline = dpo.reference_log_probs(model, made, size=3, pad=tokenizer.pad_token_id)
    kept = [json.loads(line) for line in (directory / "reference" / dpo.TRAIN_REFERENCE).read_text().splitlines()]
    torch.testing.assert_close(torch.tensor(inline), torch.tensor(kept), atol=1e-3, rtol=1e-4)
    moved = dpo.reference_log_probs(model, made, size=3, pad=tokenizer.pad_token_id)
    assert not torch.allclose(torch.tensor(moved), torch.tensor(kept), atol=0.1)


def test_answer_log_probs_are_those_of_the_whole_forward_pass(tiny_model):
    base = base_models.resolve(str(tiny_model))
    tokenizer = base_models.load_tokenizer(base)
    model = base_models.load_model(base, "float32").eval()
    made, _ = pairs.pairs(ROWS[:3], tokenizer, SETTINGS)
    batch = dpo.collate([dpo._columns(pair, [0.0, 0.0]) for pair in made], pad=tokenizer.pad_token_id)
    with torch.no_grad():
        fast = dpo.answer_log_probs(model, batch)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    all_log_probs = logits[:, :-1].float().log_softmax(-1)
    chosen = all_log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = (chosen * (labels != IGNORED)).sum(dim=1)
    torch.testing.assert_close(fast, expected, atol=1e-3, rtol=1e-4)


def test_a_resumed_run_gives_the_straight_runs_bytes(straight, tmp_path, tiny_model):
    class Stop(Exception):
        pass

    reference, job = jobs(tmp_path, tiny_model)
    dpo.write_reference(reference)

    def stop(metrics):
        if metrics["step"] >= 5:
            raise Stop

    with pytest.raises(Stop):
        dpo.train(job, stop)
    newest = checkpoints.newest_checkpoint(Path(job.directory) / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-3"
    dpo.train(job, lambda metrics: None)
    assert file_hash(tmp_path / "run" / WEIGHTS) == file_hash(straight[0] / "run" / WEIGHTS)


def test_a_reference_of_other_pairs_is_refused(straight, tmp_path, tiny_model):
    _, job = jobs(tmp_path, tiny_model)
    (tmp_path / "reference" / dpo.TRAIN_REFERENCE).write_text("[0.0, 0.0]\n")
    (tmp_path / "reference" / dpo.VAL_REFERENCE).write_text("[0.0, 0.0]\n")
    with pytest.raises(InputError, match="does not belong"):
        dpo.train(job, lambda metrics: None)


def test_a_sentence_whose_entities_are_known_is_put_into_the_servers_prompt():
    truth = {"entities": [{"text": "Ana", "type": "Person"}, {"text": "Lyon", "type": "Location"}]}
    answer = {"entities": [], "relations": [{"subject": "Ana", "relation": "lives_in", "object": "Lyon"}]}
    row = PreferenceRow(
        prompt="Extract entities and relations from: Ana lives in Lyon.",
        chosen=json.dumps(answer),
        rejected='[{"subject":"Ana","predicate":"related_to","object":"Lyon"}]',
        ground_truth=json.dumps(truth),
    )
    chosen, rejected, how = pairs.model_pair(row)
    assert how == "rendered"
    assert '- "Ana" (person)' in chosen.prompt[1].content
    assert chosen.prompt == rejected.prompt
    assert chosen.completion == '[{"subject":"Ana","predicate":"lives_in","object":"Lyon","confidence":1.0}]'
    assert "related_to" in rejected.completion
    plain, _, how = pairs.model_pair(row.model_copy(update={"ground_truth": None}))
    assert how == "as_is"
    assert plain.prompt[0].content == row.prompt


def test_held_out_pairs_that_balancing_leaves_none_of_are_not_judged_by(tmp_path, tiny_model):
    reference, job = jobs(tmp_path, tiny_model)
    longer = [row for row in ROWS if len(row.chosen) > len(row.rejected)][:4]
    turned = [row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in ROWS[:8]]
    jsonl.write_rows(tmp_path / "pairs.jsonl", [*longer, *turned])
    jsonl.write_rows(tmp_path / "val.jsonl", longer)
    settings = {**SETTINGS.model_dump(), "max_longer_share": 0.6, "epochs": 1}
    reference, job = replace(reference, settings=settings), replace(job, settings=settings)
    dpo.write_reference(reference)
    metrics = dpo.train(job, lambda _: None)
    assert "eval_accuracy" not in metrics
    assert metrics["steps"] == 3
    jsonl.write_rows(tmp_path / "pairs.jsonl", longer)
    with pytest.raises(InputError, match="max_longer_share"):
        dpo.write_reference(reference)


def test_pairs_that_say_nothing_are_dropped_and_counted(tiny_model):
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    same = ROWS[0].model_copy(update={"rejected": ROWS[0].chosen})
    long = ROWS[1].model_copy(update={"chosen": "x y z " * 3000})
    made, counts = pairs.pairs([same, long, ROWS[2]], tokenizer, SETTINGS)
    assert len(made) == 1
    assert (counts["equal"], counts["too_long"], counts["server"]) == (1, 1, 1)
    with pytest.raises(InputError, match="no preference pair"):
        pairs.pairs([same], tokenizer, SETTINGS)
