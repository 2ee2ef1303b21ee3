"""Supervised (SFT) and preference (DPO) jobs at the vendor: made once, found again, listed, cancelled, resumed.

A job's id is the hash of what is asked for, so that the same request finds the job that it made before a kill. Field
names and states: the vendor's SDK, `types/supervised_fine_tuning_job*.py`, `types/dpo_job*.py` (1.2.30).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import canonical_hash
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks.account import Account
from ucotron_ray.fireworks.dataset_rows import MAX_ID

log = logging.getLogger(__name__)

JobKind = Literal["sft", "dpo", "batch"]
COLLECTIONS: dict[JobKind, str] = {
    "sft": "supervisedFineTuningJobs",
    "dpo": "dpoJobs",
    "batch": "batchInferenceJobs",
}
ID_PARAMETERS: dict[JobKind, str] = {
    "sft": "supervisedFineTuningJobId",
    "dpo": "dpoJobId",
    "batch": "batchInferenceJobId",
}
VENDOR_MODELS = "accounts/fireworks/models/"

PREFIX = "JOB_STATE_"
COMPLETED, PAUSED, PENDING = "COMPLETED", "PAUSED", "PENDING"
ENDED_BADLY = ("FAILED", "CANCELLED", "EARLY_STOPPED", "EXPIRED", "DELETING", "DELETING_CLEANING_UP", "DELETED")
ACTIVE = (
    "CREATING", "CREATING_INPUT_DATASET", "VALIDATING", PENDING, "RUNNING", "WRITING_RESULTS", "RE_QUEUEING", "IDLE",
    "CANCELLING", "EVALUATION", "ROLLOUT", "POLICY_UPDATE",
)  # fmt: skip
"""States in which a job moves on by itself. One that is in none of these lists is unknown, and shown as it is."""

SHOWN = {"PENDING": "queued", "COMPLETED": "succeeded", "EARLY_STOPPED": "early-stopped"}
MOST_BETA = 0.5


@dataclass(frozen=True)
class SftJobConfig:
    """Hyperparameters of a supervised job, by the guide's names. `batch_size` in rows; None = the vendor's choice."""

    epochs: int = 3
    learning_rate: float = 2e-4
    lora_rank: int = 16
    batch_size: int | None = None
    max_context_length: int = 2048
    evaluation_dataset: str | None = None
    wandb_project: str | None = None
    wandb_api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DpoJobConfig:
    """Hyperparameters of a preference job, by the guide's names."""

    epochs: int = 2
    learning_rate: float = 5e-5
    lora_rank: int = 8
    batch_size: int | None = None
    max_context_length: int = 2048
    beta: float = 0.1
    loss_method: str = "DPO"
    wandb_project: str | None = None
    wandb_api_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class JobStatus:
    """A job as the vendor describes it. `state` without `JOB_STATE_`; `usd` is the vendor's own estimate."""

    name: str
    kind: JobKind
    state: str
    display_name: str | None = None
    percent: float | None = None
    epoch: int | None = None
    created: str | None = None
    completed: str | None = None
    usd: float | None = None
    base_model: str | None = None
    output_model: str | None = None
    dataset: str | None = None
    message: str | None = None

    @property
    def job_id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def shown_state(self) -> str:
        """For people; an unknown state is its own name in lower case."""
        return SHOWN.get(self.state, self.state.lower().replace("_", "-"))

    @property
    def is_over(self) -> bool:
        """Whether it will never move again by itself."""
        return self.state == COMPLETED or self.state in ENDED_BADLY


def sft_body(
    account: Account, dataset: str, model: str, config: SftJobConfig, model_kind: str | None
) -> dict[str, Any]:
    """The vendor's request for a supervised job."""
    body = {
        "dataset": account.full_name("datasets", dataset),
        **_from(account, model, model_kind),
        "epochs": config.epochs,
        "learningRate": config.learning_rate,
        "loraRank": config.lora_rank,
        "maxContextLength": config.max_context_length,
        # `batchSize` counts packed tokens, `batchSizeSamples` rows.
        **({"batchSizeSamples": config.batch_size} if config.batch_size else {}),
    }
    if config.evaluation_dataset:
        body["evaluationDataset"] = account.full_name("datasets", config.evaluation_dataset)
    return body


