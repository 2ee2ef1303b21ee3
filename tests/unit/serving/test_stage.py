"""What `serve` is asked to serve: found, verified, refused, followed; and where it may listen."""

import json
import logging
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from ucotron_ray import cli
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import BuildResult, Request, Store, read_artifact
from ucotron_ray.core.errors import ArtifactError, ConfigError, CorruptArtifact, MissingArtifact, ResourceError
from ucotron_ray.core.model_version import Version
from ucotron_ray.core.run import Run
from ucotron_ray.data.wire import SERVER_MAX_TOKENS
from ucotron_ray.models import base as base_models
from ucotron_ray.operations.dashboards import free_port
from ucotron_ray.registry import aliases
from ucotron_ray.registry.versions import CONTENT_TAG, NAME_TAG
from ucotron_ray.serving import stage as serving
from ucotron_ray.serving import target as targets


def bundle(
    store: Path,
    name: str,
    *,
    content: str = "graph",
    state: str = "ok",
    decoding: str | None = None,
    graphs: tuple[str, ...] = ("model.onnx",),
) -> Path:
    """A bundle by its manifest; no model runs here."""
    request = Request("bundle", name, {"content": content})
    with Store(store).building(request, replace=True) as build:
        for graph in graphs:
            (build.path / graph).write_text(content, encoding="utf-8")
        if decoding:
            (build.path / "decoding.json").write_text(json.dumps({"default": decoding}), encoding="utf-8")
        build.publish(BuildResult({}, {}, ["as a test wants it"], state=state))
    return store / "bundle" / name


@pytest.fixture
def run(tmp_path):
    def made(**settings):
        overrides = [("store", str(tmp_path)), *((f"serving.{key}", value) for key, value in settings.items())]
        return Run(config.load(overrides=overrides), verb="serve", name="s")

    return made


def found_by(run, reference):
    return serving.target_of(serving.Reference(run, reference))


def test_a_bundle_is_found_by_name_and_by_path_with_its_best_decoding(tmp_path, run):
    path = bundle(tmp_path, "relations", decoding="entities")
    for reference in ("relations", str(path)):
        found = found_by(run(), reference)
        assert (found.model, found.backend, found.decoding, found.path) == ("relations", "onnx", "entities", str(path))
    assert found_by(run(decoding="free"), "relations").decoding == "free"


def test_a_variant_that_the_bundle_lacks_is_said_before_anything_is_started(tmp_path, run, capsys):
    bundle(tmp_path, "relations", graphs=("model.onnx", "model_int8.onnx"))
    assert found_by(run(variant="int8"), "relations").variant == "int8"
    arguments = ["serve", "relations", "--set", f"store={tmp_path}", "--port", str(free_port())]
    assert cli.main([*arguments, "--variant", "int4"]) == 2
    said = capsys.readouterr().err
    assert "the bundle has no int4" in said
    assert "fp32, int8" in said


def test_a_base_model_runs_on_transformers_and_a_bundle_does_not(tmp_path, run, tiny_model):
    found = found_by(run(), str(tiny_model))
    assert (found.backend, found.path, found.base, found.decoding) == (
        "transformers",
        None,
        str(tiny_model),
        "entities",
    )
    bundle(tmp_path, "relations")
    with pytest.raises(ConfigError, match="no weights for transformers"):
        found_by(run(backend="transformers"), "relations")
    with pytest.raises(ConfigError, match="bundles only"):
        found_by(run(backend="onnx"), str(tiny_model))


def test_a_flipped_byte_in_any_file_is_caught_before_anything_is_started(tmp_path, run):
    path = bundle(tmp_path, "relations", decoding="free")
    for file in ("model.onnx", "decoding.json"):
        whole = (path / file).read_bytes()
        (path / file).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        for reference in ("relations", str(path)):
            with pytest.raises(CorruptArtifact, match="damaged"):
                found_by(run(), reference)
        (path / file).write_bytes(whole)
    found_by(run(), "relations")


