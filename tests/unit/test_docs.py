"""README, recipes and places say what is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ucotron_ray import cli
from ucotron_ray.core import config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    loaded = config.load(recipe=path).recipe
    tiers = {"edge-0.5b": "slm", "balanced-1.5b": "small", "cloud-7b": "medium", "demo": "slm", "tiny": "slm"}
    assert loaded.tier == tiers[path.stem]
    if path.stem not in ("demo", "tiny"):
        assert loaded.training == config.load().recipe.training


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_table_of_recipes_says_which_need_a_teacher(path):
    generation = config.load(recipe=path).recipe.generation
    lines = (ROOT / "jobs/README.md").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"| `recipes/{path.name}`"))
    asks = generation.in_pipeline or generation.preferences_in_pipeline
    assert ("a teacher" in line) == bool(asks)
    assert not asks or f"a teacher for {generation.in_pipeline} rows" in line


@pytest.mark.parametrize("path", sorted((ROOT / "cluster/places").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_place_loads(path):
    config.load(place=path)


def test_readme_names_only_targets_verbs_and_files_that_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), target
    parser = cli._parser([])
    verbs = next(action for action in parser._actions if action.dest == "verb").choices
    for verb in set(re.findall(r"ucotron-ray ([a-z]+(?:-[a-z]+)*)", README)):
        assert verb in verbs, verb
    for path in set(re.findall(r"`((?:jobs|cluster|tests|ucotron_ray)/[\w./-]+)`", README)):
        assert (ROOT / path).exists(), path


def test_every_verb_is_in_the_readme():
    parser = cli._parser([])
    verbs = next(action for action in parser._actions if action.dest == "verb").choices
    for verb in verbs:
        assert f"ucotron-ray {verb}" in README, verb


def test_readme_flags_exist():
    parser = cli._parser([])
    verbs = next(action for action in parser._actions if action.dest == "verb").choices
    nested = [
        inner for verb in verbs.values() for a in verb._actions if a.dest == "action" for inner in a.choices.values()
    ]
    parsers = [*verbs.values(), *nested]
    known = {option for verb in parsers for action in verb._actions for option in action.option_strings}
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("ucotron-ray "):
                assert set(re.findall(r"(--[a-z-]+)", line)) <= known, line


def test_trouble_section_quotes_messages_that_the_code_says():
    """The five entries of the guide, each with the real message."""
    section = README.split("## Trouble")[1].split("\n## ")[0]
    quoted = re.findall(r"^- `([^`]+)`", section, re.MULTILINE)
    assert len(quoted) == 5
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ucotron_ray").rglob("*.py"))
    for message in quoted:
        fixed = re.split(r"…|<[^>]+>", message)
        for part in fixed:
            assert part.strip() in source, f"no code says «{part}»"


def test_scripts_are_valid_shell_and_the_job_entrypoints_start():
    subprocess.run(["bash", "-n", str(ROOT / "cluster/local-head.sh")], check=True)
    for path in sorted((ROOT / "jobs").glob("*.py")):
        result = subprocess.run(
            [sys.executable, str(path), "--help"], capture_output=True, text=True, check=True, timeout=60
        )
        assert f"ucotron-ray {path.stem.replace('_', '-')}" in result.stdout


def test_versions_are_pinned_exactly_and_cover_what_is_installed():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line) for line in lines)
    assert "+cpu" not in "".join(lines)
    for name in (
        "ray==2.60.0",
        "torch==2.13.0",
        "transformers==5.24.0",
        "trl==1.16.0",
        "peft==0.21.2",
        "mlflow==3.17.2",
    ):
        assert name in lines


def test_readmes_figures_are_those_of_the_result_files():
    from tests.benchmarks import sweeps_table, table

    for made in (
        table.table,
        table.synthesis_table,
        table.gate_table,
        table.generators_table,
        table.training_table,
        table.export_table,
        table.serving_table,
        sweeps_table.sweeps_table,
        table.projection_table,
        table.projection_costs,
    ):
        assert made() in README, made.__name__
