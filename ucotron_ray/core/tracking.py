"""Experiment tracking: events go to files first (`spool.py`), from there to MLflow. Only this module imports mlflow.

A run is never stopped or slowed by MLflow: what cannot be sent stays in the spool, and the next run sends it. Runs are
found again by a tag with their key, so that nothing is logged twice after a kill. The default MLflow store is
`<store>/tracking/mlflow.db` with `artifacts/` beside it.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.destination import Destination
from ucotron_ray.core.errors import ConfigError, StageFailed
from ucotron_ray.core.files import write_json
from ucotron_ray.core.model_version import BUNDLE, Version
from ucotron_ray.core.place import Place
from ucotron_ray.core.spool import Line, SendingState, only_sender, pending, read_sent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

ASK_SECONDS, FILE_SECONDS = 60, 600
"""For a question to the registry, and for one file of a bundle: a server answers once it has kept all of it."""

KEY_TAG = "ucotron.key"

_BATCH = 500
"""Events of one `log_batch` call; MLflow takes 1,000 metrics and 100 parameters a call."""


class Registry:
    """The versions of one registered model and their aliases, at MLflow.

    Every call raises ConfigError where MLflow cannot be asked, and StageFailed once it has answered: then no setting is
    wrong, and work may have been done. With `must_exist` a database that is not there is not made: somebody who only
    reads has named the wrong one.
    """

    def __init__(self, where: Destination, place: Place, model: str, *, must_exist: bool = False) -> None:
        self.model = model
        self._has_answered = False
        self.uri = place.tracking.registry_uri or where.uri
        # Files are logged where the registry is, wherever the runs are.
        self._where = where if self.uri == where.uri else Destination(self.uri, where.experiment, None)
        database = self.uri.removeprefix("sqlite:///")
        if must_exist and database != self.uri and not Path(database).is_file():
            raise ConfigError(
                "there is no registry", where="tracking.registry_uri, tracking.mlflow_uri", found=self.uri
            )
        with self._asking():
            self._client = _client(self.uri, self.uri, timeout=ASK_SECONDS)
        # Making a client asks a server nothing.
        self._has_answered = False

    def aliases(self) -> dict[str, str]:
        """Alias → version number. Empty where the model was never registered."""
        with self._asking():
            names = [entry.name for entry in self._client.search_registered_models(f"name = '{self.model}'")]
            found = self._client.get_registered_model(self.model).aliases if names else {}
        return {str(alias): str(number) for alias, number in dict(found).items()}

    def version(self, alias: str) -> Version | None:
        """What an alias points to."""
        number = self.aliases().get(alias)
        if number is None:
            return None
        with self._asking():
            return _version(self._client.get_model_version(self.model, number))

    def versions(self) -> list[Version]:
        """All versions, the newest first."""
        with self._asking():
            found = self._client.search_model_versions(f"name = '{self.model}'")
        return sorted(map(_version, found), key=lambda version: -int(version.number))

    def register(self, source: str, tags: Mapping[str, str], *, run: str | None = None) -> Version:
        """A new version whose files are at `source`; a server wants to know the run that logged them."""
        with self._asking():
            if not self._client.search_registered_models(f"name = '{self.model}'"):
                self._client.create_registered_model(self.model)
            return _version(self._client.create_model_version(self.model, source, run, tags=dict(tags)))

    def upload(self, bundle: Artifact, beside: Path) -> tuple[str, str]:
        """Log a bundle, and the files of a model beside it, as a run; where they are then, and the run's id."""
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(FILE_SECONDS)
        with self._asking():
            experiment = _experiment(self._client, self._where)
            tags = {"mlflow.runName": f"upload {bundle.manifest.name}", "ucotron.content": bundle.manifest.content}
            run = self._client.create_run(experiment, tags=tags)
            name = bundle.path.name
            self._client.log_artifacts(run.info.run_id, str(bundle.path), f"{name}/{BUNDLE}")
            self._client.log_artifacts(run.info.run_id, str(beside), name)
            self._client.set_terminated(run.info.run_id)
        return f"{str(run.info.artifact_uri).rstrip('/')}/{name}", str(run.info.run_id)

    def download(self, source: str, directory: Path) -> Path:
        """Copy what is at a version's `source` into a directory; where it lies there."""
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415

        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(FILE_SECONDS)
        with self._asking():
            return Path(download_artifacts(artifact_uri=source, dst_path=str(directory), tracking_uri=self.uri))

    def tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Say more of a version."""
        with self._asking():
            for key, value in tags.items():
                self._client.set_model_version_tag(self.model, version.number, key, value)

    def point(self, alias: str, version: Version | None) -> None:
        """Move an alias; None takes it away."""
        with self._asking():
            if version is not None:
                self._client.set_registered_model_alias(self.model, alias, version.number)
            elif alias in self._client.get_registered_model(self.model).aliases:
                self._client.delete_registered_model_alias(self.model, alias)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        try:
            yield
        except (MlflowException, OSError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0]
            if self._has_answered:
                raise StageFailed(
                    "the registry answers no longer, or refuses",
                    where=self.uri,
                    found=found,
                    next_step="mend it and run the same command again",
                ) from error
            raise ConfigError(
                "the registry cannot be asked",
                where=self.uri,
                found=found,
                next_step="start the MLflow server, or correct tracking.registry_uri or tracking.mlflow_uri",
            ) from error
        self._has_answered = True


def save_pyfunc(
    directory: Path,
    *,
    loader: str,
    package: Path,
    requirements: Sequence[str],
    signature: Mapping[str, object],
    example: list[dict[str, Any]],
    **written: Mapping[str, object],
) -> None:
    """Write what makes a directory an `mlflow.pyfunc` model: MLmodel, code, environments, example. Nothing is pickled.

    `signature` has MLflow's `inputs`, `outputs` and `params`. `written` are the `model_config` that whoever loads it
    may change, and `metadata`.
    """
    # Else it takes uv.lock and pyproject.toml of whatever directory this was started in.
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"
    from mlflow import pyfunc  # noqa: PLC0415 - it imports pandas
    from mlflow.models import ModelSignature  # noqa: PLC0415

    pyfunc.save_model(
        directory,
        loader_module=loader,
        code_paths=[str(package)],
        pip_requirements=list(requirements),
        signature=ModelSignature.from_dict({part: json.dumps(spec) for part, spec in signature.items()}),
        input_example=example,
        **written,
    )


def _version(found: "ModelVersion") -> Version:
    tags = {str(key): str(value) for key, value in found.tags.items()}
    return Version(str(found.version), str(found.source), tags, found.run_id or None)


def send_pending(directory: Path, destination: Destination) -> bool:
    """Send all events that were not yet sent; True if none is left. Never raises: a failure is logged and kept."""
    try:
        with only_sender(directory) as alone:
            if not alone:
                return False
            sent = read_sent(directory)
            lines = list(pending(directory, sent))
            if lines:
                _send(lines, destination, sent, directory)
            return True
    except Exception as error:  # noqa: BLE001 - the promise: no failure of MLflow, of whatever kind, stops a run
        log.warning("tracking: could not be sent now (%s: %s); kept for the next run", type(error).__name__, error)
        return False


def _send(lines: list[Line], where: Destination, sent: SendingState, directory: Path) -> None:
    client = _client(where.uri)
    experiment_id = _experiment(client, where)
    for start in range(0, len(lines), _BATCH):
        batch = lines[start : start + _BATCH]
        events = [line.event for line in batch if line.event is not None]
        if _refusal(client, experiment_id, events, sent):
            # All of them once more, one by one: what was taken stays as it is, and the refused one is left out.
            for event in events:
                if refusal := _refusal(client, experiment_id, [event], sent):
                    log.warning("tracking: MLflow refuses %s of %s: %s", event["type"], event["run"], refusal)
                    _forget(event, sent)
        for line in batch:
            sent.offsets[line.file] = max(line.end, sent.offsets.get(line.file, 0))
        write_json(directory / "sent.json", vars(sent))


def _refusal(
    client: "MlflowClient", experiment_id: str, events: list[dict[str, Any]], sent: SendingState
) -> str | None:
    """Send events; why MLflow will never take one of them, such as a run that was deleted. Raises what may pass."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    try:
        _send_metrics(client, experiment_id, [event for event in events if event["type"] == "metrics"], sent)
        for event in events:
            if event["type"] != "metrics":
                _send_event(client, experiment_id, event, sent)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return (str(error).splitlines() or [str(error.error_code)])[0]
    return None


