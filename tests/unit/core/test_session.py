"""What the cluster can never hold is refused in words, before anything waits for it."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from ucotron_ray.core import config, session
from ucotron_ray.core.errors import ConfigError, InputError, ResourceError
from ucotron_ray.core.place import Workers


def cluster(monkeypatch, *nodes: dict[str, float]) -> None:
    """A cluster of these nodes, without one."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": dict(node)} for node in nodes])
    names = {name for node in nodes for name in node}
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in names}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)


def workers(**values: object) -> Workers:
    return config.load().place.workers.model_copy(update=values)


def test_workers_that_fit_in_sum_but_on_no_node_are_refused(monkeypatch):
    cluster(monkeypatch, {"CPU": 4.0}, {"CPU": 4.0})
    session.check_resources(workers(num_workers=2, cpus_per_worker=4.0))
    with pytest.raises(ResourceError, match="no placement") as caught:
        session.check_resources(workers(num_workers=1, cpus_per_worker=6.0))
    assert caught.value.exit_code == 2
    assert "room for 0" in str(caught.value)
    with pytest.raises(ResourceError, match="no placement"):
        session.check_resources(workers(num_workers=3, cpus_per_worker=2.5))
    with pytest.raises(ResourceError, match="too few CPUs"):
        session.check_resources(workers(num_workers=3, cpus_per_worker=4.0))


def test_gpus_on_a_node_without_enough_processors_do_not_count(monkeypatch):
    cluster(monkeypatch, {"CPU": 2.0, "GPU": 8.0}, {"CPU": 16.0})
    session.check_resources(workers(num_workers=2, cpus_per_worker=1.0, gpus_per_worker=1.0))
    with pytest.raises(ResourceError, match="room for 2"):
        session.check_resources(workers(num_workers=8, cpus_per_worker=1.0, gpus_per_worker=1.0))


def test_a_workers_memory_is_that_of_the_smallest_node_shared(monkeypatch):
    cluster(monkeypatch, {"CPU": 4.0, "memory": 32e9}, {"CPU": 4.0, "memory": 16e9})
    assert session.worker_memory(workers(num_workers=2)) == 16e9
    assert session.worker_memory(workers(num_workers=4)) == 8e9
    cluster(monkeypatch, {"CPU": 4.0})
    assert session.worker_memory(workers(num_workers=1)) is None


def test_a_cluster_that_grows_is_asked_and_waited_for_and_the_request_is_taken_back(monkeypatch):
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(session, "request_resources", lambda bundles: asked.append(bundles))
    gpu = {"CPU": 8.0, "GPU": 1.0}
    wanted = workers(num_workers=2, cpus_per_worker=7.0, gpus_per_worker=1.0)
    there = [{"CPU": 4.0}]
    cluster(monkeypatch, *there)

    def a_node_comes(seconds: float) -> None:
        there.append(gpu)
        cluster(monkeypatch, *there)

    monkeypatch.setattr(session.time, "sleep", a_node_comes)
    session.wait_for_nodes(wanted, 60.0)
    assert there.count(gpu) == 2
    assert asked == [[{"CPU": 7.0, "GPU": 1.0}] * 2, []]
    session.check_resources(wanted)
    asked.clear()
    session.wait_for_nodes(wanted, 60.0)
    assert asked == []


