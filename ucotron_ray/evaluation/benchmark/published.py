"""What others published for a set, read from `published.yaml`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ucotron_ray.core import strict_yaml


class Published(BaseModel):
    """One figure of a paper or a release, as it stands there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    sets: list[str]
    """Layouts; none for a mean over other sets."""
    protocol: str
    measure: str
    f1: float = Field(ge=0, le=1)
    source: str = Field(min_length=1)


def published(layout: str | None = None, protocol: str | None = None) -> list[Published]:
    """The figures for a layout and a protocol, those that are a mean over several sets last; all without arguments."""
    text = (Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")
    entries: list[Any] = strict_yaml.read(text)
    found = [Published.model_validate(entry) for entry in entries]
    return [
        entry
        for entry in found
        if (layout is None or not entry.sets or layout in entry.sets) and protocol in (None, entry.protocol)
    ]
