"""The chain with preferences, and pairs of a model's own answers, on a real Ray head with a tiny random model."""

import json

import pytest

from tests.ray.test_chain import RECIPE, finished, start
from tests.unit.training.test_dpo import ROWS
from ucotron_ray.core.artifacts import Store
from ucotron_ray.data import jsonl

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def common(tmp_path_factory, tiny_model, demo_files):
    directory = tmp_path_factory.mktemp("preferences")
    text = RECIPE.replace("MODEL", str(tiny_model)).replace("GRAPH", str(demo_files[0]))
    (directory / "p.yaml").write_text(text.replace("HELDOUT", str(demo_files[1])), encoding="utf-8")
    settings = [f"store={directory / 'store'}", "tracking.mlflow_uri=none", "training.dpo.slm.batch_size=4"]
    settings += ["training.dpo.slm.eval_rows=4", "training.sft.slm.epochs=2", "training.dpo.slm.on_policy.max_tokens=8"]
    overrides = [part for text in settings for part in ("--set", text)]
    return directory, ["--recipe", str(directory / "p.yaml"), *overrides]


def test_the_chain_aligns_scores_both_and_exports_what_it_kept(common, ray_head):
    directory, options = common
    data = directory / "data"
    data.mkdir()
    finished(start(ray_head, "import-graph", *options, "--name", "rows", "--output", str(data / "train_sft.jsonl")))
    jsonl.write_rows(data / "train_dpo.jsonl", ROWS)
    result = finished(start(ray_head, "pipeline", *options, "--data-dir", str(data), "--name", "p"))
    store = Store(directory / "store")
    assert set(store.names("adapter")) == {"p", "p-dpo"}
    assert set(store.names("scores")) == {"p", "p-dpo", "p-base"}
    assert abs(result["dpo"]["train_loss_first"] - 0.6931) < 1e-3
    kept = "p-dpo" if result["dpo"]["kept"] else "p"
    assert result["adapter"] == str(store.get("adapter", kept).path)
    exported = store.get("model", "p").manifest.inputs[0]
    assert exported.content == store.get("adapter", kept).manifest.content
    again = finished(start(ray_head, "pipeline", *options, "--data-dir", str(data), "--name", "p"))
    assert again["dpo"] == result["dpo"]
    assert ": make " not in again["stderr"]


def test_relation_rows_become_pairs_of_the_models_own_wrong_answers(common, ray_head):
    directory, options = common
    store = Store(directory / "store")
    if store.find("adapter", "p") is None:
        finished(start(ray_head, "import-graph", *options, "--name", "rows"))
        finished(start(ray_head, "sft", *options, "--train-data", "rows", "--name", "p"))
    result = finished(start(ray_head, "dpo", *options, "--data", "rows", "--from", "p", "--name", "own"))
    (name,) = [name for name in store.names("dataset") if name.startswith("on-policy-")]
    pairs = jsonl.read_preferences(store.get("dataset", name).path / "train.jsonl")
    assert len(pairs) >= result["counts"]["rows"] > 0
    assert result["counts"]["server"] == result["counts"]["rows"]
    assert 0 <= result["longer_wins"] <= 1
    assert all(json.loads(pair.chosen) is not None and pair.rejected.strip() for pair in pairs)
