"""Ray's job server. The module is imported after `address.authenticate_as_asked`: Ray reads its mode only once."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.operations.jobs import Job

Answer = TypeVar("Answer")


class JobServer:
    """The jobs of one cluster. Raises ConfigError for a token that it does not take, OSError if it does not answer."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Any = self._asking(lambda: JobSubmissionClient(address))

    def jobs(self) -> list[Job]:
        """All jobs that were submitted to it."""
        return [_job(details) for details in self._asking(self._client.list_jobs) if details.submission_id]

    def info(self, name: str) -> Job:
        """One job."""
        return _job(self._asking(lambda: self._client.get_job_info(name)))

    def logs(self, name: str) -> str:
        """The driver's output so far."""
        return str(self._asking(lambda: self._client.get_job_logs(name)))

    def submit(
        self,
        name: str,
        command: str,
        runtime_env: Mapping[str, Any],
        package: Path | None,
        *,
        metadata: Mapping[str, str],
        cpus: float,
    ) -> None:
        """Start a job of this id, with what lies in `package` as its working directory. The id must be new."""
        environment = dict(runtime_env)
        if package is not None:
            environment["working_dir"] = str(package)
        self._asking(
            lambda: self._client.submit_job(
                entrypoint=command,
                submission_id=name,
                runtime_env=environment,
                metadata=dict(metadata),
                entrypoint_num_cpus=cpus or None,
            )
        )

    def _asking(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except AuthenticationError as error:
            raise ConfigError(
                "the cluster does not take our token",
                where=self.address,
                expected="its token in RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
                next_step="copy the token of the cluster there, mode 0600 (cluster/README.md)",
            ) from error
        except RuntimeError as error:
            # The client says «Request failed with status code ...» so, for a job agent that is away as well.
            raise ConnectionError(str(error).splitlines()[0]) from error


def _job(details: Any) -> Job:
    status = getattr(details.status, "value", details.status)
    return Job(
        id=str(details.submission_id),
        status=str(status),
        exit_code=details.driver_exit_code,
        error_type=details.error_type,
        message=details.message or "",
    )
