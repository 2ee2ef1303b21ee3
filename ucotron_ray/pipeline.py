"""The whole chain: rows → adapter → scores of base and tuned → merged model and bundle."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core import outputs, requirements
from ucotron_ray.core.artifacts import Artifact, Kind
from ucotron_ray.core.errors import ConfigError, InputError, MissingArtifact
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data import stage as datasets
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.export import stage as export
from ucotron_ray.graph import stage as graphs
from ucotron_ray.models import base as base_models
from ucotron_ray.models import stage as models
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.teacher import stage as teachers
from ucotron_ray.training import preferences, preparation
from ucotron_ray.training import stage as training
from ucotron_ray.tuning import space, subjects
from ucotron_ray.tuning import stage as tuning

log = logging.getLogger(__name__)

TRAIN_FILE, VAL_FILE, PREFERENCE_FILE = "train_sft.jsonl", "val_sft.jsonl", "train_dpo.jsonl"


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


def check(run: Run, options: Options) -> base_models.BaseModel:
    """Everything that can be found wrong before anything is started. Returns the base model."""
    needed = ["ray", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf"]
    if not options.skip_export:
        needed += ["optimum", "onnx", "onnxruntime"]
    if options.tune:
        needed.append("matplotlib")
    requirements.require_packages(*needed)
    check_rows(run, options)
    if options.output_dir is not None:
        kinds: tuple[Kind, Kind] = ("model", "bundle")
        for directory, kind in zip(copies(options.output_dir), kinds, strict=True):
            outputs.refuse_mixing(directory, run.store.root, kind)
    if options.skip_train:
        # The adapter's own, whatever the recipe says now: on another one it would answer something, and wrongly.
        return models.note_hub(run, models.base_of(trained(run), run.store))
    base = base_models.resolve(run.config.recipe.tier_model.local_model)
    check_training(run, options, base)
    if not options.skip_export:
        export.check_formats(run, base)
    return models.note_hub(run, base)


def check_training(run: Run, options: Options, base: base_models.BaseModel) -> None:
    """Refuse settings that no training on this model and place can have."""
    preparation.check(run, "sft", base)
    preparation.check_batch(run, "sft")
    if aligns(run, options):
        preparation.check(run, "dpo", base)
        preparation.check_batch(run, "dpo")
    recipe = run.config.recipe
    if options.tune and recipe.tuning.tiers not in (None, [recipe.tier]):
        raise ConfigError(
            "the chain trains one tier, and tunes that one",
            where="tuning.tiers",
            expected=f"null or [{recipe.tier}], the run's tier",
            found=str(recipe.tuning.tiers),
        )
    if options.tune:
        if recipe.tuning.search == "optuna":
            requirements.require_packages("optuna")
        space.planned(recipe.tuning, "sft", recipe.sft)


def check_rows(run: Run, options: Options) -> None:
    """Refuse rows to train on, to score on or to align with that are not there, or are not what they should be."""
    if (options.skip_generate or options.data_dir is not None) and given_files(run, options) is None:
        made_before(run)
    # What the chain itself makes may be named before it is there.
    own = {run.name, f"{run.name}-teacher", f"{run.name}-mix"}
    reference = run.config.recipe.evaluation.data
    if reference is not None and reference not in own:
        datasets.check_held_out(run, reference)
    preferred = preference_reference(run, options)
    if preferred is not None and preferred not in own and not (options.skip_dpo or options.skip_train):
        preferences.check(run, preferred)


def copies(directory: Path) -> tuple[Path, Path]:
    """Where `--output-dir` puts the merged model and the bundle."""
    return directory, directory.with_name(directory.name + "-onnx")


def check_teacher(run: Run, options: Options, *, ask: bool = False) -> None:
    """Refuse a recipe that wants rows of a teacher that cannot be asked: after hours of training it is too late.

    With `ask` a teacher that is to write pairs only is asked for its models now; of rows it is asked at once anyway.
    """
    want = None if options.skip_generate or options.data_dir is not None else teacher_rows(run)
    rows = want is not None and synthesis.will_run(run, synthesis.request(run, want))
    pairs = False
    if not (options.skip_dpo or options.skip_train) and preference_reference(run, options) is None:
        wanted = run.config.recipe.generation.preferences_in_pipeline
        pairs = bool(wanted and run.store.find("dataset", f"{run.name}-preference") is None)
    if pairs and not rows and ask:
        teachers.checked(run)
    elif rows or pairs:
        teachers.configured(run)


def execute(run: Run, options: Options) -> dict[str, Any]:
    """Run the chain; return the figures of the last line."""
    base = check(run, options)
    check_teacher(run, options, ask=True)
    dataset = dataset_stage(run, options)
    # Read it before the long part: a wrong path should not cost a training run.
    data = datasets.held_out(run, run.config.recipe.evaluation.data, dataset)
    sweep = tune_stage(run, options, dataset)
    adapter = adapter_stage(run, options, dataset, base)
    tuned = scoring.scores_of(scoring.evaluate(run, run.name, base, adapter, data))
    original, before_dpo = base, tuned
    aligned = dpo_stage(run, options, base, adapter, dataset)
    if aligned is not None:
        aligned_base = models.base_of(aligned, run.store)
        after = scoring.scores_of(scoring.evaluate(run, aligned.manifest.name, aligned_base, aligned, data))
        if keeps_dpo(run, before_dpo, after):
            base, adapter, tuned = aligned_base, aligned, after
    result: dict[str, Any] = {"adapter": str(adapter.path)}
    if sweep is not None:
        result["sweep"] = str(sweep.path)
    if aligned is not None:
        f1 = {"sft_f1": before_dpo["overall"]["f1"], "f1": after["overall"]["f1"]}
        result["dpo"] = {**f1, "kept": adapter is aligned, **aligned.manifest.metrics}
    figures = {"base_f1": None, **headline(tuned)}
    if run.config.recipe.evaluation.base:
        before = scoring.scores_of(scoring.evaluate(run, f"{run.name}-base", original, None, data))
        figures["base_f1"] = headline(before)["tuned_f1"]
        result["base"] = {key: before["overall"][key] for key in ("f1", "f1_low", "f1_high", "valid_answers")}
    result |= figures
    result["tuned"] = {key: tuned["overall"][key] for key in ("f1", "f1_low", "f1_high", "valid_answers")}
    result |= {"parity": None, "bundle": None}
    if not options.skip_export:
        bundle = export.export(run, base, adapter, data)
        parity = json.loads((bundle.path / "parity.json").read_text(encoding="utf-8"))
        result |= {"parity": not parity["missed"], "bundle": str(bundle.path)}
        result["max_logit_difference"] = parity["figures"]["max_logit_difference"]
        result["artifact"] = str(bundle.path)
        if options.output_dir is not None:
            made = (run.store.get("model", run.name), bundle)
            for artifact, directory in zip(made, copies(options.output_dir), strict=True):
                outputs.copy_out(artifact, directory)
    else:
        result["artifact"] = str(adapter.path)
    return result


def dataset_stage(run: Run, options: Options) -> Artifact:
    """The training rows: the user's files, the graph, or with `--skip-generate` alone the dataset of this name."""
    if options.data_dir is not None or options.skip_generate:
        files = given_files(run, options)
        return datasets.import_rows(run, *files) if files else made_before(run)
    graph, want = graphs.import_graph(run), teacher_rows(run)
    if want is None:
        return graph
    return datasets.mix(run, graph, synthesis.accepted(run, want))


