"""The rules of the tree, read from the code: who may import whom, and what files may not do."""

import ast
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.import_graph import closure, home_of, imports_of, module_files
from ucotron_ray import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ucotron_ray"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

MOST_FILES_IN_THE_ROOT = 6

FOUNDATION = {
    "core": set(),
    "data": {"core"},
    "graph": {"core", "data"},
    "models": {"core", "data"},
    "teacher": {"core"},
}
"""What every stage stands on: a room, and the rooms that it may import."""

BETWEEN_STAGES = {
    "evaluation": set(),
    # `batch` fills the journal of synthesis; the guide's `test_model` and `compare_models` are scores.
    "fireworks": {"synthesis", "evaluation"},
    "synthesis": set(),
    # Training is given its scorer as a callable: the rim alone knows both.
    "training": {"evaluation"},
    "projection": set(),
    # A trial is a training, scored while it runs.
    "tuning": {"training", "projection", "evaluation"},
    # A bundle's gates are scores.
    "export": {"evaluation"},
    # A champion is who scores best.
    "registry": {"evaluation"},
    # What is served is what the registry names; `deploy` writes the lines of a bundle and proves its answers.
    "serving": {"registry", "evaluation", "export"},
    # An estimate asks a generator, a training plan and the chain's own list of steps.
    "planning": {"synthesis", "training", "pipeline"},
    "operations": set(),
    # What they imitate.
    "simulators": {"fireworks"},
}
"""A stage, and the stages that it may import beside the foundation. Nobody imports `simulators`."""

STORY = {
    "pipeline": {"synthesis", "training", "tuning", "evaluation", "export", "fireworks"},
    "pipeline_cli": {"pipeline", "planning", "evaluation", "fireworks"},
    "cli": set(),  # It imports the verb that is called, by name.
    "__main__": {"cli"},
}
"""Who knows several stages."""

AT_THE_RIM_ONLY = {("training", "evaluation"): {"ucotron_ray.training.on_ray"}}
"""Arrows that only these modules may make."""


MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
LONG_FUNCTIONS = {"make_app": "the routes of the simulator, each a few lines", "build_bundle": "inside export"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "core"


def arrows(checkout: Path) -> dict[tuple[str, str], set[str]]:
    """Every import from one room into another: (from, to) → the modules that make it."""
    files = module_files(checkout)
    found: dict[tuple[str, str], set[str]] = {}
    for name, path in files.items():
        for other in imports_of(path, files):
            if room_of(name) != room_of(other) and name != "ucotron_ray":
                found.setdefault((room_of(name), room_of(other)), set()).add(name)
    return found


def allowed() -> dict[str, set[str]]:
    below = set(FOUNDATION)
    return FOUNDATION | {room: rooms | below for room, rooms in (BETWEEN_STAGES | STORY).items()}


def wrong_arrows(checkout: Path) -> list[str]:
    return [
        f"{', '.join(sorted(names))} imports {there}"
        for (here, there), names in arrows(checkout).items()
        if there not in allowed()[here] or not names <= AT_THE_RIM_ONLY.get((here, there), names)
    ]


def test_rooms_import_what_is_below_them_and_the_few_stages_that_are_listed():
    assert wrong_arrows(ROOT) == []
    # An order of the rooms exists, and no permission is left over from an arrow that is gone.
    assert list(TopologicalSorter(allowed()).static_order())
    used = set(arrows(ROOT))
    listed = {(here, there) for here, rooms in (FOUNDATION | BETWEEN_STAGES | STORY).items() for there in rooms}
    assert listed - used == set()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/store_of_rows.py", "from ucotron_ray.data import records"),
        ("export/shortcut.py", "def later():\n    from ucotron_ray.training import sft"),
        ("synthesis/pretending.py", "import ucotron_ray.simulators.fireworks"),
        ("training/scored.py", "from ucotron_ray.evaluation import scoring"),
        ("models/upwards.py", "from ucotron_ray import pipeline"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path, file, line):
    shutil.copytree(PACKAGE, tmp_path / "ucotron_ray", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ucotron_ray" / file).write_text(line + "\n", encoding="utf-8")
    assert [arrow for arrow in wrong_arrows(tmp_path) if Path(file).stem in arrow]


def test_no_two_modules_import_each_other():
    files = module_files(ROOT)
    graph = {name: imports_of(path, files, lazy=False) - {name} for name, path in files.items()}
    assert list(TopologicalSorter(graph).static_order())
    for name, path in files.items():
        both = {other for other in imports_of(path, files) if name in imports_of(files[other], files)}
        assert not both - {name}, f"{name} and {both} import each other"


def test_the_root_holds_the_story_and_nothing_else():
    found = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert found == {"__init__.py", "__main__.py", "cli.py", "pipeline.py", "pipeline_cli.py", "py.typed"}
    assert len(found) <= MOST_FILES_IN_THE_ROOT


def test_every_verb_is_declared_where_the_command_line_looks_for_it():
    files = module_files(ROOT)
    for verb, home in cli.VERBS.items():
        assert home_of(verb, files) == f"ucotron_ray.{home}"
        assert Path(files[f"ucotron_ray.{home}"]).name.endswith("cli.py")


def test_training_is_reached_without_export_and_without_the_command_line_of_others():
    reached = closure("ucotron_ray.training.cli", module_files(ROOT))
    assert not {name for name in reached if room_of(name) in ("export", "registry", "serving", "fireworks", "tuning")}
    assert {name for name in reached if name.endswith("cli")} == {"ucotron_ray.training.cli"}


def test_ray_is_imported_only_at_the_rim_and_mlflow_only_in_tracking():
    for path in FILES:
        names = {name.split(".")[0] for name in imports(path)}
        if path.name != "on_ray.py" and path != PACKAGE / "core/session.py":
            assert "ray" not in names, path
        if path != PACKAGE / "core/tracking.py":
            assert "mlflow" not in names, path
        if path != PACKAGE / "core/wandb.py":
            assert "wandb" not in names, path


def test_the_environment_is_read_in_two_files_only():
    exceptions = {
        "ucotron_ray/core/tracking.py": "tells mlflow its limits before it is imported",
        "ucotron_ray/core/worker_environment.py": "says what goes from this shell to workers",
        "ucotron_ray/operations/address.py": "tells Ray its authentication before it is imported",
        "ucotron_ray/simulators/ucotron.py": "the simulator's own key, by the variable's name",
    }
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if path.name in ("variables.py", "session.py") or str(path.relative_to(ROOT)) in exceptions:
            continue
        assert "os.environ" not in text, path
        assert "getenv" not in text, path


def test_nothing_happens_at_import():
    harmless = {
        "getLogger",
        "compile",
        "TypeVar",
        "field",
        "Path",
        "Annotated",
        "dataclass",
        "tuple",
        "split",
        "Predicate",
        "datetime",  # a day that is a constant
        "Shape",  # frozen dataclasses: constants
        "Family",
        "Hooks",
        "Profile",
        "Template",
        "lru_cache",
        "join",
        "GuideFigures",
        "UsualTokens",
    }
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                pytest.fail(f"{module(path)} line {node.lineno} calls something at import")
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                for call in (inner for inner in ast.walk(node.value) if isinstance(inner, ast.Call)):
                    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
                    assert name in harmless | {"Field", "BeforeValidator", "StringConstraints"}, (
                        f"{module(path)}: {name}"
                    )


def test_files_and_functions_stay_short_and_names_say_something():
    for path in FILES:
        lines = path.read_text(encoding="utf-8").count("\n")
        relative = str(path.relative_to(ROOT))
        assert lines <= MAX_FILE_LINES, f"{relative}: {lines} lines"
        assert path.stem not in ("utils", "helpers", "common", "misc", "base_manager"), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= MAX_FUNCTION_LINES or node.name in LONG_FUNCTIONS, (
                    f"{relative}:{node.name} {length} lines"
                )


def test_nothing_unpickles_and_no_remote_code_is_trusted():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if path == PACKAGE / "projection/model.py":
            # The one exception: the bare state dict of the existing projection trainer, as plain tensors.
            text = text.replace('torch.load(file, map_location="cpu", weights_only=True)', "", 1)
        for word in ("import pickle", "torch.load(", "yaml.load(", "trust_remote_code=True", "eval(", "exec("):
            # `model.eval()` has no argument; a call of the builtin has.
            assert word not in re.sub(r"\.eval\(\)|def eval\(|subprocess_exec\(", "", text), f"{path}: {word}"


def test_a_recipe_that_says_nothing_of_generators_is_read_without_them():
    script = "import sys\nfrom ucotron_ray.core import config\nconfig.load()\n"
    script += "print([n for n in sys.modules if n.startswith('ucotron_ray.') and not n.startswith('ucotron_ray.core')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_modules_are_imported_by_name_where_that_is_the_point_and_nowhere_else():
    tables = {"cli.py", "core/generators.py", "fireworks/__init__.py"}
    found = {str(path.relative_to(PACKAGE)) for path in FILES if "import_module(" in path.read_text(encoding="utf-8")}
    assert found == tables
