"""How many files a change has to touch: toy changes made to a copy of the package, which then has to do the new thing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

GENERATOR = '''"""Greetings, as a toy."""

import random

from ucotron_ray.core.sections import Count, SampledTask, Temperature
from ucotron_ray.data.records import NonBlank, Row
from ucotron_ray.synthesis.conversation import alone, whole
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.plan import Ask, Done, Task
from ucotron_ray.synthesis.rows import RowKind

NAME, VERSION, BUILDS_ON_ROWS = "greeting", 1, False
GUIDE = GuideFigures(rows=100, usd=(1, 2), minutes=(1, 1))
USUAL = UsualTokens(requests=1, prompt=10, completion=5)


class Settings(SampledTask):
    temperature: Temperature = 0.5
    max_tokens: Count = 16
    target_samples: Count = 7
    words: Count = 3


class GreetingRow(Row):
    greeting: NonBlank


def row_kind():
    return RowKind(name=NAME, model=GreetingRow, identity=lambda row: row["greeting"], labels=lambda row: [],
                   key="greeting")


def make_task(generation, rows=()):
    settings = generation.task(NAME)

    def converse(facts):
        ask = Ask("greet", (("user", f"Greet number {facts['number']}"),), settings.temperature, settings.max_tokens)
        text = alone((yield from whole(ask, cap=64)), longest=80)
        return Done("accepted", row={"greeting": text})

    return Task(NAME, VERSION, lambda number: {"number": number, "split": "train"}, converse, row_kind())


def simulated(prompt, rng):
    return f"Good day, {prompt.split()[-1]}!" if prompt.startswith("Greet number ") else None
'''

PLAY = """
import asyncio, json, random
from pathlib import Path
from ucotron_ray.core import config
from ucotron_ray.simulators.fireworks_answers import answer_to
from ucotron_ray.synthesis import job, plan
from ucotron_ray.teacher.outcome import OutcomeKind

generation = config.load(overrides=[("generation.tasks.greeting.words", 5)]).recipe.generation
assert (generation.task("greeting").words, generation.task("greeting").max_tokens) == (5, 16)
task = job.task_of("greeting", generation)
talk = task.converse(task.sample(3))
body = plan.request_body("m", next(talk), "0")
try:
    talk.send(plan.Answer(OutcomeKind.ANSWER, answer_to(body, random.Random(1)).answer))
except StopIteration as end:
    Path("rows.jsonl").write_text(json.dumps(end.value.row) + "\\n")
"""


class Tree:
    """A copy of the package, and which of its files were touched."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.touched = directory, set()
        shutil.copytree(ROOT / "ucotron_ray", directory / "ucotron_ray", ignore=shutil.ignore_patterns("__pycache__"))

    def add(self, file: str, text: str) -> None:
        self.touched.add(file)
        (self.directory / "ucotron_ray" / file).write_text(text, encoding="utf-8")

    def edit(self, file: str, before: str, new: str, *, every: bool = False) -> None:
        """One line more before each line that begins so (before the first, unless `every`)."""
        path = self.directory / "ucotron_ray" / file
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if line.startswith(before)]
        assert places, f"{file} has no line that begins with {before!r}"
        for number in reversed(places if every else places[:1]):
            lines.insert(number, new + "\n")
        self.add(file, "".join(lines))

    def run(self, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(self.directory)}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_a_generator_is_its_own_file_and_one_line(tree):
    tree.add("synthesis/tasks/greeting.py", GENERATOR)
    tree.edit("core/generators.py", '    "projection":', '    "greeting": "ucotron_ray.synthesis.tasks.greeting",')
    assert len(tree.touched) == 2
    cli = ["-m", "ucotron_ray"]
    assert "greeting" in tree.run(*cli, "synthesize", "--help")
    planned = json.loads(tree.run(*cli, "synthesize", "greeting", "--dry-run", "--json").splitlines()[-1])
    assert (planned["task"], planned["rows"], planned["action"]) == ("greeting", 7, "run")
    estimated = json.loads(tree.run(*cli, "estimate", "--json").splitlines()[-1])
    assert [line["guide_usd"] for line in estimated["guide"] if line["what"] == "greeting"] == [[1, 2]]
    # What the simulator says is read by the task, and what that makes is a row that `validate` knows.
    tree.run("-c", PLAY)
    report = json.loads(tree.run(*cli, "validate", "rows.jsonl", "--json").splitlines()[-1])
    assert (report["kind"], report["rows"], report["without_defect"]) == ("greeting", 1, 1)


def test_a_hyperparameter_takes_three_files(tree):
    tree.edit("core/hyperparameters.py", "    max_grad_norm:", '    label_smoothing: Share\n    """Of the targets."""')
    tree.edit("core/defaults.yaml", "      max_grad_norm:", "      label_smoothing: 0.0", every=True)
    tree.edit(
        "training/arguments.py",
        '        "max_grad_norm":',
        '        "label_smoothing_factor": settings.label_smoothing,',
    )
    assert len(tree.touched) == 3
    given = tree.run("-c", ARGUMENTS, "training.sft.slm.label_smoothing=0.1")
    assert json.loads(given)["label_smoothing_factor"] == 0.1


def test_a_lever_of_the_place_takes_three_files(tree):
    tree.edit("core/place.py", "    max_failures:", "    log_every: Count")
    tree.edit("core/defaults.yaml", "  max_failures:", "  log_every: 9")
    tree.edit(
        "training/arguments.py", '        "max_grad_norm":', '        "logging_first_step": place.log_every == 5,'
    )
    assert len(tree.touched) == 3
    assert json.loads(tree.run("-c", ARGUMENTS, "workers.log_every=5"))["logging_first_step"] is True


def test_a_verb_takes_two_files(tree):
    tree.add(
        "operations/hello_cli.py",
        "from ucotron_ray.core import flags\n\n\ndef add_hello(verbs):\n"
        '    flags.verb(verbs, "hello", "Say hello.", lambda args: {"said": args.name})\n',
    )
    tree.edit("cli.py", '    "doctor":', '    "hello": "operations.hello_cli",')
    assert len(tree.touched) == 2
    assert "hello" in tree.run("-m", "ucotron_ray", "--help")
    said = json.loads(tree.run("-m", "ucotron_ray", "hello", "--name", "Ana", "--json"))
    assert (said["status"], said["said"]) == ("ok", "Ana")


ARGUMENTS = """
import json, sys
from ucotron_ray.core import config
from ucotron_ray.training.job import SftJob
from ucotron_ray.training.arguments import trainer_arguments

loaded = config.load(overrides=[config.parse_override(text) for text in sys.argv[1:]])
settings = loaded.recipe.sft
job = SftJob(base="", train_file="", val_file=None, directory="run", settings=settings.model_dump(),
             workers=loaded.place.workers.model_dump(), num_threads=None)
print(json.dumps(trainer_arguments(job, settings, dtype="float32", per_device=1, world=1), default=str))
"""
