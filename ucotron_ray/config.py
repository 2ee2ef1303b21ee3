"""Recipe (what) and Place (where): typed, frozen, unknown keys refused. Secrets by the names of their variables only.

The values come from `defaults.yaml`, then the recipe file, the place file and `--set`, each over the ones before.
This is the only module that reads the environment, but for `session.py`.
"""

import difflib
import os
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from ucotron_ray import strict_yaml
from ucotron_ray.errors import ConfigError

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _no_bool(value: object) -> object:
    """`true` is no number, though Python counts with it."""
    if isinstance(value, bool):
        raise ValueError("a number, not true or false")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
NonNegative = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Url = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^https?://\S+$")]
Host = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[A-Za-z0-9.:\-]+$")]
# In capitals: a key that was written here by mistake is no such name, and is not looked for.
VariableName = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[A-Z_][A-Z0-9_]*$")]
Tier = Literal["slm", "small", "medium"]

VARIABLES = {
    "FIREWORKS_API_KEY": "key for synthesis and remote fine-tuning at Fireworks.ai",
    "FIREWORKS_ACCOUNT_ID": "account for remote fine-tuning jobs",
    "WANDB_API_KEY": "optional experiment tracking at Weights & Biases",
    "UCOTRON_SERVER_URL": "live Ucotron server",
    "UCOTRON_API_KEY": "key for the Ucotron server",
    "UCOTRON_NAMESPACE": "namespace on the Ucotron server",
}
"""The guide's environment variables. Their values are never printed."""

VARIABLE_DEFAULTS = {"UCOTRON_SERVER_URL": "http://localhost:8420", "UCOTRON_NAMESPACE": "default"}

WHERE_SECTIONS = ("api", "output", "polling", "tracking")
"""Sections that may stand in a recipe (existing files have them there) or in a place, and are never hashed."""


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class GenerationModel(Section):
    """The teacher."""

    model_id: Text
    display_name: str | None = None
    use_case: str | None = None


class TierModel(Section):
    """One model tier: the vendor's id, and what trains locally."""

    model_id: Text
    display_name: str | None = None
    params: str | float | None = None
    use_case: str | None = None
    local_model: Text


class TierModels(Section):
    """The three tiers of the guide."""

    slm: TierModel
    small: TierModel
    medium: TierModel


class Models(Section):
    """Which models teach and which are trained."""

    generation: GenerationModel
    fine_tuning: TierModels


class LoraSettings(Section):
    """Hyperparameters of a LoRA training. All of them change the result."""

    epochs: Count
    learning_rate: Positive
    lora_rank: Count
    max_context_length: Annotated[int, Field(ge=128)]
    batch_size: Count | None
    lora_alpha: Count | None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Text | list[Text]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_ratio: Share
    lr_scheduler: Literal["linear", "cosine", "constant"]
    max_grad_norm: Positive
    max_rows: Count | None
    eval_rows: NonNegative
    eval_f1_rows: NonNegative
    eval_steps: Count | None
    save_steps: Count
    quantize: Literal["none", "nf4"]
    seed: NonNegative

    @property
    def global_batch(self) -> int:
        """Rows per optimizer step over all workers."""
        return self.batch_size or 16

    @property
    def alpha(self) -> int:
        """LoRA alpha; twice the rank unless given."""
        return self.lora_alpha or 2 * self.lora_rank


class SftSettings(LoraSettings):
    """Hyperparameters of supervised fine-tuning."""

    raw_share: Share


class OnPolicy(Section):
    """Rejected answers that the model itself gives. `max_tokens` of one answer."""

    samples: Count
    temperature: Annotated[float, Field(gt=0, le=2)]
    max_tokens: Count


class DpoSettings(LoraSettings):
    """Hyperparameters of preference training."""

    beta: Positive
    max_longer_share: Annotated[float, Field(ge=0.5, le=1)] | None
    on_policy: OnPolicy


class SftTiers(Section):
    """SFT per tier."""

    slm: SftSettings
    small: SftSettings
    medium: SftSettings


class DpoTiers(Section):
    """DPO per tier."""

    slm: DpoSettings
    small: DpoSettings
    medium: DpoSettings


class Training(Section):
    """Training stages."""

    sft: SftTiers
    dpo: DpoTiers
    preference_data: str | None
    dpo_max_f1_loss: Share


class Sampling(Section):
    """Sampling parameters of one request."""

    temperature: Temperature
    max_tokens: Count
    top_p: Share | None = None


class SampledTask(Section):
    """A generator with one kind of request."""

    temperature: Temperature
    max_tokens: Count
    top_p: Share | None = None
    target_samples: Count


class RelationTask(SampledTask):
    """Relation extraction: a text, then its relations. `relations` None = all twenty."""

    extract: Sampling
    relations: list[Text] | None = None