def dpo_body(
    account: Account, dataset: str, model: str, config: DpoJobConfig, model_kind: str | None
) -> dict[str, Any]:
    """The vendor's request for a preference job. Raises ConfigError for a beta that the vendor refuses."""
    if not 0 < config.beta < MOST_BETA:
        raise ConfigError(
            "the vendor takes no such beta",
            where="beta",
            expected=f"above 0, below {MOST_BETA}",
            found=str(config.beta),
        )
    training = {
        **_from(account, model, model_kind),
        "epochs": config.epochs,
        "learningRate": config.learning_rate,
        "loraRank": config.lora_rank,
        "maxContextLength": config.max_context_length,
        **({"batchSizeSamples": config.batch_size} if config.batch_size else {}),
    }
    # `klBeta` is for GRPO-like methods; without a method the vendor takes GRPO.
    loss: dict[str, Any] = {"method": config.loss_method, "dpo": {"beta": config.beta}}
    return {"dataset": account.full_name("datasets", dataset), "trainingConfig": training, "lossConfig": loss}


def create_job(
    account: Account,
    kind: JobKind,
    body: Mapping[str, Any],
    *,
    job_id: str | None = None,
    output_model: str | None = None,
    display_name: str | None = None,
    wandb: Mapping[str, Any] | None = None,
    attempt: int = 1,
) -> tuple[JobStatus, bool]:
    """Create the job, or find the one that the same request made; and whether it is new.

    What the trained model is called, and where it is tracked, does not make it another job. `attempt` does.
    """
    chosen = job_id or stable_job_id(kind, body, attempt)
    output = output_model or chosen
    request = {**body, "displayName": display_name or chosen, **({"wandbConfig": wandb} if wandb else {})}
    if kind == "dpo":
        request["trainingConfig"] = {**body["trainingConfig"], "outputModel": account.full_name("models", output)}
    elif kind == "sft":
        request["outputModel"] = account.full_name("models", output)
    path, name = f"{account.parent}/{COLLECTIONS[kind]}", account.full_name(COLLECTIONS[kind], chosen)
    made, is_new = control.create(account, path, request, query={ID_PARAMETERS[kind]: chosen}, existing=name)
    status = status_of(made, kind)
    log.info("fireworks: %s %s job '%s' (%s)", "created" if is_new else "found", kind, chosen, status.shown_state)
    return status, is_new


def stable_job_id(kind: JobKind, body: Mapping[str, Any], attempt: int = 1) -> str:
    """The id of a request: equal requests have equal ids."""
    suffix = f"-{attempt}" if attempt > 1 else ""
    return f"ucotron-{kind}-{canonical_hash(dict(body))[:20]}{suffix}"[:MAX_ID]


def wandb_config(project: str | None, key: str | None) -> dict[str, Any] | None:
    """The vendor's block for Weights & Biases, only where both parts are there."""
    return {"enabled": True, "project": project, "apiKey": key} if project and key else None


def model_kind(account: Account, model: str) -> str | None:
    """What the vendor says the model is: `HF_BASE_MODEL`, `HF_PEFT_ADDON`, … Raises NotFoundError, ConfigError."""
    found = control.call(account, "GET", account.full_name("models", model))
    details = found.get("baseModelDetails") or {}
    if found.get("tunable") is False and details.get("tunable") is False:
        raise ConfigError("the vendor does not train this model", where=model, found="tunable: false")
    kind: str | None = found.get("kind")
    return kind


