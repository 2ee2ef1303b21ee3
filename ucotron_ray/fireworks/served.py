"""Models behind an endpoint of the vendor's, asked and scored; adapters on a deployment for the time of the test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ucotron_ray.core.config import Config
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation import endpoint
from ucotron_ray.evaluation.endpoint import Asking
from ucotron_ray.evaluation.guide_prompts import guide_rows
from ucotron_ray.evaluation.stage import sampled
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks import deployments
from ucotron_ray.fireworks.account import Account
from ucotron_ray.fireworks.tuning_jobs import VENDOR_MODELS
from ucotron_ray.teacher.endpoint import Endpoint, endpoint_of


def asking(settings: Config, system_prompt: str | None, max_tokens: int, temperature: float) -> Asking:
    """How the place asks."""
    api = settings.place.api
    return Asking(system_prompt, max_tokens, temperature, api.timeout, api.max_retries, api.retry_delay)


def rows(settings: Config, file: Path | None, max_rows: int | None) -> list[RawRow]:
    """The rows of a held-out file, or the guide's five."""
    if file is None:
        return guide_rows()
    return sampled(jsonl.read_relations(file), max_rows, settings.recipe.evaluation.seed)


def tested(
    settings: Config, who: Account, models: Sequence[str], rows: Sequence[RawRow], asking: Asking, *, deploy: bool
) -> list[dict[str, Any]]:
    """The scores of every model on the same rows."""
    results = []
    for model in models:
        with _served(settings, who, model, deploy=deploy) as served:
            results.append({**endpoint.tested(served, rows, asking), "model": model})
    return results


def answers(
    settings: Config, who: Account, model: str, prompts: Sequence[str], asking: Asking, *, deploy: bool
) -> list[dict[str, Any]]:
    """Answers to prompts of the user's own."""
    system = [{"role": "system", "content": asking.system_prompt}] if asking.system_prompt else []
    turns = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
    with _served(settings, who, model, deploy=deploy) as served:
        replies = endpoint.replies(served, turns, asking)
    return [{"prompt": prompt, **endpoint.entry_of(reply)} for prompt, reply in zip(prompts, replies, strict=True)]


@contextmanager
def _served(settings: Config, who: Account, model: str, *, deploy: bool) -> Iterator[Endpoint]:
    """The endpoint of a model. An adapter is asked on a deployment: one that is there, or one that is made for this."""
    api = settings.place.api
    if "#" in model or model.startswith(VENDOR_MODELS):
        yield endpoint_of(api, model)
        return
    name = who.full_name("models", model)
    found = deployments.of_model(who, name)
    if found is None and deploy and control.call(who, "GET", name):
        made = deployments.deploy(who, name)
        try:
            polling = settings.place.polling
            deployments.wait_ready(who, made, interval=polling.interval, timeout=polling.timeout)
            yield endpoint_of(api, deployments.served_model(name, made))
        finally:
            deployments.take_down(who, made)
        return
    yield endpoint_of(api, deployments.served_model(name, found) if found else name)
