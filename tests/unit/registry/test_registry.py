"""promote, rollback and pull against real MLflow on sqlite. The models are made up, their scores and bytes are real."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest

from tests.registered import answer_with, base_directory, held_out_file, make_bundle
from ucotron_ray import cli
from ucotron_ray.core import config, copies, tracking
from ucotron_ray.core import destination as destinations
from ucotron_ray.core.artifacts import BuildResult, Request, Store, read_artifact
from ucotron_ray.core.errors import CorruptArtifact
from ucotron_ray.core.files import MANIFEST, content_hash, list_files
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.models.stage import original_base
from ucotron_ray.registry import stage as promotion
from ucotron_ray.registry import versions as registry

RIGHT = {"base": 0.2, "good": 0.8, "worse": 0.5, "best": 0.95, "no-gain": 0.2}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One MLflow database for the module: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    where = destinations.Destination(f"sqlite:///{folder / 'mlflow.db'}", "tests", (folder / "artifacts").as_uri())
    place = config.load(overrides=[("tracking.mlflow_uri", where.uri)]).place
    assert tracking.Registry(where, place, "nothing").aliases() == {}
    return where.uri


class World:
    """A store, a registered model of its own in the shared database, and the command line on both."""

    def __init__(self, directory, database, capsys, name):
        self.store = Store(directory / "store")
        self.base = base_directory(directory / "base")
        self.data = held_out_file(directory)
        self.database, self.name, self._capsys = database, name, capsys

    def bundle(self, name, **arguments):
        return make_bundle(self.store, name, self.base, **arguments)

    def call(self, *arguments):
        if arguments[0] == "promote":
            arguments = (*arguments, "--data", str(self.data))
        settings = ["--set", f"store={self.store.root}", "--set", "evaluation.resamples=200"]
        where = ["--registry", self.database, "--registered-model", self.name]
        # The runs themselves are tested elsewhere.
        tracked = ["--set", "tracking.mlflow_uri=none"]
        code = cli.main([*arguments, *settings, *where, *tracked, "--json"])
        out, err = self._capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    def aliases(self):
        return self.registry().aliases()

    def registry(self):
        place = config.load(overrides=[("tracking.mlflow_uri", self.database)]).place
        return tracking.Registry(destinations.destination(place, self.store.root), place, self.name)


@pytest.fixture
def world(tmp_path, database, capsys, monkeypatch, request):
    made = World(tmp_path, database, capsys, re.sub(r"\W+", "-", request.node.name))
    made.asked = answer_with(monkeypatch, RIGHT)
    return made


def test_champion_moves_to_the_better_stays_with_a_worse_one_and_rolls_back(world):
    for name in ("good", "worse", "best"):
        world.bundle(name)
    code, result, err = world.call("promote", "good")
    assert code == 0, err
    assert (result["version"], result["previous"], result["changed"]) == ("1", None, True)
    assert world.aliases() == {"champion": "1"}

    code, result, err = world.call("promote", "worse")
    assert (code, result["status"]) == (1, "failed")
    (refused,) = [gate for gate in result["gates"] if not gate["passed"]]
    assert refused["figures"]["difference"] < -0.1
    # The numbers: F1 of half the rows against that of four fifths, on the same 60.
    assert "not worse than the champion: F1 0." in err
    assert "on 60 rows: -0." in err
    assert world.aliases() == {"champion": "1", "candidate": "2"}

    code, result, err = world.call("promote", "best")
    assert code == 0, err
    assert world.aliases() == {"champion": "3", "previous": "1", "candidate": "2"}
    assert world.call("rollback")[0] == 0
    assert world.aliases() == {"champion": "1", "previous": "3", "candidate": "2"}
    # The champion is not scored again: its answers on these rows are in the store.
    assert sorted(world.asked) == ["base", "best", "good", "worse"]
    lines = (world.store.root / "registry" / f"{world.name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["promote", "refuse", "promote", "rollback"]


def test_a_version_says_what_it_was_made_of_and_how_it_passed(world):
    bundle = world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    tags = world.registry().version("champion").tags
    data = world.store.get("dataset", "d")
    assert tags["manifest_sha"] == bundle.manifest.content
    assert tags["dataset_digest"] == data.manifest.content
    assert tags["prompt_hash"] == "0123"
    assert tags["base"] == str(world.base)
    gates = {gate["name"]: gate for gate in json.loads(tags["gates"])}
    assert gates["better than the base"]["figures"]["difference"] > 0.4
    assert all(gate["passed"] for gate in gates.values())
    # The same bytes are one version, however often they are promoted.
    code, result, _ = world.call("promote", "good")
    assert (code, result["changed"], len(world.registry().versions())) == (0, False, 1)


def test_a_bundle_that_does_not_beat_its_base_or_failed_its_parity_is_refused(world):
    world.bundle("no-gain")
    code, _, err = world.call("promote", "no-gain")
    assert code == 1
    assert "better than the base: F1 " in err
    world.bundle("broken", state="failed")
    code, _, err = world.call("promote", "broken", "--accept-rejected")
    assert code == 1
    assert "marked failed" in err
    assert "champion" not in world.aliases()


def test_held_out_rows_that_were_trained_on_refuse_the_promotion(world):
    world.bundle("good")
    world.data.write_bytes((world.store.path("dataset", "d") / "train.jsonl").read_bytes())
    code, _, err = world.call("promote", "good")
    assert code == 1
    assert "held-out rows are new: 60 of 60 held-out texts" in err


def test_held_out_rows_are_not_called_new_where_the_training_rows_are_unknown(world):
    world.bundle("good")
    shutil.rmtree(world.store.path("dataset", "d"))
    code, result, err = world.call("promote", "good")
    assert code == 1, err
    (refused,) = [gate for gate in result["gates"] if not gate["passed"]]
    assert refused["name"] == "held-out rows are new"
    assert "does not have what was trained on, so 60 held-out texts" in err
    assert "champion" not in world.aliases()


def test_a_hub_base_is_noted_before_anything_is_scored(world, monkeypatch):
    world.bundle("good")
    monkeypatch.setattr(promotion, "original_base", lambda *given: replace(original_base(*given), kind="hub"))
    scores, noted = scoring.answers_of, []

    def answers(run, *rest):
        noted.append(run.hub_needed)
        return scores(run, *rest)

    monkeypatch.setattr(scoring, "answers_of", answers)
    assert world.call("promote", "good")[0] == 0
    # The bundle asks for no hub, and its answers come first.
    assert noted == [True, True]


def test_a_flipped_byte_in_any_file_stops_promotion_and_pull(world, tmp_path):
    bundle = world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    target = tmp_path / "pulled"
    for entry in [*bundle.manifest.files, None]:
        path = bundle.path / (entry.path if entry else MANIFEST)
        whole = path.read_bytes()
        # Of the manifest a byte of a hash, so that it still is JSON.
        place = whole.index(b'"sha256"') + 12 if entry is None else len(whole) // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for arguments in (("promote", "good"), ("pull", str(target))):
            code, _, err = world.call(*arguments)
            assert code == 1, (path, arguments)
            assert "damaged" in err or "cannot be read" in err, err
            assert not target.exists()
        path.write_bytes(whole)
    assert world.call("pull", str(target))[0] == 0
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("upload", [False, True], ids=["from the store's path", "from MLflow's artifacts"])
def test_pull_gives_the_registered_bytes_and_takes_the_place_of_an_older_copy(world, tmp_path, upload):
    good, best = world.bundle("good"), world.bundle("best")
    extra = ("--upload",) if upload else ()
    target = tmp_path / "models" / "champion"
    for bundle in (good, best):
        code, _, err = world.call("promote", bundle.manifest.name, *extra)
        assert code == 0, err
        if upload:
            # What lies in the store is no longer needed.
            shutil.rmtree(bundle.path)
        code, result, err = world.call("pull", str(target))
        assert code == 0, err
        assert result["content"] == bundle.manifest.content
        assert content_hash(list_files(target)) == bundle.manifest.content
        if upload:
            shutil.copytree(target, bundle.path)
    assert world.registry().version("champion").source.startswith("file:")
    assert [path.name for path in target.parent.iterdir()] == ["champion"]
    # Without a target it goes where its name belongs in the store, and is there already.
    assert world.call("pull")[1]["artifact"] == str(world.store.path("bundle", "best"))


def test_download_asks_mlflow_for_what_no_path_here_shows(world, tmp_path):
    bundle = world.bundle("good")
    assert world.call("promote", "good", "--upload")[0] == 0
    models = world.registry()
    got = models.download(models.version("champion").source, tmp_path)
    assert content_hash(list_files(got / "bundle")) == bundle.manifest.content
    assert {path.name for path in got.iterdir()} >= {"MLmodel", "requirements.txt", "code"}


def test_a_version_of_before_is_the_bundle_itself_and_stays_champion_pulled_and_led_back_to(world, tmp_path):
    """Registered when no version had a MLmodel."""
    old = world.bundle("good")
    models = world.registry()
    place = world.store.root / "registry" / "versions" / old.manifest.content[:16]
    copies.install(copies.copy_of(old.path), place, old.manifest.content)
    models.point("champion", models.register(place.as_uri(), registry.tags_of(old, None)))
    code, result, _ = world.call("promote", "good")
    assert (code, result["version"], result["changed"]) == (0, "1", False)
    world.bundle("best")
    assert world.call("promote", "best")[0] == 0
    assert world.call("rollback")[0] == 0
    assert world.aliases() == {"champion": "1", "previous": "2"}
    target = tmp_path / "pulled"
    assert world.call("pull", str(target))[0] == 0
    assert content_hash(list_files(target)) == old.manifest.content


def test_a_manifest_that_was_changed_with_its_files_is_not_the_registered_one(world, tmp_path):
    bundle = world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    (bundle.path / "model.onnx").write_bytes(b"another graph")
    manifest = json.loads((bundle.path / MANIFEST).read_text(encoding="utf-8"))
    files = list_files(bundle.path)
    manifest |= {"files": [entry.model_dump() for entry in files], "content": content_hash(files)}
    (bundle.path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    code, _, err = world.call("pull", str(tmp_path / "pulled"))
    assert code == 1
    assert "not what was registered" in err


def test_a_failed_fetch_leaves_the_older_copy_as_it_was(tmp_path):
    store = Store(tmp_path / "store")
    good = make_bundle(store, "good", base_directory(tmp_path / "base"))
    best = make_bundle(store, "best", tmp_path / "base")
    target = tmp_path / "champion"
    copies.install(copies.copy_of(good.path), target, good.manifest.content)
    (best.path / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(CorruptArtifact):
        copies.install(copies.copy_of(best.path), target, best.manifest.content)
    assert read_artifact(target).manifest.content == good.manifest.content


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_takes_the_place_of_another_on_any_file_system(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(copies, "_exchanged", lambda one, other: False)
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    if exchange:
        assert copies._exchanged(tmp_path / "new", tmp_path / "target")
        assert copies._exchanged(tmp_path / "new", tmp_path / "target")
    copies._place(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text(encoding="utf-8") == "new"


def test_mistakes_end_with_2_and_make_nothing(world, tmp_path):
    code, _, err = world.call("rollback")
    assert (code, "no previous champion" in err) == (2, True)
    code, _, err = world.call("pull", str(tmp_path / "x"))
    assert (code, "no version with the alias 'champion'" in err) == (2, True)
    wrong = tmp_path / "nowhere.db"
    code = cli.main(["pull", "--registry", f"sqlite:///{wrong}", "--set", f"store={world.store.root}"])
    assert (code, wrong.exists()) == (2, False)
    world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("mine", encoding="utf-8")
    code, _, err = world.call("pull", str(tmp_path / "own"))
    assert (code, "stays as it is" in err) == (2, True)
    assert (tmp_path / "own" / "letter.txt").read_text(encoding="utf-8") == "mine"


def test_an_alias_on_a_version_that_promote_never_registered_is_said_and_led_back_by_rollback(world, tmp_path):
    for name in ("good", "best"):
        world.bundle(name)
        assert world.call("promote", name)[0] == 0
    models = world.registry()
    models.point("champion", models.register((tmp_path / "by hand").as_uri(), {}))
    for arguments in (("pull", str(tmp_path / "x")), ("promote", "good")):
        code, _, err = world.call(*arguments)
        assert (code, "version 3" in err, "was not registered by promote" in err) == (2, True, True), err
    assert world.call("rollback")[0] == 0
    assert world.aliases() == {"champion": "1", "previous": "3"}
    code, _, err = world.call("rollback")
    assert (code, "was not registered by promote" in err) == (2, True), err


def test_other_braces_than_the_tiers_are_no_name_of_a_model(world):
    world.name = "my{model}"
    code, _, err = world.call("pull")
    assert (code, "tracking.registered_model" in err) == (2, True), err
    loaded = config.load(overrides=[("tracking.registered_model", "re-{tier}-eu")])
    assert loaded.place.tracking.registered_model == "re-{tier}-eu"


def export_anew(store, name):
    """Other bytes under a bundle's name, as `export --replace` leaves them."""
    old = store.get("bundle", name).manifest
    request = Request("bundle", name, {**old.recipe_fields, "prompt": "4567"}, tuple(old.inputs))
    with store.building(request, replace=True) as build:
        (build.path / "model.onnx").write_bytes(b"another graph of " + name.encode())
        return build.publish(BuildResult({}, {}, []))


