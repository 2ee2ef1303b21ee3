"""A registered bundle as `mlflow.pyfunc` loads it: a real graph, a real registry; and what is refused, in which words."""

import ast
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.import_graph import closure, module_files
from tests.tiny_models import publish_bundle
from ucotron_ray.core import config, copies, tracking
from ucotron_ray.core import destination as destinations
from ucotron_ray.core.artifacts import Store, read_artifact
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.model_version import Version
from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity
from ucotron_ray.models import served
from ucotron_ray.registry import aliases, model_files, pyfunc
from ucotron_ray.registry import versions as registry

ROOT = Path(__file__).parents[3]
NAME = "ucotron-re-slm"

ROWS = [
    {"text": text, "entities": [{"text": name, "label": "person"} for name in names]}
    for text, names in (
        # The longest first, as it is answered last.
        ("Carla, whom everybody knows, works at Acme with Bo.", ("Carla", "Acme", "Bo")),
        ("It rained.", ()),
        ("Ann met Bo in Rome.", ("Ann", "Bo")),
    )
]


class Registered:
    """A tiny bundle behind the alias champion of a registry of its own."""

    def __init__(self, folder: Path, files: Path) -> None:
        self.store = Store(folder / "store")
        self.bundle = read_artifact(publish_bundle(self.store.root, "tiny", files, "a note"))
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        place = config.load(overrides=[("tracking.mlflow_uri", self.uri)]).place
        where = destinations.Destination(self.uri, "tests", (folder / "artifacts").as_uri())
        self.models = tracking.Registry(where, place, NAME)
        source = registry.kept(self.store.root, self.bundle).as_uri()
        self.version = self.models.register(source, registry.tags_of(self.bundle, None))
        self.models.point("champion", self.version)

    def load(self, **settings):
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        return mlflow.pyfunc.load_model(f"models:/{NAME}@champion", **settings)


@pytest.fixture(scope="module")
def registered(tmp_path_factory, tiny_bundle):
    import mlflow

    yield Registered(tmp_path_factory.mktemp("registered"), tiny_bundle("llama"))
    # It holds for the process, whose other tests have registries of their own.
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def model(registered):
    return registered.load()


def served_answers(bundle: Path, *, decoding: str, max_new_tokens: int) -> list[list[dict[str, object]]]:
    """What the bundle answers to the server's prompts, one at a time."""
    made = []
    loaded = served.load(bundle)
    for row in ROWS:
        entities = [Entity(**entity) for entity in row["entities"]]
        prompt = wire.user_prompt(row["text"], entities)
        (tokens,) = loaded.generate(
            [loaded.chat_ids(wire.chat_messages(row["text"], entities))],
            max_new_tokens=max_new_tokens,
            constraints=[loaded.constraint(prompt, decoding)],
        )
        found = wire.parse_answer(loaded.text(tokens)) if entities else []
        made.append([relation.model_dump() for relation in found or []])
    return made


def test_a_champion_is_loaded_by_its_alias_and_answers_as_it_is_served(registered, model):
    expected = served_answers(registered.bundle.path, decoding="entities", max_new_tokens=512)
    assert [bool(triples) for triples in expected] == [True, False, True]
    assert model.predict(ROWS) == expected

    import pandas

    # As a table, with columns and spans that do not matter.
    table = pandas.DataFrame(ROWS).assign(group="seen")
    table["entities"] = [[{**entity, "start": 0, "end": 3} for entity in row] for row in table["entities"]]
    assert model.predict(table) == expected
    vocabulary = model.predict(ROWS, params={"decoding": "vocabulary"})
    assert {triple["predicate"] for triples in vocabulary for triple in triples} <= {"works_at", "lives_in"}
    assert vocabulary == served_answers(registered.bundle.path, decoding="vocabulary", max_new_tokens=512)


def test_an_answer_that_was_cut_keeps_its_whole_triples(registered, model):
    whole, short = model.predict(ROWS), model.predict(ROWS, params={"max_new_tokens": 40})
    assert len(short[0]) < len(whole[0])
    assert short[0] == whole[0][: len(short[0])]


def test_mlflow_knows_columns_answers_example_and_requirements(registered, model):
    from mlflow.models import validate_serving_input

    schema = model.metadata.signature
    assert schema.inputs.input_names() == ["text", "entities"]
    assert {param.name: param.default for param in schema.params.params} == {"decoding": "auto", "max_new_tokens": 512}
    (triple,) = schema.outputs.inputs
    properties = triple.type.dtype.properties
    assert {entry.name for entry in properties} == {"subject", "predicate", "object", "confidence"}
    assert model.input_example == model_files.EXAMPLE
    assert model.metadata.metadata["content"] == registered.bundle.manifest.content
    # As MLflow's own server would be asked for it.
    payload = model.metadata.get_serving_input(str(registered.version.directory.parent))
    answered = validate_serving_input(f"models:/{NAME}@champion", payload)
    assert answered == model.predict(model_files.EXAMPLE)
    requirements = (registered.version.directory.parent / "requirements.txt").read_text(encoding="utf-8").split()
    assert {line.split("==")[0] for line in requirements} == set(model_files.REQUIREMENTS)
    assert all("==" in line for line in requirements)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "Ann met Bo."}], r"missing inputs \['entities'\]"),
        ([{"content": "Ann met Bo.", "entities": []}], r"missing inputs \['text'\]"),
        ([{"text": "Ann", "entities": ["Ann"]}], "Expected data to be dictionary, got str"),
        ([{"text": "Ann", "entities": [{"name": "Ann"}]}], "Missing required properties: {'text'}"),
        ([{"text": 7, "entities": []}], "Incompatible input types for column text"),
    ],
)
def test_wrong_columns_are_refused_in_words(model, rows, said):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=said):
        model.predict(rows)