def _forget(event: dict[str, Any], sent: SendingState) -> None:
    """The ids that a refused event used: what they named may be deleted, and then later events make it anew."""
    sent.runs.pop(event["run"], None)
    if "content" in event:
        for key in (event["content"], f"output:{event['content']}"):
            sent.models.pop(key, None)


def _client(uri: str, registry_uri: str | None = None, *, timeout: int = 10) -> "MlflowClient":
    # mlflow retries for minutes by default; the spool is our retry.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(timeout))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # What others logged may be pickled, and loading that runs their code.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    from mlflow import MlflowClient  # noqa: PLC0415 - 1.2 s, and only who sends or asks the registry needs it

    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=registry_uri)


def _experiment(client: "MlflowClient", where: Destination) -> str:
    experiment = client.get_experiment_by_name(where.experiment)
    if experiment is not None:
        if experiment.lifecycle_stage == "deleted":
            # It keeps its name, so none of that name could be made.
            log.warning("tracking: the experiment '%s' was deleted, and is restored", where.experiment)
            client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)
    location = where.artifact_location
    if location is None and where.uri.startswith("sqlite:///"):
        # Without a place of its own MLflow would write below the working directory of whoever sends first.
        location = (Path(where.uri.removeprefix("sqlite:///")).parent / "artifacts").as_uri()
    return str(client.create_experiment(where.experiment, artifact_location=location))


