"""Runs `generate.predict` as Ray tasks, one for each worker of the place, each with its share of the questions."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from ucotron_ray.core import run_log, session
from ucotron_ray.core.place import Workers
from ucotron_ray.evaluation.predictions import Prediction, PredictJob, read_predictions


def predict_on_ray(
    job: PredictJob, workers: Workers, directory: Path, log_file: str
) -> tuple[list[Prediction], dict[str, float]]:
    """Answer what no shard file in the directory answers yet; return all answers, and tokens and seconds."""
    done = {(entry.row, entry.layout) for entry in _shards(directory)}
    left = [question for question in job.questions if question not in done]
    measured = {"new_tokens": 0.0, "seconds": 0.0}
    if left:
        resources = session.worker_resources(workers)
        num_shares = workers.num_workers
        if job.spread:
            # One process that sees the GPUs of all workers, on one node.
            resources = replace(resources, cpus=resources.cpus * num_shares, gpus=resources.gpus * num_shares)
            whole = {"num_workers": 1, "cpus_per_worker": resources.cpus, "gpus_per_worker": resources.gpus}
            session.check_resources(workers.model_copy(update=whole))
            num_shares = 1
        shares = [
            {
                "job": asdict(
                    replace(job, questions=tuple(share), output_file=str(directory / f"shard-{index}.jsonl"))
                ),
                "log_file": log_file,
            }
            for index, share in enumerate(_deal(left, num_shares))
        ]
        try:
            with run_log.following(log_file):
                results = session.in_workers(_predict, shares, resources, max_failures=workers.max_failures)
        except ray.exceptions.RayError as error:
            next_step = "the answers so far are kept; correct the cause and run the same command again"
            raise session.cause_of(error, "a worker failed while the model answered", next_step=next_step) from error
        measured = {
            "new_tokens": sum(result["new_tokens"] for result in results),
            "seconds": max(result["seconds"] for result in results),
        }
    answers = {(entry.row, entry.layout): entry for entry in _shards(directory)}
    return [answers[question] for question in job.questions], measured


def _predict(share: dict[str, Any]) -> dict[str, float]:
    run_log.set_up_worker(share["log_file"])
    fields = PredictJob(**share["job"])
    if fields.bundle is not None:
        from ucotron_ray.evaluation.onnx_answers import predict as predict_by_bundle  # noqa: PLC0415 - onnxruntime

        return predict_by_bundle(fields)
    from ucotron_ray.evaluation.generate import predict  # noqa: PLC0415 - torch and transformers, in the task only

    return predict(fields)


def _shards(directory: Path) -> list[Prediction]:
    return [entry for path in sorted(directory.glob("shard-*.jsonl")) for entry in read_predictions(path)]


def _deal(questions: Sequence[tuple[int, str]], num_shares: int) -> list[list[tuple[int, str]]]:
    return [share for index in range(num_shares) if (share := list(questions[index::num_shares]))]