def test_what_no_schema_sees_is_refused_with_its_row(registered, model):
    row = ROWS[0]
    for wrong in ({"text": " ", "entities": []}, {"text": "Ann", "entities": [{"text": ""}]}):
        with pytest.raises(InputError, match="row 1 is no question"):
            model.predict([row, wrong])
    with pytest.raises(InputError, match="'beam' is no way to decode"):
        model.predict([row], params={"decoding": "beam"})
    with pytest.raises(InputError, match="no variant 'int2'"):
        registered.load(model_config={"variant": "int2"})
    # Without MLflow there is no schema.
    extractor = pyfunc._load_pyfunc(str(registered.version.directory.parent))
    with pytest.raises(InputError, match="row 0 is no question"):
        extractor.predict([{"text": "Ann"}])
    assert extractor.context == 4096
    with pytest.raises(InputError, match="row 1 is too long for the model"):
        replace(extractor, context=1000).predict([row, {**row, "text": "Ann met Bo. " * 200}])


def test_the_bundle_of_a_version_is_what_it_was_however_often_it_is_loaded(registered, model, tmp_path):
    content = registered.bundle.manifest.content
    # MLflow has written into the version's directory, and Python its byte code.
    assert (registered.version.directory.parent / "registered_model_meta").is_file()
    copies.verify_content(read_artifact(registered.version.directory), content)
    for version in (registered.version, Version("1", registered.bundle.path.as_uri(), registered.version.tags)):
        # One of today, and one of before, whose files are the bundle itself.
        got = aliases.fetch(registered.models, version, tmp_path / "pulled")
        copies.verify_content(got, content)
        assert not (got.path / "MLmodel").exists()


def test_files_of_a_version_that_a_kill_left_in_part_are_made_whole(registered, tmp_path):
    place = tmp_path / "store"
    files = registry.kept(place, registered.bundle)
    (files / model_files.MLMODEL).unlink()
    (files / "code/ucotron_ray/registry/pyfunc.py").write_text("half", encoding="utf-8")
    assert registry.kept(place, registered.bundle) == files
    assert (files / model_files.MLMODEL).is_file()
    assert "def _load_pyfunc" in (files / "code/ucotron_ray/registry/pyfunc.py").read_text(encoding="utf-8")
    assert not list(files.glob("*.partial"))
    assert not list(files.rglob("__pycache__"))


def test_the_requirements_are_what_the_loader_imports():
    files = module_files(ROOT)
    reached = closure(model_files.LOADER, files)
    named = {
        name.split(".")[0]
        for module in reached
        for node in ast.parse(files[module].read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert named - sys.stdlib_module_names - {"ucotron_ray"} == set(model_files.REQUIREMENTS) - {"mlflow"}
    script = f"import sys, {model_files.LOADER}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "transformers", "ray", "mlflow", "pandas", "json_repair", "yaml"}


def test_what_was_uploaded_is_loaded_from_there(registered, model, tmp_path):
    import mlflow

    model_files.write(tmp_path, registered.bundle)
    source, run = registered.models.upload(registered.bundle, tmp_path)
    version = registered.models.register(source, registry.tags_of(registered.bundle, None), run=run)
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}/{version.number}")
    assert loaded.predict(ROWS) == model.predict(ROWS)
    copies.verify_content(read_artifact(version.directory), registered.bundle.manifest.content)


@pytest.mark.slow
def test_an_environment_of_the_requirements_alone_gives_the_same_triples(registered, model, tmp_path):
    """What is not in uv's cache comes from the package index."""
    uv = str(Path(sys.executable).with_name("uv"))
    began = time.monotonic()
    python = tmp_path / "venv/bin/python"
    files = registered.version.directory.parent
    for command in (
        ["venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")],
        ["pip", "install", "--quiet", "--python", str(python), "-r", str(files / "requirements.txt")],
    ):
        subprocess.run([uv, *command], cwd=tmp_path, check=True)
    listed = subprocess.run(
        [uv, "pip", "list", "--python", str(python), "--format=json"], capture_output=True, text=True, check=True
    )
    packages = {entry["name"] for entry in json.loads(listed.stdout)}
    assert not packages & {"ucotron-ray", "torch", "transformers", "ray"}
    installed = time.monotonic()
    done = subprocess.run(
        [str(python), str(ROOT / "tests/pyfunc_client.py"), f"models:/{NAME}@champion"],
        input=json.dumps({"rows": ROWS, "params": {"max_new_tokens": 512}}),
        cwd=tmp_path,
        env={
            "MLFLOW_TRACKING_URI": registered.uri,
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["code"].startswith(str(files / "code"))
    assert said["heavy"] == []
    assert said["answers"] == model.predict(ROWS)
    print(f"{len(packages)} packages in {installed - began:.0f} s, answers in {time.monotonic() - installed:.0f} s")