class PreferenceTask(Section):
    """Chosen and rejected answers."""

    chosen: Sampling
    rejected: Sampling
    target_samples: Count
    margin: Share


class ContradictionTask(SampledTask):
    """Pairs of facts: written, then read back."""

    read: Sampling


class EntityTask(SampledTask):
    """Pairs of names. `positive_share` is exact."""

    positive_share: Share


class PathTask(Section):
    """Paths through a graph: the graph of `graph.source`, or a generated one of so many nodes and edges."""

    target_samples: Count
    max_hops: Annotated[int, Field(ge=1, le=8)]
    max_paths: Count
    nodes: Annotated[int, Field(ge=2)]
    edges: Count


class Tasks(Section):
    """The six generators."""

    relation_extraction: RelationTask
    preference: PreferenceTask
    contradiction: ContradictionTask
    entity_resolution: EntityTask
    path_reward: PathTask
    projection: SampledTask


class Judge(Section):
    """A model that reads a sample of the rows and gives marks from 1 to 5. `model_id` None = nobody."""

    model_id: Text | None
    rows: Count
    temperature: Temperature
    max_tokens: Count


class Gate(Section):
    """Largest shares with which a dataset may be an input of a stage; above any of them it is `rejected`.

    `defects`: of the published rows that have the defect. `caught`: of the samples in which the checks found it and
    kept it out: a teacher that is wrong so often is wrong in ways that no check finds. The names of defects are those
    of `synthesis/rows.py`.
    """

    defects: dict[str, Share]
    caught: dict[str, Share]
    min_vocabulary: Share
    vocabulary_from_rows: Count
    min_judge_score: Annotated[float, Field(ge=1, le=5)]
    judge: Judge


class Generation(Section):
    """Synthesis settings."""

    defaults: Sampling
    tasks: Tasks
    seed: NonNegative
    val_ratio: Share
    near_duplicate: Annotated[float, Field(gt=0, le=1)]
    max_answer_tokens: Count
    in_pipeline: NonNegative
    preferences_in_pipeline: NonNegative
    licence: Text
    gate: Gate


class Graph(Section):
    """Training rows from a Ucotron knowledge graph."""

    source: str | None
    kind: Literal["export", "generate-dataset"]
    namespace: str | None
    all_namespaces: bool
    max_samples: Count
    train_ratio: Annotated[float, Field(gt=0, le=1)]
    min_relations: NonNegative
    max_text_length: Annotated[int, Field(ge=16)]
    seed: NonNegative


class Evaluation(Section):
    """Scoring."""

    data: str | None
    max_rows: Count | None
    raw_rows: NonNegative
    end_to_end_rows: NonNegative
    max_new_tokens: Count
    base: bool
    resamples: Count
    seed: NonNegative


class Export(Section):
    """What a bundle holds, and the gates that it has to pass."""

    opset: Annotated[int, Field(ge=14, le=20)]
    variants: list[Literal["int8", "int4"]]
    block: Literal[16, 32, 64, 128, 256]
    gguf: list[Literal["f16", "q8_0"]]
    decodings: list[Literal["free", "entities", "vocabulary"]]
    predicates: list[Text] | None
    parity_rows: Count
    parity_new_tokens: Count
    task_rows: Count
    task_new_tokens: Count
    max_logit_difference: Positive
    max_mean_logit_difference: Positive
    min_top1_agreement: Share
    min_greedy_match: Share
    min_int8_agreement: Share
    max_int8_f1_drop: Share
    max_int8_size: Share
    min_gguf_match: Share


class Promotion(Section):
    """What a bundle has to reach before the alias `champion` moves to it (reference §4.10). Shares from 0 to 1."""

    significance: Annotated[float, Field(gt=0, lt=1)]
    max_f1_loss: Share
    min_valid_answers: Share
    min_schema_answers: Share
    max_invented_gain: Share


class Projection(Section):
    """The cross-modal projection: which encoders make the pairs, and how the layer is trained on them."""

    clip: Text
    text: Text
    hidden_dim: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    epochs: Count
    batch_size: Count
    learning_rate: Positive
    lr_scheduler: Literal["cosine", "constant"]
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive | None
    patience: NonNegative
    noise: Annotated[float, Field(ge=0)]
    whiten: bool
    val_split: Annotated[float, Field(gt=0, lt=1)]
    test_split: Annotated[float, Field(gt=0, lt=1)]
    target: Positive
    opset: Annotated[int, Field(ge=17, le=20)]
    seed: NonNegative


class Span(Section):
    """Values between two bounds, evenly spread over their logarithms unless `log` is false."""

    low: Positive
    high: Positive
    log: bool = True


Choices = list[bool | int | float | str | None]