def test_nodes_that_never_come_are_refused_in_words(monkeypatch):
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(session, "request_resources", lambda bundles: asked.append(bundles))
    cluster(monkeypatch, {"CPU": 4.0})
    now = [0.0]
    monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(session.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    wanted = workers(num_workers=2, cpus_per_worker=2.0, gpus_per_worker=1.0)
    session.wait_for_nodes(wanted, 12.0)
    assert now[0] == 15.0
    assert asked[-1] == []
    with pytest.raises(ResourceError, match="too few GPUs"):
        session.check_resources(wanted)


def test_processors_that_nobody_named_are_shared_so_that_every_worker_lies_on_one_node(monkeypatch):
    cluster(monkeypatch, {"CPU": 4.0}, {"CPU": 4.0}, {"memory": 1e9})
    assert session.worker_resources(workers(num_workers=1)).cpus == 4
    assert session.worker_resources(workers(num_workers=2)).cpus == 4
    assert session.worker_resources(workers(num_workers=3)).cpus == 2
    session.check_resources(workers(num_workers=3))
    cluster(monkeypatch, {"CPU": 16.0}, {"CPU": 6.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0})
    assert session.worker_resources(workers(num_workers=2)).cpus == 4


def test_memory_is_that_of_nodes_which_can_take_a_worker(monkeypatch):
    """A head without processors and small pods for synthesis beside one with a GPU."""
    nodes = {"CPU": 0.0, "memory": 8e9}, {"CPU": 4.0, "memory": 8e9}, {"CPU": 8.0, "GPU": 1.0, "memory": 64e9}
    cluster(monkeypatch, *nodes)
    one = workers(num_workers=1, cpus_per_worker=7.0, gpus_per_worker=1.0)
    assert session.worker_memory(one) == session.task_memory(one) == 64e9
    # A task without a GPU that says what it needs finds the largest node that has the processors.
    assert session.task_memory(workers(num_workers=1, cpus_per_worker=2.0)) == 64e9


def test_an_address_without_a_cluster_is_a_users_mistake(monkeypatch):
    def nobody(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setattr(session, "_check_head", lambda address: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    place = config.load(overrides=[("ray.address", "auto")]).place
    with pytest.raises(ConfigError, match="no Ray cluster") as caught, session.connected(place, hub=False):
        pass
    assert caught.value.exit_code == 2
    assert "Could not find any running Ray instance." in str(caught.value)


def failing(monkeypatch, *errors: Exception) -> list[object]:
    """Ray whose tasks fail with these errors, one after the other, and then return 7; what was started."""
    started: list[object] = []
    left = list(errors)

    def remote(argument: object) -> int:
        started.append(argument)
        return len(started)

    def get(task: int) -> int:
        if left:
            raise left.pop(0)
        return 7

    def remotely(*, max_calls: int, max_retries: int) -> Any:
        # Ray's own retries would go on without end where memory runs out.
        assert (max_calls, max_retries) == (1, 0)
        return lambda function: SimpleNamespace(options=lambda **resources: SimpleNamespace(remote=remote))

    monkeypatch.setattr(ray, "remote", remotely)
    monkeypatch.setattr(ray, "wait", lambda tasks, num_returns: (tasks[:1], tasks[1:]))
    monkeypatch.setattr(ray, "get", get)
    return started


ONE = session.WorkerResources(1.0, 0.0)


def test_work_is_started_again_as_often_as_may_fail_whatever_the_failure(monkeypatch, caplog):
    said = "1 worker(s) were killed. Memory was 23.10GB used / 23.54GB limit (0.98)\nRefer to the documentation …"
    lost, memory = ray.exceptions.WorkerCrashedError(), ray.exceptions.OutOfMemoryError(said)
    started = failing(monkeypatch, lost, memory)
    with caplog.at_level("WARNING"):
        assert session.in_worker(len, "job", ONE, max_failures=2) == 7
    assert started == ["job"] * 3
    words = "memory ran out, and Ray ended the process: 23.10GB of 23.54GB were used"
    assert caplog.messages[-1] == f"a worker failed: started again, 2 of 2: {words}"
    started = failing(monkeypatch, lost, lost, memory)
    with pytest.raises(ray.exceptions.OutOfMemoryError) as caught:
        session.in_worker(len, "job", ONE, max_failures=2)
    assert len(started) == 3
    assert session.cause_of(caught.value, "it failed", next_step="go on").found == words


def test_of_several_each_may_fail_as_often_and_all_answer(monkeypatch):
    lost = ray.exceptions.WorkerCrashedError()
    started = failing(monkeypatch, lost, lost)
    assert session.in_workers(len, ["a", "b"], ONE, max_failures=1) == [7, 7]
    assert sorted(started) == ["a", "a", "b", "b"]


class AcceleratorError(RuntimeError):
    """As torch calls what a GPU reports."""


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (InputError("a row is wrong"), False),
        (ValueError("a bug"), False),
        (IndexError("index out of range in self"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (FileNotFoundError("no model"), False),
        (AcceleratorError("CUDA error: device-side assert triggered"), False),
        (AcceleratorError("CUDA error: uncorrectable ECC error encountered"), True),
        (OSError(116, "Stale file handle"), True),
        (ConnectionResetError("reset"), True),
    ],
)
def test_an_error_of_the_work_is_tried_again_only_where_it_may_pass_and_goes_on_from_a_checkpoint(
    monkeypatch, error, repeated
):
    raised = ray.exceptions.RayTaskError("f", "traceback", error)
    for repeat_errors in (False, True):
        started = failing(monkeypatch, raised)
        if repeated and repeat_errors:
            assert session.in_worker(len, "job", ONE, max_failures=2, repeat_errors=True) == 7
            assert len(started) == 2
            continue
        with pytest.raises(ray.exceptions.RayTaskError):
            session.in_worker(len, "job", ONE, max_failures=2, repeat_errors=repeat_errors)
        assert len(started) == 1


def test_memory_that_a_member_of_a_group_ran_out_of_is_said_as_well():
    memory = ray.exceptions.OutOfMemoryError("was 9GB used / 10GB limit (0.9)")
    failure = WorkerHealthCheckFailedError("a worker's health", memory)
    group = RuntimeError("training failed")
    group.worker_failures = {0: failure}
    found = session.cause_of(group, "it failed", next_step="go on").found
    assert found == "memory ran out, and Ray ended the process: 9GB of 10GB were used"


@pytest.mark.parametrize(("workers", "address", "group"), [(1, None, False), (2, None, True), (1, "head:6379", True)])
def test_one_worker_needs_no_group_unless_others_run_the_cluster(monkeypatch, workers, address, group):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    place = config.load(overrides=[("workers.num_workers", workers), ("ray.address", address)]).place
    assert session.needs_group(place) is group
    monkeypatch.setenv("RAY_ADDRESS", "other:6379")
    assert session.needs_group(place)
