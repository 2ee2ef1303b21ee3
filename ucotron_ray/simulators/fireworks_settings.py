"""How the simulator of the vendor behaves: latency, limits, faults, defects; and how its flags are read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.simulators import fireworks_defects as defects
from ucotron_ray.simulators.fireworks_control import ControlSettings
from ucotron_ray.simulators.fireworks_profiles import PROFILES

STAND_IN = "simulate-fireworks: a simulator of ucotron_ray, not Fireworks.ai; its answers are generated, not a model's"


TEACHER, EMBEDDER = "accounts/simulator/models/teacher", "accounts/simulator/models/embedder"


FAULTS = (
    "429", "429-retry-after", "500", "503", "529", "reset", "hang", "half", "malformed", "length", "refusal",
    "400", "401", "402", "403", "404",
)  # fmt: skip
"""What can go wrong on demand."""

STICKY = ("400", "malformed", "length", "refusal")
"""What a request gets at every attempt or at none; the others are drawn anew at each."""


@dataclass(frozen=True)
class Settings:
    """How the simulator behaves. Latency in seconds; limits per minute; shares of requests."""

    seed: int = 0
    latency: float = 0.0
    latency_p99: float | None = None
    faults: dict[str, float] = field(default_factory=dict)
    sticky: tuple[str, ...] = STICKY
    retry_after: str = "1"
    garbage: float = 0.03
    plant: dict[str, float] = field(default_factory=dict)
    """Share of the answers of the fitting kind that get a defect, by its name; the ledger knows which."""
    requests_per_minute: float | None = None
    generated_tokens_per_minute: float | None = None
    limit_moves: tuple[tuple[float, float], ...] = ()
    """At so many seconds after the first request, all limits become so many times what they were at the start."""
    completion_tokens: float | None = None
    """Mean of a lognormal draw that is reported as usage, as of a model that thinks first; None = the text's own."""
    models: tuple[str, ...] = (TEACHER, EMBEDDER)
    api_key: str | None = None
    refused_keys: tuple[str, ...] = ()
    profile: str | None = None
    """Another server whose habits it has, of `fireworks_profiles.py`."""
    ledger: Path | None = None
    control: ControlSettings = field(default_factory=ControlSettings)


def parse_shares(text: str, flag: str, names: Sequence[str]) -> dict[str, float]:
    """`429=0.05,reset=0.01` → shares, of names that there are. Raises ConfigError."""
    shares = {}
    for part in filter(None, text.split(",")):
        name, _, share = part.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if name not in names or not 0 <= value <= 1:
            raise ConfigError(
                f"{flag} {part} cannot be read",
                expected="NAME=SHARE with a share from 0 to 1, and NAME one of " + ", ".join(names),
                found=part,
            )
        shares[name] = value
    return shares


def parse_faults(text: str) -> dict[str, float]:
    """The shares of `--faults`. Raises ConfigError."""
    return parse_shares(text, "--faults", FAULTS)


def parse_plants(text: str) -> dict[str, float]:
    """The shares of `--plant`. Raises ConfigError."""
    return parse_shares(text, "--plant", defects.NAMES)


def parse_profile(name: str | None) -> str | None:
    """The server of `--profile`. Raises ConfigError."""
    if name is not None and name not in PROFILES:
        raise ConfigError("no such profile", where="--profile", expected="one of " + ", ".join(PROFILES), found=name)
    return name


def parse_moves(text: str) -> tuple[tuple[float, float], ...]:
    """`60:0.5,120:2` → at 60 s half of the limits, at 120 s twice as much. Raises ConfigError."""
    try:
        moves = [(float(at), float(factor)) for at, _, factor in (p.partition(":") for p in text.split(",") if p)]
    except ValueError as error:
        raise ConfigError(f"--limit-moves {text} cannot be read", expected="SECONDS:FACTOR,…") from error
    return tuple(sorted(moves))
