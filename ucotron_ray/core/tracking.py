"""Experiment tracking: events go to files first, and from there to MLflow. The only module that imports mlflow.

    <store>/tracking/spool/<run>-<host>-<pid>.jsonl    what happened, one event a line, appended by any process
    <store>/tracking/spool/sent.json                   how far each file was sent, and the ids that MLflow gave
    <store>/tracking/mlflow.db, artifacts/             the default MLflow store

A run is never stopped or slowed by MLflow: what cannot be sent stays in the spool, and the next run sends it. Runs are
found again by a tag with their key, so that nothing is logged twice after a kill.
"""

import fcntl
import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.errors import ConfigError, StageFailed
from ucotron_ray.core.files import write_json
from ucotron_ray.core.place import Place

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

SEND_EVERY_SECONDS = 5.0
CLOSE_SECONDS = 30.0
ASK_SECONDS, FILE_SECONDS = 60, 600
"""For a question to the registry, and for one file of a bundle: a server answers once it has kept all of it."""

KEY_TAG = "ucotron.key"
NO_TRACKING = "none"

MAX_KEY = 250
"""Letters of a metric's or parameter's name at MLflow."""

_BATCH = 500
"""Events of one `log_batch` call; MLflow takes 1,000 metrics and 100 parameters a call."""


@dataclass(frozen=True)
class Destination:
    """An MLflow server or database."""

    uri: str
    experiment: str
    artifact_location: str | None


