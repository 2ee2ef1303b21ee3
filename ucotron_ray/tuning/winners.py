"""What a sweep shows while it runs, and what it leaves: the page, MLflow's runs, the winners and `best.yaml`."""

import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from ucotron_ray.core.artifacts import Artifact, BuildResult
from ucotron_ray.core.config import Config, with_overlay
from ucotron_ray.core.errors import StageFailed
from ucotron_ray.core.files import content_hash, list_files, write_json, write_text
from ucotron_ray.core.spool import Spool
from ucotron_ray.models import pinning
from ucotron_ray.training.stage import name_base
from ucotron_ray.tuning import overlay, report
from ucotron_ray.tuning.job import BEST, CHECKPOINTS, STOP
from ucotron_ray.tuning.record import Record, Trial
from ucotron_ray.tuning.summary import summary

PAGE_SECONDS = 5.0
WINNERS, PICTURES = "winners", "png"
ENDS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Pages:
    """Told of every change of a sweep: writes the page, not too often, and the events of MLflow's child runs."""

    def __init__(self, directory: Path, spool: Spool) -> None:
        self._directory, self._spool = directory, spool
        self._states: dict[str, str] = {}
        self._written = 0.0

    def told(self, record: Record, trial: Trial) -> None:
        """A trial has another state or a score more."""
        new = self._states.get(trial.id) != trial.state
        if new:
            self._states[trial.id] = trial.state
            self._track(record, trial)
        if new or time.monotonic() - self._written > PAGE_SECONDS:
            self.write(record)

    def write(self, record: Record) -> None:
        """The page as of now."""
        write_text(self._directory / report.FILE, report.page(record))
        self._written = time.monotonic()

    def _track(self, record: Record, trial: Trial) -> None:
        child = self._spool.child(trial.id)
        if trial.state == "running":
            tags = {"ucotron.trial": trial.id, "ucotron.tier": trial.tier}
            tags |= {"ucotron.repeats": trial.of} if trial.of else {}
            child.start(name=trial.id, parent=self._spool.run, tags=tags)
            child.params({**trial.params, "seed": trial.seed, "tier": trial.tier, "steps": trial.steps})
        elif trial.state in ENDS:
            tags = {"ucotron.state": trial.state}
            child.tags(tags | ({"ucotron.cause": trial.cause} if trial.cause else {}))
            best = record.best(trial.id)
            if best is not None:
                name = "best_f1" if record.higher_is_better else "best_val_loss"
                child.metrics({name: best.value, "best_step": float(best.step)}, step=best.step)
            child.end(ENDS[trial.state])


def promote(record: Record, directory: Path, spool: Spool, *, recipe: str) -> BuildResult:
    """Keep the winners, write what a sweep leaves, throw the rest of the weights away.

    A kill in between leaves what the next call goes on with. Raises StageFailed if no trial came to a score.
    """
    made = summary(record)
    if not made["winners"]:
        causes = "; ".join(f"{trial.id}: {trial.cause}" for trial in record.trials if trial.cause)
        raise StageFailed(
            "no trial of the sweep came to a score",
            where=str(directory),
            found=causes[:600] or "no trial at all",
            next_step="correct the cause, and start it again with --replace",
        )
    checkpoints = {}
    for tier, won in made["winners"].items():
        kept = _kept(record, directory, tier, won["trial"])
        checkpoints[tier] = content_hash(list_files(kept))
    write_json(directory / report.SUMMARY, made)
    chosen = overlay.overlay(record, made, recipe=recipe, checkpoints=checkpoints)
    write_text(directory / overlay.FILE, overlay.text(chosen))
    write_text(directory / report.FILE, report.page(record))
    _draw(record, made, directory / PICTURES)
    for trial in record.trials:
        _lighten(directory / "trials" / trial.id)
    for file in (report.FILE, report.SUMMARY, overlay.FILE):
        spool.file(directory / file)
    metrics: dict[str, float] = {"steps_saved": made["steps_saved"], "seconds_of_trials": made["seconds"]}
    for tier, won in made["winners"].items():
        values = {name: won[key] for name, key in ((made["metric"], "value"), ("low", "low"), ("high", "high"))}
        metrics |= {f"{tier}_{name}": value for name, value in values.items() if value is not None}
    counts = {"trials": made["trials"], "steps": made["steps_run"]} | {k: v for k, v in made["states"].items() if v}
    notes = [f"{tier}: {won['trial']} {won['params']}" for tier, won in made["winners"].items()]
    return BuildResult(metrics, counts, notes)


def over(config: Config, made: Artifact) -> Config:
    """A configuration with what a sweep chose over it."""
    chosen: dict[str, Any] = yaml.safe_load((made.path / overlay.FILE).read_text(encoding="utf-8"))
    return with_overlay(config, chosen)


def _kept(record: Record, directory: Path, tier: str, trial: str) -> Path:
    """The winner's weights at its best score → `winners/<tier>/`."""
    target = directory / WINNERS / tier
    if target.is_dir():
        return target
    source, aside = directory / "trials" / trial, target.with_name(f"{tier}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if record.stage == "projection":
        for name in ("model.safetensors", "config.json"):
            shutil.copyfile(source / name, aside / name)
    else:
        shutil.copytree(source / BEST, aside / "adapter", ignore=shutil.ignore_patterns("score.json"))
        if record.stage == "sft":
            facts = record.tiers[tier]
            name_base(aside / "adapter" / "adapter_config.json", facts.model, pinning.commit_in(facts.identity))
    aside.rename(target)
    return target


def _draw(record: Record, made: dict[str, Any], directory: Path) -> None:
    from ucotron_ray.tuning import png
    from ucotron_ray.tuning.figures import figures

    png.write(figures(record, made), directory)


def _lighten(trial: Path) -> None:
    """Only the winners' weights stay; records, curves and TensorBoard's files do of every trial."""
    for name in (BEST, f"{BEST}.partial", CHECKPOINTS, "adapter"):
        shutil.rmtree(trial / name, ignore_errors=True)
    (trial / STOP).unlink(missing_ok=True)
    for file in trial.glob("*.safetensors"):
        file.unlink()
