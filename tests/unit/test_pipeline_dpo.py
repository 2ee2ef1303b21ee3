"""When the chain aligns with preferences and when it goes on without; what it refuses before it begins."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.unit import test_cli
from tests.unit.test_cli import _no_ray  # noqa: F401 - the fixture is used by being there
from tests.unit.training.test_dpo import ROWS
from ucotron_ray import pipeline
from ucotron_ray.core import config, steps
from ucotron_ray.core.artifacts import Artifact, BuildResult, Request, Store
from ucotron_ray.core.errors import ArtifactError, MissingArtifact, Stopped
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data import stage as datasets
from ucotron_ray.models import base as base_models
from ucotron_ray.models import stage as models
from ucotron_ray.simulators import demo_world
from ucotron_ray.synthesis import chain as teacher_chain
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.teacher import stage as teachers
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.stage import Teacher
from ucotron_ray.training import preferences


@pytest.fixture
def data(tmp_path, demo_files):
    directory = tmp_path / "data"
    directory.mkdir()
    rows = demo_files[1].read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "train_sft.jsonl").write_text("".join(rows[:8]), encoding="utf-8")
    jsonl.write_rows(directory / "train_dpo.jsonl", ROWS)
    return directory


def planned(tmp_path, capsys, model, data, *arguments: str) -> dict[str, str]:
    every = ["pipeline", "--dry-run", "--data-dir", str(data), "--model-name", str(model), "--name", "p", *arguments]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text((data / "train_sft.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    every += ["--set", f"evaluation.data={held_out}", "--set", "tracking.mlflow_uri=none"]
    code, result, err = test_cli.call(tmp_path, capsys, *every)
    assert code == 0, err
    return {step["stage"]: step["artifact"] for step in result["plan"]}


def test_pairs_beside_the_training_rows_are_aligned_with_unless_told_not_to(tmp_path, capsys, tiny_model, data):
    assert planned(tmp_path, capsys, tiny_model, data)["dpo"] == "adapter/p-dpo"
    assert "dpo" not in planned(tmp_path, capsys, tiny_model, data, "--skip-dpo")
    (data / "train_dpo.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert "dpo" not in planned(tmp_path, capsys, tiny_model, data)
    named = ("--set", f"training.preference_data={tmp_path / 'elsewhere.jsonl'}")
    assert "dpo" in planned(tmp_path, capsys, tiny_model, data, *named)
    asked = ("--set", "generation.preferences_in_pipeline=20")
    asked += ("--set", "api.inference_base_url=http://127.0.0.1:9/v1")
    assert "dpo" in planned(tmp_path, capsys, tiny_model, data, *asked)


def test_pairs_that_cannot_be_read_end_the_chain_before_it_begins(tmp_path, capsys, tiny_model, data):
    (data / "train_dpo.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "c"}) + "\n", encoding="utf-8")
    arguments = ["pipeline", "--data-dir", str(data), "--model-name", str(tiny_model)]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert "train_dpo.jsonl, line 1" in err


@pytest.mark.parametrize(("after", "kept"), [(0.81, True), (0.80, True), (0.796, True), (0.79, False)])
def test_dpo_is_kept_if_it_costs_no_more_f1_than_allowed(tmp_path, after, kept):
    run = SimpleNamespace(config=config.load())
    scores = [SimpleNamespace(path=tmp_path / str(f1)) for f1 in (0.80, after)]
    for made in scores:
        made.path.mkdir(exist_ok=True)
        (made.path / "scores.json").write_text(json.dumps({"overall": {"f1": float(made.path.name)}}))
    assert pipeline.keeps_dpo(run, *scores) is kept


def test_a_dpo_that_is_not_kept_is_said(tmp_path, caplog):
    run = SimpleNamespace(config=config.load())
    before, after = (SimpleNamespace(path=tmp_path / name) for name in ("before", "after"))
    for made, f1 in ((before, 0.8), (after, 0.7)):
        made.path.mkdir()
        (made.path / "scores.json").write_text(json.dumps({"overall": {"f1": f1}}))
    assert pipeline.told(run, before, after) is after
    assert "F1 fell by 0.100" in caplog.text
    caplog.clear()
    pipeline.told(run, after, before)
    assert caplog.text == ""


def test_a_bundle_of_another_recipe_is_a_conflict_in_the_plan_also_before_there_are_scores(tmp_path, tiny_model):
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="pipeline", name="p")
    own = base_models.resolve(str(tiny_model))
    fields = {"base": {"reference": own.reference, "identity": own.identity}}
    for kind in ("dataset", "adapter", "bundle"):
        with run.store.building(Request(kind, "p", fields)) as build:
            if kind == "dataset":
                jsonl.write_rows(build.path / "val.jsonl", demo_world.rows(demo_world.graph_world(2), 4, seed=2))
            build.publish(BuildResult({}, {}, []))
    chain = pipeline.chain(run, pipeline.Options(skip_train=True, skip_generate=True))
    actions = {line["stage"]: line["action"] for line in steps.planned(run, chain)}
    assert (actions["evaluate"], actions["export"]) == ("run", "conflict")


def test_a_teacher_without_a_key_is_refused_before_anything_is_made(tmp_path, capsys, tiny_model, data):
    (data / "train_dpo.jsonl").unlink()
    arguments = ["pipeline", "--data-dir", str(data), "--model-name", str(tiny_model), "--name", "p"]
    arguments += ["--set", "tracking.mlflow_uri=none", "--set", "generation.preferences_in_pipeline=20"]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments)
    assert code == 2
    assert "FIREWORKS_API_KEY" in err
    assert Store(tmp_path / "store").names("dataset") == []


def test_an_adapter_is_not_scored_on_another_base_than_its_own(tmp_path, capsys, tiny_model, data):
    fields = {"base": {"reference": str(tiny_model), "identity": "directory:other"}}
    with Store(tmp_path / "store").building(Request("adapter", "p", fields)) as build:
        build.publish(BuildResult({}, {}, []))
    arguments = ["pipeline", "--skip-train", "--data-dir", str(data), "--model-name", str(tiny_model), "--name", "p"]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert "not the one that the adapter was trained on" in err


def test_rows_that_the_gate_rejected_are_no_input_of_a_chain(tmp_path, monkeypatch):
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="pipeline", name="p")

    def rejected(run: Run, want: synthesis.SynthesisOrder, *, after: object) -> None:
        with run.store.building(Request("dataset", want.name, {})) as build:
            if build.artifact is None:
                build.publish(BuildResult({}, {}, ["wrong_span 7%"], state="rejected"))

    monkeypatch.setattr(synthesis, "synthesize", rejected)
    want = synthesis.SynthesisOrder("preference", "p-preference", 3, None)
    with pytest.raises(ArtifactError, match="rejected"):
        synthesis.accepted(run, want)
    run.accept_rejected = True
    assert synthesis.accepted(run, want).manifest.state == "rejected"


def test_a_hub_model_is_noted_before_the_teacher_connects_anything(tmp_path):
    wanted = [
        ("store", str(tmp_path)),
        ("models.fine_tuning.slm.local_model", f"Qwen/Qwen2.5-0.5B-Instruct@{'a' * 40}"),
    ]
    run = Run(config.load(overrides=wanted), verb="pipeline", name="p")
    pipeline.check(run, pipeline.Options())
    assert run.hub_needed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "evaluation.data=gone.jsonl"), "no such held-out file"),
        (("--set", "training.preference_data=gone"), "has no dataset 'gone'"),
        (("--output-dir", "full"), "files of something else"),
        (("--output-dir", "new", "--skip-export"), "for what is exported"),
        (("--remote", "--skip-train"), "for training here"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_the_end_of_the_chain_needs_is_looked_at_before_its_beginning(
    tmp_path, capsys, monkeypatch, tiny_model, data, arguments, said, dry
):
    (data / "train_dpo.jsonl").unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    every = ["pipeline", "--data-dir", str(data), "--model-name", str(tiny_model), "--name", "p", *dry, *arguments]
    code, _, err = test_cli.call(tmp_path, capsys, *every, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert said in err
    assert Store(tmp_path / "store").names("dataset") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "workers.num_workers=3"], "16 rows, 3 workers"),
        (["--set", "training.sft.slm.target_modules=[q_proj, bogus]"], "bogus"),
        (["--set", "training.dpo.slm.target_modules=[bogus]"], "training.dpo.slm.target_modules"),
        (["--tune", "--set", "tuning.tiers=[small]"], "tuning.tiers"),
        (["--tune", "--set", "tuning.space={sft: {lora_rank: [0]}}"], "tuning.space.sft.lora_rank"),
    ],
)
def test_what_no_training_can_have_is_found_before_the_chain_begins(
    tmp_path, capsys, tiny_model, data, arguments, said
):
    held_out = ["--set", f"evaluation.data={data / 'train_sft.jsonl'}", "--max-usd", "5"]
    every = ["pipeline", "--data-dir", str(data), "--model-name", str(tiny_model), "--name", "p", *held_out, *arguments]
    code, _, err = test_cli.call(tmp_path, capsys, *every, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert said in err
    assert Store(tmp_path / "store").names("dataset") == []


@pytest.mark.parametrize("written_by", [4, 5])
def test_a_base_that_no_gguf_can_be_written_for_is_found_before_the_chain_begins(
    tmp_path, capsys, tiny_model, data, written_by
):
    scaled = tmp_path / "scaled"
    shutil.copytree(tiny_model, scaled)
    written = json.loads((scaled / "config.json").read_text(encoding="utf-8"))
    rope = written.pop("rope_parameters")
    scaling = {"rope_type": "linear", "factor": 2.0}
    # As transformers of this major version says it.
    written |= {"rope_parameters": rope | scaling} if written_by == 5 else {**rope, "rope_scaling": scaling}
    (scaled / "config.json").write_text(json.dumps(written), encoding="utf-8")
    every = ["pipeline", "--data-dir", str(data), "--model-name", str(scaled), "--name", "p"]
    every += ["--set", f"evaluation.data={data / 'train_sft.jsonl'}", "--set", "tracking.mlflow_uri=none"]
    code, _, err = test_cli.call(tmp_path, capsys, *every)
    assert code == 2
    assert "export.gguf=[]" in err


def test_a_teacher_of_pairs_alone_is_asked_for_its_models_before_the_training(tmp_path, monkeypatch):
    overrides = [("store", str(tmp_path)), ("generation.preferences_in_pipeline", 4)]
    overrides += [("api.inference_base_url", "http://127.0.0.1:9/v1")]
    run = Run(config.load(overrides=overrides), verb="pipeline", name="p")
    asked = []
    monkeypatch.setattr(teachers, "checked", asked.append)
    pipeline.check_servers(run, pipeline.Options(), ask=False)
    assert asked == []
    pipeline.check_servers(run, pipeline.Options(skip_dpo=True), ask=True)
    assert asked == []
    pipeline.check_servers(run, pipeline.Options(), ask=True)
    assert asked == [run]


def test_the_pairs_of_a_teacher_have_what_its_rows_left_of_the_budget(tmp_path, monkeypatch):
    overrides = [("store", str(tmp_path)), ("generation.in_pipeline", 3), ("generation.preferences_in_pipeline", 4)]
    run = Run(config.load(overrides=[*overrides, ("api.max_usd", 5)]), verb="pipeline", name="p")
    rows = list(demo_world.rows(demo_world.graph_world(2), 4, seed=2))
    with run.store.building(Request("dataset", "p-mix", {})) as build:
        jsonl.write_rows(build.path / "train.jsonl", rows)
        jsonl.write_rows(build.path / "val.jsonl", [])
        dataset = build.publish(BuildResult({}, {}, []))
    jobs = []
    teacher = Teacher(Endpoint("http://x/v1", "m", None, None, ()), None)
    monkeypatch.setattr(synthesis.teachers, "checked", lambda run: teacher)
    monkeypatch.setattr(
        synthesis, "spent_on", lambda run, what: (1.5, 0.5) if what.name == "p-teacher" else (0.25, 0.0)
    )

    def fill(run: Run, job: object, teacher: object) -> None:
        jobs.append(job)
        raise Stopped("enough")

    monkeypatch.setattr(synthesis, "_fill", fill)
    with pytest.raises(Stopped):
        teacher_chain.pairs(run, dataset)
    budget = jobs[0].budget
    assert (budget.max_usd, budget.spent_before, budget.unsettled_before) == (5, 1.75, 0.5)


def test_rows_of_a_graph_and_a_teacher_are_mixed_also_where_none_are_held_out(tmp_path):
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="pipeline", name="p")
    rows = list(demo_world.rows(demo_world.graph_world(2), 4, seed=2))
    both = []
    for name, held in (("p", rows[2:3]), ("p-teacher", [])):
        with run.store.building(Request("dataset", name, {})) as build:
            jsonl.write_rows(build.path / "train.jsonl", rows[:2] if name == "p" else rows[3:])
            jsonl.write_rows(build.path / "val.jsonl", held)
            both.append(build.publish(BuildResult({}, {"train": 1}, [])))
    assert datasets.mix(run, *both).manifest.counts == {"train": 3, "val": 1, "teacher": 1}


def test_pairs_drawn_by_another_seed_are_another_dataset(tmp_path, data):
    names = set()
    for seed in (1, 2, 1):
        settings = [("store", str(tmp_path)), ("training.dpo.slm.seed", seed)]
        run = Run(config.load(overrides=settings), verb="dpo", name="d")
        names.add(preferences.data_of(run, str(data / "train_dpo.jsonl")).manifest.name)
    assert len(names) == 2


def test_without_generating_the_rows_are_those_that_the_chain_trains_on(tmp_path):
    overrides = [("store", str(tmp_path)), ("generation.in_pipeline", 3)]
    run = Run(config.load(overrides=overrides), verb="pipeline", name="p")
    for name in ("p", "p-teacher"):
        with run.store.building(Request("dataset", name, {})) as build:
            build.publish(BuildResult({}, {}, []))
    with pytest.raises(MissingArtifact, match="p-mix"):
        rows_made(run)
    with run.store.building(Request("dataset", "p-mix", {})) as build:
        build.publish(BuildResult({}, {}, []))
    assert rows_made(run).manifest.name == "p-mix"
    run.config = config.load(overrides=overrides[:1])
    assert rows_made(run).manifest.name == "p"


def rows_made(run: Run) -> Artifact:
    """What the chain goes on with."""
    return steps.make(pipeline.rows_steps(run, pipeline.Options(skip_generate=True)))["rows"]


def aligned(store: Store, start: Artifact) -> Artifact:
    """What DPO makes of an adapter, by its manifests alone."""
    base = {"reference": "model/p-merged", "identity": "x"}
    with store.building(
        Request("model", "p-merged", {"base": start.manifest.recipe_fields["base"]}, (start.as_input("adapter"),))
    ) as build:
        merged = build.publish(BuildResult({}, {}, [])) if build.artifact is None else build.artifact
    with store.building(Request("adapter", "p-dpo", {"base": base}, (merged.as_input("base"),))) as build:
        return build.publish(BuildResult({}, {}, [])) if build.artifact is None else build.artifact


def test_without_training_the_chain_goes_on_with_what_dpo_made_of_this_very_adapter(tmp_path, tiny_model):
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="pipeline", name="p")
    own = base_models.resolve(str(tiny_model))
    fields = {"base": {"reference": own.reference, "identity": own.identity}}
    with run.store.building(Request("adapter", "p", fields)) as build:
        start = build.publish(BuildResult({}, {}, []))

    def dpo(**options: bool) -> list[str]:
        """The artifacts of alignment in a chain that trains nothing."""
        chain = pipeline.chain(run, pipeline.Options(skip_train=True, skip_generate=True, **options))
        return [step.artifact for step in chain if step.key == "aligned" and step.make({}) is not None]

    with run.store.building(Request("dataset", "p", {})) as build:
        build.publish(BuildResult({}, {}, []))
    assert dpo() == []
    made = aligned(run.store, start)
    assert dpo() == ["adapter/p-dpo"]
    assert dpo(skip_dpo=True) == []
    # The base that it is compared with is the first one, not the merged model that DPO began from.
    assert models.original_base(made, run.store) == models.original_base(start, run.store) == own
    with run.store.building(Request("adapter", "p", {**fields, "again": 1}), replace=True) as build:
        (build.path / "other").touch()
        build.publish(BuildResult({}, {}, []))
    assert dpo() == []