def get_job(account: Account, name: str, kind: JobKind | None = None) -> JobStatus:
    """The job of that id or full name. Without a kind every collection is asked. Raises NotFoundError."""
    kinds = [kind] if kind else [k for k, collection in COLLECTIONS.items() if f"/{collection}/" in name]
    kinds = kinds or list(COLLECTIONS)
    for candidate in kinds[:-1]:
        found = control.find(account, account.full_name(COLLECTIONS[candidate], name))
        if found is not None:
            return status_of(found, candidate)
    return status_of(control.call(account, "GET", account.full_name(COLLECTIONS[kinds[-1]], name)), kinds[-1])


def find_job(account: Account, name: str, kind: JobKind) -> JobStatus | None:
    """The job of that id, if there is one."""
    found = control.find(account, account.full_name(COLLECTIONS[kind], name))
    return status_of(found, kind) if found is not None else None


def list_jobs(
    account: Account, kinds: tuple[JobKind, ...] = ("sft", "dpo"), filter_: str | None = None
) -> Iterator[JobStatus]:
    """All jobs of these kinds, all pages."""
    query = {"filter": filter_} if filter_ else None
    for kind in kinds:
        collection = COLLECTIONS[kind]
        for entry in control.pages(account, f"{account.parent}/{collection}", collection, query=query):
            yield status_of(entry, kind)


def cancel_job(account: Account, job: JobStatus) -> JobStatus:
    """Ask the vendor to stop a job. Batch jobs know no cancelling: deleting stops them."""
    if job.kind == "batch":
        control.call(account, "DELETE", job.name)
        found = control.find(account, job.name)
        return status_of(found or {"name": job.name, "state": "JOB_STATE_DELETED"}, "batch")
    control.call(account, "POST", f"{job.name}:cancel", {})
    return get_job(account, job.name, job.kind)


def resume_job(account: Account, job: JobStatus) -> JobStatus:
    """Ask the vendor to go on with a job that failed, was cancelled or paused. Raises ConfigError for a batch job."""
    if job.kind == "batch":
        raise ConfigError(
            "a batch job is not resumed",
            where=job.name,
            next_step="run `fireworks batch` again: it asks for what is left",
        )
    control.call(account, "POST", f"{job.name}:resume", {})
    return get_job(account, job.name, job.kind)


def status_of(entry: Mapping[str, Any], kind: JobKind) -> JobStatus:
    """The vendor's JSON, read leniently: fields come and go."""
    progress = entry.get("jobProgress") or {}
    training = entry.get("trainingConfig") or entry
    return JobStatus(
        name=str(entry.get("name", "")),
        kind=kind,
        state=str(entry.get("state") or "UNSPECIFIED").removeprefix(PREFIX),
        display_name=entry.get("displayName"),
        percent=_number(progress.get("percent")),
        epoch=progress.get("epoch"),
        created=entry.get("createTime"),
        completed=entry.get("completedTime"),
        usd=_dollars(entry.get("estimatedCost")),
        base_model=training.get("baseModel") or training.get("warmStartFrom") or entry.get("model"),
        output_model=training.get("outputModel") or entry.get("outputDatasetId"),
        dataset=entry.get("dataset") or entry.get("inputDatasetId"),
        message=(entry.get("status") or {}).get("message") or None,
    )


def _from(account: Account, model: str, kind: str | None) -> dict[str, str]:
    """`baseModel` or `warmStartFrom`: the vendor takes exactly one. A trained adapter is gone on with."""
    name = account.full_name("models", model)
    is_adapter = kind in ("HF_PEFT_ADDON", "LIVE_MERGE") if kind else not name.startswith(VENDOR_MODELS)
    return {"warmStartFrom" if is_adapter else "baseModel": name}


def _dollars(cost: object) -> float | None:
    """google.type.Money: {"currencyCode", "units", "nanos"}; an older client expects a plain number."""
    if isinstance(cost, Mapping):
        return int(cost.get("units") or 0) + int(cost.get("nanos") or 0) / 1e9
    return _number(cost)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
