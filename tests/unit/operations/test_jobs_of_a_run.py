"""A run as attempts on a cluster: attached or begun, watched, tried again or not, and which exit code it has."""

import json
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from ucotron_ray.core.errors import Stopped
from ucotron_ray.operations import jobs, record
from ucotron_ray.operations.jobs import Job

RUN = "ucotron-sft-0123456789ab"


@dataclass
class Cluster:
    """A job server whose jobs go through the states that a test gives them."""

    plans: dict[str, list[Job | OSError]] = field(default_factory=dict)
    known: list[Job] = field(default_factory=list)
    output: dict[str, str] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def jobs(self) -> list[Job]:
        return self.known

    def info(self, name: str) -> Job:
        plan = self.plans[name]
        step = plan.pop(0) if len(plan) > 1 else plan[0]
        if isinstance(step, OSError):
            raise step
        return step

    def logs(self, name: str) -> str:
        return self.output.get(name, "")

    def send(self, name: str) -> None:
        self.sent.append(name)


@dataclass
class Clock:
    """Time that passes only where a test lets it."""

    now: float = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: made.now, time=time.time))
    return made


def keeper(tmp_path) -> record.Keeper:
    return record.Keeper(tmp_path / RUN, record.JobRecord(run=RUN, command=["sft"], address="http://h", package="p"))


def ended(number: int, status: str = "FAILED", **more) -> Job:
    return Job(f"{RUN}-{number}", status, **more)


@pytest.mark.parametrize(
    ("job", "code", "retry"),
    [
        (ended(1, "SUCCEEDED", exit_code=0), 0, False),
        (ended(1, "STOPPED"), 75, False),
        (ended(1, exit_code=1), 1, False),
        (ended(1, exit_code=2), 2, False),
        (ended(1, exit_code=3), 3, False),
        (ended(1, exit_code=75), 75, True),
        (ended(1, exit_code=-9), 75, True),
        (ended(1, exit_code=137), 75, True),
        (ended(1, exit_code=-11), 1, False),
        (ended(1, exit_code=127), 1, False),
        (ended(1), 1, False),
        (ended(1, error_type="JOB_SUPERVISOR_ACTOR_DIED"), 75, True),
        (ended(1, error_type="JOB_SUPERVISOR_ACTOR_START_TIMEOUT"), 75, True),
        (ended(1, error_type="RUNTIME_ENV_SETUP_FAILURE", message="no such wheel"), 1, True),
    ],
)
def test_every_end_has_its_exit_code_and_only_resumable_ones_another_attempt(job, code, retry):
    found = jobs.outcome(job)
    assert (found.code, found.retry) == (code, retry)
    assert "\n" not in found.cause


def test_a_second_submit_attaches_to_what_runs(tmp_path):
    cluster = Cluster(known=[ended(1), Job(f"{RUN}-2", "RUNNING"), Job("ucotron-sft-ffffffffffff-3", "RUNNING")])
    assert jobs.begin(cluster, RUN, keeper(tmp_path), cluster.send, again=False) == f"{RUN}-2"
    assert cluster.sent == []


def test_what_succeeded_is_done_until_it_is_asked_for_again(tmp_path):
    cluster = Cluster(known=[ended(1, "SUCCEEDED")])
    assert jobs.begin(cluster, RUN, keeper(tmp_path), cluster.send, again=False) == f"{RUN}-1"
    assert cluster.sent == []
    assert jobs.begin(cluster, RUN, keeper(tmp_path), cluster.send, again=True) == f"{RUN}-2"
    assert cluster.sent == [f"{RUN}-2"]


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_what_ended_otherwise_gets_a_new_attempt(tmp_path, status):
    cluster = Cluster(known=[ended(1, status)])
    assert jobs.begin(cluster, RUN, keeper(tmp_path), cluster.send, again=False) == f"{RUN}-2"


def test_in_a_new_cluster_the_attempts_are_counted_on(tmp_path):
    keeper(tmp_path).note(f"{RUN}-4", "submitted")
    cluster = Cluster()
    assert jobs.begin(cluster, RUN, keeper(tmp_path), cluster.send, again=False) == f"{RUN}-5"


