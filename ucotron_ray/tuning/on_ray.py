"""Runs the trials of a sweep with Ray Tune: who is next, who is stopped, and the processes. Nothing else.

A trial is one process that Tune starts, and it runs the training function itself. There is no Ray Train in it: a Train
run in a trial has a placement group of its own, which is freed through the dashboard alone, so that with the dashboard
off every stopped trial keeps its processors for ever (reference, training §0.1). Trials of several workers start the
others in Tune's own placement group; stopping the trial removes that, and everything in it.

Tune's own state is pickled; it lies in a scratch directory that is removed, and is never read. A sweep resumes from its
own record (`record.py`).
"""

import logging
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ucotron_ray.core import run_log, session, signals, worker_environment
from ucotron_ray.core.errors import Stopped
from ucotron_ray.core.place import Workers
from ucotron_ray.tuning import job as jobs
from ucotron_ray.tuning.job import STOP, TrialJob
from ucotron_ray.tuning.record import Score, Trial
from ucotron_ray.tuning.sweep import Sweep

log = logging.getLogger(__name__)

GROUP_MINUTES = 30
"""Until workers that wait for another one give up: as long as an evaluation may take."""


class Halving:
    """Asynchronous successive halving by Ray's own rules (arXiv:1810.05934), told of scores and nothing else.

    Args:
        grace: the first rung, in steps.
        factor: between rungs; one in so many goes on.
        steps: of the longest trial.
    """

    def __init__(self, *, grace: int, factor: int, steps: int) -> None:
        self._trials: dict[str, Any] = {}
        self._rules = AsyncHyperBandScheduler(
            time_attr="step",
            metric="value",
            mode="max",
            grace_period=min(grace, steps),
            reduction_factor=factor,
            # Beyond the last step: a trial that comes to its end is not stopped there.
            max_t=steps + 1,
        )

    def stops(self, trial: str, step: int, value: float) -> bool:
        """Whether it is behind those that came to its rung before."""
        if trial not in self._trials:
            self._trials[trial] = SimpleNamespace(trial_id=trial)
            self._rules.on_trial_add(None, self._trials[trial])
        decision = self._rules.on_trial_result(None, self._trials[trial], {"step": step, "value": value})
        return bool(decision == TrialScheduler.STOP)


@dataclass(frozen=True)
class Launch:
    """How trials are started. `jobs` and `resources` (of one worker, and how many of them) are by trial and tier."""

    jobs: Callable[[Trial], TrialJob]
    workers: Mapping[str, Workers]
    max_failures: int
    log_file: str
    name: str