def made_before(run: Run) -> Artifact:
    """What `--skip-generate` alone goes on with: the rows as an earlier chain of this recipe left them."""
    name = run.name if teacher_rows(run) is None else f"{run.name}-mix"
    if run.store.find("dataset", name) is None:
        raise MissingArtifact(
            f"--skip-generate needs the dataset '{name}'",
            where=str(run.store.root),
            found=", ".join(run.store.names("dataset")) or "no dataset at all",
            next_step="leave --skip-generate away: what was paid for is not paid again",
        )
    return run.store.get("dataset", name, accept_rejected=run.accept_rejected)


def teacher_rows(run: Run) -> synthesis.Wanted | None:
    """The rows that the recipe wants from a teacher beside those of the graph."""
    count = run.config.recipe.generation.in_pipeline
    return synthesis.wanted(run, "relation_extraction", count, None, name=f"{run.name}-teacher") if count else None


def tune_stage(run: Run, options: Options, dataset: Artifact) -> Artifact | None:
    """With `--tune` the sweep of the run's tier; from then on the run has the settings that it chose."""
    if not options.tune:
        return None
    made = tuning.tune(run, subjects.sft_subject(run, dataset))
    run.config = tuning.with_winner(run, made)
    return made


def adapter_stage(run: Run, options: Options, dataset: Artifact, base: base_models.BaseModel) -> Artifact:
    """The trained adapter; with `--skip-train` the one that is there already."""
    return trained(run) if options.skip_train else training.sft(run, dataset, base)