def _send_metrics(client: "MlflowClient", experiment_id: str, events: list[dict[str, Any]], sent: SendingState) -> None:
    from mlflow.entities import Metric  # noqa: PLC0415

    by_run: dict[str, list[Metric]] = {}
    for event in events:
        metrics = [Metric(key, value, event["time"], event["step"]) for key, value in event["values"].items()]
        by_run.setdefault(_run(client, experiment_id, event["run"], sent), []).extend(metrics)
    for run, metrics in by_run.items():
        for start in range(0, len(metrics), 1000):
            client.log_batch(run, metrics=metrics[start : start + 1000])


def _send_event(client: "MlflowClient", experiment_id: str, event: dict[str, Any], sent: SendingState) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag  # noqa: PLC0415

    run = _run(client, experiment_id, event["run"], sent)
    kind = event["type"]
    if kind == "start":
        tags = {"mlflow.runName": event["name"], **event["tags"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = _run(client, experiment_id, event["parent"], sent)
        client.log_batch(run, tags=[RunTag(key, value[:8000]) for key, value in tags.items()])
        client.update_run(run, status="RUNNING")
    elif kind == "params":
        known = client.get_run(run).data.params
        # A parameter can be set once; a run that goes on after a kill would set it again.
        new = [Param(key, value[:6000]) for key, value in event["values"].items() if key not in known]
        for start in range(0, len(new), 100):
            client.log_batch(run, params=new[start : start + 100])
    elif kind == "tags":
        client.log_batch(run, tags=[RunTag(key, value[:8000]) for key, value in event["values"].items()])
    elif kind == "dataset":
        data = Dataset(event["name"], event["digest"], "local", json.dumps({"uri": event["source"]}))
        context = InputTag("mlflow.data.context", event["context"])
        client.log_inputs(run, datasets=[DatasetInput(data, [context])])
    elif kind == "model":
        _send_model(client, experiment_id, run, event, sent)
    elif kind == "file":
        if Path(event["path"]).is_file():
            client.log_artifact(run, event["path"])
    elif kind == "end":
        client.set_terminated(run, event["status"], end_time=event["time"])


def _send_model(
    client: "MlflowClient", experiment_id: str, run: str, event: dict[str, Any], sent: SendingState
) -> None:
    from mlflow.entities import LoggedModelInput, LoggedModelOutput  # noqa: PLC0415

    content = event["content"]
    if content not in sent.models:
        tags = {"ucotron.content": content, "ucotron.path": event["path"]}
        name = re.sub(r"""[/:.%"']""", "-", event["name"])
        model = client.create_logged_model(experiment_id, name, source_run_id=run, tags=tags, model_type=event["kind"])
        client.finalize_logged_model(model.model_id, "READY")
        sent.models[content] = model.model_id
    # Events of different processes can arrive in any order: who uses a model may be heard before who made it.
    made = f"output:{content}"
    if event["direction"] == "output" and made not in sent.models:
        client.log_outputs(run, [LoggedModelOutput(sent.models[content], 0)])
        sent.models[made] = run
    if event["direction"] == "input":
        client.log_inputs(run, models=[LoggedModelInput(sent.models[content])])


def _run(client: "MlflowClient", experiment_id: str, key: str, sent: SendingState) -> str:
    """The MLflow run of a key: known, found by its tag, or made."""
    if key not in sent.runs:
        found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, tags={KEY_TAG: key})
        sent.runs[key] = run.info.run_id
    return sent.runs[key]
