"""The environment's variables, and the keys that they or files of their owner hold. Values are never printed."""

import os
from pathlib import Path

from ucotron_ray.core.errors import ConfigError

VARIABLES = {
    "FIREWORKS_API_KEY": "key for synthesis and remote fine-tuning at Fireworks.ai",
    "FIREWORKS_ACCOUNT_ID": "account for remote fine-tuning jobs",
    "WANDB_API_KEY": "optional experiment tracking at Weights & Biases",
    "UCOTRON_SERVER_URL": "live Ucotron server",
    "UCOTRON_API_KEY": "key for the Ucotron server",
    "UCOTRON_NAMESPACE": "namespace on the Ucotron server",
}
"""The guide's environment variables. Their values are never printed."""

VARIABLE_DEFAULTS = {"UCOTRON_SERVER_URL": "http://localhost:8420", "UCOTRON_NAMESPACE": "default"}


def value(name: str) -> str | None:
    """The value of an environment variable of the guide, its default, or None. Do not print it."""
    return os.environ.get(name) or VARIABLE_DEFAULTS.get(name)


def is_set(name: str) -> bool:
    """Whether the environment itself sets the variable."""
    return bool(os.environ.get(name))


def secret(variable_name: str | None, file: str | None) -> str | None:
    """A key, from a variable or from a file that only its owner can read; None if neither is named. Do not print it.

    Raises ConfigError with the name of what is missing, never with a value.
    """
    if file is not None:
        path = Path(file).expanduser()
        try:
            mode = path.stat().st_mode & 0o077
            if mode:
                raise ConfigError(
                    "others can read the key file", where=str(path), expected="mode 0600", next_step=f"chmod 600 {path}"
                )
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError("the key file cannot be read", where=str(path), next_step="check the path") from None
        if not key.isprintable():
            # In a header it would be an error whose message is the key.
            raise ConfigError("the key file holds more than a key", where=str(path), expected="the key, on one line")
        return key or None
    if variable_name is None:
        return None
    found = os.environ.get(variable_name, "").strip()
    if not found or not found.isprintable():
        raise ConfigError(
            f"the environment variable {variable_name} is not set",
            expected=f"{variable_name}: {VARIABLES.get(variable_name, 'the key that api.key_variable names')}",
            next_step=f"export {variable_name}=... and run the same command again; to try without a key: "
            "ucotron-ray simulate-fireworks",
        )
    return found


def known_secrets() -> tuple[str, ...]:
    """The values of all variables that hold a key by their name, to be taken out of what is printed."""
    names = [name for name in os.environ if name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD"))]
    # Shorter ones would take words out of every line.
    return tuple(os.environ[name] for name in names if len(os.environ[name]) >= 8)
