"""The recipe: what a run makes, a class a section. Every value of it can change the result, and is hashed.

What the values mean stands beside their defaults, in `defaults.yaml`.
"""

from typing import Annotated, Literal

from pydantic import Field

from ucotron_ray.core.sections import Count, NonNegative, Positive, Section, Share, Temperature, Text

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
