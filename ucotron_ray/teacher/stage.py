"""Whom the stages ask for rows, and what that costs."""

import logging
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.run import Run
from ucotron_ray.teacher import endpoint as endpoints
from ucotron_ray.teacher.check import check
from ucotron_ray.teacher.prices import Price, price_of

log = logging.getLogger(__name__)


@dataclass
class Teacher:
    """Whom to ask and what it costs; under `shared`, one governor with one budget for several tasks."""

    endpoint: endpoints.Endpoint
    price: Price | None
    judge_price: Price | None = None
    shared: "Shared | None" = None

    @property
    def dearest(self) -> Price | None:
        """The price by which requests are reserved, so that the budget holds for the judge's requests too."""
        if self.price is None or self.judge_price is None:
            return self.price
        pairs = zip(astuple(self.price), astuple(self.judge_price), strict=True)
        return Price(*(max(pair) for pair in pairs))


@dataclass
class Shared:
    """What the tasks of one `synthesize all` have in common: a ledger, what was spent before, and the governor."""

    invocation: str
    spent: float
    unsettled: float
    governor: Any = None
    """Begun by the first task that asks."""


def configured(run: Run) -> tuple[endpoints.Endpoint, Price | None]:
    """Whom to ask with which key, and the price; nobody is asked yet. Raises ConfigError."""
    endpoint = endpoints.endpoint_of(run.config.place.api, run.config.recipe.models.generation.model_id)
    return endpoint, _price(run, endpoint)


def checked(run: Run) -> Teacher:
    """The teacher and its price, asked for its models. Raises ConfigError or InputError: nothing was paid by then."""
    endpoint, price = configured(run)
    warning = check(endpoint, probe_timeout=run.config.place.api.timeout)
    if warning:
        log.warning("%s", warning)
    judge = run.config.recipe.generation.gate.judge.model_id
    if judge is None:
        return Teacher(endpoint, price)
    other = replace(endpoint, model=judge)
    warning = check(other, probe_timeout=run.config.place.api.timeout)
    if warning:
        log.warning("%s", warning)
    return Teacher(endpoint, price, _price(run, other))


def price_for(run: Run, model: str) -> Price | None:
    """The place's price of a model."""
    file = run.config.place.api.prices
    return price_of(model, Path(file) if file else None)


def _price(run: Run, endpoint: endpoints.Endpoint) -> Price | None:
    """The teacher's price. Raises ConfigError for a paid run without one, or a budget that cannot be kept."""
    price = price_for(run, endpoint.model)
    is_paid = endpoint.key_source is not None and not endpoint.is_local
    if price is None and (is_paid or run.config.place.api.max_usd is not None):
        raise ConfigError(
            f"no price is known for '{endpoint.model}'",
            where=run.config.place.api.prices or "ucotron_ray/teacher/prices.yaml",
            expected="an entry {input, cached_input, output} in dollars per million tokens",
            next_step="copy that file, add the model, and name the copy with --set api.prices=FILE",
        )
    return price
