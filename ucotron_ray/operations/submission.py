"""Everything that is checked and decided before a job leaves this machine. Starts nothing, connects to nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.operations import environment, package
from ucotron_ray.operations.jobs import entrypoint, run_id

VERBS = (
    "import-graph",
    "synthesize",
    "sft",
    "dpo",
    "tune",
    "projection",
    "evaluate",
    "compare",
    "export",
    "serve",
    "pipeline",
)
"""Verbs that are jobs: each has an entrypoint in jobs/."""

STOP_SECONDS = "30"
"""Between SIGTERM and SIGKILL at `ray job stop`. Ray gives 3 s (`job_supervisor.py`), too little for a checkpoint."""


@dataclass(frozen=True)
class Options:
    """What the command line says of a submission, beside the job's own arguments."""

    runtime_env: Path | None
    variables: Sequence[str]
    include: Sequence[str]
    working_dir: str | None
    python: str


@dataclass(frozen=True)
class Submission:
    """What is about to be submitted. `files` is None where the nodes have the code already."""

    run: str
    arguments: list[str]
    command: str
    root: Path
    files: list[package.PackedFile] | None
    runtime_env: dict[str, Any]

    @property
    def digest(self) -> str:
        """What the package holds, as one hash."""
        return package.digest(self.files or [])

    def shown(self) -> str:
        """The size table, for a person."""
        return package.size_table(self.files) if self.files else "  nothing is uploaded: the nodes have the code"


def plan(root: Path, arguments: Sequence[str], options: Options) -> Submission:
    """Check everything that can be known here. Raises ConfigError; nothing was started then."""
    arguments = list(arguments)
    if not arguments or arguments[0] not in VERBS:
        raise ConfigError(
            "what shall be submitted?",
            expected=f"submit [options] VERB [flags of the verb], VERB one of {', '.join(VERBS)}",
            found=arguments[0] if arguments else "no verb",
        )
    environment.check_arguments(arguments)
    runtime_env = environment.read(options.runtime_env, options.variables, options.working_dir)
    files = None
    if "working_dir" not in runtime_env:
        root = package.project_root(root)
        files = package.collect(root, [*options.include, *package.named_files(arguments)])
        package.refuse_left_behind(root, arguments, files)
        package.check_size(files)
    env_vars = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS, **runtime_env.get("env_vars", {})}
    runtime_env = {**runtime_env, "env_vars": env_vars}
    command = entrypoint(options.python, arguments)
    run = run_id(arguments[0], [command], package.digest(files or []), runtime_env)
    return Submission(run, arguments, command, root, files, runtime_env)


def check_store(store: str) -> Path:
    """The job's store. Raises ConfigError for a relative one: Ray deletes a job's directory after it."""
    path = Path(store).expanduser()
    if not path.is_absolute():
        raise ConfigError(
            "the store must be an absolute path in a submitted job",
            where="store",
            expected="an absolute path that all nodes share",
            found=store,
            next_step="add --set store=/absolute/path after the verb, or put it into the place file",
        )
    return path
