"""What a store of commit a22b7bc has is asked for by the same recipe hashes now: else every stage would be made again.

The hashes were printed by that commit for the requests below. A change of one of them makes what people have useless:
then CHANGELOG says so, and the hash here changes with it. So far that is `export` (what its gates ask for), `evaluate`
(names are compared in another way), `sft` where the best step is kept, and the key under which MLflow knows the run.
"""

from pathlib import Path

from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Artifact, ArtifactKind, Manifest
from ucotron_ray.core.run import Run
from ucotron_ray.data import stage as datasets
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.export import stage as export
from ucotron_ray.fireworks import stage as vendor
from ucotron_ray.graph import stage as graphs
from ucotron_ray.models import stage as models
from ucotron_ray.models.base import BaseModel
from ucotron_ray.synthesis import path_reward
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.training import stage as training

RECIPE = Path(__file__).parents[2] / "jobs/recipes/demo.yaml"
OF_BEFORE = {
    "import-graph": "a27dcfcd0aa61209",
    "mix": "4a02b27f28faf465",
    "sft": "c23353c3e321b2fc",
    "evaluate": "8d9ae9c7c11c60f3",
    "evaluate-base": "78ab93b3ffee7a0d",
    "merge": "98d145be36129450",
    "export": "e97c2362b6cee367",
    "remote-sft": "c372ae62f810a0b9",
    "remote-dpo": "f9269738a0c53656",
    "path_reward": "282c328d31e94b7c",
    "relation_extraction": "d4558d0eb94383ce",
    "contradiction": "575708b2224b05c1",
    "entity_resolution": "fe86f050af82ca39",
    "projection": "e22567ab3dc7896f",
}


def artifact(kind: ArtifactKind, name: str, content: str) -> Artifact:
    fields = {"base": {"reference": "mine", "identity": "sha"}}
    manifest = Manifest(
        kind=kind, name=name, state="ok", content=content, recipe="r", recipe_fields=fields, inputs=[], files=[]
    )
    return Artifact(Path(f"/{name}"), manifest)


def test_every_stage_asks_for_what_it_asked_for_before(tmp_path):
    overrides = [("store", str(tmp_path)), ("tracking.mlflow_uri", "none"), ("graph.source", None)]
    overrides += [("generation.tasks.preference.margin", 0.3), ("training.sft.slm.keep", "last")]
    run = Run(config.load(recipe=RECIPE, overrides=overrides), verb="pipeline", name="demo")
    base = BaseModel("mine", "directory", None, "sha")
    rows, pairs = artifact("dataset", "rows", "c1"), artifact("dataset", "pairs", "c2")
    adapter, merged = artifact("adapter", "a", "c3"), artifact("model", "m", "c4")
    asked = {
        "import-graph": graphs.graph_request(run, {"file": "f"}),
        "mix": datasets.mix_request(run, rows, pairs),
        "sft": training.sft_request(run, rows, base),
        "evaluate": scoring.evaluate_request(run, "demo", base, adapter, rows),
        "evaluate-base": scoring.evaluate_request(run, "demo-base", base, None, rows),
        "merge": models.merge_request(run, base, adapter),
        "export": export.bundle_request(run, base, adapter, rows),
        "remote-sft": vendor.sft_request(run, rows),
        "remote-dpo": vendor.dpo_request(run, pairs, merged),
        "path_reward": path_reward.request(run, path_reward.wanted(run, 7, None)),
    }
    for task in ("relation_extraction", "contradiction", "entity_resolution", "projection"):
        asked[task] = synthesis.request(run, synthesis.wanted(run, task, 9, None))
    assert run.spool.run == "pipeline-demo-f97b6537acb9", "MLflow would show a chain that goes on as another one"
    assert {stage: request.recipe[:16] for stage, request in asked.items()} == OF_BEFORE