class Spool:
    """Where one process writes the events of one run. Opened for each event: no handle to lose, none to share."""

    def __init__(self, directory: Path, run: str) -> None:
        self.directory = directory
        self.run = run

    def start(self, *, name: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """The run exists, below its parent."""
        self._write({"type": "start", "name": name, "parent": parent, "tags": dict(tags or {})})

    def params(self, values: Mapping[str, object]) -> None:
        """What it was asked to do, flattened to dotted keys."""
        self._write({"type": "params", "values": {_key(key): str(value) for key, value in _flat(values).items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        """What it is."""
        self._write({"type": "tags", "values": dict(values)})

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """What was measured at a step."""
        finite = {_key(key): float(value) for key, value in values.items() if abs(float(value)) < float("inf")}
        self._write({"type": "metrics", "values": finite, "step": step})

    def dataset(self, artifact: Artifact, context: str) -> None:
        """Data that went in."""
        manifest = artifact.manifest
        self._write(
            {
                "type": "dataset",
                "name": manifest.name,
                "digest": manifest.content[:32],
                "source": str(artifact.path),
                "context": context,
            }
        )

    def model(self, artifact: Artifact, direction: str) -> None:
        """A model that went in (`input`) or came out (`output`)."""
        manifest = artifact.manifest
        self._write(
            {
                "type": "model",
                "name": f"{manifest.kind}-{manifest.name}",
                "content": manifest.content,
                "path": str(artifact.path),
                "kind": manifest.kind,
                "direction": direction,
            }
        )

    def file(self, path: Path) -> None:
        """A small file to keep with the run."""
        self._write({"type": "file", "path": str(path)})

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._write({"type": "end", "status": status})

    def child(self, stage: str) -> "Spool":
        """The spool of one stage of this run."""
        return Spool(self.directory, f"{self.run}/{stage}")

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"run": self.run, "time": int(time.time() * 1000), **event}, ensure_ascii=False) + "\n"
        name = f"{self.run.replace('/', '.')}-{platform.node()}-{os.getpid()}.jsonl"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / name).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            log.warning("tracking: an event could not be spooled (%s); the run goes on", error)


class Sender:
    """Sends the spool in the background, for as long as the block lasts; then once more, for a bounded time."""

    def __init__(self, directory: Path, destination: Destination | None) -> None:
        self._directory = directory
        self._destination = destination
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def __enter__(self) -> "Sender":
        if self._destination is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self._destination is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("tracking: MLflow is slow; what is left is sent by the next run")

    def _loop(self) -> None:
        assert self._destination is not None
        # Importing mlflow and making its database take a processor for ten seconds: give way to the run's own start.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        while True:
            last = self._done.wait(SEND_EVERY_SECONDS)
            send_pending(self._directory, self._destination)
            if last:
                return


@dataclass(frozen=True)
class Version:
    """A version of the registered model. `source` is where its files are: a file URI, or one of MLflow's."""

    number: str
    source: str
    tags: dict[str, str]
    run: str | None = None
    """The run that logged the files at MLflow; None for files that were only pointed to."""

    @property
    def directory(self) -> Path | None:
        """Where the files are, if that is a directory that this machine can see."""
        path = Path(unquote(urlsplit(self.source).path)) if urlsplit(self.source).scheme in ("file", "") else None
        return path if path is not None and path.is_dir() else None


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

    def upload(self, artifact: Artifact) -> tuple[str, str]:
        """Log an artifact's files as a run of its own; where they are then, and the run's id."""
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(FILE_SECONDS)
        with self._asking():
            experiment = _experiment(self._client, self._where)
            tags = {"mlflow.runName": f"upload {artifact.manifest.name}", "ucotron.content": artifact.manifest.content}
            run = self._client.create_run(experiment, tags=tags)
            self._client.log_artifacts(run.info.run_id, str(artifact.path), artifact.path.name)
            self._client.set_terminated(run.info.run_id)
        return f"{str(run.info.artifact_uri).rstrip('/')}/{artifact.path.name}", str(run.info.run_id)

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


def _version(found: "ModelVersion") -> Version:
    tags = {str(key): str(value) for key, value in found.tags.items()}
    return Version(str(found.version), str(found.source), tags, found.run_id or None)


@dataclass
class _Sent:
    """How far the spool was sent."""

    offsets: dict[str, int] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Line:
    """A line of the spool: its file, the offset behind it, when it was written, and the event, if it is one."""

    file: str
    end: int
    time: int
    event: dict[str, Any] | None


def destination(place: Place, store: Path) -> Destination | None:
    """Where the place wants runs tracked. Raises ConfigError for what MLflow 3 no longer takes."""
    uri = place.tracking.mlflow_uri
    if uri is not None and uri.lower() == NO_TRACKING:
        return None
    if uri is None:
        # The folder is made with the first event: a dry run leaves nothing behind.
        folder = store / "tracking"
        return Destination(
            f"sqlite:///{folder / 'mlflow.db'}", place.tracking.experiment, (folder / "artifacts").as_uri()
        )
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise ConfigError(
            "the MLflow database has a relative path",
            where="tracking.mlflow_uri",
            expected="sqlite:////absolute/path/mlflow.db: workers have another working directory",
            found=uri,
        )
    if "://" not in uri or uri.startswith("file:"):
        raise ConfigError(
            "MLflow 3 no longer keeps runs in plain directories",
            where="tracking.mlflow_uri",
            expected=f"http(s)://..., sqlite:////absolute/path/mlflow.db, {NO_TRACKING}, or null for the store's own",
            found=uri,
        )
    return Destination(uri, place.tracking.experiment, None)


def spool_directory(store: Path) -> Path:
    """Where the events of a store's runs lie."""
    return store / "tracking" / "spool"


def run_id(directory: Path, run: str) -> str | None:
    """The id that MLflow gave to a run, if it was sent."""
    return _read_sent(directory).runs.get(run)


def has_pending(directory: Path) -> bool:
    """Whether the spool holds events that were not sent."""
    sent = _read_sent(directory)
    return any(path.stat().st_size > sent.offsets.get(path.name, 0) for path in directory.glob("*.jsonl"))


def send_pending(directory: Path, destination: Destination) -> bool:
    """Send all events that were not yet sent; True if none is left. Never raises: a failure is logged and kept."""
    try:
        with _only_sender(directory) as alone:
            if not alone:
                return False
            sent = _read_sent(directory)
            pending = list(_pending(directory, sent))
            if pending:
                _send(pending, destination, sent, directory)
            return True
    except Exception as error:  # noqa: BLE001 - the promise: no failure of MLflow, of whatever kind, stops a run
        log.warning("tracking: could not be sent now (%s: %s); kept for the next run", type(error).__name__, error)
        return False


def _send(pending: list[_Line], where: Destination, sent: _Sent, directory: Path) -> None:
    client = _client(where.uri)
    experiment_id = _experiment(client, where)
    for start in range(0, len(pending), _BATCH):
        batch = pending[start : start + _BATCH]
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


def _refusal(client: "MlflowClient", experiment_id: str, events: list[dict[str, Any]], sent: _Sent) -> str | None:
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


def _forget(event: dict[str, Any], sent: _Sent) -> None:
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


def _send_metrics(client: "MlflowClient", experiment_id: str, events: list[dict[str, Any]], sent: _Sent) -> None:
    from mlflow.entities import Metric  # noqa: PLC0415

    by_run: dict[str, list[Metric]] = {}
    for event in events:
        metrics = [Metric(key, value, event["time"], event["step"]) for key, value in event["values"].items()]
        by_run.setdefault(_run(client, experiment_id, event["run"], sent), []).extend(metrics)
    for run, metrics in by_run.items():
        for start in range(0, len(metrics), 1000):
            client.log_batch(run, metrics=metrics[start : start + 1000])


def _send_event(client: "MlflowClient", experiment_id: str, event: dict[str, Any], sent: _Sent) -> None:
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


def _send_model(client: "MlflowClient", experiment_id: str, run: str, event: dict[str, Any], sent: _Sent) -> None:
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


def _run(client: "MlflowClient", experiment_id: str, key: str, sent: _Sent) -> str:
    """The MLflow run of a key: known, found by its tag, or made."""
    if key not in sent.runs:
        found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, tags={KEY_TAG: key})
        sent.runs[key] = run.info.run_id
    return sent.runs[key]


def _pending(directory: Path, sent: _Sent) -> Iterator[_Line]:
    """Lines that were not sent, oldest first. A torn last line waits."""
    lines = []
    for path in directory.glob("*.jsonl"):
        with path.open("rb") as file:
            offset, moment = sent.offsets.get(path.name, 0), 0
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                event = _event(line)
                if event is None:
                    log.warning("tracking: a line of %s is no event and is skipped", path)
                moment = event["time"] if event else moment
                lines.append(_Line(path.name, offset, moment, event))
    # Stable: lines of one file keep their order, so that its offset only grows.
    return iter(sorted(lines, key=lambda line: line.time))


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a whole line; None for what a writer left that was cut off, together with what came after it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"run", "time", "type"} <= set(event) else None


def _read_sent(directory: Path) -> _Sent:
    try:
        return _Sent(**json.loads((directory / "sent.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return _Sent()


@contextmanager
def _only_sender(directory: Path) -> Iterator[bool]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "sending.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _key(name: str) -> str:
    """The name of a metric or parameter in the letters that MLflow takes."""
    return re.sub(r"[^\w.\- ]", "_", name)[:MAX_KEY]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
