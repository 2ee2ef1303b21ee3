"""What the chain would do, stage by stage, without doing it."""

from pathlib import Path

from ucotron_ray.core import artifacts, variables
from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.run import Run
from ucotron_ray.data import stage as datasets
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.export import stage as export
from ucotron_ray.graph import stage as graphs
from ucotron_ray.graph.export import is_server, read_file
from ucotron_ray.pipeline import (
    Options,
    aligned_before,
    aligns,
    check,
    check_teacher,
    given_files,
    made_before,
    teacher_rows,
    trained,
)
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.training import stage as training
from ucotron_ray.tuning import stage as tuning
from ucotron_ray.tuning import subjects


def plan(run: Run, options: Options) -> list[dict[str, str]]:
    """What `execute` would do, stage by stage: reuse, resume, run, conflict, or skip. Makes and starts nothing.

    Raises what `execute` would raise before it starts anything.
    """
    base = check(run, options)
    check_teacher(run, options)
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
    if _aligns(run, options, adapter):
        action = "skip" if options.skip_train else _unknown_action(run, "adapter", f"{run.name}-dpo")
        steps.append({"stage": "dpo", "artifact": f"adapter/{run.name}-dpo", "action": action})
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
    elif exported is not None and data is not None:
        _step(run, steps, "export", export.bundle_request(run, base, exported, data))
    else:
        _unknown(run, steps, "export", "bundle", run.name)
    return steps


def _aligns(run: Run, options: Options, adapter: Artifact | None) -> bool:
    """Whether an adapter made by DPO is part of the chain."""
    if options.skip_train and not options.skip_dpo:
        return adapter is not None and aligned_before(run, adapter) is not None
    return aligns(run, options)


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
    return run.store.find("dataset", datasets.held_out_request(path).name if path.exists() else path.name)


def planned_dataset(run: Run, options: Options, steps: list[dict[str, str]]) -> Artifact | None:
    """The rows as `dataset_stage` would make them, if they are there; adds what would be done to the steps."""
    files = given_files(run, options) if options.data_dir is not None or options.skip_generate else None
    if files:
        return _step(run, steps, "import-rows", datasets.rows_request(*files))
    if options.skip_generate:
        rows = made_before(run)
        steps.append({"stage": "rows", "artifact": f"dataset/{rows.manifest.name}", "action": "skip"})
        return rows
    settings = run.config.recipe.graph
    source = settings.source or variables.value("UCOTRON_SERVER_URL") or ""
    if is_server(source):
        # What the server holds is known once it is asked, and a dry run asks nobody.
        _unknown(run, steps, "import-graph", "dataset", run.name)
        return None
    path = Path(source)
    read_file(path)
    graph = _step(run, steps, "import-graph", graphs.graph_request(run, {"file": artifacts.file_hash(path)}))
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
    """A stage whose input is not made yet."""
    steps.append({"stage": stage, "artifact": f"{kind}/{name}", "action": _unknown_action(run, kind, name)})


def _unknown_action(run: Run, kind: artifacts.Kind, name: str) -> str:
    """It runs, or goes on where it was left."""
    return "resume" if run.store.partial(kind, name).exists() else "run"
