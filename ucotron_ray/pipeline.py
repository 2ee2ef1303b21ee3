"""The whole chain: rows → adapter → scores of base and tuned → merged model and bundle. And its plan."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray import artifacts, jsonl, variables
from ucotron_ray.artifacts import Artifact, Request
from ucotron_ray.errors import InputError, MissingArtifact
from ucotron_ray.graph.export import is_server, read_file
from ucotron_ray.models import base as base_models
from ucotron_ray.run import Run
from ucotron_ray.stages import (
    datasets,
    export,
    models,
    preferences,
    requirements,
    scoring,
    subjects,
    synthesis,
    teachers,
    training,
    tuning,
)

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
    if options.skip_generate or options.data_dir is not None:
        _files(run, options)
    reference = run.config.recipe.evaluation.data
    if reference is not None and Path(reference).is_file():
        jsonl.read_relations(Path(reference))
    preferred = _preference_reference(run, options)
    if preferred is not None and Path(preferred).is_file():
        jsonl.read_rows(Path(preferred))
    if options.skip_train:
        # The adapter's own, whatever the recipe says now: on another one it would answer something, and wrongly.
        return models.note_hub(run, models.base_of(trained(run), run.store))
    return models.note_hub(run, base_models.resolve(run.config.recipe.tier_model.local_model))


def check_teacher(run: Run, options: Options) -> None:
    """Refuse a recipe that wants rows of a teacher that cannot be asked: after hours of training it is too late."""
    want = None if options.skip_generate or options.data_dir is not None else teacher_rows(run)
    asks = want is not None and synthesis.will_run(run, synthesis.request(run, want))
    if not (options.skip_dpo or options.skip_train) and _preference_reference(run, options) is None:
        wanted = run.config.recipe.generation.preferences_in_pipeline
        asks = asks or bool(wanted and run.store.find("dataset", f"{run.name}-preference") is None)
    if asks:
        teachers.configured(run)


def execute(run: Run, options: Options) -> dict[str, Any]:
    """Run the chain; return the figures of the last line."""
    base = check(run, options)
    check_teacher(run, options)
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
            models.copy_out(run.store.get("model", run.name), options.output_dir)
            models.copy_out(bundle, options.output_dir.with_name(options.output_dir.name + "-onnx"))
    else:
        result["artifact"] = str(adapter.path)
    return result


def dataset_stage(run: Run, options: Options) -> Artifact:
    """The training rows: the user's files, the graph, or with `--skip-generate` alone the dataset of this name."""
    if options.data_dir is not None or options.skip_generate:
        files = _files(run, options)
        return datasets.import_rows(run, *files) if files else run.store.get("dataset", run.name)
    graph, want = datasets.import_graph(run), teacher_rows(run)
    if want is None:
        return graph
    return datasets.mix(run, graph, synthesis.accepted(run, want))


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
    """The adapter aligned with preferences; None where none are at hand and no teacher is asked for any."""
    if options.skip_dpo or options.skip_train:
        return None
    reference = _preference_reference(run, options)
    count = run.config.recipe.generation.preferences_in_pipeline
    if reference is not None:
        data = preferences.data_of(run, reference)
    elif count:
        want = synthesis.wanted(run, "preference", count, dataset.manifest.name, name=f"{run.name}-preference")
        data = synthesis.accepted(run, want)
    else:
        return None
    return training.dpo(run, f"{run.name}-dpo", preferences.pairs_of(run, data, base, adapter), base, adapter)


