"""What goes wrong while a model trains, and what is left then: stop, NaN, a full disk, preemption, other workers."""

import errno
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from tests.unit.training.test_sft import SETTINGS, WEIGHTS, job
from tests.unit.training.test_sft import straight as straight  # the fixture, again for this file
from ucotron_ray.core import signals
from ucotron_ray.core.errors import LossNotFinite, StageFailed, Stopped
from ucotron_ray.core.files import file_hash
from ucotron_ray.training import checkpoints, sft, tokens
from ucotron_ray.training.hooks import Hooks
from ucotron_ray.training.job import STOP


def newest(directory: Path) -> str | None:
    found = checkpoints.newest_checkpoint(directory / "checkpoints")
    return found.name if found else None


def quietly(metrics: object) -> None:
    pass


def test_asked_to_stop_it_saves_that_very_step_and_goes_on_to_the_same_bytes(straight, tmp_path, tiny_model):
    directory = tmp_path / "run"

    def stop_at_3(metrics: dict) -> None:
        if metrics["step"] == 2:
            (directory / STOP).touch()

    with pytest.raises(Stopped, match="after step 3 of 4") as caught:
        sft.train(job(directory, tiny_model), stop_at_3)
    assert caught.value.exit_code == 75
    # save_steps is 2: step 3 was saved because it was asked for.
    assert newest(directory) == "checkpoint-3"
    assert not (directory / "adapter").exists()
    (directory / STOP).unlink()
    sft.train(job(directory, tiny_model), quietly)
    assert file_hash(directory / WEIGHTS) == file_hash(straight / WEIGHTS)


def test_a_stop_in_the_last_step_is_no_stop(tmp_path, straight, tiny_model):
    directory = tmp_path / "run"
    sft.train(
        job(directory, tiny_model),
        lambda metrics: (directory / STOP).touch() if metrics["step"] == 3 else None,
    )
    assert file_hash(directory / WEIGHTS) == file_hash(straight / WEIGHTS)


def test_a_loss_that_is_no_number_stops_at_its_step_and_keeps_the_good_checkpoint(tmp_path, tiny_model, monkeypatch):
    directory, seen = tmp_path / "run", []
    compute = sft.LabelOnlyTrainer.compute_loss

    def broken(self, *args, **kwargs):
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 2 else loss

    monkeypatch.setattr(sft.LabelOnlyTrainer, "compute_loss", broken)
    with pytest.raises(LossNotFinite, match="not finite") as caught:
        sft.train(job(directory, tiny_model), lambda metrics: seen.append(metrics["step"]))
    assert seen == [1, 2]
    assert caught.value.exit_code == 1
    assert "checkpoint-2" in str(caught.value)
    assert "learning_rate" in str(caught.value)
    assert newest(directory) == "checkpoint-2"


def test_weights_that_are_no_numbers_never_become_a_checkpoint(tmp_path, tiny_model, monkeypatch):
    directory = tmp_path / "run"

    def spoil(self, args, state, control, **kwargs):
        if state.global_step == 3:
            next(p for p in kwargs["model"].parameters() if p.requires_grad).data.fill_(float("inf"))

    monkeypatch.setattr(checkpoints.Checkpoints, "on_pre_optimizer_step", spoil)
    with pytest.raises(LossNotFinite):
        sft.train(job(directory, tiny_model), quietly)
    assert newest(directory) == "checkpoint-2"


def test_a_full_disk_is_said_and_the_run_goes_on_from_the_last_checkpoint(straight, tmp_path, tiny_model, monkeypatch):
    directory = tmp_path / "run"
    save = torch.save

    def full(value, target, *args, **kwargs):
        if "checkpoint-4" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return save(value, target, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StageFailed, match="disk is full") as caught:
        sft.train(job(directory, tiny_model), quietly)
    assert "checkpoint-2" in str(caught.value)
    monkeypatch.undo()
    sft.train(job(directory, tiny_model), quietly)
    assert file_hash(directory / WEIGHTS) == file_hash(straight / WEIGHTS)