class Confirmation(Section):
    """The best trials of each tier again with other seeds: the best mean wins. `top` 0 = no such trials."""

    top: NonNegative
    seeds: list[NonNegative]


class Space(Section):
    """What is searched, by the name of the setting; an empty list = it stays what the recipe says."""

    sft: dict[str, Span | Choices]
    dpo: dict[str, Span | Choices]
    projection: dict[str, Span | Choices]


class Tuning(Section):
    """A sweep. Its time unit is the optimizer step."""

    tiers: list[Tier] | None
    search: Literal["grid", "random", "optuna"]
    trials: Count
    seed: NonNegative
    space: Space
    scheduler: Literal["asha", "none"]
    report_steps: Count | None
    grace_steps: Count | None
    reduction_factor: Annotated[int, Field(ge=2)]
    f1_rows: Count
    max_new_tokens: Count
    confirm: Confirmation


class Tuned(Section):
    """What a sweep says about the settings that it chose. Changes nothing: the settings themselves stand beside it."""

    stage: Literal["sft", "dpo", "projection"]
    sweep: Text
    recipe: Text
    winners: dict[str, dict[str, bool | int | float | str | list[int] | None]]


class Api(Section):
    """The vendor's addresses and retry rules."""

    fine_tuning_base_url: Url
    inference_base_url: Url
    timeout: Positive
    max_retries: NonNegative
    retry_delay: Positive
    key_variable: VariableName | None
    key_file: Text | None
    allowed_hosts: list[Host]
    dialect: Literal["auto", "fireworks", "openai", "plain"]
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
    max_rounds: Count
    num_actors: Count


class Output(Section):
    """Where copies go."""

    data_dir: Text
    model_dir: Text
    model_name_template: Text


class Polling(Section):
    """Waiting for remote jobs."""

    interval: Positive
    timeout: Annotated[float, Field(ge=0)]
    verbose: bool


class Tracking(Section):
    """MLflow, and optionally Weights & Biases (`enabled`, `wandb_project`)."""

    enabled: bool
    wandb_project: str | None
    mlflow_uri: str | None
    experiment: Text
    registry_uri: str | None
    registered_model: Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^'\"/:]+$")]


class Recipe(Section):
    """What a run makes."""

    tier: Tier
    models: Models
    training: Training
    generation: Generation
    graph: Graph
    evaluation: Evaluation
    export: Export
    promotion: Promotion
    projection: Projection
    tuning: Tuning
    tuned: Tuned | None

    @property
    def tier_model(self) -> TierModel:
        """The model of the chosen tier."""
        model: TierModel = getattr(self.models.fine_tuning, self.tier)
        return model

    @property
    def sft(self) -> SftSettings:
        """The SFT settings of the chosen tier."""
        settings: SftSettings = getattr(self.training.sft, self.tier)
        return settings

    @property
    def dpo(self) -> DpoSettings:
        """The DPO settings of the chosen tier."""
        settings: DpoSettings = getattr(self.training.dpo, self.tier)
        return settings


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
    tokens_per_step: Count
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
    port: Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=65535)]
    key_variable: VariableName | None
    backend: Literal["auto", "onnx", "transformers"]
    variant: Literal["fp32", "int8", "int4"]
    decoding: Literal["auto", "free", "entities", "vocabulary"]
    num_replicas: Count
    cpus_per_replica: Positive | None
    gpus_per_replica: Annotated[float, Field(ge=0)] | None
    max_batch: Count
    max_queue: NonNegative
    deadline: Annotated[float, Field(gt=0, lt=30)]
    max_body_kb: Count
    max_prompt_tokens: Count
    max_tokens: Count
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


class Config(Section):
    """A run: a recipe at a place."""

    recipe: Recipe
    place: Place


def load(
    *,
    recipe: Path | None = None,
    place: Path | None = None,
    overrides: Iterable[tuple[str, Any]] = (),
    overlays: Iterable[Path] = (),
) -> Config:
    """Read and check everything; `overlays` are further recipes, each over the ones before.

    Raises ConfigError that names the key, what was expected and what was found.
    """
    merged = read_yaml(Path(__file__).parent / "defaults.yaml")
    for file in (*filter(None, (recipe,)), *overlays):
        merged = _merge(merged, _checked_file(file, forbidden=PLACE_ONLY, home="a place file"))
    if place is not None:
        merged = _merge(merged, _checked_file(place, forbidden=RECIPE_ONLY, home="a recipe file"))
    for key, value in overrides:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _check_keys(nested, where=f"--set {key}")
        merged = _merge(merged, nested)
    return _validated(merged)


