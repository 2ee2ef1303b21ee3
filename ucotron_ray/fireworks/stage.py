"""Training at the vendor: rows up, SFT job, DPO job, scores of the deployed model. A step is an artifact, as at home.

`model/<name>-remote-sft` and `model/<name>-remote-dpo` hold `remote.json`: the job, and what its model is called at the
vendor. `job.json` says before a job is created which one it will be, so that whatever is killed, it is found again.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ucotron_ray.core import variables
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.config import Config
from ucotron_ray.core.errors import NotFoundError
from ucotron_ray.core.files import write_json
from ucotron_ray.core.hyperparameters import DpoSettings, LoraSettings
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.stage import ROWS, TRAIN, VAL, rows_file
from ucotron_ray.evaluation.stage import PREDICTIONS, SCORES, flat_metrics, sampled
from ucotron_ray.fireworks import datasets as vendor_datasets
from ucotron_ray.fireworks import deployments, tuning_jobs, waiting
from ucotron_ray.fireworks.account import Account, account_of
from ucotron_ray.fireworks.dataset_rows import stable_id
from ucotron_ray.fireworks.tuning_jobs import DpoJobConfig, JobKind, JobStatus, SftJobConfig
from ucotron_ray.fireworks.waiting import Patience
from ucotron_ray.models.stage import prompt_identity
from ucotron_ray.teacher.endpoint import endpoint_of

log = logging.getLogger(__name__)

REMOTE, JOB = "remote.json", "job.json"
USED = {"epochs", "learning_rate", "lora_rank", "max_context_length", "batch_size"}
"""Settings that a remote job has; the others are those of local training."""


def account(settings: Config, account_id: str | None = None) -> Account:
    """The place's account. Raises ConfigError that names a missing variable."""
    return account_of(settings.place.api, account_id)


def patience(settings: Config, *, pending_timeout: float | None = None) -> Patience:
    """How the place waits for jobs."""
    polling = settings.place.polling
    return Patience(polling.interval, polling.timeout, pending_timeout, polling.verbose)


def sft_config(settings: LoraSettings, evaluation_dataset: str | None = None) -> SftJobConfig:
    """The tier's numbers as a supervised job's."""
    return SftJobConfig(**_used(settings), evaluation_dataset=evaluation_dataset)


def dpo_config(settings: DpoSettings) -> DpoJobConfig:
    """The tier's numbers as a preference job's."""
    return DpoJobConfig(**_used(settings), beta=settings.beta)


def wandb(settings: Config) -> dict[str, Any] | None:
    """The block for Weights & Biases: only if it is enabled, has a project, and its key is set."""
    tracking = settings.place.tracking
    if not tracking.enabled:
        return None
    block = tuning_jobs.wandb_config(tracking.wandb_project, variables.value("WANDB_API_KEY"))
    if block is None:
        log.warning("fireworks: no tracking at Weights & Biases: tracking.wandb_project or WANDB_API_KEY is not set")
    return block


def check(run: Run) -> Account:
    """Key, account and base model, asked before anything is made. Raises ConfigError, AuthError, NotFoundError."""
    who = account(run.config)
    tuning_jobs.model_kind(who, run.config.recipe.tier_model.model_id)
    return who


def sft_request(run: Run, dataset: Artifact) -> Request:
    """What a supervised job would make."""
    recipe = run.config.recipe
    fields = {
        "remote": "sft",
        "sft": _used(recipe.sft),
        "base": recipe.tier_model.model_id,
        "prompt": prompt_identity(),
    }
    return Request("model", f"{run.name}-remote-sft", fields, (dataset.as_input("data"),))


def sft(run: Run, who: Account, dataset: Artifact) -> Artifact:
    """Rows of a dataset → a supervised job → `model/<name>-remote-sft`."""

    def build(build: Build) -> BuildResult:
        train = vendor_datasets.upload(who, dataset.path / TRAIN, stem=f"{run.name}-train")
        val = dataset.path / VAL
        held = None
        if val.is_file() and val.read_bytes().count(b"\n") >= 3:
            held = vendor_datasets.upload(who, val, stem=f"{run.name}-val").dataset_id
        settings = sft_config(run.config.recipe.sft, held)
        model = run.config.recipe.tier_model.model_id
        body = tuning_jobs.sft_body(who, train.dataset_id, model, settings, tuning_jobs.model_kind(who, model))
        return _trained(run, who, build, "sft", body, train)

    return run.make("remote-sft", sft_request(run, dataset), build)


def dpo_request(run: Run, pairs: Artifact, start: Artifact) -> Request:
    """What a preference job would make, from the model of a supervised one."""
    used = {**_used(run.config.recipe.dpo), "beta": run.config.recipe.dpo.beta}
    fields = {"remote": "dpo", "dpo": used, "prompt": prompt_identity()}
    return Request("model", f"{run.name}-remote-dpo", fields, (pairs.as_input("data"), start.as_input("base")))


def dpo(run: Run, who: Account, pairs: Artifact, start: Artifact) -> Artifact:
    """Preference pairs → a preference job that goes on from a supervised one → `model/<name>-remote-dpo`."""

    def build(build: Build) -> BuildResult:
        uploaded = vendor_datasets.upload(who, pairs.path / TRAIN, stem=f"{run.name}-pairs")
        settings = dpo_config(run.config.recipe.dpo)
        model = remote_model(start)
        body = tuning_jobs.dpo_body(who, uploaded.dataset_id, model, settings, tuning_jobs.model_kind(who, model))
        return _trained(run, who, build, "dpo", body, uploaded)

    return run.make("remote-dpo", dpo_request(run, pairs, start), build)