def test_a_champion_keeps_its_files_when_its_name_is_exported_anew(world, tmp_path):
    old = world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    new = export_anew(world.store, "good")
    code, result, err = world.call("promote", "good")
    assert code == 0, err
    assert (result["version"], result["previous"], result["content"]) == ("2", "1", new.manifest.content)
    assert world.call("rollback")[0] == 0
    target = tmp_path / "pulled"
    assert world.call("pull", str(target))[0] == 0
    assert content_hash(list_files(target)) == old.manifest.content


def test_a_bundle_is_registered_anew_where_its_version_cannot_be_had_as_it_is_asked_for(world, tmp_path):
    bundle = world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    first = world.registry().version("champion")
    assert first.directory == world.store.root / "registry" / "models" / bundle.manifest.content[:16] / "bundle"
    shutil.rmtree(first.directory)
    assert world.call("promote", "good")[1]["version"] == "2"
    assert world.call("pull", str(tmp_path / "pulled"))[0] == 0
    # Files that only lie here are not at MLflow.
    for _ in range(2):
        assert world.call("promote", "good", "--upload")[1]["version"] == "3"
    uploaded = world.registry().version("champion")
    assert uploaded.run is not None
    shutil.rmtree(uploaded.directory)
    assert world.call("promote", "good", "--upload")[1]["version"] == "4"