def test_only_a_resumable_end_is_tried_again_and_at_most_so_often(tmp_path):
    plans = {f"{RUN}-{number}": [ended(number, exit_code=75)] for number in (1, 2, 3, 4)}
    cluster = Cluster(plans=plans)
    name, found = jobs.finish(cluster, f"{RUN}-1", keeper(tmp_path), cluster.send, retries=2, pause=lambda _: None)
    assert (name, found.code, cluster.sent) == (f"{RUN}-3", 75, [f"{RUN}-2", f"{RUN}-3"])
    cluster = Cluster(plans={f"{RUN}-1": [ended(1, exit_code=75)], f"{RUN}-2": [ended(2, exit_code=1)]})
    name, found = jobs.finish(
        cluster, f"{RUN}-1", keeper(tmp_path / "b"), cluster.send, retries=5, pause=lambda _: None
    )
    assert (name, found.code) == (f"{RUN}-2", 1)


def test_log_and_events_are_kept_here_whatever_becomes_of_the_cluster(tmp_path):
    name, kept = f"{RUN}-1", keeper(tmp_path)
    cluster = Cluster(plans={name: [Job(name, "PENDING"), Job(name, "RUNNING"), ended(1, exit_code=1, message="a\nb")]})
    cluster.output[name] = 'first\nsecond ü\n{"status": "failed", "exit_code": 1}\n'
    jobs.finish(cluster, name, kept, cluster.send, retries=0, pause=lambda _: None)
    assert kept.log_text(name) == cluster.output[name]
    assert jobs.result_of(kept.log_text(name)) == {"status": "failed", "exit_code": 1}
    events = [json.loads(line) for line in (kept.directory / record.EVENTS).read_text().splitlines()]
    assert [event.get("status") for event in events] == ["PENDING", "RUNNING", "FAILED", "FAILED"]
    found = record.read(kept.directory)
    assert found is not None
    assert (found.attempts[0].code, found.attempts[0].driver_exit_code) == (1, 1)
    assert "exit code 1, b" in (found.attempts[0].cause or "")


def test_the_copy_of_a_log_only_grows(tmp_path):
    kept = keeper(tmp_path)
    assert kept.copy_log("a-1", "one\n") == "one\n"
    assert kept.copy_log("a-1", "one\ntwo\n") == "two\n"
    assert kept.copy_log("a-1", "") == ""
    assert kept.log_text("a-1") == "one\ntwo\n"


def test_a_server_that_is_away_for_a_moment_changes_nothing(tmp_path):
    name = f"{RUN}-1"
    away: list[Job | OSError] = [ConnectionError("refused")] * 20
    cluster = Cluster(plans={name: [Job(name, "RUNNING"), *away, ended(1, "SUCCEEDED", exit_code=0)]})
    _, found = jobs.finish(cluster, name, keeper(tmp_path), cluster.send, retries=0, pause=lambda _: None)
    assert found.code == 0


def test_a_cluster_that_is_gone_is_said_and_resumable(tmp_path, clock):
    name, kept = f"{RUN}-1", keeper(tmp_path)
    cluster = Cluster(plans={name: [Job(name, "RUNNING"), ConnectionError("refused")]})
    with pytest.raises(Stopped, match="does not answer"):
        jobs.finish(cluster, name, kept, cluster.send, retries=3, pause=clock.pass_by)
    found = record.read(kept.directory)
    assert found is not None
    assert found.attempts[0].status == "LOST"
    assert cluster.sent == []


@pytest.mark.parametrize(("seconds", "most"), [(30.0, 4), (0.0, 121)], ids=["timeouts", "refused at once"])
def test_patience_is_counted_in_seconds_since_the_server_was_heard_not_in_tries(tmp_path, clock, seconds, most):
    name, tries = f"{RUN}-1", []

    class Silent(Cluster):
        def info(self, name: str) -> Job:
            if not tries:
                # A long time before it falls silent counts for nothing.
                clock.pass_by(1000.0)
            tries.append(clock.now)
            if len(tries) == 1:
                return Job(name, "RUNNING")
            clock.pass_by(seconds)
            raise ConnectionError("timed out")

    with pytest.raises(Stopped, match="does not answer"):
        jobs.follow(Silent(), name, keeper(tmp_path), clock.pass_by)
    assert len(tries) - 1 == most
    assert jobs.PATIENCE_SECONDS < clock.now - tries[0] <= jobs.PATIENCE_SECONDS + seconds + 1