def trained(run: Run) -> Artifact:
    """The adapter that `--skip-train` goes on with."""
    adapter = run.store.find("adapter", run.name)
    if adapter is None:
        raise MissingArtifact(
            f"--skip-train needs the adapter '{run.name}'", where=str(run.store.root), next_step="train it first"
        )
    return run.store.get("adapter", run.name, accept_rejected=run.accept_rejected)


def dpo_stage(
    run: Run, options: Options, base: base_models.BaseModel, adapter: Artifact, dataset: Artifact
) -> Artifact | None:
    """The adapter aligned with preferences; None where none are at hand and no teacher is asked for any.

    With `--skip-train` the one that an earlier chain made of this adapter.
    """
    if options.skip_dpo:
        return None
    if options.skip_train:
        return aligned_before(run, adapter)
    reference = preference_reference(run, options)
    data = teacher_pairs(run, dataset) if reference is None else preferences.data_of(run, reference)
    if data is None:
        return None
    return training.dpo(run, f"{run.name}-dpo", preferences.pairs_of(run, data, base, adapter), base, adapter)


def aligns(run: Run, options: Options) -> bool:
    """Whether the recipe and the flags want the trained model aligned with preferences."""
    wanted = preference_reference(run, options) or run.config.recipe.generation.preferences_in_pipeline
    return bool(wanted) and not options.skip_dpo


def teacher_pairs(run: Run, dataset: Artifact) -> Artifact | None:
    """The preference pairs that the recipe wants of a teacher; None where it wants none, or they cannot be built."""
    count = run.config.recipe.generation.preferences_in_pipeline
    if not count:
        return None
    if not datasets.holds_relations_only(dataset):
        log.warning("dpo: skipped: a teacher's pairs are built on relation rows, and some of these are others")
        return None
    want = synthesis.wanted(run, "preference", count, dataset.manifest.name, name=f"{run.name}-preference")
    rows = teacher_rows(run)
    return synthesis.accepted(run, want, after=[synthesis.request(run, rows)] if rows else [])


def aligned_before(run: Run, adapter: Artifact) -> Artifact | None:
    """What DPO made of this very adapter under the chain's name, if the store has it."""
    found = run.store.find("adapter", f"{run.name}-dpo")
    start = datasets.started_from(run, found) if found is not None else None
    if found is None or start is None or start.manifest.content != adapter.manifest.content:
        return None
    return run.store.get("adapter", found.manifest.name, accept_rejected=run.accept_rejected)


def keeps_dpo(run: Run, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether DPO lost no more F1 than the recipe allows; else the chain goes on with the SFT adapter, and says so."""
    lost = before["overall"]["f1"] - after["overall"]["f1"]
    kept = lost <= run.config.recipe.training.dpo_max_f1_loss
    if not kept:
        log.warning("dpo: F1 fell by %.3f: the chain goes on with the adapter before it", lost)
    return bool(kept)


def preference_reference(run: Run, options: Options) -> str | None:
    """The pairs that are at hand: `train_dpo.jsonl` of the data directory, else what the recipe names."""
    if options.data_dir is not None and (options.data_dir / PREFERENCE_FILE).is_file():
        return str(options.data_dir / PREFERENCE_FILE)
    return run.config.recipe.training.preference_data


def headline(scores: dict[str, Any]) -> dict[str, float | None]:
    """F1 on the rows marked `seen` (on all where none is), on those marked `unseen`, and valid answers."""
    groups, overall = scores["groups"], scores["overall"]
    seen = groups.get(scoring.HEADLINE_GROUP, overall)
    unseen = groups.get(scoring.SECOND_GROUP)
    return {
        "tuned_f1": seen["f1"],
        "tuned_f1_unseen": unseen["f1"] if unseen else None,
        "valid_answers": overall["valid_answers"],
    }


def given_files(run: Run, options: Options) -> tuple[Path, Path | None] | None:
    """The guide's two files; None where `--skip-generate` means the dataset of this name in the store."""
    directory = options.data_dir
    if directory is None:
        if run.store.find("dataset", run.name) is not None or run.store.find("dataset", f"{run.name}-mix") is not None:
            return None
        directory = Path(run.config.place.output.data_dir)
    train, val = directory / TRAIN_FILE, directory / VAL_FILE
    if not train.is_file():
        raise InputError(
            "there is no training data to go on with",
            where=str(directory),
            expected=f"{TRAIN_FILE} (and {VAL_FILE}, if you have it)",
            found=", ".join(sorted(path.name for path in directory.iterdir())[:8])
            if directory.is_dir()
            else "no directory",
            next_step="pass --data-dir, or leave --skip-generate away",
        )
    jsonl.read_training_rows(train)
    if val.is_file():
        jsonl.read_training_rows(val)
    return train, val if val.is_file() else None
