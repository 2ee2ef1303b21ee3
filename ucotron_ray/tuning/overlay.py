"""`best.yaml`: the winners' settings as a recipe overlay, with the sweep that chose them."""

from collections.abc import Mapping
from typing import Any

import yaml

from ucotron_ray.tuning.record import Record

FILE = "best.yaml"


def overlay(
    record: Record, summary: Mapping[str, Any], *, recipe: str, checkpoints: Mapping[str, str]
) -> dict[str, Any]:
    """The overlay. `recipe` is the sweep's hash, `checkpoints` the content hash of each winner's adapter, by tier."""
    winners = summary["winners"]
    chosen: dict[str, Any] = {}
    if record.stage == "projection":
        chosen["projection"] = next(iter(winners.values()))["params"]
    else:
        chosen["training"] = {record.stage: {tier: won["params"] for tier, won in winners.items()}}
        # The numbers are those of these models. Preferences are trained on an adapter, which knows its own.
        if record.stage == "sft":
            models = {tier: {"local_model": record.tiers[tier].model} for tier in winners}
            chosen["models"] = {"fine_tuning": models}
        if len(winners) == 1:
            chosen = {"tier": next(iter(winners)), **chosen}
    metric = summary["metric"]
    said = {
        tier: {
            "trial": won["trial"],
            metric: won["value"],
            f"{metric}_low": won["low"],
            f"{metric}_high": won["high"],
            f"{metric}_mean": won["mean"],
            "step": won["step"],
            "seeds": won["seeds"],
            "checkpoint": checkpoints[tier],
        }
        for tier, won in winners.items()
    }
    tuned = {"stage": record.stage, "sweep": record.name, "recipe": recipe, "winners": said}
    return {**chosen, "tuned": tuned}


def text(made: Mapping[str, Any]) -> str:
    """As the file that `--recipe` and `--overlay` take."""
    head = (
        "# Chosen by a sweep, to be taken as it is: `ucotron-ray sft --recipe YOURS --overlay best.yaml`.\n"
        "# What stands in --set goes over it.\n"
    )
    return head + yaml.safe_dump(dict(made), sort_keys=False, allow_unicode=True)
