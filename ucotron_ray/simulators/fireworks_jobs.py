"""The simulator's jobs, models and deployments: a life cycle that moves when it is looked at, ends, quotas on demand.

A completed tuning job adds a model; a completed batch job answers its requests, in another order than they were asked.
"""

import json
import random
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from ucotron_ray.core.errors import InputError
from ucotron_ray.fireworks import dataset_rows
from ucotron_ray.simulators.fireworks_control import (
    BASE_GARBAGE,
    BASE_MODELS,
    ControlPlane,
    Refusal,
    checked,
    json_of,
    now,
    shown,
)
from ucotron_ray.simulators.fireworks_datasets import add_output, rows_file

Complete = Callable[[dict[str, Any]], dict[str, Any]]
"""A chat request → the vendor's chat completion."""

_COMMON = ("dataset", "displayName", "awsS3Config", "azureBlobStorageConfig", "wandbConfig", "useReservation",
           "reservationTarget", "rendererHuggingFaceRepoId")  # fmt: skip
TRAINING_FIELDS = (
    "baseModel", "warmStartFrom", "batchSize", "batchSizeSamples", "epochs", "gradientAccumulationSteps",
    "jinjaTemplate", "learningRate", "learningRateWarmupSteps", "loraRank", "maxContextLength",
    "optimizerWeightDecay", "outputModel", "region", "samplerCheckpointSaveIntervalSteps",
)  # fmt: skip
FIELDS = {
    "supervisedFineTuningJobs": (
        *_COMMON, *TRAINING_FIELDS, "earlyStop", "evalAutoCarveout", "evaluationDataset", "isTurbo",
        "metricsFileSignedUrl", "mtpEnabled", "mtpFreezeBaseModel", "mtpNumDraftTokens", "nodes", "usePurpose",
    ),
    "dpoJobs": (*_COMMON, "lossConfig", "trainingConfig"),
    "batchInferenceJobs": (
        "continuedFromJobName", "displayName", "inferenceParameters", "inputDatasetId", "model", "outputDatasetId",
        "precision",
    ),
}  # fmt: skip
ID_PARAMETERS = {
    "supervisedFineTuningJobs": "supervisedFineTuningJobId",
    "dpoJobs": "dpoJobId",
    "batchInferenceJobs": "batchInferenceJobId",
}
DEPLOYMENT_FIELDS = (
    "baseModel", "displayName", "deploymentShape", "minReplicaCount", "maxReplicaCount", "autoscalingPolicy",
    "acceleratorType", "acceleratorCount", "precision", "enableAddons", "description",
)  # fmt: skip
LIFE = (("CREATING", 0), ("VALIDATING", 0), ("PENDING", 0), ("RUNNING", 10), ("RUNNING", 60), ("WRITING_RESULTS", 100))
STUCK = {"PENDING": 2, "PAUSED": 4}
OVER = ("COMPLETED", "FAILED", "CANCELLED", "EARLY_STOPPED", "EXPIRED")
DEPLOYMENT_POLLS = 2


def add_job_routes(application: web.Application, plane: ControlPlane, complete: Complete) -> None:
    """Mount them."""
    for collection in FIELDS:
        routes = _Jobs(plane, collection, complete)
        path = f"/v1/accounts/{{account}}/{collection}"
        application.router.add_post(path, plane.handler(routes.create))
        application.router.add_get(path, plane.handler(routes.list))
        application.router.add_get(path + "/{name}", plane.handler(routes.get))
        application.router.add_delete(path + "/{name}", plane.handler(routes.delete))
        application.router.add_post(path + "/{name}", plane.handler(routes.call))
    others = _ModelsAndDeployments(plane)
    application.router.add_get("/v1/accounts/{account}/models", plane.handler(others.list_models))
    application.router.add_get("/v1/accounts/{account}/models/{name}", plane.handler(others.get_model))
    application.router.add_post("/v1/accounts/{account}/deployments", plane.handler(others.deploy))
    application.router.add_get("/v1/accounts/{account}/deployments", plane.handler(others.list_deployments))
    application.router.add_get("/v1/accounts/{account}/deployments/{name}", plane.handler(others.get_deployment))
    application.router.add_delete("/v1/accounts/{account}/deployments/{name}", plane.handler(others.take_down))


def garbage_of(plane: ControlPlane, model: str, usual: float) -> float | None:
    """How often a served model answers with garbage; None for a model that is not served.

    A base model is served as it is, a tuned one on a deployment that is ready (`model#deployment`).
    """
    if model in BASE_MODELS:
        return BASE_GARBAGE
    name, _, deployment = model.partition("#")
    found = plane.resources.get(deployment)
    if found is None or found["state"] != "READY" or found["baseModel"] != name:
        return None
    return usual


