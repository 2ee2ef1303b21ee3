"""The story: rows → adapter → scores of base and tuned → bundle, as one list of steps.

`chain` is that list. The verb plans it (`--dry-run`), estimates it and makes it; with `--remote` what follows the rows
are the vendor's steps instead.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from ucotron_ray.core import artifacts, outputs, requirements
from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.errors import MissingArtifact
from ucotron_ray.core.run import Run
from ucotron_ray.core.steps import Made, Step
from ucotron_ray.data import stage as datasets
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.export import stage as export
from ucotron_ray.fireworks import pipeline as remote
from ucotron_ray.fireworks import stage as vendor
from ucotron_ray.graph import stage as graphs
from ucotron_ray.models import base as base_models
from ucotron_ray.models import stage as models
from ucotron_ray.synthesis import chain as teacher
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.training import preferences, preparation
from ucotron_ray.training import stage as training
from ucotron_ray.tuning import stage as tuning
from ucotron_ray.tuning import targets

log = logging.getLogger(__name__)

Base = Callable[[], base_models.BaseModel]
"""The base model, once somebody asks for it: an estimate does not."""

Model = tuple[base_models.BaseModel, Artifact | None]
"""A base model, and the adapter on it."""


@dataclass(frozen=True)
class Options:
    """Which parts of the chain run, in the guide's words."""

    skip_generate: bool = False
    skip_train: bool = False
    skip_dpo: bool = False
    skip_export: bool = False
    data_dir: Path | None = None
    output_dir: Path | None = None
    tune: bool = False
    remote: bool = False


def chain(run: Run, options: Options) -> list[Step]:
    """Every step, in the order in which it is made."""
    rows = [*rows_steps(run, options), *held_out_steps(run)]
    pairs = pairs_steps(run, options)
    if options.remote:
        return [*rows, *pairs, *remote.steps(run, aligns=bool(pairs))]
    base = cache(lambda: base_of(run, options))
    aligned = alignment_steps(run, options, base)
    last = last_steps(run, options, base, aligns=bool(aligned))
    return [*rows, *training_steps(run, options, base), *pairs, *aligned, *last]


def rows_steps(run: Run, options: Options) -> list[Step]:
    """`rows`: of the user's files, of the graph and a teacher, or with `--skip-generate` alone the store's."""
    if options.skip_generate or options.data_dir is not None:
        files = datasets.guide_files(run, options.data_dir)
        if files is None:
            found = teacher.rows_before(run)
            return [Step("rows", "rows", "dataset", found.manifest.name, lambda _: found)]
        asked, make = datasets.rows_request(*files), partial(datasets.import_rows, run, *files)
        return [Step("rows", "import-rows", "dataset", asked.name, lambda _: make(), lambda _: asked)]
    want = teacher.wanted_rows(run)
    graph = Step(
        key="rows" if want is None else "graph",
        stage="import-graph",
        kind="dataset",
        name=run.name,
        make=lambda _: graphs.import_graph(run),
        request=lambda _: graphs.known_request(run),
    )
    if want is None:
        return [graph]
    written = Step(
        key="teacher",
        stage="synthesize",
        kind="dataset",
        name=want.name,
        make=lambda _: synthesis.accepted(run, want),
        request=lambda _: synthesis.request(run, want),
    )
    mix = Step(
        key="rows",
        stage="mix",
        kind="dataset",
        name=f"{run.name}-mix",
        make=lambda made: datasets.mix(run, made["graph"], made["teacher"]),
        request=lambda made: datasets.mix_request(run, made["graph"], made["teacher"]),
        needs=("graph", "teacher"),
    )
    return [graph, written, mix]


def held_out_steps(run: Run) -> list[Step]:
    """`held-out`, the rows to score on, and `gate-rows`, where gates and choices of the export have rows of their own.

    Read before the long part: a wrong path should not cost a training run.
    """
    claimed, gates = run.config.recipe.evaluation.data, run.config.recipe.export.data
    return [_rows_step(run, "held-out", claimed), *([_rows_step(run, "gate-rows", gates, "choice")] if gates else [])]


def _rows_step(run: Run, key: str, reference: str | None, purpose: datasets.Purpose = "claim") -> Step:
    score = partial(datasets.held_out, run, reference, purpose=purpose)
    if reference is not None and Path(reference).exists() and not datasets.in_store(run, reference):
        asked = datasets.held_out_request(Path(reference), purpose)
        return Step(key, f"import-{key}", "dataset", asked.name, lambda _: score(None), lambda _: asked)
    name = reference or run.name
    return Step(key, key, "dataset", name, lambda made: score(made["rows"]), needs=("rows",), shown=False)


