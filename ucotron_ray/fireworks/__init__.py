"""The vendor: requests, datasets, jobs, prices, and a simulator. The guide's names can be imported from here.

    from ucotron_ray.fireworks import FireworksFineTuner, SftJobConfig, DpoJobConfig

Nothing is imported before it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucotron_ray.fireworks.fine_tuner import FireworksFineTuner
    from ucotron_ray.fireworks.tuning_jobs import DpoJobConfig, JobStatus, SftJobConfig

__all__ = ["DpoJobConfig", "FireworksFineTuner", "JobStatus", "SftJobConfig"]

_HOMES = {
    "FireworksFineTuner": "fine_tuner",
    "SftJobConfig": "tuning_jobs",
    "DpoJobConfig": "tuning_jobs",
    "JobStatus": "tuning_jobs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