def test_the_exit_code_of_a_damaged_bundle_is_1(tmp_path, capsys):
    path = bundle(tmp_path, "relations")
    (path / "model.onnx").write_bytes(b"grapH")
    assert cli.main(["serve", "relations", "--set", f"store={tmp_path}", "--port", str(free_port())]) == 1
    assert "model.onnx" in capsys.readouterr().err


def test_a_bundle_that_failed_its_gates_is_refused_unless_that_is_accepted(tmp_path, run):
    path = bundle(tmp_path, "relations", state="failed")
    for reference in ("relations", str(path)):
        with pytest.raises(ArtifactError, match="marked failed"):
            found_by(run(), reference)
    accepting = run()
    accepting.accept_rejected = True
    assert found_by(accepting, "relations").path == str(path)


def test_replicas_check_the_bytes_that_they_see_themselves(tmp_path, run):
    path = bundle(tmp_path, "relations")
    found = found_by(run(), "relations")
    targets.check(found)
    bundle(tmp_path, "relations", content="another")
    with pytest.raises(CorruptArtifact, match="not those that were to be served"):
        targets.check(found)
    (path / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(CorruptArtifact, match="damaged"):
        targets.check(found)


def test_a_bundle_made_again_is_followed_and_a_damaged_one_is_not(tmp_path, run, caplog):
    bundle(tmp_path, "relations")
    file = tmp_path / "serving" / "s.json"
    following = serving.Following(serving.Reference(run(), "relations"), file)
    first = following.target
    following.look()
    assert not file.exists()

    bundle(tmp_path, "relations", content="better")
    following.look()
    second = targets.read(file)
    assert second.content != first.content
    assert following.target == second

    path = bundle(tmp_path, "relations", content="even better")
    (path / "model.onnx").write_bytes(b"even worse ")
    with caplog.at_level(logging.ERROR):
        following.look()
    assert targets.read(file) == second
    assert "stays with relations" in caplog.text


def test_an_adapter_of_the_same_name_does_not_take_the_place_of_a_bundle_that_was_removed(
    tmp_path, run, tiny_model, caplog
):
    base = base_models.resolve(str(tiny_model))
    fields = {"base": {"reference": base.reference, "identity": base.identity}}
    with Store(tmp_path).building(Request("adapter", "relations", fields)) as build:
        (build.path / "adapter").mkdir()
        (build.path / "adapter" / "weights").write_bytes(b"ungated")
        build.publish(BuildResult({}, {}, []))
    path = bundle(tmp_path, "relations")
    file = tmp_path / "serving" / "s.json"
    following = [serving.Following(serving.Reference(run(), reference), file) for reference in ("relations", str(path))]
    shutil.rmtree(path)
    for each in following:
        with caplog.at_level(logging.ERROR):
            each.look()
        assert (each.target.backend, file.exists()) == ("onnx", False)
    assert caplog.text.count("is no bundle any more") == 2
    # It is followed again once it is back.
    bundle(tmp_path, "relations", content="better")
    for each in following:
        each.look()
        assert (targets.read(file).backend, targets.read(file)) == ("onnx", each.target)


def test_a_link_that_is_turned_is_followed(tmp_path, run):
    one, two = (bundle(tmp_path, name, content=name) for name in ("one", "two"))
    link = tmp_path / "current"
    link.symlink_to(one)
    file = tmp_path / "serving" / "s.json"
    following = serving.Following(serving.Reference(run(), str(link)), file)
    aside = tmp_path / "aside"
    aside.symlink_to(two)
    os.replace(aside, link)
    following.look()
    # The replicas get the directory itself: the link may be turned again while they load.
    assert (targets.read(file).path, targets.read(file).model) == (str(two), "two")


class Models:
    """A registry that points where a test wants."""

    model, uri = "ucotron-re-slm", "sqlite://"

    def __init__(self):
        self.champion = None

    def version(self, alias):
        return self.champion if alias == "champion" else None


def version(number: str, path: Path) -> Version:
    """A registered version of what lies there now."""
    manifest = read_artifact(path).manifest
    return Version(number, path.as_uri(), {CONTENT_TAG: manifest.content, NAME_TAG: manifest.name})


def test_an_alias_that_is_moved_is_followed_and_one_that_points_nowhere_is_an_error(tmp_path, run, monkeypatch):
    one, two = (bundle(tmp_path, name, content=name) for name in ("one", "two"))
    registered = Models()
    monkeypatch.setattr(aliases, "registry_of", lambda run, must_exist: registered)
    with pytest.raises(MissingArtifact, match="alias 'champion'"):
        found_by(run(), "champion")
    registered.champion = version("1", one)
    file = tmp_path / "serving" / "s.json"
    following = serving.Following(serving.Reference(run(), "champion"), file)
    assert following.target.model == "one"
    registered.champion = version("2", two)
    following.look()
    assert (targets.read(file).model, targets.read(file).path) == ("two", str(two))
    # A registry that cannot be asked changes nothing.
    registered.champion = None
    following.look()
    assert targets.read(file).model == "two"
    # Nor does a version that was made by hand.
    registered.champion = Version("3", one.as_uri(), {})
    following.look()
    assert targets.read(file).model == "two"
    with pytest.raises(MissingArtifact, match="version 3 of ucotron-re-slm was not registered by promote"):
        found_by(run(), "champion")


def test_a_champion_is_not_what_was_made_since_in_its_place(tmp_path, run, monkeypatch, caplog):
    registered = Models()
    monkeypatch.setattr(aliases, "registry_of", lambda run, must_exist: registered)
    registered.champion = version("1", bundle(tmp_path, "one"))
    file = tmp_path / "serving" / "s.json"
    following = serving.Following(serving.Reference(run(), "champion"), file)
    first = following.target
    bundle(tmp_path, "one", content="passed no gate")
    with caplog.at_level(logging.ERROR):
        following.look()
    assert (following.target, file.exists()) == (first, False)
    assert "is not what was registered" in caplog.text
    with pytest.raises(CorruptArtifact, match="is not what was registered"):
        found_by(run(), "champion")
    registered.champion = version("2", tmp_path / "bundle" / "one")
    following.look()
    assert targets.read(file).content != first.content


def test_whatever_fails_while_it_looks_what_is_served_goes_on_and_the_next_look_tries_again(tmp_path, run, monkeypatch):
    bundle(tmp_path, "relations")
    file = tmp_path / "serving" / "s.json"
    following = serving.Following(serving.Reference(run(), "relations"), file)
    first = following.target
    write, failures = targets.write, [OSError("the disk is full"), ZeroDivisionError("unforeseen")]

    def failing(file, target):
        if failures:
            raise failures.pop()
        write(file, target)

    monkeypatch.setattr(targets, "write", failing)
    bundle(tmp_path, "relations", content="better")
    for _ in range(2):
        following.look()
        assert (following.target, file.exists()) == (first, False)
    following.look()
    assert targets.read(file) == following.target != first


def test_a_refused_bundle_is_read_once_and_not_at_every_look(tmp_path, run, monkeypatch):
    bundle(tmp_path, "relations")
    following = serving.Following(serving.Reference(run(), "relations"), tmp_path / "s.json")
    found, reads = serving.target_of, []
    monkeypatch.setattr(serving, "target_of", lambda named: reads.append(named) or found(named))
    refused = ({"state": "failed"}, {"graphs": ("model_int8.onnx",)})
    for number, made in enumerate(refused, 1):
        bundle(tmp_path, "relations", content=f"worse {number}", **made)
        for _ in range(3):
            following.look()
        assert len(reads) == number


def test_a_service_that_runs_already_keeps_its_file_when_a_second_one_is_refused(tmp_path, run, monkeypatch):
    from ucotron_ray.serving import on_ray

    bundle(tmp_path, "relations")
    running, files = [], []
    status = SimpleNamespace(proxies={}, applications=running)
    monkeypatch.setattr(on_ray.serve, "status", lambda: status)
    monkeypatch.setattr(on_ray, "resources_of", lambda *arguments, gpu: SimpleNamespace(cpus=1.0, gpus=0.0, threads=1))
    monkeypatch.setattr(Run, "connect", lambda self, *, workers: None)
    folder, port = tmp_path / "serving", free_port()

    def serves(job, **callbacks):
        """Serves for as long as the test starts a second one beside it."""
        files.append((job.target_file, Path(job.target_file).read_bytes()))
        running.append("ucotron")
        bundle(tmp_path, "relations", content=f"another {len(files)}")
        with pytest.raises(ResourceError, match="runs on this cluster already"):
            serving.serve(run(port=port), "relations", ready=lambda model, url: None)
        assert [(str(path), path.read_bytes()) for path in folder.iterdir()] == files[-1:]
        running.clear()
        return {"unanswered": 0}

    monkeypatch.setattr(on_ray, "serve_on_ray", serves)
    for _ in range(2):
        serving.serve(run(port=port), "relations", ready=lambda model, url: None)
        assert list(folder.iterdir()) == []
    # Two of one name on two clusters that share a store follow a file each.
    assert files[0][0] != files[1][0]


def test_a_version_whose_files_are_elsewhere_is_fetched_once(tmp_path, run, monkeypatch):
    away, fetched = bundle(tmp_path / "away", "three"), []

    def fetch(models, version, target):
        fetched.append(target)
        shutil.copytree(away, target)

    registered = Models()
    registered.champion = replace(version("3", away), source="mlflow-artifacts:/3")
    monkeypatch.setattr(aliases, "registry_of", lambda run, must_exist: registered)
    monkeypatch.setattr(aliases, "fetch", fetch)
    named = serving.Reference(run(), "champion")
    for _ in range(2):
        assert serving.target_of(named).model == "three"
    assert len(fetched) == 1
    assert fetched[0].is_relative_to(tmp_path)


def test_another_address_than_loopback_needs_a_key_that_is_set(tmp_path, monkeypatch, capsys):
    bundle(tmp_path, "relations")
    arguments = ["serve", "relations", "--set", f"store={tmp_path}"]
    assert cli.main([*arguments, "--host", "0.0.0.0"]) == 2
    assert "serving.host" in capsys.readouterr().err
    assert cli.main([*arguments, "--host", "0.0.0.0", "--api-key-env", "UCOTRON_RE_KEY"]) == 2
    assert "UCOTRON_RE_KEY is not set" in capsys.readouterr().err
    for host in ("127.0.0.1", "localhost", "::1"):
        serving.check_address(config.load(overrides=[("serving.host", host)]).place.serving)
    monkeypatch.setenv("UCOTRON_RE_KEY", "s3cret")
    beyond = [("serving.host", "0.0.0.0"), ("serving.key_variable", "UCOTRON_RE_KEY")]
    serving.check_address(config.load(overrides=beyond).place.serving)


def test_a_port_that_is_taken_is_said_before_anything_is_started(tmp_path, capsys):
    bundle(tmp_path, "relations")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "relations", "--set", f"store={tmp_path}", "--port", port]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("deadline", 29.0), ("max_tokens", SERVER_MAX_TOKENS - 1)])
def test_limits_with_which_the_server_would_get_no_answer_are_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        config.load(overrides=[(f"serving.{key}", value)])


def test_the_servers_own_number_of_tokens_is_allowed():
    loaded = config.load(overrides=[("serving.max_tokens", SERVER_MAX_TOKENS)])
    assert loaded.place.serving.max_tokens == SERVER_MAX_TOKENS