def training_steps(run: Run, options: Options, base: Base) -> list[Step]:
    """`sweep` if there is to be one, `adapter`, and its `scores`."""
    sweep = Step(
        key="sweep",
        stage="tune",
        kind="sweep",
        name=run.name,
        make=lambda made: tuning.tune(run, targets.sft_target(run, made["rows"])),
        request=lambda made: tuning.request(run, targets.sft_target(run, made["rows"])),
        needs=("rows",),
        # From then on the run has the settings that the sweep chose.
        then=lambda made: tuning.adopt(run, made),
    )
    adapter = Step(
        key="adapter",
        stage="sft",
        kind="adapter",
        name=run.name,
        make=lambda made: training.sft(run, made["rows"], base()),
        request=lambda made: training.sft_request(run, made["rows"], base()),
        needs=("rows", "sweep") if options.tune else ("rows",),
    )
    made_before = Step("adapter", "sft", "adapter", run.name, lambda _: trained(run))
    scores = scores_step(run, "scores", "evaluate", run.name, lambda made: (base(), made["adapter"]), ("adapter",))
    return [*([sweep] if options.tune else []), made_before if options.skip_train else adapter, scores]


def pairs_steps(run: Run, options: Options) -> list[Step]:
    """`pairs`: preferences that are at hand, else of a teacher if the recipe wants some."""
    if not aligns(run, options) or options.skip_train:
        return []
    reference = preference_reference(run, options)
    if reference is None:
        return [
            Step(
                key="pairs",
                stage="synthesize-pairs",
                kind="dataset",
                name=teacher.pairs_name(run),
                make=lambda made: teacher.pairs(run, made["rows"]),
                request=lambda made: teacher.pairs_request(run, made["rows"]),
                needs=("rows",),
            )
        ]
    read = preferences.pairs_only if options.remote else preferences.data_of
    if not Path(reference).is_file():
        return [
            Step("pairs", "pairs", "dataset", reference, lambda _: read(run, reference), needs=("rows",), shown=False)
        ]
    asked = preferences.import_request(run, Path(reference))
    return [Step("pairs", "import-pairs", "dataset", asked.name, lambda _: read(run, reference), lambda _: asked)]


def alignment_steps(run: Run, options: Options, base: Base) -> list[Step]:
    """`aligned`: the adapter after DPO, and its scores; with `--skip-train` what was made of this very adapter."""
    name = f"{run.name}-dpo"
    if options.skip_train:
        before = None if options.skip_dpo else training.aligned_before(run, name, trained(run))
        aligned = Step("aligned", "dpo", "adapter", name, lambda _: before)
        is_wanted = before is not None
    else:
        aligned = Step(
            key="aligned",
            stage="dpo",
            kind="adapter",
            name=name,
            make=lambda made: training.align(run, name, made["pairs"], base(), made["adapter"]),
            request=lambda made: training.align_request(run, name, made["pairs"], made["adapter"]),
            needs=("adapter", "pairs"),
        )
        is_wanted = aligns(run, options)
    model = partial(aligned_model, run)
    scores = scores_step(run, "aligned-scores", "evaluate-dpo", name, model, ("aligned", "scores"))
    said = replace(scores, make=lambda made: told(run, made["scores"], scores.make(made)))
    return [aligned, said] if is_wanted else []


def last_steps(run: Run, options: Options, base: Base, *, aligns: bool) -> list[Step]:
    """`base-scores` if the recipe wants them, and `bundle`."""
    steps = []
    if run.config.recipe.evaluation.base:
        steps.append(scores_step(run, "base-scores", "evaluate-base", f"{run.name}-base", lambda _: (base(), None), ()))
    if options.skip_export:
        return [*steps, Step("bundle", "export", "bundle", run.name, lambda _: None)]

    def request(made: Made) -> Request | None:
        # Which of the two adapters is exported is known once both are scored.
        if aligns and "aligned-scores" not in made:
            return None
        return export.bundle_request(run, *chosen(run, base, made), made.get("gate-rows", made["held-out"]))

    def make(made: Made) -> Artifact:
        return export.export(run, *chosen(run, base, made), made.get("gate-rows", made["held-out"]))

    gate_rows = ("gate-rows",) if run.config.recipe.export.data else ()
    needs = ("adapter", "held-out", *gate_rows, *(("scores",) if aligns else ()))
    return [*steps, Step("bundle", "export", "bundle", run.name, make, request, needs)]


def scores_step(
    run: Run, key: str, stage: str, name: str, model: Callable[[Made], Model], needs: tuple[str, ...]
) -> Step:
    """A model's answers to the held-out rows."""
    return Step(
        key=key,
        stage=stage,
        kind="scores",
        name=name,
        make=lambda made: scoring.evaluate(run, name, *model(made), made["held-out"]),
        request=lambda made: scoring.evaluate_request(run, name, *model(made), made["held-out"]),
        needs=(*needs, "held-out"),
    )


