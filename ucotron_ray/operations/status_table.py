"""What `status` prints for a person."""

from collections.abc import Mapping

from ucotron_ray.operations.record import JobRecord
from ucotron_ray.operations.status import ArtifactState, RunState, StoreState


def table(state: StoreState, *, now: float, limit: int) -> str:
    """Runs with their stages, what is in the making, and submitted jobs; the newest `limit` of each."""
    lines = [f"store {state.store}"]
    if not (state.runs or state.building or state.jobs):
        return lines[0] + "\nno run has begun here"
    if state.runs:
        lines.append(f"{'run':<34} {'state':<9} {'last sign':>10} {'rows':>8} {'dollars':>9} {'resumable':>9}  trials")
    for run in state.runs[:limit]:
        lines += _run(run, now)
    if len(state.runs) > limit:
        lines.append(f"… and {len(state.runs) - limit} older runs (--all)")
    lines += [_building(entry, now) for entry in state.building[:limit]]
    lines += [_job(job, now) for job in state.jobs[:limit]]
    return "\n".join(lines)


def _run(run: RunState, now: float) -> list[str]:
    money = "" if run.usd is None else f"{run.usd:.4f}"
    rows = "" if run.rows is None else str(run.rows)
    can = "yes" if run.resumable else "" if run.state in ("finished", "running") else "no"
    head = f"{run.name[:34]:<34} {run.state:<9} {_ago(now - run.seen):>10} {rows:>8} {money:>9} {can:>9}"
    return [
        f"{head}  {_counts(run.trials)}".rstrip(),
        *(f"  {stage.name[:32]:<32} {stage.state:<9} {stage.seconds:>8.0f} s  {stage.artifact or ''}".rstrip()
          for stage in run.stages),
    ]  # fmt: skip


def _building(entry: ArtifactState, now: float) -> str:
    rows = "" if entry.rows is None else f", {entry.rows} rows"
    money = "" if entry.usd is None else f", ${entry.usd:.4f}"
    trials = f", trials: {_counts(entry.trials)}" if entry.trials else ""
    what = "the command that began it goes on" if entry.resumable else "being made"
    return f"unfinished: {entry.kind}/{entry.name}: {what}; last sign {_ago(now - entry.seen)} ago{rows}{money}{trials}"


def _job(job: JobRecord, now: float) -> str:
    last = job.attempts[-1] if job.attempts else None
    found = f"{last.status.lower()}" + (f" ({last.cause})" if last.cause else "") if last else "not submitted"
    return f"job: {job.run}: attempt {len(job.attempts)} {found}, at {job.address}; seen {_ago(now - job.seen_at)} ago"


def _counts(trials: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in trials.items())


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
