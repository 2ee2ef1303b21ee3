"""Everything that this application raises on purpose.

    UcotronRayError                       exit code
    ├── UserError                         2    nothing was started, nothing was paid
    │   ├── ConfigError (ValueError)           a recipe, a place, a flag or a variable
    │   ├── InputError (ValueError)            a data file, a graph, a model directory
    │   ├── MissingPackage                     an installation that lacks something
    │   ├── MissingArtifact                    a name that the store does not have
    │   ├── ServerRefused                      a Ucotron server that says no
    │   └── ResourceError                      a cluster that is too small for what was asked
    ├── ArtifactError
    │   ├── RecipeChanged                 3    it would overwrite what another recipe made
    │   └── CorruptArtifact               1    bytes differ from the manifest
    ├── FireworksError                    1    the vendor refused a request, or never answered it
    │   ├── AuthError                     2    it does not take the key, or not for this account
    │   ├── NotFoundError                 2    it has no such job, dataset or model
    │   └── RateLimitError                75   it said «too many» until we gave up
    ├── RemoteJobFailed                   1    a job that ended as failed, cancelled, expired or stopped early
    ├── StageFailed                       1    a stage ended without its artifact
    │   └── LossNotFinite                      a training that has left the numbers
    ├── GateFailed                        1    a measured value misses its threshold
    └── Stopped                           75   stopped before the end; the same command goes on

All are picklable, since Ray moves them between processes.
"""

from typing import Any


class UcotronRayError(Exception):
    """A problem, and, where they help: where it is, what was expected, what was found, and what to do next."""

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.expected = expected
        self.found = found
        self.next_step = next_step

    def __str__(self) -> str:
        lines = [self.problem]
        parts = (
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("next step", self.next_step),
        )
        lines.extend(f"  {name + ':':<11}{text}" for name, text in parts if text is not None)
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their positional arguments; ours are keyword-only.
        return rebuilt, (type(self), self.problem, self.details())

    def details(self) -> dict[str, str | None]:
        """All of it but the problem."""
        return {name: getattr(self, name) for name in ("where", "expected", "found", "next_step")}


def rebuilt(kind: type[UcotronRayError], problem: str, keywords: dict[str, str | None]) -> UcotronRayError:
    """An error of a class with its details, as another process has it."""
    return kind(problem, **keywords)


class UserError(UcotronRayError):
    """A mistake of the user's, found before anything was started."""

    exit_code = 2


class ConfigError(UserError, ValueError):
    """A recipe, a place, a flag or an environment variable that cannot be used."""


class InputError(UserError, ValueError):
    """A data file, a graph or a model directory that cannot be used."""


class MissingPackage(UserError):
    """A Python package that this command needs is not installed."""


class MissingArtifact(UserError):
    """The store has no artifact of that kind and name."""


class ServerRefused(UserError):
    """A Ucotron server that cannot be reached or refuses the request."""


class ResourceError(UserError):
    """The cluster can never hold what was asked for."""


class ArtifactError(UcotronRayError):
    """Something is wrong with a stored artifact."""


class RecipeChanged(ArtifactError):
    """An artifact of this name exists and was made by another recipe."""

    exit_code = 3


class CorruptArtifact(ArtifactError):
    """The bytes of an artifact are not those that its manifest lists."""


class FireworksError(UcotronRayError):
    """The vendor refused a request, or never answered it (`status_code` None)."""

    status_code: int | None = None
    retry_after: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"status_code": self.status_code, "retry_after": self.retry_after}


class AuthError(FireworksError):
    """401, 403: the vendor does not take the key, or not for this account. 402, 412: its billing is stopped."""

    exit_code = 2


class NotFoundError(FireworksError):
    """404: the vendor has no such job, dataset or model."""

    exit_code = 2


class RateLimitError(FireworksError):
    """429 until we gave up: a rate, or a quota of the account."""

    exit_code = 75


class RemoteJobFailed(UcotronRayError):
    """A remote job that ended otherwise than completed."""


class StageFailed(UcotronRayError):
    """A stage ended without its artifact."""


class LossNotFinite(StageFailed):
    """A loss or a weight is NaN or infinite. All workers of a training see it at the same step."""


class GateFailed(UcotronRayError):
    """A measured value misses its threshold."""


class Stopped(UcotronRayError):
    """Stopped before the end. The same command goes on from here."""

    exit_code = 75
