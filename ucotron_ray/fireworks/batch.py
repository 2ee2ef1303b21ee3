"""`fireworks batch`: a task's requests through the vendor's batch lane, into the journal of synthesis."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import FireworksError, RemoteJobFailed, Stopped
from ucotron_ray.core.run import Run
from ucotron_ray.fireworks import datasets, tuning_jobs, waiting
from ucotron_ray.fireworks.account import Account
from ucotron_ray.fireworks.dataset_rows import prepared, stable_id
from ucotron_ray.fireworks.waiting import Patience
from ucotron_ray.synthesis import batch, journal
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.synthesis.plan import Task
from ucotron_ray.teacher import stage as teachers
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.prices import Price

log = logging.getLogger(__name__)

MOST_WAVES = 6
"""Text, extraction, a turn of repair for each, answers asked again for being cut off."""


@dataclass(frozen=True)
class _Lane:
    """What every wave of one command shares."""

    account: Account
    task: Task
    folder: Path
    run_key: str
    endpoint: Endpoint
    price: Price | None
    max_usd: float | None
    patience: Patience


def fill(run: Run, want: synthesis.SynthesisOrder, account: Account, patience: Patience) -> dict[str, Any]:
    """Ask everything that is open for the first `count` samples; returns what was asked, answered and paid.

    Resumable at every step: a wave is on disk before its job is created, and a job has its wave's hash as its id. What
    a batch left open (errors, an expired job) is asked in the next wave, or online by `synthesize`.
    """
    teacher = teachers.checked(run)
    lane = _Lane(
        account=account,
        task=synthesis.task_of(run, want),
        folder=run.store.root / synthesis.JOURNALS / want.task,
        run_key=synthesis.request(run, want).recipe,
        endpoint=teacher.endpoint,
        price=teacher.price,
        max_usd=run.config.place.api.max_usd,
        patience=patience,
    )
    asked = answered = waves = 0
    with journal.held(lane.folder):
        for left in batch.waves_to_collect(lane.folder / batch.WAVES):
            asks = left.recorded()["model"]
            if asks != lane.endpoint.model:
                log.warning(
                    "batch: wave %s asks '%s' and is left: name that model again to collect it", left.digest, asks
                )
                continue
            log.info("batch: go on with wave %s", left.digest)
            _refuse_beyond_budget(lane, left)
            answered += _collect(lane, left)
            waves += 1
        while waves < MOST_WAVES:
            wave = _next_wave(lane, want.count)
            if wave is None:
                break
            asked += len(wave.requests)
            gained = _collect(lane, wave.made)
            # One that the budget cut short is no step further: what it leaves belongs to the same step.
            answered, waves = answered + gained, waves + (not wave.is_short)
            if gained == 0:
                break
        reader = journal.Reader(lane.folder)
        reader.refresh()
        still_open = sum(1 for _ in batch.open_requests(lane.task, lane.endpoint, range(want.count), reader))
        usd = journal.spent(lane.folder, lane.run_key)
    return {"requests": asked, "answered": answered, "open": still_open, "waves": waves, "cost_usd": round(usd, 6)}


@dataclass(frozen=True)
class _Next:
    made: batch.Wave
    requests: list[batch.OpenRequest]
    is_short: bool


def _next_wave(lane: _Lane, count: int) -> _Next | None:
    reader = journal.Reader(lane.folder)
    reader.refresh()
    budget = None if lane.max_usd is None else lane.max_usd - journal.spent(lane.folder, lane.run_key)
    requests: list[batch.OpenRequest] = []
    size, worst, is_short = 0, 0.0, False
    for request in batch.open_requests(lane.task, lane.endpoint, range(count), reader):
        size += sum(len(content.encode()) for _, content in request.ask.messages) + 512
        usd = batch.worst_usd(request, lane.endpoint, lane.price)
        is_short = budget is not None and worst + usd > budget
        if is_short or size > batch.MAX_BYTES:
            break
        worst += usd
        requests.append(request)
    if is_short and not requests:
        raise _over_budget(f"{budget:.4f} dollars are left, and one request may cost more")
    if not requests:
        return None
    folder = lane.folder / batch.WAVES
    made = batch.write_wave(folder, lane.endpoint, lane.run_key, requests, usd=worst)
    log.info("batch: wave %s, %d requests, at most %.4f dollars", made.digest, len(requests), worst)
    return _Next(made, requests, is_short)


def _refuse_beyond_budget(lane: _Lane, wave: batch.Wave) -> None:
    """Raise Stopped for a wave of an earlier command that is not paid yet and may cost more than this one allows."""
    if lane.max_usd is None or tuning_jobs.find_job(lane.account, _job_id(wave), "batch") is not None:
        return
    recorded = wave.recorded()
    left = lane.max_usd - journal.spent(lane.folder, recorded["run"])
    if recorded["usd_at_most"] > left:
        raise _over_budget(f"{left:.4f} dollars are left, wave {wave.digest} may cost {recorded['usd_at_most']:.4f}")


def _over_budget(found: str) -> Stopped:
    return Stopped(
        "stopped: budget reached",
        where="api.max_usd",
        found=found,
        next_step="run the same command again with a higher --max-usd: nothing is paid twice",
    )


def _job_id(wave: batch.Wave) -> str:
    return f"ucotron-batch-{wave.digest}"


def _collect(lane: _Lane, wave: batch.Wave) -> int:
    """Bring a wave to its end, whatever was done of it before; returns how many answers came."""
    job = _job(lane, wave)
    try:
        job = waiting.wait(lane.account, job, lane.patience)
    except RemoteJobFailed:
        job = tuning_jobs.get_job(lane.account, job.name, "batch")
        # A job that ran out of time keeps what it has.
        if job.state != "EXPIRED":
            batch.collected(wave)
            raise
    if not job.output_model:
        raise FireworksError("the batch job names no results", where=job.name, found=job.state)
    files = datasets.download(lane.account, job.output_model)
    reader = journal.Reader(lane.folder)
    reader.refresh()
    writer = journal.Writer(lane.folder)
    count = 0
    try:
        for name, content in files.items():
            if "error" in name:
                continue
            for record in batch.records(wave, content, lane.price, reader):
                writer.append(record)
                count += 1
    finally:
        writer.close()
    batch.collected(wave)
    log.info("batch: %d answers of wave %s are in the journal", count, wave.digest)
    return count


def _job(lane: _Lane, wave: batch.Wave) -> tuning_jobs.JobStatus:
    with prepared(wave.file) as file:
        uploaded = datasets.upload_prepared(lane.account, file, stable_id(f"batch-{lane.task.name}", file.sha256))
    body = {
        "model": lane.endpoint.model,
        "inputDatasetId": uploaded.name,
        "outputDatasetId": lane.account.full_name("datasets", f"batch-results-{wave.digest}"),
    }
    job, _ = tuning_jobs.create_job(lane.account, "batch", body, job_id=_job_id(wave))
    return job