def remote_model(artifact: Artifact) -> str:
    """What a remote artifact's model is called at the vendor."""
    name: str = json.loads((artifact.path / REMOTE).read_text(encoding="utf-8"))["output_model"]
    return name


def evaluate_request(run: Run, trained: Artifact | None, data: Artifact) -> Request:
    """What scoring a trained model, or the vendor's base model, would make: `scores/<name>-remote…`."""
    others = {"data", "base", "few_shots", "raw_rows", "end_to_end_rows"}
    settings = run.config.recipe.evaluation.model_dump(exclude=others)
    model = remote_model(trained) if trained else run.config.recipe.tier_model.model_id
    fields = {"remote": "evaluate", "evaluation": settings, "model": model, "prompt": prompt_identity()}
    inputs = (data.as_input("data"), *((trained.as_input("model"),) if trained else ()))
    return Request("scores", f"{run.name}-remote" + ("" if trained else "-base"), fields, inputs)


def evaluate(run: Run, who: Account, trained: Artifact | None, data: Artifact) -> Artifact:
    """Scores of a trained model, or of the vendor's base model, → `scores/<name>-remote…`.

    A trained one is asked on a deployment of its own; a base model too, where the vendor does not serve it otherwise.
    Deployments are billed by the GPU second: this one is taken down whatever happens.
    """
    model = remote_model(trained) if trained else run.config.recipe.tier_model.model_id

    def build(build: Build) -> BuildResult:
        if trained is None:
            try:
                return _scored(run, build, model, data)
            except NotFoundError:
                log.info("remote-evaluate: '%s' is not served without a deployment", model)
        deployment = deployments.deploy(who, model)
        try:
            polling = run.config.place.polling
            deployments.wait_ready(who, deployment, interval=polling.interval, timeout=polling.timeout)
            return _scored(run, build, deployments.served_model(model, deployment), data)
        finally:
            deployments.take_down(who, deployment)

    return run.make("remote-evaluate", evaluate_request(run, trained, data), build)


def _scored(run: Run, build: Build, served: str, data: Artifact) -> BuildResult:
    from ucotron_ray.evaluation import endpoint, endpoint_answers
    from ucotron_ray.evaluation.guide_prompts import guide_rows
    from ucotron_ray.evaluation.report import write_scores

    api, settings = run.config.place.api, run.config.recipe.evaluation
    sample = sampled(jsonl.relations_among(rows_file(data)), settings.max_rows, settings.seed)
    rows = [*sample, *guide_rows()]
    jsonl.write_rows(build.path / ROWS, rows)
    asking = endpoint.asking_of(api, max_tokens=settings.max_new_tokens, temperature=0.0)
    began = time.monotonic()
    questions = [(index, "chat") for index in range(len(rows))]
    predictions = endpoint_answers.answers(endpoint_of(api, served), rows, questions, asking, build.path)
    scores = write_scores(build.path, rows, predictions, settings)
    (build.path / endpoint_answers.FILE).unlink(missing_ok=True)
    metrics = {**flat_metrics(scores), "seconds": time.monotonic() - began}
    metrics["prompt_tokens"] = float(sum(entry.prompt_tokens for entry in predictions))
    metrics["completion_tokens"] = float(sum(entry.num_tokens for entry in predictions))
    spool = run.spool.child("remote-evaluate")
    spool.dataset(data, "evaluation")
    for file in (SCORES, PREDICTIONS):
        spool.file(build.path / file)
    return BuildResult(metrics, {"rows": len(sample), "predictions": len(predictions)}, [f"model {served}"])


def _trained(
    run: Run, who: Account, build: Build, kind: JobKind, body: Mapping[str, Any], uploaded: vendor_datasets.Upload
) -> BuildResult:
    """Create the job, or find it; wait; note what came of it."""
    began = time.monotonic()
    attempt = _attempt(run, who, build.path, kind, body)
    chosen = tuning_jobs.stable_job_id(kind, body, attempt)
    # Before the job is created: what is found here is looked for, and nothing else is made.
    write_json(build.path / JOB, {"kind": kind, "job": chosen, "attempt": attempt, "body": dict(body)})
    tier = run.config.recipe.tier
    output = run.config.place.output.model_name_template.format(task=kind, model_tier=tier)
    job, _ = tuning_jobs.create_job(
        who,
        kind,
        body,
        attempt=attempt,
        output_model=stable_id(f"{output}-{run.name}", build.request.recipe),
        display_name=f"{run.name} {kind}",
        wandb=wandb(run.config),
    )
    done = waiting.wait(who, job, patience(run.config))
    write_json(build.path / REMOTE, asdict(done))
    metrics = {"seconds": time.monotonic() - began, "tokens": float(uploaded.tokens)}
    if done.usd is not None:
        metrics["cost_usd"] = done.usd
    return BuildResult(metrics, {"rows": uploaded.rows}, [f"job {done.name}", f"model {done.output_model}"])


def _attempt(run: Run, who: Account, directory: Path, kind: JobKind, body: Mapping[str, Any]) -> int:
    """Which try of this request this is: the one noted, or with --replace the next one after a job that ended badly."""
    record = directory / JOB
    if not record.is_file():
        return 1
    noted = json.loads(record.read_text(encoding="utf-8"))
    attempt = int(noted["attempt"])
    try:
        job: JobStatus | None = tuning_jobs.get_job(who, noted["job"], kind)
    except NotFoundError:
        job = None
    if job is not None and job.state in tuning_jobs.ENDED_BADLY and run.replace:
        return attempt + 1
    return attempt


def _used(settings: LoraSettings) -> dict[str, Any]:
    return settings.model_dump(include=USED)