class _Jobs:
    def __init__(self, plane: ControlPlane, collection: str, complete: Complete) -> None:
        self._plane = plane
        self._collection = collection
        self._complete = complete

    async def create(self, request: web.Request) -> web.Response:
        body = await json_of(request, FIELDS[self._collection])
        account = request.match_info["account"]
        settings = self._plane.settings
        active = sum(
            1
            for name, job in self._plane.resources.items()
            if name.startswith(f"accounts/{account}/{self._collection}/") and _state(job) not in OVER
        )
        if settings.max_active_jobs is not None and active >= settings.max_active_jobs:
            raise Refusal(429, f"quota exceeded: at most {settings.max_active_jobs} {self._collection} at once")
        chosen = request.query.get(ID_PARAMETERS[self._collection]) or f"job-{len(self._plane.resources)}"
        name = f"accounts/{account}/{self._collection}/{chosen}"
        if name in self._plane.resources:
            raise Refusal(409, f"already exists: {name}")
        facts = self._facts(body, account)
        job = {**body, "state": "JOB_STATE_CREATING", "jobProgress": {"percent": 0}, **facts}
        made = self._plane.add(name, {**job, "_polls": 0, "_began": time.monotonic(), "_end": settings.job_end})
        return web.json_response(shown(made))

    async def list(self, request: web.Request) -> web.Response:
        return self._plane.page(request, self._collection)

    async def get(self, request: web.Request) -> web.Response:
        job = self._plane.get(self._name(request)[0])
        job["_polls"] += 1
        self._move(job)
        return web.json_response(shown(job))

    async def delete(self, request: web.Request) -> web.Response:
        name, _ = self._name(request)
        self._plane.get(name)
        del self._plane.resources[name]
        return web.json_response({})

    async def call(self, request: web.Request) -> web.Response:
        name, verb = self._name(request)
        job = self._plane.get(name)
        if self._collection == "batchInferenceJobs":
            raise Refusal(404, "Method Not Allowed: batch jobs have no such call")
        if verb == "cancel":
            if _state(job) in OVER:
                raise Refusal(400, f"the job is {_state(job)}")
            job |= {"state": "JOB_STATE_CANCELLED", "_end": "CANCELLED", "completedTime": now()}
        elif verb == "resume":
            if _state(job) not in ("FAILED", "CANCELLED", "PAUSED"):
                raise Refusal(400, f"a job that is {_state(job)} is not resumed")
            job |= {"state": "JOB_STATE_PENDING", "_polls": 0, "_began": time.monotonic(), "_end": "COMPLETED"}
            job["status"] = {"code": "OK", "message": ""}
        else:
            raise Refusal(404, f"no such call: {verb}")
        return web.json_response({})

    def _facts(self, body: dict[str, Any], account: str) -> dict[str, Any]:
        """Check what the vendor checks at once; what it estimates."""
        if self._collection == "batchInferenceJobs":
            self._plane.get(_dataset(body, account, "inputDatasetId"))
            output = body.get("outputDatasetId") or f"accounts/{account}/datasets/output-{len(self._plane.resources)}"
            return {"outputDatasetId": output}
        dataset = _dataset(body, account, "dataset")
        rows_file(self._plane, dataset)
        training = checked(body.get("trainingConfig", {}), TRAINING_FIELDS) if self._collection == "dpoJobs" else body
        starts = [training[key] for key in ("baseModel", "warmStartFrom") if training.get(key)]
        if len(starts) != 1:
            raise Refusal(400, "exactly one of base_model and warm_start_from")
        kind = self._plane.get(starts[0])["kind"]
        if (kind == "HF_PEFT_ADDON") != bool(training.get("warmStartFrom")):
            raise Refusal(400, f"a {kind} cannot be used like this: {starts[0]}")
        beta = ((body.get("lossConfig") or {}).get("dpo") or {}).get("beta", 0.1)
        if not 0 < beta < 0.5:
            raise Refusal(400, "beta must be > 0 and < 0.5")
        tokens = rows_file(self._plane, dataset).stat().st_size // 4 * int(training.get("epochs") or 1)
        nanos = round(tokens * self._plane.settings.dollars_per_million * 1000)
        cost = {"currencyCode": "USD", "units": str(nanos // 10**9), "nanos": nanos % 10**9}
        return {"estimatedCost": cost, "_training": training}

    def _move(self, job: dict[str, Any]) -> None:
        if _state(job) in OVER:
            return
        settings, end = self._plane.settings, job["_end"]
        if settings.job_seconds is not None:
            share = (time.monotonic() - job["_began"]) / max(settings.job_seconds, 1e-9)
        else:
            share = job["_polls"] / settings.job_polls
        step = min(len(LIFE), int(share * len(LIFE)))
        if step >= STUCK.get(end, len(LIFE)):
            self._end(job, end)
            return
        state, percent = LIFE[step]
        job |= {"state": f"JOB_STATE_{state}", "jobProgress": {"percent": percent, "epoch": 0}, "updateTime": now()}

    def _end(self, job: dict[str, Any], end: str) -> None:
        try:
            if end == "COMPLETED" or (end == "EXPIRED" and self._collection == "batchInferenceJobs"):
                self._finish(job, partly=end == "EXPIRED")
        except (InputError, Refusal) as error:
            end = "FAILED"
            job["status"] = {"code": "INVALID_ARGUMENT", "message": str(error)}
        if end in OVER:
            job |= {"completedTime": now(), "jobProgress": {**job["jobProgress"], "percent": 100}}
        if end == "FAILED":
            job.setdefault("status", {"code": "INTERNAL", "message": "on demand"})
        job["state"] = f"JOB_STATE_{end}"

    def _finish(self, job: dict[str, Any], *, partly: bool) -> None:
        if self._collection == "batchInferenceJobs":
            self._answer(job, partly=partly)
            return
        account = job["name"].split("/")[1]
        path = rows_file(self._plane, _dataset(job, account, "dataset"))
        wanted = "preference" if self._collection == "dpoJobs" else "chat"
        with dataset_rows.prepared(path) as file:
            if file.layout != wanted or file.converted:
                raise Refusal(
                    400, f"Dataset has a syntax error: {file.layout} rows in a dataset for {self._collection}"
                )
        training = job["_training"]
        output = training.get("outputModel") or f"accounts/{account}/models/{job['name'].rpartition('/')[2]}"
        start = training.get("baseModel") or training.get("warmStartFrom")
        peft = {"baseModel": start, "r": training.get("loraRank", 8), "targetModules": ["q_proj", "v_proj"]}
        if output not in self._plane.resources:
            self._plane.add(output, {"kind": "HF_PEFT_ADDON", "state": "READY", "peftDetails": peft})

    def _answer(self, job: dict[str, Any], *, partly: bool) -> None:
        account = job["name"].split("/")[1]
        path = rows_file(self._plane, _dataset(job, account, "inputDatasetId"))
        with dataset_rows.prepared(path) as file:
            if file.layout != "batch":
                raise Refusal(400, "Dataset has a syntax error: no batch requests")
        rng = random.Random(f"{self._plane.settings.seed}/{job['name'].rpartition('/')[2]}")
        asked = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
        rng.shuffle(asked)
        good, bad = [], []
        for row in asked[: len(asked) // 2] if partly else asked:
            if rng.random() < self._plane.settings.batch_error_share:
                bad.append({"custom_id": row["custom_id"], "error": {"message": "on demand", "code": 500}})
            else:
                good.append(
                    {"custom_id": row["custom_id"], "response": self._complete({**row["body"], "model": job["model"]})}
                )
        files = {"BIJOutputSet.jsonl": _jsonl(good), "error-data": _jsonl(bad)}
        add_output(self._plane, job["outputDatasetId"], job["name"], files)
        counts = {
            "totalInputRequests": len(asked),
            "totalProcessedRequests": len(good) + len(bad),
            "outputRows": len(good),
        }
        job["jobProgress"] = {**counts, "successfullyProcessedRequests": len(good), "failedRequests": len(bad)}

    def _name(self, request: web.Request) -> tuple[str, str]:
        chosen, _, verb = request.match_info["name"].partition(":")
        return f"accounts/{request.match_info['account']}/{self._collection}/{chosen}", verb


class _ModelsAndDeployments:
    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def list_models(self, request: web.Request) -> web.Response:
        return self._plane.page(request, "models")

    async def get_model(self, request: web.Request) -> web.Response:
        name = f"accounts/{request.match_info['account']}/models/{request.match_info['name']}"
        return web.json_response(shown(self._plane.get(name)))

    async def deploy(self, request: web.Request) -> web.Response:
        body = await json_of(request, DEPLOYMENT_FIELDS)
        self._plane.get(str(body.get("baseModel")))
        chosen = request.query.get("deploymentId") or f"deployment-{len(self._plane.resources)}"
        name = f"accounts/{request.match_info['account']}/deployments/{chosen}"
        return web.json_response(shown(self._plane.add(name, {**body, "state": "CREATING", "_polls": 0})))

    async def list_deployments(self, request: web.Request) -> web.Response:
        return self._plane.page(request, "deployments")

    async def get_deployment(self, request: web.Request) -> web.Response:
        found = self._plane.get(self._deployment(request))
        found["_polls"] += 1
        if found["state"] == "CREATING" and found["_polls"] >= DEPLOYMENT_POLLS:
            found["state"] = "READY"
        return web.json_response(shown(found))

    async def take_down(self, request: web.Request) -> web.Response:
        # Its id is never free again.
        self._plane.get(self._deployment(request))["state"] = "DELETED"
        return web.json_response({})

    def _deployment(self, request: web.Request) -> str:
        return f"accounts/{request.match_info['account']}/deployments/{request.match_info['name']}"


def _state(job: dict[str, Any]) -> str:
    return str(job.get("state", "")).removeprefix("JOB_STATE_")


def _dataset(body: dict[str, Any], account: str, key: str) -> str:
    name = str(body.get(key) or "")
    return name if name.startswith("accounts/") else f"accounts/{account}/datasets/{name}"


def _jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