def base_of(run: Run, options: Options) -> base_models.BaseModel:
    """The base model of the chain."""
    if options.skip_train:
        # The adapter's own, whatever the recipe says now: on another one it would answer something, and wrongly.
        return models.note_hub(run, models.base_of(trained(run), run.store))
    return models.tier_base(run)


def chosen(run: Run, base: Base, made: Made) -> Model:
    """The adapter that the chain goes on with, and its base: DPO's, unless it lost more F1 than the recipe allows."""
    if "aligned-scores" in made and keeps_dpo(run, made["scores"], made["aligned-scores"]):
        return aligned_model(run, made)
    return base(), made["adapter"]


def told(run: Run, before: Artifact, after: Artifact | None) -> Artifact | None:
    """The scores after DPO; says so where they are too low to go on with."""
    if after is not None and not keeps_dpo(run, before, after):
        lost = scoring.f1_of(before) - scoring.f1_of(after)
        log.warning("dpo: F1 fell by %.3f: the chain goes on with the adapter before it", lost)
    return after


def aligned_model(run: Run, made: Made) -> Model:
    """What DPO made, and the merged model that it is an adapter of."""
    return models.base_of(made["aligned"], run.store), made["aligned"]


def keeps_dpo(run: Run, before: Artifact, after: Artifact) -> bool:
    """Whether DPO lost no more F1 than the recipe allows, by the scores before and after it."""
    return scoring.f1_of(before) - scoring.f1_of(after) <= run.config.recipe.training.dpo_max_f1_loss


def aligns(run: Run, options: Options) -> bool:
    """Whether the chain is to align with preferences: pairs are at hand, or the recipe wants some of a teacher."""
    wanted = preference_reference(run, options) or run.config.recipe.generation.preferences_in_pipeline
    return bool(wanted) and not options.skip_dpo


def trained(run: Run) -> Artifact:
    """The adapter that `--skip-train` goes on with."""
    adapter = run.store.find("adapter", run.name)
    if adapter is None:
        raise MissingArtifact(
            f"--skip-train needs the adapter '{run.name}'", where=str(run.store.root), next_step="train it first"
        )
    return run.store.get("adapter", run.name, accept_rejected=run.accept_rejected)


def preference_reference(run: Run, options: Options) -> str | None:
    """The pairs that are at hand: `train_dpo.jsonl` of the data directory, else what the recipe names."""
    if options.data_dir is not None and (options.data_dir / datasets.GUIDE_PAIRS).is_file():
        return str(options.data_dir / datasets.GUIDE_PAIRS)
    return run.config.recipe.training.preference_data


def copies(directory: Path) -> dict[Path, artifacts.ArtifactKind]:
    """Where `--output-dir` puts the merged model and the bundle."""
    return {directory: "model", directory.with_name(directory.name + "-onnx"): "bundle"}


def check(run: Run, options: Options) -> None:
    """Everything that can be found wrong before anything is started or paid. Raises UserError of some kind."""
    check_rows(run, options)
    if options.remote:
        return
    requirements.require_packages(*requirements.TRAINING, *([] if options.skip_export else requirements.EXPORT))
    if options.output_dir is not None:
        for directory, kind in copies(options.output_dir).items():
            outputs.refuse_mixing(directory, run.store.root, kind)
    base = base_of(run, options)
    if not options.skip_export:
        export.check_formats(run, base)
    if options.skip_train:
        return
    for stage in ("sft", "dpo") if aligns(run, options) else ("sft",):
        preparation.check(run, stage, base)
        preparation.check_batch(run, stage)
    if options.tune:
        tuning.check_for_chain(run)


def check_servers(run: Run, options: Options, *, ask: bool) -> None:
    """Refuse a teacher that cannot be asked for what the chain wants of it, and a vendor that trains no such model.

    `ask`: as `synthesis.chain.check` has it.
    """
    rows = not options.skip_generate and options.data_dir is None
    pairs = not (options.skip_dpo or options.skip_train) and preference_reference(run, options) is None
    teacher.check(run, rows=rows, pairs=pairs, ask=ask)
    if options.remote:
        vendor.check(run)


def check_rows(run: Run, options: Options) -> None:
    """Refuse rows to train on, to score on or to align with that are not there, or are not what they should be."""
    if (options.skip_generate or options.data_dir is not None) and datasets.guide_files(run, options.data_dir) is None:
        teacher.rows_before(run)
    # What the chain itself makes may be named before it is there.
    own = {None, run.name, f"{run.name}-teacher", f"{run.name}-mix"}
    for reference in {run.config.recipe.evaluation.data, run.config.recipe.export.data} - own:
        datasets.check_held_out(run, str(reference))
    preferred = preference_reference(run, options)
    if preferred is not None and preferred not in own and not (options.skip_dpo or options.skip_train):
        preferences.check(run, preferred)
