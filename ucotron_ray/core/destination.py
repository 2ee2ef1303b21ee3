"""Where the runs of a store are tracked."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ucotron_ray.core import redaction
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.place import Place

NO_TRACKING = "none"


@dataclass(frozen=True)
class Destination:
    """An MLflow server or database."""

    uri: str
    experiment: str
    artifact_location: str | None

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        return redaction.in_places(self.uri)


def destination(place: Place, store: Path) -> Destination | None:
    """Where the place wants runs tracked. Raises ConfigError for what MLflow 3 no longer takes."""
    uri = place.tracking.mlflow_uri
    if uri is not None and uri.lower() == NO_TRACKING:
        return None
    if uri is None and importlib.util.find_spec("mlflow") is None:
        # Nobody asked for it, and a node without the extra `track` has it not; `doctor` says so.
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
    if uri.lower().startswith("databricks"):
        raise ConfigError(
            "a Databricks workspace is no MLflow server that this application logs to",
            where="tracking.mlflow_uri",
            expected=f"http(s)://..., sqlite:////absolute/path/mlflow.db, {NO_TRACKING}, or null for the store's own",
            found=uri,
            next_step="leave it null, and copy the store's runs to the workspace (mlflow-export-import)",
        )
    if "://" not in uri or uri.startswith("file:"):
        raise ConfigError(
            "MLflow 3 no longer keeps runs in plain directories",
            where="tracking.mlflow_uri",
            expected=f"http(s)://..., sqlite:////absolute/path/mlflow.db, {NO_TRACKING}, or null for the store's own",
            found=uri,
        )
    return Destination(uri, place.tracking.experiment, None)
