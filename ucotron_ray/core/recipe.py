"""The recipe: what a run makes, a class a section. Every value of it can change the result, and is hashed.

What the values mean stands beside their defaults in `defaults.yaml`; of settings that have a flag it stands here, for
`--help`. Sections of generators are declared in `synthesis/tasks/`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny

from ucotron_ray.core import generators
from ucotron_ray.core.hyperparameters import DpoSettings, SftSettings
from ucotron_ray.core.sections import Count, NonNegative, Positive, Sampling, Section, Share, Temperature, Text

Tier = Literal["slm", "small", "medium"]


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
    """What is trained here: a hub name, a directory, a .gguf file or package://NAME/FILE.gguf."""
    revision: Annotated[Text | None, Field(exclude_if=lambda value: value is None)] = None
    """Branch, tag or commit of the hub's model; null = main. Pinned to its commit when a run starts."""


class TierModels(Section):
    """The three tiers of the guide."""

    slm: TierModel
    small: TierModel
    medium: TierModel


class Models(Section):
    """Which models teach and which are trained."""

    generation: GenerationModel
    fine_tuning: TierModels


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
    """Synthesis settings. `tasks`: the sections of those generators that the recipe says something of."""

    model_config = ConfigDict(serialize_by_alias=True)

    defaults: Sampling
    tasks: Annotated[dict[str, SerializeAsAny[Section]], BeforeValidator(generators.settings_of)]
    seed: NonNegative
    """Of all that is drawn: facts, names, styles, the split."""
    val_ratio: Share
    near_duplicate: Annotated[float, Field(gt=0, le=1)]
    max_answer_tokens: Count
    in_pipeline: NonNegative
    preferences_in_pipeline: NonNegative
    licence: Text
    gate: Gate
    # `schema` is a method of pydantic's models; left out where it is null, so that what was made before is found again.
    schema_file: Annotated[Text | None, Field(alias="schema", exclude_if=lambda value: value is None)] = None
    """A file of `ucotron-ray schema` that relation rows are written in; null = the built-in twenty relations."""

    def whole(self) -> dict[str, Any]:
        """All settings that are in force, also those of generators that the recipe says nothing of."""
        return {**self.model_dump(), "tasks": {name: self.task(name).model_dump() for name in generators.NAMES}}

    def task(self, name: str) -> Any:
        """The settings of a generator, of the class that its file declares."""
        return self.tasks.get(name) or generators.module_of(name).Settings()


class Graph(Section):
    """Training rows from a Ucotron knowledge graph."""

    source: str | None
    kind: Literal["export", "generate-dataset"]
    """Which call of a server; generate-dataset is the server's own."""
    namespace: str | None
    """Namespace on the server; null = UCOTRON_NAMESPACE, else default."""
    all_namespaces: bool
    """generate-dataset mixes the texts of all namespaces: say that you may see them."""
    max_samples: Count
    """Most rows that are taken."""
    train_ratio: Annotated[float, Field(gt=0, le=1)]
    """Share of the rows for training; the others are for validation."""
    min_relations: NonNegative
    """Texts with fewer relations are left out."""
    max_text_length: Annotated[int, Field(ge=16)]
    """Characters; a longer text is cut at a space."""
    seed: NonNegative
    """Of the order and the split."""


class Evaluation(Section):
    """Scoring."""

    data: str | None
    """Held-out rows: a file or a dataset's name; null = the validation rows of the training data."""
    max_rows: Count | None
    """A seeded sample of so many rows; null = all."""
    raw_rows: NonNegative
    end_to_end_rows: NonNegative
    max_new_tokens: Count
    quantize: Literal["none", "nf4"]
    """`nf4`: the base in 4 bits with the adapter beside it, as QLoRA trained it. A bundle is made of the whole base."""
    base: bool
    """Whether the base model is scored beside the tuned one."""
    few_shots: NonNegative
    """Training rows shown to the base model before each question, as one more baseline; 0 = no such baseline."""
    resamples: Count
    seed: NonNegative


class Export(Section):
    """What a bundle holds, and the gates that it has to pass."""

    opset: Annotated[int, Field(ge=14, le=20)]
    data: Text | None
    """Held-out rows for gates and choices; they are not those that a claim is made on."""
    variants: list[Literal["int8", "int4"]]
    block: Literal[16, 32, 64, 128, 256]
    gguf: list[Literal["f16", "q8_0", "q4_k_m"]]
    calibration_rows: Count
    """Training rows whose prompts and answers say what four bits are rounded for."""
    decodings: list[Literal["free", "entities", "vocabulary"]]
    predicates: list[Text] | None
    parity_rows: Count
    parity_new_tokens: Count
    task_rows: Count | None
    task_new_tokens: Count
    power: Annotated[float, Field(gt=0.5, lt=1)]
    """How often a variant that loses nothing is to pass: with the margins it says how many rows are asked."""
    max_logit_difference: Positive
    max_mean_logit_difference: Positive
    min_top1_agreement: Share
    min_greedy_match: Share
    min_int8_agreement: Share
    max_int8_f1_drop: Share
    max_int4_f1_drop: Share
    max_int8_size: Share
    min_gguf_match: Share
    min_gguf_q8_prefix: Share


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
    """Width of the hidden layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    """Share of the hidden layer that is left out in training."""
    epochs: Count
    """Passes over the training pairs."""
    batch_size: Count
    """Pairs of an optimizer step over all workers."""
    learning_rate: Positive
    """Of AdamW, at its highest."""
    lr_scheduler: Literal["cosine", "constant"]
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Positive | None
    patience: NonNegative
    """Epochs without a better validation loss until training stops; 0 = never."""
    noise: Annotated[float, Field(ge=0)]
    whiten: bool
    val_split: Annotated[float, Field(gt=0, lt=1)]
    """Share of the descriptions for validation."""
    test_split: Annotated[float, Field(gt=0, lt=1)]
    target: Positive
    opset: Annotated[int, Field(ge=17, le=20)]
    """ONNX operator set of the exported layer."""
    seed: NonNegative
    """Of split, order and weights."""


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
    """Several tiers in one sweep of sft, for example slm,small; null = the run's tier."""
    search: Literal["grid", "random", "optuna"]
    """grid: every combination of the lists; random; optuna (pip install optuna)."""
    trials: Count
    """Of each tier; a grid has as many as it has combinations."""
    seed: NonNegative
    space: Space
    scheduler: Literal["asha", "none"]
    report_steps: Count | None
    grace_steps: Count | None
    reduction_factor: Annotated[int, Field(ge=2)]
    f1_rows: Count
    max_new_tokens: Count
    confirm: Confirmation


class SweepChoice(Section):
    """What a sweep says about the settings that it chose. Changes nothing: the settings themselves stand beside it."""

    stage: Literal["sft", "dpo", "projection"]
    sweep: Text
    recipe: Text
    winners: dict[str, dict[str, bool | int | float | str | list[int] | None]]


class Recipe(Section):
    """What a run makes."""

    tier: Tier
    """Which model tier: slm 0.5B, small 1.5B, medium 7B."""
    models: Models
    training: Training
    generation: Generation
    graph: Graph
    evaluation: Evaluation
    export: Export
    promotion: Promotion
    projection: Projection
    tuning: Tuning
    tuned: SweepChoice | None

    def whole(self) -> dict[str, Any]:
        """All settings that are in force, also those of generators that the recipe says nothing of."""
        return {**self.model_dump(), "generation": self.generation.whole()}

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