def keeps_dpo(run: Run, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether DPO lost no more F1 than the recipe allows; else the chain goes on with the SFT adapter, and says so."""
    lost = before["overall"]["f1"] - after["overall"]["f1"]
    kept = lost <= run.config.recipe.training.dpo_max_f1_loss
    if not kept:
        log.warning("dpo: F1 fell by %.3f: the chain goes on with the adapter before it", lost)
    return bool(kept)


def _preference_reference(run: Run, options: Options) -> str | None:
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


def plan(run: Run, options: Options) -> list[dict[str, str]]:
    """What `execute` would do, stage by stage: reuse, resume, run, conflict, or skip. Makes and starts nothing."""
    base = check(run, options)
    steps: list[dict[str, str]] = []
    dataset = planned_dataset(run, options, steps)
    adapter: Artifact | None = None
    if options.skip_train:
        adapter = trained(run)
        steps.append({"stage": "sft", "artifact": f"adapter/{run.name}", "action": "skip"})
    elif _planned_sweep(run, options, dataset, steps) and dataset is not None:
        adapter = _step(run, steps, "sft", training.sft_request(run, dataset, base))
    else:
        _unknown(run, steps, "sft", "adapter", run.name)
    if not (options.skip_dpo or options.skip_train) and (
        _preference_reference(run, options) or run.config.recipe.generation.preferences_in_pipeline
    ):
        _unknown(run, steps, "dpo", "adapter", f"{run.name}-dpo")
        # Which adapter is exported is known once both are scored.
        exported: Artifact | None = None
    else:
        exported = adapter
    data = _planned_data(run, dataset)
    for stage, name, scored in _scorings(run, adapter):
        if data is None or (stage == "evaluate" and adapter is None):
            _unknown(run, steps, stage, "scores", name)
        else:
            _step(run, steps, stage, scoring.evaluate_request(run, name, base, scored, data))
    if options.skip_export:
        steps.append({"stage": "export", "artifact": f"bundle/{run.name}", "action": "skip"})
    elif exported is not None:
        _step(run, steps, "export", export.export_requests(run, base, exported)[1])
    else:
        _unknown(run, steps, "export", "bundle", run.name)
    return steps


def _planned_sweep(run: Run, options: Options, dataset: Artifact | None, steps: list[dict[str, str]]) -> bool:
    """Adds the sweep to the steps, if one is wanted; whether the settings of what follows are known."""
    if not options.tune:
        return True
    if dataset is None:
        _unknown(run, steps, "tune", "sweep", run.name)
        return False
    made = _step(run, steps, "tune", tuning.request(run, subjects.sft_subject(run, dataset)))
    if made is not None:
        run.config = tuning.with_winner(run, made)
    return made is not None


def _scorings(run: Run, adapter: Artifact | None) -> list[tuple[str, str, Artifact | None]]:
    """Stage, artifact name and adapter of each model that is scored."""
    tuned = ("evaluate", run.name, adapter)
    base = ("evaluate-base", f"{run.name}-base", None)
    return [tuned, base] if run.config.recipe.evaluation.base else [tuned]


def _planned_data(run: Run, dataset: Artifact | None) -> Artifact | None:
    """The rows to score on, if they are in the store already."""
    reference = run.config.recipe.evaluation.data
    if reference is None:
        return dataset
    path = Path(reference)
    return run.store.find("dataset", datasets.held_out_request(path).name if path.is_file() else path.name)


def planned_dataset(run: Run, options: Options, steps: list[dict[str, str]]) -> Artifact | None:
    """The rows as `dataset_stage` would make them, if they are there; adds what would be done to the steps."""
    files = _files(run, options) if options.data_dir is not None or options.skip_generate else None
    if files:
        return _step(run, steps, "import-rows", datasets.rows_request(*files))
    if options.skip_generate:
        steps.append({"stage": "import-graph", "artifact": f"dataset/{run.name}", "action": "skip"})
        return run.store.get("dataset", run.name)
    settings = run.config.recipe.graph
    source = settings.source or variables.value("UCOTRON_SERVER_URL") or ""
    if is_server(source):
        # What the server holds is known once it is asked, and a dry run asks nobody.
        _unknown(run, steps, "import-graph", "dataset", run.name)
        return None
    path = Path(source)
    read_file(path)
    graph = _step(run, steps, "import-graph", datasets.graph_request(run, {"file": artifacts.file_hash(path)}))
    want = teacher_rows(run)
    return graph if want is None else _planned_mix(run, want, graph, steps)


def _planned_mix(
    run: Run, want: synthesis.Wanted, graph: Artifact | None, steps: list[dict[str, str]]
) -> Artifact | None:
    teacher = _step(run, steps, "synthesize", synthesis.request(run, want))
    if graph is None or teacher is None:
        _unknown(run, steps, "mix", "dataset", f"{run.name}-mix")
        return None
    return _step(run, steps, "mix", datasets.mix_request(run, graph, teacher))


def _step(run: Run, steps: list[dict[str, str]], stage: str, request: Request) -> Artifact | None:
    action = run.store.plan(request)
    if action == "conflict" and run.replace:
        action = "run"
    steps.append({"stage": stage, "artifact": f"{request.kind}/{request.name}", "action": action})
    return run.store.find(request.kind, request.name) if action == "reuse" else None


def _unknown(run: Run, steps: list[dict[str, str]], stage: str, kind: artifacts.Kind, name: str) -> None:
    """A stage whose input is not made yet: it runs, or goes on where it was left."""
    partial = run.store.partial(kind, name).exists()
    steps.append({"stage": stage, "artifact": f"{kind}/{name}", "action": "resume" if partial else "run"})


def _files(run: Run, options: Options) -> tuple[Path, Path | None] | None:
    """The guide's two files; None where `--skip-generate` means the dataset of this name in the store."""
    directory = options.data_dir
    if directory is None:
        if run.store.find("dataset", run.name) is not None:
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
