"""What a model costs. The figures lie in `prices.yaml`, dated; a place can name another file (`api.prices`)."""

from dataclasses import dataclass
from pathlib import Path

from ucotron_ray.core.config import read_yaml
from ucotron_ray.core.errors import ConfigError

_PER = 1_000_000

BATCH_SHARE = 0.5
"""Of the online price, for what is asked in a batch (docs, guides/batch-inference)."""


@dataclass(frozen=True)
class Price:
    """Dollars per million tokens."""

    input: float
    cached_input: float
    output: float

    def cost(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> float:
        """Dollars for one request."""
        fresh = max(0, prompt_tokens - cached_tokens)
        return (fresh * self.input + cached_tokens * self.cached_input + completion_tokens * self.output) / _PER


def date_of(file: Path | None = None) -> str:
    """The day of which the prices are."""
    return str(read_yaml(file or _default()).get("date", "undated"))


def training_price(billions: float, method: str, file: Path | None = None) -> float | None:
    """Dollars per million training tokens for a base model of so many parameters; None where the file has none."""
    for entry in read_yaml(file or _default()).get("training") or []:
        try:
            if billions <= float(entry["up_to_billion"]):
                return float(entry[method])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "a training price cannot be read",
                where=str(file or _default()),
                expected="{up_to_billion, sft, dpo}",
                found=str(entry),
            ) from error
    return None


def price_of(model: str, file: Path | None = None) -> Price | None:
    """The price of a model, or None where the file does not have it. Raises ConfigError if the file cannot be used."""
    path = file or _default()
    models = read_yaml(path).get("models")
    if not isinstance(models, dict):
        raise ConfigError("the price file has no `models`", where=str(path), expected="models: {NAME: {input, output}}")
    entry = models.get(model)
    if entry is None:
        return None
    try:
        numbers = {key: float(entry[key]) for key in ("input", "output")}
        cached = float(entry.get("cached_input", numbers["input"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"the price of '{model}' cannot be read",
            where=str(path),
            expected="{input, output} and perhaps cached_input: dollars per million tokens",
            found=str(entry),
        ) from error
    if min(*numbers.values(), cached) < 0:
        raise ConfigError(f"the price of '{model}' is negative", where=str(path), found=str(entry))
    return Price(numbers["input"], cached, numbers["output"])


def _default() -> Path:
    return Path(__file__).with_name("prices.yaml")