def with_overlay(config: Config, overlay: Mapping[str, Any]) -> Config:
    """The same configuration with some recipe settings over it, checked like a file's."""
    _check_keys(overlay, where="the overlay")
    return _validated(_merge({**config.recipe.model_dump(), **config.place.model_dump()}, overlay))


def parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value`, the value read as YAML. `2e-4` is a number here, as it is for everybody but YAML 1.1."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text} cannot be read",
            expected="--set section.key=value, for example --set training.sft.slm.epochs=1",
            found=text,
        )
    try:
        return key.strip(), strict_yaml.read(value) if value.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key} has a value that is no YAML", found=value) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError with the line if it cannot be read."""
    try:
        data = strict_yaml.read(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("the file does not exist", where=str(path), next_step="check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("the file is no readable YAML", where=str(path), found=str(error)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            "the file holds no sections",
            where=str(path),
            expected="a mapping of sections, such as `training:`",
            found=type(data).__name__,
        )
    return data


def variable(name: str) -> str | None:
    """The value of an environment variable of the guide, its default, or None. Do not print it."""
    return os.environ.get(name) or VARIABLE_DEFAULTS.get(name)


def is_set(name: str) -> bool:
    """Whether the environment itself sets the variable."""
    return bool(os.environ.get(name))


def secret(variable_name: str | None, file: str | None) -> str | None:
    """A key, from a variable or from a file that only its owner can read; None if neither is named. Do not print it.

    Raises ConfigError with the name of what is missing, never with a value.
    """
    if file is not None:
        path = Path(file).expanduser()
        try:
            mode = path.stat().st_mode & 0o077
            if mode:
                raise ConfigError(
                    "others can read the key file", where=str(path), expected="mode 0600", next_step=f"chmod 600 {path}"
                )
            return path.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            raise ConfigError("the key file cannot be read", where=str(path), next_step="check the path") from None
    if variable_name is None:
        return None
    value = os.environ.get(variable_name, "").strip()
    if not value or not value.isprintable():
        raise ConfigError(
            f"the environment variable {variable_name} is not set",
            expected=f"{variable_name}: {VARIABLES.get(variable_name, 'the key that api.key_variable names')}",
            next_step=f"export {variable_name}=... and run the same command again; to try without a key: "
            "ucotron-ray simulate-fireworks",
        )
    return value


def known_secrets() -> tuple[str, ...]:
    """The values of all variables that hold a key by their name, to be taken out of what is printed."""
    names = [name for name in os.environ if name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD"))]
    # Shorter ones would take words out of every line.
    return tuple(os.environ[name] for name in names if len(os.environ[name]) >= 8)


PLACE_ONLY = tuple(name for name in Place.model_fields if name not in WHERE_SECTIONS)
RECIPE_ONLY = tuple(Recipe.model_fields)


def _checked_file(path: Path, *, forbidden: tuple[str, ...], home: str) -> dict[str, Any]:
    data = read_yaml(path)
    misplaced = [key for key in data if key in forbidden]
    if misplaced:
        raise ConfigError(
            f"`{misplaced[0]}` does not belong into this file",
            where=str(path),
            expected=f"`{misplaced[0]}` in {home}: a recipe says what is made, a place says where",
            next_step=f"move `{misplaced[0]}` into {home}",
        )
    _check_keys(data, where=str(path))
    return data


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        # `polling:` with nothing below it leaves the section as it is.
        if isinstance(old, dict) and value is None:
            continue
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _validated(merged: Mapping[str, Any]) -> Config:
    data = {
        "recipe": {key: merged[key] for key in Recipe.model_fields},
        "place": {key: merged[key] for key in Place.model_fields},
    }
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:])
        raise ConfigError(
            f"`{key}` has a value that cannot be used",
            expected=first["msg"],
            found="something else; it is not shown, since it may be a key"
            if key.endswith("key_variable")
            else repr(first["input"]),
            next_step=f"correct `{key}` in the recipe, the place or --set"
            + (f"; {len(error.errors()) - 1} more value(s) are wrong too" if len(error.errors()) > 1 else ""),
        ) from error


def _check_keys(data: object, *, where: str, model: type[BaseModel] | None = None, prefix: str = "") -> None:
    """Refuse unknown keys, with the nearest known name. `model` None = the top level (recipe and place together)."""
    if not isinstance(data, dict):
        return
    fields = {**Recipe.model_fields, **Place.model_fields} if model is None else model.model_fields
    for key, value in data.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise ConfigError(
                f"`{prefix}{key}` is no known setting",
                where=where,
                expected=f"one of: {', '.join(sorted(fields))}",
                next_step=f"did you mean `{prefix}{near[0]}`?" if near else None,
            )
        inner = _section_of(fields[key].annotation)
        if inner is not None:
            _check_keys(value, where=where, model=inner, prefix=f"{prefix}{key}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None
