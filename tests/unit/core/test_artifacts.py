"""The reuse table: nothing, partial, complete, damaged; same recipe or another."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ucotron_ray.core.artifacts import Build, BuildResult, Input, Request, Store
from ucotron_ray.core.errors import ArtifactError, ConfigError, CorruptArtifact, MissingArtifact, RecipeChanged
from ucotron_ray.core.files import MANIFEST, canonical_hash

REQUEST = Request("dataset", "d", {"rate": 1, "deep": {"rank": 8}})
OTHER = Request("dataset", "d", {"rate": 2, "deep": {"rank": 8}})


def make(store: Store, request: Request = REQUEST, text: str = "hello", *, replace: bool = False) -> Build:
    with store.building(request, replace=replace) as build:
        if build.artifact is None:
            (build.path / "sub").mkdir(exist_ok=True)
            (build.path / "sub" / "file.txt").write_text(text, encoding="utf-8")
            build.publish(BuildResult({"f1": 0.5}, {"rows": 3}, ["a note"]))
    return build


def test_first_build_publishes_and_second_reuses_the_same_bytes(tmp_path):
    store = Store(tmp_path)
    first, second = make(store), make(store, text="never written")
    assert (first.reused, second.reused) == (False, True)
    assert (store.get("dataset", "d").path / "sub" / "file.txt").read_text(encoding="utf-8") == "hello"
    assert first.artifact is not None
    assert second.artifact is not None
    assert first.artifact.manifest.content == second.artifact.manifest.content
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == ["d", "d.lock"]
    assert sorted(path.name for path in (tmp_path / "dataset" / "d").iterdir()) == [MANIFEST, "sub"]


def test_another_recipe_is_refused_and_names_the_field(tmp_path):
    store = Store(tmp_path)
    make(store)
    with pytest.raises(RecipeChanged, match="rate: 1 → 2") as caught:
        make(store, OTHER)
    assert caught.value.exit_code == 3
    assert store.plan(OTHER) == "conflict"


@pytest.mark.parametrize("is_whole", [True, False])
def test_another_recipe_is_refused_ahead_of_the_build_too(tmp_path, is_whole):
    store = Store(tmp_path)
    if is_whole:
        make(store)
    else:
        with pytest.raises(RuntimeError, match="killed"), store.building(REQUEST):
            raise RuntimeError("killed")
    with pytest.raises(RecipeChanged, match="rate: 1 → 2"):
        store.refuse_other_recipe(OTHER)
    store.refuse_other_recipe(OTHER, replace=True)
    store.refuse_other_recipe(REQUEST)
    assert store.plan(REQUEST) == ("reuse" if is_whole else "resume")


def test_replace_keeps_the_old_artifact_until_the_new_one_is_whole(tmp_path):
    store = Store(tmp_path)
    make(store)
    with pytest.raises(RuntimeError, match="killed"), store.building(OTHER, replace=True):
        raise RuntimeError("killed")
    old = store.get("dataset", "d")
    assert old.manifest.recipe == REQUEST.recipe
    make(store, OTHER, "new", replace=True)
    assert store.get("dataset", "d").manifest.recipe == OTHER.recipe
    assert (store.path("dataset", "d") / "sub" / "file.txt").read_text(encoding="utf-8") == "new"


def test_a_failed_build_is_resumed_by_the_same_recipe_and_refused_to_another(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="power"), store.building(REQUEST) as build:
        (build.path / "half").write_text("x", encoding="utf-8")
        raise RuntimeError("power cut")
    assert store.find("dataset", "d") is None
    assert (store.plan(REQUEST), store.plan(OTHER)) == ("resume", "conflict")
    with pytest.raises(RecipeChanged):
        make(store, OTHER)
    with store.building(REQUEST) as build:
        assert build.resumed
        assert (build.path / "half").read_text(encoding="utf-8") == "x"
        build.publish(BuildResult({}, {}, []))


def test_an_input_with_other_content_is_another_recipe_though_its_name_is_the_same():
    inputs = [
        Input(role="data", kind="dataset", name=name, content=content)
        for name, content in [("a", "1"), ("a", "2"), ("b", "1")]
    ]
    recipes = [Request("adapter", "x", {}, (entry,)).recipe for entry in inputs]
    assert recipes[0] != recipes[1]
    assert recipes[0] == recipes[2]


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "add", "manifest"])
def test_damaged_bytes_are_found_before_use(tmp_path, damage):
    store = Store(tmp_path)
    make(store)
    directory = store.path("dataset", "d")
    file = directory / "sub" / "file.txt"
    if damage == "flip":
        file.write_text("hellO", encoding="utf-8")
    elif damage == "truncate":
        os.truncate(file, 2)
    elif damage == "delete":
        file.unlink()
    elif damage == "add":
        (directory / "extra").write_text("", encoding="utf-8")
    else:
        record = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        record["content"] = "0" * 64
        (directory / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(CorruptArtifact):
        store.get("dataset", "d")
    with pytest.raises(CorruptArtifact):
        make(store)


def test_a_rejected_artifact_is_no_input_unless_asked_for(tmp_path):
    store = Store(tmp_path)
    with store.building(REQUEST) as build:
        build.publish(BuildResult({}, {}, ["too many duplicates"], state="rejected"))
    with pytest.raises(ArtifactError, match="too many duplicates"):
        store.get("dataset", "d")
    assert store.get("dataset", "d", accept_rejected=True).manifest.state == "rejected"


def test_missing_artifact_names_what_there_is(tmp_path):
    store = Store(tmp_path)
    make(store)
    with pytest.raises(MissingArtifact, match=r"found: +d"):
        store.get("dataset", "e")


@pytest.mark.parametrize("name", ["", "..", "a/b", "x.partial"])
def test_a_name_that_could_leave_the_store_is_refused(tmp_path, name):
    with pytest.raises(ConfigError):
        Store(tmp_path).path("dataset", name)


def _die_while_building(root: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with Store(root).building(REQUEST) as build:
        (build.path / "half").write_text("x", encoding="utf-8")
        ready.set()
        signal.pause()


def test_two_builders_exclude_each_other_and_a_killed_one_gives_its_name_back(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_die_while_building, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    with pytest.raises(ArtifactError, match="another process"):
        make(Store(tmp_path))
    process.kill()
    process.join()
    assert not make(Store(tmp_path)).reused


def test_canonical_hash_does_not_depend_on_order_and_refuses_what_json_cannot_hold():
    assert canonical_hash({"a": 1, "b": [1.5, None]}) == canonical_hash({"b": [1.5, None], "a": 1})
    for value in (float("nan"), {1, 2}, Path("x")):
        with pytest.raises((TypeError, ValueError)):
            canonical_hash(value)


def test_no_password_is_kept_in_a_manifest_and_one_of_before_is_cleaned_by_the_next_who_uses_it(tmp_path, monkeypatch):
    store = Store(tmp_path)
    words = ["/usr/bin/ucotron-ray", "sft", "--set", "tracking.mlflow_uri=http://alice:hunter2222@host"]
    monkeypatch.setattr("sys.argv", words)
    with store.building(Request("cache", "new", {})) as build:
        made = build.publish(BuildResult({}, {}, []))
    file = made.path / "manifest.json"
    text = file.read_text(encoding="utf-8")
    assert "hunter2222" not in text
    assert "http://alice:***@host" in text
    # As it was kept before.
    file.write_text(text.replace("***", "hunter2222"), encoding="utf-8")
    assert "hunter2222" in json.dumps(store.find("cache", "new").manifest.provenance)
    found = store.get("cache", "new")
    assert "hunter2222" not in file.read_text(encoding="utf-8")
    assert found.manifest.content == made.manifest.content
