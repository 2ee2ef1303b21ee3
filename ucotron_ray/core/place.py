"""The place: where a run happens, a class a section. Nothing in it changes the result.

What the values mean stands beside their defaults, in `defaults.yaml`.
"""

import re
from datetime import date
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from ucotron_ray.core.sections import Count, Host, NonNegative, Port, Positive, Section, Text, Url, VariableName

HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]

OWN_HEADERS = ("authorization", "content-type", "content-length", "host", "cookie", "proxy-authorization")
OWN_BODY_KEYS = {
    "model": "models.generation.model_id",
    "messages": "the generator",
    "stream": "this application, which reads whole answers",
    "n": "this application, which asks for one answer",
    "seed": "generation.seed",
    "temperature": "the generator's settings",
    "top_p": "the generator's settings",
    "max_tokens": "the generator's settings and api.hidden_tokens",
    "max_completion_tokens": "the generator's settings and api.hidden_tokens",
    "response_format": "the generator",
    "context_length_exceeded_behavior": "this application",
    "reasoning_effort": "api.reasoning_effort",
}
"""Keys of a request that something else sets, and what."""

SECRET_NAME = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)


def _checked_headers(headers: dict[str, "FromVariable | str"]) -> dict[str, "FromVariable | str"]:
    for name, value in headers.items():
        if name.lower() in OWN_HEADERS:
            raise ValueError(f"other headers than {name}: keys by api.key_variable or api.key_file")
        if isinstance(value, str) and SECRET_NAME.search(name):
            raise ValueError(f"the name of a variable, for a secret: {{{name}: {{variable: NAME_OF_THE_VARIABLE}}}}")
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise ValueError(f"a text of one line in ASCII for {name}")
    return headers


def _checked_query(query: dict[str, str]) -> dict[str, str]:
    secret = next(filter(SECRET_NAME.search, query), None)
    if secret is not None:
        raise ValueError(f"no secret in an address: '{secret}' as a header, by api.headers or api.key_variable")
    return query


def _checked_body(body: dict[str, Any]) -> dict[str, Any]:
    for key in body:
        if key in OWN_BODY_KEYS:
            raise ValueError(f"other keys than `{key}`, which is set by {OWN_BODY_KEYS[key]}")
    return body