def test_the_files_of_a_version_are_linked_within_the_store_and_copied_from_elsewhere(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    bundle = make_bundle(store, "good", base_directory(tmp_path / "base"))
    content = bundle.manifest.content
    place = registry.kept(store.root, bundle) / "bundle"
    assert os.path.samefile(place / "model.onnx", bundle.path / "model.onnx")
    inode = place.stat().st_ino
    assert (registry.kept(store.root, bundle) / "bundle").stat().st_ino == inode
    # A directory of the user's can be written to in place.
    own = read_artifact(shutil.copytree(bundle.path, tmp_path / "own"))
    shutil.rmtree(place)
    registry.kept(store.root, own)
    assert not os.path.samefile(place / "model.onnx", own.path / "model.onnx")
    # What is damaged is replaced, and where nothing can be linked it is copied.
    (place / "model.onnx").write_bytes(b"damaged")

    def refuse(source, target):
        raise OSError("another device")

    monkeypatch.setattr(os, "link", refuse)
    assert copies.holds(registry.kept(store.root, bundle) / "bundle", content)
    assert not os.path.samefile(place / "model.onnx", bundle.path / "model.onnx")


def kill_after_the_first_alias(monkeypatch):
    point = tracking.Registry.point

    def once(self, alias, version):
        point(self, alias, version)
        monkeypatch.setattr(tracking.Registry, "point", point)
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking.Registry, "point", once)


