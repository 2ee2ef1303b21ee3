"""Variables of the processes that Ray starts for us. None of them is a secret: Ray shows what it is told to set."""

import os
from collections.abc import Mapping

from ucotron_ray.core.place import Place

VARIABLES = {
    # Each of these opens connections or files of its own that nobody asked for.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    # oneDNN keeps 1,024 kernels by default, one for each length of a batch and weight's shape, of 1 MB and more: the
    # demo's worker grew by 20 MB a step. A step has a dozen; making them anew costs nothing that could be measured.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    # The default of 2 s would hold every report back that long; each poll takes time from the workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1.0",
    # A sweep has its own record, TensorBoard files and MLflow runs.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A stopped trial that does not end by itself is killed after so many seconds; by default it is waited for.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "15",
    # How many trials may be starting; how many there are is the sweep's own business.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    # Since 2.60 a task without a GPU sees all of its node's, and torch would compute on them beside who holds them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


def forwarded(place: Place) -> dict[str, str]:
    """Settings of the shell that a worker needs too and that hold no secret.

    HF_TOKEN is none of them: Ray shows what it is told to set. A worker of our own cluster inherits it, one elsewhere
    has its node's, or reads the file that HF_TOKEN_PATH names. The same goes for a proxy with a password.
    """
    names = ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN_PATH", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if place.api.use_environment_proxy:
        proxies = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
        both = [name for upper in proxies for name in (upper, upper.lower())]
        found |= {name: os.environ[name] for name in both if "@" not in os.environ.get(name, "@")}
    return found


def set_own(values: Mapping[str, object]) -> None:
    """Set variables of this process, for libraries that ask for nothing else."""
    os.environ.update({name: str(value) for name, value in values.items()})
