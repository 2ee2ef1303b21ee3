"""What all sections of recipe and place are made of: frozen, typed, unknown keys refused."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _no_bool(value: object) -> object:
    """`true` is no number, though Python counts with it."""
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
NonNegative = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Port = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=65535)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Url = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^https?://\S+$")]
Host = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[A-Za-z0-9.:\-]+$")]
# In capitals: a key that was written here by mistake is no such name, and is not looked for.
VariableName = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[A-Z_][A-Z0-9_]*$")]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class Sampling(Section):
    """Sampling parameters of one request."""

    temperature: Temperature
    max_tokens: Count
    top_p: Share | None = None


class TaskSettings(Section):
    """What the settings of every generator have."""

    target_samples: Count


class SampledTask(TaskSettings):
    """Settings of a generator with one kind of request."""

    temperature: Temperature
    max_tokens: Count
    top_p: Share | None = None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of sections with another one over it, key by key. `polling:` with nothing below it changes nothing."""
    both = dict(base)
    for key, value in over.items():
        old = both.get(key)
        if isinstance(old, dict) and value is None:
            continue
        both[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
