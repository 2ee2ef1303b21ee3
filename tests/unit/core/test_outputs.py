"""Where copies may go: never in place of the store's artifacts or of other files, and it is said before any work."""

import shutil

import pytest

from tests.unit.test_cli import call
from ucotron_ray.core import copies, outputs
from ucotron_ray.core.artifacts import Artifact, ArtifactKind, BuildResult, Request, Store
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.models import stage as models


def made(store: Store, kind: ArtifactKind = "bundle", text: str = "new") -> Artifact:
    with store.building(Request(kind, "mine", {"text": text}), replace=True) as build:
        (build.path / "weights").write_text(text, encoding="utf-8")
        return build.publish(BuildResult({}, {}, []))


@pytest.mark.parametrize("place", ["store/bundle/mine", "store/adapter/mine", "store/new", "store", ".", "link/mine"])
def test_a_copy_is_refused_in_the_store_and_above_it(tmp_path, place):
    store = Store(tmp_path / "store")
    bundle = made(store)
    made(store, "adapter")
    (tmp_path / "link").symlink_to(store.root / "bundle")
    with pytest.raises(ConfigError, match="artifacts of the store"):
        outputs.copy_out(bundle, tmp_path / place)
    assert store.get("bundle", "mine")
    assert store.get("adapter", "mine")


def test_a_copy_takes_the_place_of_nothing_but_an_older_copy(tmp_path):
    store = Store(tmp_path / "store")
    adapter = made(store, "adapter")
    (tmp_path / "file").touch()
    (tmp_path / "app").mkdir()
    # Programs for browsers have a file of this name too.
    (tmp_path / "app" / "manifest.json").write_text('{"name": "app"}', encoding="utf-8")
    outputs.copy_out(adapter, tmp_path / "adapter")
    for place, said in (
        ("file", "the file"),
        ("file/below", "the file"),
        ("app", "something else"),
        ("adapter", "the adapter 'mine'"),
    ):
        with pytest.raises(ConfigError, match=said):
            outputs.refuse_mixing(tmp_path / place, store.root, "bundle")
    (tmp_path / "empty").mkdir()
    for place in ("deep/new", "empty"):
        outputs.copy_out(made(store), tmp_path / place)
        outputs.copy_out(made(store, text=f"after {place}"), tmp_path / place)
        assert (tmp_path / place / "weights").read_text(encoding="utf-8") == f"after {place}"
    assert not list(tmp_path.glob("*.partial"))


def test_a_copy_that_breaks_off_leaves_the_older_one(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    outputs.copy_out(made(store, text="old"), tmp_path / "out")

    def full(source: object, target: object, **more: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space"):
        outputs.copy_out(made(store), tmp_path / "out")
    assert copies.holds(tmp_path / "out", models.artifacts.read_artifact(tmp_path / "out").manifest.content)
    assert (tmp_path / "out" / "weights").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--model-dir", "/nowhere", "--output-dir", "DIR"], "files of something else"),
        (["export", "--model-dir", "/nowhere", "--output-dir", "STORE/bundle/mine"], "artifacts of the store"),
        (["sft", "--train-data", "/nowhere", "--output-dir", "DIR"], "files of something else"),
        (["tune", "sft", "--train-data", "/nowhere", "--output", "DIR"], "the output is a directory"),
        (["synthesize", "contradiction", "--output", "DIR"], "the output is a directory"),
        (["synthesize", "contradiction", "--output", "DIR/thesis.tex/rows.jsonl"], "the output is no directory"),
        (["synthesize", "all", "--output", "DIR/thesis.tex"], "the output is no directory"),
        (["import-graph", "/nowhere", "--output", "DIR"], "the output is a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_anything_is_looked_at(tmp_path, capsys, arguments, said):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    places = {"DIR": str(tmp_path / "full"), "STORE": str(tmp_path / "store")}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, _, err = call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert said in err
    assert (tmp_path / "full" / "thesis.tex").is_file()
