"""The guide's Python API: its class, methods and arguments, over the functions of this folder.

`FireworksFineTuner()` reads `FIREWORKS_API_KEY` and `FIREWORKS_ACCOUNT_ID`, and `FIREWORKS_BASE_URL` as the vendor's
own SDK does (a simulator's address, for instance). What an argument leaves open is what `defaults.yaml` says.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import config, variables
from ucotron_ray.core.place import Api
from ucotron_ray.fireworks import datasets, deployments, tuning_jobs, waiting
from ucotron_ray.fireworks.account import Account, account_of
from ucotron_ray.fireworks.tuning_jobs import DpoJobConfig, JobStatus, SftJobConfig
from ucotron_ray.fireworks.waiting import Patience
from ucotron_ray.teacher.endpoint import endpoint_of

if TYPE_CHECKING:
    from ucotron_ray.evaluation.endpoint import Asking

BASE_URL_VARIABLE = "FIREWORKS_BASE_URL"


class FireworksFineTuner:
    """Uploads, jobs and tests of one account."""

    def __init__(self, account_id: str | None = None, base_url: str | None = None) -> None:
        settings = config.load().place
        address = base_url or variables.value(BASE_URL_VARIABLE)
        self._api = settings.api if address is None else _at(settings.api, address)
        self._polling = settings.polling
        self.account: Account = account_of(self._api, account_id)

    def upload_file(self, file_path: str | Path, dataset_id: str | None = None) -> str:
        """Check and upload a JSONL file; the id of the dataset. An equal file that is there already is not sent."""
        return datasets.upload(self.account, Path(file_path), dataset_id=dataset_id).dataset_id

    def list_datasets(self) -> list[dict[str, Any]]:
        """All datasets of the account."""
        return list(datasets.listed(self.account))

    def create_sft_job(
        self,
        dataset_id: str,
        model_id: str,
        output_model: str | None = None,
        config: SftJobConfig | None = None,
        display_name: str | None = None,
        attempt: int = 1,
    ) -> JobStatus:
        """A supervised job; the one that the same call made before, if there is one, unless `attempt` differs."""
        chosen = config or SftJobConfig()
        kind = tuning_jobs.model_kind(self.account, model_id)
        body = tuning_jobs.sft_body(self.account, dataset_id, model_id, chosen, kind)
        return self._create("sft", body, chosen, output_model, display_name, attempt)

    def create_dpo_job(
        self,
        dataset_id: str,
        model_id: str,
        output_model: str | None = None,
        config: DpoJobConfig | None = None,
        display_name: str | None = None,
        attempt: int = 1,
    ) -> JobStatus:
        """A preference job, from a base model or from the model of a supervised job; found again like those."""
        chosen = config or DpoJobConfig()
        kind = tuning_jobs.model_kind(self.account, model_id)
        body = tuning_jobs.dpo_body(self.account, dataset_id, model_id, chosen, kind)
        return self._create("dpo", body, chosen, output_model, display_name, attempt)

    def get_job(self, job_name: str | JobStatus) -> JobStatus:
        """A job by its id, its full name or an older status of it."""
        if isinstance(job_name, JobStatus):
            return tuning_jobs.get_job(self.account, job_name.name, job_name.kind)
        return tuning_jobs.get_job(self.account, job_name)

    def list_jobs(self, filter_str: str | None = None) -> list[JobStatus]:
        """All supervised and preference jobs, all pages."""
        return list(tuning_jobs.list_jobs(self.account, filter_=filter_str))

    def cancel_job(self, job_name: str | JobStatus) -> JobStatus:
        """Ask the vendor to stop a job."""
        return tuning_jobs.cancel_job(self.account, self.get_job(job_name))

    def resume_job(self, job_name: str | JobStatus) -> JobStatus:
        """Ask the vendor to go on with a job that failed, was cancelled or paused."""
        return tuning_jobs.resume_job(self.account, self.get_job(job_name))

    def wait_for_job(
        self,
        job_name: str | JobStatus,
        poll_interval: float | None = None,
        timeout: float | None = None,
        progress_callback: Callable[[JobStatus], None] | None = None,
    ) -> JobStatus:
        """The job once it is completed. Raises RemoteJobFailed for any other end, Stopped for a deadline (0 = none)."""
        patience = Patience(
            interval=self._polling.interval if poll_interval is None else poll_interval,
            timeout=self._polling.timeout if timeout is None else timeout,
            verbose=self._polling.verbose,
        )
        return waiting.wait(self.account, self.get_job(job_name), patience, callback=progress_callback)

    wait_for_completion = wait_for_job

    def test_model(
        self,
        model_id: str,
        prompts: Sequence[str] | None = None,
        system_prompt: str | None = None,
        max_tokens: int = 512,
        temperature: float = 0.1,
    ) -> list[dict[str, Any]]:
        """Answers to the guide's five prompts, each with its triples and keyword hits; or to prompts of your own."""
        from ucotron_ray.evaluation.endpoint import entry_of, replies  # noqa: PLC0415 - numpy, for the scores only

        asking = self._asking(system_prompt, max_tokens, temperature)
        if prompts is None:
            answers: list[dict[str, Any]] = self._tested(model_id, asking)["answers"]
            return answers
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        turns = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
        entries = replies(endpoint_of(self._api, self.served(model_id)), turns, asking)
        return [{"prompt": prompt, **entry_of(reply)} for prompt, reply in zip(prompts, entries, strict=True)]

    def compare_models(
        self, model_ids: Sequence[str], max_tokens: int = 512, temperature: float = 0.1
    ) -> dict[str, Any]:
        """Models side by side on the guide's five prompts, the first one the base."""
        from ucotron_ray.evaluation.endpoint import compare  # noqa: PLC0415 - numpy, for the scores only

        asking = self._asking(None, max_tokens, temperature)
        return compare([self._tested(model, asking) for model in model_ids])

    def served(self, model_id: str) -> str:
        """How the model is asked: a trained adapter on a deployment of it that is ready, anything else by its name."""
        if "#" in model_id or model_id.startswith(tuning_jobs.VENDOR_MODELS):
            return model_id
        model = self.account.full_name("models", model_id)
        deployment = deployments.of_model(self.account, model)
        return deployments.served_model(model, deployment) if deployment else model

    def _asking(self, system_prompt: str | None, max_tokens: int, temperature: float) -> "Asking":
        from ucotron_ray.evaluation.endpoint import Asking  # noqa: PLC0415

        api = self._api
        return Asking(system_prompt, max_tokens, temperature, api.timeout, api.max_retries, api.retry_delay)

    def _tested(self, model_id: str, asking: "Asking") -> dict[str, Any]:
        from ucotron_ray.evaluation.endpoint import tested  # noqa: PLC0415
        from ucotron_ray.evaluation.guide_prompts import guide_rows  # noqa: PLC0415

        made = tested(endpoint_of(self._api, self.served(model_id)), guide_rows(), asking)
        return {**made, "model": model_id}

    def _create(
        self,
        kind: tuning_jobs.JobKind,
        body: dict[str, Any],
        chosen: SftJobConfig | DpoJobConfig,
        output_model: str | None,
        display_name: str | None,
        attempt: int,
    ) -> JobStatus:
        wandb = tuning_jobs.wandb_config(chosen.wandb_project, chosen.wandb_api_key)
        made, _ = tuning_jobs.create_job(
            self.account,
            kind,
            body,
            output_model=output_model,
            display_name=display_name,
            wandb=wandb,
            attempt=attempt,
        )
        return made


def _at(api: Api, address: str) -> Api:
    """The same settings at another address, which may or may not end in the API's version."""
    root = address.rstrip("/").removesuffix("/inference/v1").removesuffix("/v1")
    return api.model_copy(
        update={
            "fine_tuning_base_url": f"{root}/v1",
            "inference_base_url": f"{root}/inference/v1",
            "inference_base_urls": [],
        }
    )