def test_a_kill_between_the_two_aliases_is_mended_by_promote_and_said_by_rollback(world, monkeypatch):
    for name in ("good", "best"):
        world.bundle(name)
    assert world.call("promote", "good")[0] == 0
    kill_after_the_first_alias(monkeypatch)
    assert world.call("promote", "best")[0] == 75
    assert world.aliases() == {"champion": "1", "previous": "1"}
    code, _, err = world.call("rollback")
    assert (code, "no champion before version 1" in err) == (2, True)
    assert world.call("promote", "best")[0] == 0
    assert world.aliases() == {"champion": "2", "previous": "1"}
    kill_after_the_first_alias(monkeypatch)
    assert world.call("rollback")[0] == 75
    # Where it was asked to go, and not back from there.
    assert world.call("rollback")[0] == 2
    assert world.aliases() == {"champion": "1", "previous": "1"}


def test_a_champion_that_is_moved_while_another_is_scored_stops_the_promotion(world, monkeypatch):
    for name in ("good", "best", "worse"):
        world.bundle(name)
    for name in ("good", "best"):
        assert world.call("promote", name)[0] == 0
    scores = scoring.answers_of

    def answers(*arguments):
        models = world.registry()
        models.point("champion", models.version("previous"))
        return scores(*arguments)

    monkeypatch.setattr(scoring, "answers_of", answers)
    code, _, err = world.call("promote", "worse")
    assert (code, "somebody else moved champion" in err) == (75, True), err
    assert world.aliases() == {"champion": "1", "previous": "1"}
    # The next one is compared with the champion of now.
    code, result, _ = world.call("promote", "worse")
    assert (code, result["previous"]) == (1, "1")


