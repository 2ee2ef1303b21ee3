"""The runtime environment of a job, checked before anything leaves this machine.

Ray takes any key in silence, and shows `env_vars`, the command and the metadata of a job to everybody who may ask.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ucotron_ray.core import config, redaction
from ucotron_ray.core.errors import ConfigError

KNOWN = (
    "conda",
    "config",
    "container",
    "env_vars",
    "excludes",
    "image_uri",
    "pip",
    "py_executable",
    "py_modules",
    "uv",
    "worker_process_setup_hook",
    "working_dir",
)
"""The public keys of a runtime environment (ray 2.60, `runtime_env/runtime_env.py`)."""

KNOWN_CONFIG = ("eager_install", "log_files", "setup_timeout_seconds")


def read(file: Path | None, variables: Sequence[str], working_dir: str | None) -> dict[str, Any]:
    """The runtime environment of a file, with `NAME=VALUE` variables added. Raises ConfigError for what Ray lets pass.

    `excludes` are dropped: the package is made from a list of what goes along. `working_dir` may only be a directory
    that the nodes have (`local:///app`).
    """
    found = config.read_yaml(file) if file else {}
    where = str(file) if file else "--env"
    _refuse_unknown(found, KNOWN, where)
    settings = found.get("config") or {}
    if isinstance(settings, dict):
        _refuse_unknown(settings, KNOWN_CONFIG, f"{where}, config")
    added = dict(_pair(text) for text in variables)
    env_vars = {**(found.get("env_vars") or {}), **added}
    check_variables(env_vars, where=where)
    directory = working_dir or found.get("working_dir")
    if directory is not None and not str(directory).startswith("local:///"):
        raise ConfigError(
            "working_dir is made by this command",
            where=where,
            expected="none, or local:///PATH of a directory that every node has",
            found=str(directory),
        )
    kept = {key: value for key, value in found.items() if key not in ("excludes", "working_dir", "env_vars")}
    return {**kept, **({"env_vars": env_vars} if env_vars else {}), **({"working_dir": directory} if directory else {})}


def check_variables(env_vars: Mapping[str, Any], *, where: str) -> None:
    """Refuse values that are no text, and what looks like a secret by name or value. Never says the value."""
    for name, value in env_vars.items():
        if not isinstance(value, str):
            raise ConfigError(
                f"the variable {name} is no text", where=where, expected='a string, such as "1"',
                found=type(value).__name__,
            )  # fmt: skip
        if redaction.is_secret_name(str(name)) or redaction.is_secret_value(value):
            raise ConfigError(
                f"{name} looks like a secret: Ray shows the variables of a job to everybody who may ask",
                where=f"{where}, env_vars",
                expected="secrets in the environment of the cluster's nodes, or in a file there with mode 0600",
                next_step=f"take {name} out, and set it where the nodes start (cluster/README.md)",
            )


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse a secret in the command itself, which Ray shows too."""
    kept = redaction.arguments(arguments)
    for number, argument in enumerate(arguments):
        if kept[number] != argument or redaction.is_secret_value(argument.rpartition("=")[2]):
            raise ConfigError(
                f"argument {number + 1} of the job looks like a secret: Ray shows the command of a job",
                where=argument.partition("=")[0] if "=" in argument else f"argument {number + 1}",
                expected="the name of a variable or of a file that holds it",
            )


def _refuse_unknown(found: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    unknown = sorted(str(key) for key in found if key not in known)
    if unknown:
        raise ConfigError(
            f"`{unknown[0]}` is no key of a runtime environment: Ray would pass over it in silence",
            where=where,
            expected=", ".join(known),
            found=", ".join(unknown),
        )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--env {name} cannot be read", expected="--env NAME=VALUE")
    return name, value
