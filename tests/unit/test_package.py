"""The wheel in environments of its own: nothing of this checkout, and only what an extra asks for.

Packages come out of uv's cache, which `make setup` filled: no index is asked.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity

ROOT = Path(__file__).parents[2]
UV = str(Path(sys.executable).with_name("uv"))

ANSWER = """
import json, sys
from ucotron_ray.core import session
from ucotron_ray.serving import app, engine, exchange, metrics, on_ray, stage  # what a node that answers imports
from ucotron_ray.serving import backends
from ucotron_ray.serving.target import Target

loaded = backends.load(Target("tiny", "onnx", sys.argv[1], "content"), num_threads=1)
ids = loaded.speech.chat_ids(json.loads(sys.argv[2]))
logits = loaded.stepper.logits(loaded.stepper.prefill([ids]))
print(json.dumps({"prompt": len(ids), "logits": list(logits.shape)}))
"""


def uv(*arguments: str) -> None:
    done = subprocess.run([UV, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\nare all packages in uv's cache? `make setup` puts them there"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    uv("build", "--quiet", "--offline", "--wheel", "--out-dir", str(directory))
    (made,) = directory.glob("*.whl")
    return made


def environment(directory: Path, wheel: Path, extra: str = "") -> Path:
    """The programs of a new environment with nothing but the wheel and what it depends on."""
    uv("venv", "--quiet", "--python", sys.executable, str(directory))
    pins = ["--offline", "--quiet", "--constraint", "constraints.txt", "--python", str(directory / "bin/python")]
    uv("pip", "install", *pins, f"{wheel}{extra}")
    return directory / "bin"


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_alone_shows_help_validates_rows_and_plans_a_synthesis(tmp_path, wheel, demo_files):
    programs = environment(tmp_path / "empty", wheel)
    ours = str(programs / "ucotron-ray")
    assert "pipeline" in run(tmp_path, ours, "--help")
    report = json.loads(run(tmp_path, ours, "validate", str(demo_files[1]), "--json").splitlines()[-1])
    assert (report["kind"], report["stage"]) == ("relations", "sft")
    planned = run(tmp_path, ours, "synthesize", "relation_extraction", "--count", "3", "--dry-run", "--json")
    assert json.loads(planned.splitlines()[-1])["requests"] == 6
    # What needs more says what, before it starts anything.
    refused = subprocess.run([ours, "sft"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "pip install" in refused.stderr
    assert "torch" in refused.stderr


@pytest.mark.filterwarnings("ignore")  # tracing warns about every branch of a model's code
def test_a_node_that_only_serves_has_no_torch(tmp_path, wheel, tiny_bundle):
    python = environment(tmp_path / "serving", wheel, "[serve]") / "python"
    names = "torch transformers mlflow trl peft onnxscript"
    missing = run(
        tmp_path,
        str(python),
        "-c",
        f"import importlib.util as u; print([n for n in {names.split()} if u.find_spec(n) is not None])",
    )
    assert missing.strip() == "[]"
    messages = wire.chat_messages("Ana works at Acme.", [Entity(text="Ana", label="person")])
    said = json.loads(run(tmp_path, str(python), "-c", ANSWER, str(tiny_bundle("qwen2")), json.dumps(messages)))
    assert said["prompt"] > 10
    assert said["logits"][0] == 1