def test_any_other_error_of_the_system_is_left_as_it_is(tmp_path, tiny_model, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="Input/output"):
        sft.train(job(tmp_path / "run", tiny_model), quietly)


def test_before_a_machine_is_taken_away_a_checkpoint_is_saved_once(tmp_path, tiny_model):
    directory, asked = tmp_path / "run", []

    def preempted() -> bool:
        asked.append(newest(directory))
        return True

    sft.train(
        job(directory, tiny_model, settings={**SETTINGS.model_dump(), "save_steps": 5}),
        quietly,
        Hooks(preempted=preempted),
    )
    # Asked at every log; saved at the first, and only the run's end saves again.
    assert asked[:2] == [None, "checkpoint-1"]
    assert {path.name for path in (directory / "checkpoints").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-4"}


def test_a_worker_that_was_lost_after_the_last_evaluation_does_not_evaluate_again(straight, tmp_path, tiny_model):
    """The checkpoint of an epoch's last step is written after its evaluation, and knows of it."""
    directory = tmp_path / "run"
    shutil.copytree(straight / "checkpoints", directory / "checkpoints")
    told: list[dict] = []
    metrics = sft.train(job(directory, tiny_model), quietly, Hooks(evaluated=lambda made: told.append(dict(made))))
    record = json.loads((straight / "training.json").read_text(encoding="utf-8"))
    assert metrics["eval_loss"] == pytest.approx(record["metrics"]["eval_loss"])
    assert told == []


def test_resumed_with_another_batch_a_device_the_global_batch_stays(straight, tmp_path, tiny_model):
    """What another number of workers does to a checkpoint: the trainer would take the old batch a device from it."""
    from safetensors.torch import load_file

    directory, steps = tmp_path / "run", []

    def stop_at_2(metrics: dict) -> None:
        if metrics["step"] == 1:
            (directory / STOP).touch()

    with pytest.raises(Stopped):
        sft.train(job(directory, tiny_model, per_device_batch=4), stop_at_2)
    (directory / STOP).unlink()
    metrics = sft.train(
        job(directory, tiny_model, per_device_batch=2),
        lambda values: steps.append(values["step"]) if "loss" in values else None,
    )
    assert steps == [3, 4]
    assert metrics["steps"] == 4
    ours, theirs = load_file(directory / WEIGHTS), load_file(straight / WEIGHTS)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-3


def test_signals_ask_once_and_then_insist(tmp_path):
    import os
    import signal

    request = tmp_path / STOP
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals.stopping(request):
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.exists()
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    assert signal.getsignal(signal.SIGTERM) == before
    # In another thread there is nothing to install, and nothing fails.
    thread = threading.Thread(target=lambda: signals.stopping(request).__enter__())
    thread.start()
    thread.join()


def test_tokens_of_the_cache_train_to_the_same_bytes(straight, tmp_path, tiny_model):
    from ucotron_ray.models import base as base_models

    directory, kept = tmp_path / "run", tmp_path / "tokens"
    kept.mkdir()
    made = job(directory, tiny_model)
    tokenizer = base_models.load_tokenizer(base_models.resolve(made.base))
    tokens.write(kept, tokens.of_rows(Path(made.train_file), Path(made.val_file), tokenizer, SETTINGS))
    Path(made.train_file).write_text("not read\n", encoding="utf-8")
    sft.train(job_of(made, tokens=str(kept)), quietly)
    assert file_hash(directory / WEIGHTS) == file_hash(straight / WEIGHTS)


def job_of(made, **changes):
    from dataclasses import replace

    return replace(made, **changes)


def test_recomputing_activations_changes_not_one_byte(straight, tmp_path, tiny_model):
    sft.train(job(tmp_path / "run", tiny_model, gradient_checkpointing=True), quietly)
    assert file_hash(tmp_path / "run" / WEIGHTS) == file_hash(straight / WEIGHTS)


def test_what_is_measured_is_reported_drawn_and_kept(straight):
    record = json.loads((straight / "training.json").read_text(encoding="utf-8"))
    metrics = record["metrics"]
    assert 0 < metrics["step_p50"] <= metrics["step_p95"]
    assert 0 <= metrics["data_wait_share"] < 1
    assert metrics["label_tokens_per_second"] < metrics["tokens_per_second"] <= metrics["padded_tokens_per_second"]
    assert 0 < metrics["mfu_4n"] < 1
    assert metrics["memory_peak_gb"] >= 0
    assert "measured on this processor" in record["peak"]
    logged = [entry for entry in record["history"] if "loss" in entry]
    assert all("tokens_per_second" in entry for entry in logged)
    page = (straight / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "<script" not in page
    assert "http" not in page
    assert "convention 4N" in page


def test_tensorboard_has_the_curves(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4]
    assert len(events.Scalars("evaluation/eval_loss")) == 1
    assert {"training/tokens_per_second", "training/mfu_4n", "training/step_p50"} <= set(events.Tags()["scalars"])


def test_f1_is_measured_at_each_evaluation_and_told(tmp_path, tiny_model):
    told: list[dict] = []
    settings = {**SETTINGS.model_dump(), "eval_steps": 2}
    hooks = Hooks(
        evaluated=lambda metrics: told.append(dict(metrics)), score=lambda model, tokenizer, rank, world: (1, 2, 3)
    )
    metrics = sft.train(job(tmp_path / "run", tiny_model, settings=settings), quietly, hooks)
    assert [(entry["step"], entry["eval_f1"]) for entry in told] == [(2, 0.4), (4, 0.4)]
    assert all("eval_loss" in entry for entry in told)
    assert metrics["eval_f1"] == 0.4
    assert "F1 of the triples" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_the_scorer_counts_triples_and_workers_share_the_rows(tmp_path, monkeypatch):
    from tests.unit.training.test_sft import ROWS
    from ucotron_ray.data import jsonl, wire
    from ucotron_ray.data.records import PreferenceRow
    from ucotron_ray.evaluation import generate

    rows = [row for row in ROWS if row.expected_relations][:5]
    path = tmp_path / "val.jsonl"
    jsonl.write_rows(path, rows)

    class Words:
        """Knows every right answer."""

        def __init__(self, model, tokenizer, max_new_tokens) -> None:
            self.speech = self

        def answer(self, row, layout) -> str:
            return wire.format_answer(row.expected_relations)

        def run(self, answers) -> None:
            pass

        def finished(self, answer) -> str:
            return answer

    monkeypatch.setattr(generate, "RowDecoder", Words)
    score = generate.triples_of(path, 4, max_new_tokens=8, batch_size=3)
    whole = score("model", "tokenizer", 0, 1)
    assert (
        whole[0]
        == whole[1]
        == whole[2]
        == sum(len({(r.subject, r.predicate, r.object) for r in row.expected_relations}) for row in rows[:4])
    )
    pairs = tmp_path / "pairs.jsonl"
    jsonl.write_rows(
        pairs,
        [
            PreferenceRow(
                prompt=wire.user_prompt(row.text, row.entities),
                chosen=wire.format_answer(row.expected_relations),
                rejected="[]",
            )
            for row in rows[:4]
        ],
    )
    assert generate.triples_of(pairs, 9, max_new_tokens=8, batch_size=3)("model", "tokenizer", 0, 1) == whole
    shares = [score("model", "tokenizer", rank, 2) for rank in (0, 1)]
    assert tuple(map(sum, zip(*shares, strict=True))) == whole


def test_the_report_escapes_what_it_is_given():
    from ucotron_ray.training.report import page

    made = page({"base": "<script>alert(1)</script>", "history": [{"step": 1, "loss": 1.0}], "settings": {"a": "<b>"}})
    assert "<script" not in made
    assert "&lt;b&gt;" in made