def sweep_on_ray(sweep: Sweep, launch: Launch) -> None:
    """Run what is left of a sweep. Raises Stopped if it was asked to stop; the same sweep then goes on."""
    scratch, stop = sweep.directory / "ray", sweep.directory / STOP
    shutil.rmtree(scratch, ignore_errors=True)
    stop.unlink(missing_ok=True)
    resources = {tier: _bundles(workers) for tier, workers in launch.workers.items()}

    def trial(config: dict[str, Any]) -> None:
        _trial(config)

    tuner = tune.Tuner(
        tune.with_resources(trial, lambda config: tune.PlacementGroupFactory(resources[config["tier"]])),
        tune_config=tune.TuneConfig(
            search_alg=_Next(sweep, launch, stop),
            scheduler=_Judge(sweep),
            num_samples=-1,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=launch.name,
            storage_path=str(scratch),
            callbacks=[_Ends(sweep, resources)],
            failure_config=tune.FailureConfig(max_failures=launch.max_failures),
            verbose=0,
        ),
    )
    for name in ("ray.tune", "ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with run_log.following(launch.log_file), signals.stopping(stop):
            signals.aside(tuner.fit)
        if stop.exists():
            raise Stopped(
                "the sweep was asked to stop, and did",
                where=str(sweep.directory),
                next_step="run the same command again: finished trials stay, the others go on from their checkpoints",
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        stop.unlink(missing_ok=True)


class _Unkept:
    """Tune pickles what it is given into its scratch directory: nothing of a sweep's goes there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (type(self).__name__,)


class _Next(_Unkept, Searcher):  # type: ignore[misc]  # ray has no types
    """Gives Tune the trials that the sweep has left, in the sweep's order."""

    def __init__(self, sweep: Sweep, launch: Launch, stop: Path) -> None:
        super().__init__()
        self._sweep, self._launch, self._stop = sweep, launch, stop

    def suggest(self, trial_id: str) -> Any:
        if self._stop.exists() or self._sweep.is_over:
            return Searcher.FINISHED
        trial = self._sweep.next()
        if trial is None:
            return None
        job = self._launch.jobs(trial)
        jobs.write(job)
        return {"id": trial.id, "tier": trial.tier, "directory": job.directory}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The sweep is told by `_Ends`, which knows the trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep has its own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called."""


class _Judge(_Unkept, FIFOScheduler):  # type: ignore[misc]
    """Takes every score into the sweep's record, and stops the trials that the sweep wants stopped."""

    supports_buffered_results = False

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        if "value" not in result or result.get("done"):
            return TrialScheduler.CONTINUE
        fields = {name: result[name] for name in Score.model_fields if name in result}
        stop = self._sweep.scored(Score(**fields | {"trial": trial.config["id"]}), began=result.get("began"))
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


class _Ends(_Unkept, tune.Callback):  # type: ignore[misc]
    """Tells the sweep when a trial's process starts and how it ended."""

    def __init__(self, sweep: Sweep, resources: Mapping[str, list[dict[str, float]]]) -> None:
        self._sweep, self._resources = sweep, resources

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        bundles = self._resources[trial.config["tier"]]
        self._sweep.launched(trial.config["id"], {kind: bundles[0][kind] * len(bundles) for kind in bundles[0]})

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        from ucotron_ray.tuning.trial import outcome_of  # noqa: PLC0415 - numpy; not every actor needs it

        name = trial.config["id"]
        outcome = outcome_of(Path(trial.config["directory"]))
        if outcome is None:
            self._sweep.ended(name, "interrupted", "the sweep was stopped")
        else:
            self._sweep.ended(name, outcome["state"], outcome["cause"], outcome["metrics"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        name = trial.config["id"]
        said = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", trial.get_error() or "", re.MULTILINE)
        attempts = self._sweep.record.trial(name).attempts
        cause = f"its process ended {attempts} times: {said[-1] if said else 'without a message'}"
        self._sweep.ended(name, "failed", cause[:400])


def _name(trial: Any) -> str:
    return str(trial.config["id"])


def _bundles(workers: Workers) -> list[dict[str, float]]:
    """What each worker of a trial holds; the first one is the trial's own process."""
    return [session.worker_resources(workers).as_ray()] * workers.num_workers


def _trial(config: dict[str, Any]) -> None:
    """What Tune runs in a process of its own. Heavy imports happen here."""
    from ucotron_ray.tuning import trial  # noqa: PLC0415

    job = jobs.read(Path(config["directory"]))
    run_log.set_up_worker(job.log_file, prefix=f"{job.trial}: ")
    bundles = tune.get_context().get_trial_resources().bundles
    world = len(bundles)
    if world == 1:
        trial.run(job, _tell)
        return
    peers = [
        ray.remote(_Peer).options(num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0)).remote()
        for bundle in bundles[1:]
    ]
    # One that cannot start says so here; in the group it would be waited for.
    ray.get([peer.ready.remote() for peer in peers])
    address = f"{ray.util.get_node_ip_address()}:{_free_port()}"
    others = [peer.run.remote(config["directory"], rank, world, address) for rank, peer in enumerate(peers, 1)]
    _join_group(0, world, address)
    trial.run(job, _tell, world=world)
    ray.get(others)


class _Peer:
    """A further worker of a trial, in the trial's placement group: it ends with the trial, however that ends."""

    def ready(self) -> bool:
        """Whether its libraries can be loaded."""
        from ucotron_ray.tuning import trial  # noqa: PLC0415

        return callable(trial.run)

    def run(self, directory: str, rank: int, world: int, address: str) -> None:
        """Take part in the training."""
        from ucotron_ray.tuning import trial  # noqa: PLC0415

        job = jobs.read(Path(directory))
        run_log.set_up_worker(job.log_file, prefix=f"{job.trial}: ")
        _join_group(rank, world, address)
        trial.run(job, lambda score: None, rank=rank, world=world)


def _join_group(rank: int, world: int, address: str) -> None:
    """Set up torch's process group, and say what transformers asks for. Each process sees its own GPU as the first."""
    import torch  # noqa: PLC0415

    host, _, port = address.rpartition(":")
    worker_environment.set_own(
        {
            "RANK": rank,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": 1,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }
    )
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=world,
        timeout=timedelta(minutes=GROUP_MINUTES),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _tell(score: Mapping[str, Any]) -> None:
    """Blocks until Tune goes on with the trial: for ever, if it is stopped here."""
    tune.report(dict(score))