def test_a_registry_that_fails_after_the_work_is_no_mistake_of_the_users(world, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def fail(*arguments, **settings):
        raise MlflowException("the disk is full")

    world.bundle("good")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "search_registered_models", fail)
        code, _, err = world.call("promote", "good")
        assert (code, "cannot be asked" in err, world.asked) == (2, True, [])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", fail)
        code, _, err = world.call("promote", "good")
        assert (code, "answers no longer" in err, "the disk is full" in err) == (1, True, True)
    assert world.call("promote", "good")[0] == 0


def test_pull_throws_nothing_away_that_was_never_registered(world, tmp_path):
    world.bundle("good")
    assert world.call("promote", "good")[0] == 0
    data = world.store.path("dataset", "d")
    code, _, err = world.call("pull", str(data), "--replace")
    assert (code, "the target is no bundle" in err) == (2, True), err
    assert (data / "train.jsonl").is_file()
    mine = make_bundle(Store(tmp_path / "other"), "mine", world.base)
    code, _, err = world.call("pull", str(mine.path))
    assert (code, "was never registered" in err) == (3, True), err
    assert read_artifact(mine.path).manifest.name == "mine"
    assert world.call("pull", str(mine.path), "--replace")[0] == 0
    assert read_artifact(mine.path).manifest.name == "good"
    # In the store too: what was exported anew under the champion's name was not promoted.
    new = export_anew(world.store, "good")
    assert world.call("pull")[0] == 3
    assert read_artifact(new.path).manifest.content == new.manifest.content