def _checked_proxy(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("http://HOST:PORT: a proxy is spoken to in HTTP, and what goes through it is encrypted")
    if parts.password not in (None, "***"):
        raise ValueError("http://USER@HOST:PORT, and the password in the variable of api.proxy_password_variable")
    return url.replace(":***@", "@")


def _as_text(value: object) -> object:
    """`2024-10-21` is a date in YAML, and a version here."""
    return str(value) if isinstance(value, int | float | date) and not isinstance(value, bool) else value


class FromVariable(Section):
    """A value that is kept in a variable of the environment."""

    variable: VariableName


class Api(Section):
    """The vendor's addresses and retry rules. `extra_body` and `reasoning_effort` change what is answered."""

    fine_tuning_base_url: Url
    inference_base_url: Url
    inference_base_urls: list[Url]
    timeout: Positive
    max_retries: NonNegative
    retry_delay: Positive
    key_variable: VariableName | None
    key_file: Text | None
    allowed_hosts: list[Host]
    dialect: Literal["auto", "fireworks", "openai", "openai-reasoning", "plain"]
    headers: Annotated[dict[HeaderName, FromVariable | Text], AfterValidator(_checked_headers)]
    query: Annotated[dict[str, Annotated[str, BeforeValidator(_as_text)]], AfterValidator(_checked_query)]
    extra_body: Annotated[dict[str, Any], AfterValidator(_checked_body)]
    reasoning_effort: Text | None
    hidden_tokens: NonNegative | None
    proxy: Annotated[Url, AfterValidator(_checked_proxy)] | None
    proxy_password_variable: VariableName | None
    use_environment_proxy: bool
    ca_file: Text | None
    client_certificate: Text | None
    client_key: Text | None
    prices: Text | None
    connect_timeout: Positive
    total_timeout: Positive
    max_in_flight: Count
    first_in_flight: Count
    requests_per_minute: Positive | None
    prompt_tokens_per_minute: Positive | None
    generated_tokens_per_minute: Positive | None
    give_up_after: Positive
    max_usd: Annotated[float, Field(ge=0)] | None
    """Hard budget in dollars: nothing is sent that could pass it; null = none."""
    max_rounds: Count
    """Rounds of further samples for those that were not accepted."""
    max_failures_of_a_prompt: Count
    """Rounds without an answer, while others get one, after which a prompt is set aside and replaced."""
    num_actors: Count


class Output(Section):
    """The guide's section: where rows lie, and what a remote model is called."""

    data_dir: Text
    model_dir: Text
    """Of the guide's files, and read by nothing: copies go where `--output-dir` says."""
    model_name_template: Text


class Polling(Section):
    """Waiting for remote jobs."""

    interval: Positive
    """Seconds between two looks at a job."""
    timeout: Annotated[float, Field(ge=0)]
    """Seconds until a job is left to itself (exit 75); 0 = no limit."""
    verbose: bool


class Tracking(Section):
    """MLflow, and optionally Weights & Biases (`enabled`, `wandb_project`)."""

    enabled: bool
    wandb_project: str | None
    """Project at Weights & Biases; the flag switches tracking there on. The key is in WANDB_API_KEY."""
    mlflow_uri: str | None
    experiment: Text
    registry_uri: str | None
    """MLflow server or database that has the versions; null = mlflow_uri."""
    registered_model: Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^([^'\"/:{}]|\{tier\})+$")]
    """Name of the registered model."""


class RayPlace(Section):
    """The cluster."""

    address: str | None
    num_cpus: Count | None
    temp_dir: str | None
    dashboard: bool
    object_store_mb: Annotated[int, Field(ge=80)]
    wait_for_nodes: Annotated[float, Field(ge=0)]


class Workers(Section):
    """How much of the cluster a stage takes, and how it fills it."""

    num_workers: Count
    cpus_per_worker: Positive | None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None
    per_device_batch: Count | None
    max_tokens_per_microbatch: Count
    eval_batch: Count
    dtype: Literal["auto", "bfloat16", "float32"]
    memory_gb: Positive | None
    gradient_checkpointing: bool | None
    attention: Literal["auto", "sdpa", "flash_attention_2"]
    shard_base: bool
    compile: bool
    liger: bool
    max_failures: NonNegative


class Serving(Section):
    """The endpoint that the Ucotron server calls."""

    host: Text
    """Address to listen on, 127.0.0.1 unless given; any other than loopback needs a key."""
    port: Port
    """Port to listen on, 8000 unless given."""
    key_variable: VariableName | None
    """Variable with the key that is required as bearer token; null = nobody is asked for one."""
    backend: Literal["auto", "onnx", "transformers"]
    variant: Literal["fp32", "int8", "int4"]
    """Which graph of the bundle answers, fp32 unless given."""
    decoding: Literal["auto", "free", "entities", "vocabulary"]
    num_replicas: Count
    """Processes that hold the model, 1 unless given."""
    cpus_per_replica: Positive | None
    gpus_per_replica: Annotated[float, Field(ge=0)] | None
    max_batch: Count
    max_queue: NonNegative
    deadline: Annotated[float, Field(gt=0, lt=29)]
    """Serve's proxy cuts at 29.5 s, before the Ucotron server gives up: our own answer has to be there by then."""
    max_body_kb: Count
    max_prompt_tokens: Count
    max_tokens: Annotated[Count, Field(ge=512)]
    """`wire.SERVER_MAX_TOKENS` at least: with less, every request of the Ucotron server would get 400."""
    drain: Annotated[float, Field(ge=0)]
    watch: Positive


class TrialShare(Section):
    """What one trial of a tier holds, and how many there are at once. null = what `workers` says; as many as fit."""

    num_workers: Count | None
    cpus_per_worker: Positive | None
    gpus_per_worker: Annotated[float, Field(ge=0)] | None
    at_once: Count | None


class Trials(Section):
    """The trials of a sweep. Tiers come one after the other, or `side_by_side`, each within its own share."""

    slm: TrialShare
    small: TrialShare
    medium: TrialShare
    projection: TrialShare
    side_by_side: bool


class Place(Section):
    """Where a run happens. Nothing in it changes the result."""

    store: Text
    ray: RayPlace
    workers: Workers
    serving: Serving
    trials: Trials
    api: Api
    output: Output
    polling: Polling
    tracking: Tracking
