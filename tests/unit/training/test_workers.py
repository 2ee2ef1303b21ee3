"""Two worker processes without Ray: they stop at the same step, share what they score, and one can go on alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.training.test_sft import WEIGHTS, job
from tests.unit.training.test_sft import straight as straight  # the fixture, again for this file
from ucotron_ray.operations.dashboards import free_port
from ucotron_ray.training import checkpoints, sft
from ucotron_ray.training.job import STOP

pytestmark = pytest.mark.slow

WORKER = """
import json, os, sys
from pathlib import Path
import torch
from ucotron_ray.core.errors import Stopped
from ucotron_ray.training import sft
from ucotron_ray.training.hooks import Hooks
from ucotron_ray.training.job import STOP, SftJob
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
job = SftJob(**json.loads(Path(sys.argv[1]).read_text()))
told, stop_after = [], int(sys.argv[2])
def report(metrics):
    if rank == 0 and metrics["step"] == stop_after:
        (Path(job.directory) / STOP).touch()
hooks = Hooks(evaluated=lambda metrics: told.append([metrics["step"], metrics["eval_f1"]]),
              score=lambda model, tokenizer, number, world: (number + 1, 2, 4))
try:
    sft.train(job, report, hooks)
    end = "done"
except Stopped as error:
    end = error.problem
Path(sys.argv[1]).with_name(f"told-{rank}.json").write_text(json.dumps({"end": end, "told": told}))
"""


def run_two(made, *, stop_after: int) -> list[dict]:
    """Both workers' ends and what they were told at evaluations."""
    directory = Path(made.directory).parent
    file = directory / "job.json"
    file.write_text(json.dumps(vars(made)), encoding="utf-8")
    port = str(free_port())
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, "-c", WORKER, str(file), str(stop_after)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        error = process.communicate(timeout=240)[1]
        assert process.returncode == 0, error[-3000:]
    return [json.loads((directory / f"told-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_two_workers_train_what_one_does_and_share_the_score(straight, tmp_path, tiny_model):
    from safetensors.torch import load_file

    told = run_two(job(tmp_path / "run", tiny_model, per_device_batch=None), stop_after=-1)
    # 3 of 4 right, 4 and 8 over both: the sums are what counts.
    assert told == [{"end": "done", "told": [[4.0, 2 * 3 / 12]]}] * 2
    ours, theirs = load_file(tmp_path / "run" / WEIGHTS), load_file(straight / WEIGHTS)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-3


def test_a_base_spread_over_two_workers_trains_what_one_does(straight, tmp_path, tiny_model):
    from safetensors.torch import load_file

    told = run_two(job(tmp_path / "run", tiny_model, per_device_batch=None, shard_base=True), stop_after=-1)
    # Both score all rows: their passes must be as many.
    assert told == [{"end": "done", "told": [[4.0, 2 * 1 / 6]]}] * 2
    ours, theirs = load_file(tmp_path / "run" / WEIGHTS), load_file(straight / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-3


def test_one_worker_ends_what_two_with_a_spread_base_began(straight, tmp_path, tiny_model):
    from safetensors.torch import load_file

    directory = tmp_path / "run"
    run_two(job(directory, tiny_model, per_device_batch=None, shard_base=True), stop_after=1)
    newest = checkpoints.newest_checkpoint(directory / "checkpoints")
    assert newest is not None
    assert not list(newest.glob("pytorch_model*")), "the base is in no checkpoint"
    (directory / STOP).unlink()
    sft.train(job(directory, tiny_model, per_device_batch=None), lambda _: None)
    ours, theirs = load_file(directory / WEIGHTS), load_file(straight / WEIGHTS)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-3


def test_both_stop_at_one_step_and_one_worker_ends_what_two_began(straight, tmp_path, tiny_model):
    from safetensors.torch import load_file

    directory, steps = tmp_path / "run", []
    made = job(directory, tiny_model, per_device_batch=None)
    told = run_two(made, stop_after=1)
    assert [entry["end"] for entry in told] == ["sft was asked to stop and did, after step 2 of 4"] * 2
    newest = checkpoints.newest_checkpoint(directory / "checkpoints")
    assert newest is not None
    assert newest.name == "checkpoint-2"
    (directory / STOP).unlink()
    metrics = sft.train(made, lambda values: steps.append(values["step"]) if "loss" in values else None)
    assert steps == [3, 4]
    assert metrics["steps"] == 4
    ours, theirs = load_file(directory / WEIGHTS), load_file(straight / WEIGHTS)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-3
