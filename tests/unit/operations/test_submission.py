"""What is checked before a job leaves this machine: the list of what goes along, the environment, secrets, the id."""

from pathlib import Path

import pytest

from tests.ray_facts import known_config_keys, known_keys
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.operations import environment, package, submission
from ucotron_ray.operations.submission import Options

ROOT = Path(__file__).parents[3]
OPTIONS = Options(runtime_env=None, variables=(), include=(), working_dir=None, python="python")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with the things around it that must not go along."""
    for name in ("ucotron_ray/cli.py", "ucotron_ray/training/a.py", "ucotron_ray/core/defaults.yaml", "jobs/sft.py",
                 "jobs/recipes/demo.yaml", "cluster/places/laptop.yaml"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n", encoding="utf-8")
    for name in (".env", "secret.pem", "ucotron_ray/.env", "ucotron_ray/id_rsa", "ucotron_ray/__pycache__/cli.py",
                 "store/big.bin", "data/rows.jsonl", "tests/test_a.py", "jobs/notes.txt"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not for the cluster\n", encoding="utf-8")
    return tmp_path


def test_only_what_the_list_allows_goes_along(project, tmp_path_factory):
    files = package.collect(project, [])
    assert [entry.path for entry in files] == [
        "cluster/places/laptop.yaml",
        "jobs/recipes/demo.yaml",
        "jobs/sft.py",
        "ucotron_ray/cli.py",
        "ucotron_ray/core/defaults.yaml",
        "ucotron_ray/training/a.py",
    ]
    target = package.stage(project, files, tmp_path_factory.mktemp("staged"), "run-1")
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert there == {entry.path for entry in files} | {package.MARKER}


def test_the_projects_own_package_is_small_and_holds_code_recipes_and_places():
    files = package.collect(ROOT, [])
    paths = {entry.path for entry in files}
    assert {
        "ucotron_ray/cli.py",
        "ucotron_ray/core/defaults.yaml",
        "jobs/pipeline.py",
        "jobs/recipes/demo.yaml",
    } <= paths
    assert not [path for path in paths if not path.endswith((".py", ".yaml", ".toml", ".txt"))]
    assert package.check_size(files) < 5 * 1024**2


def test_a_link_is_refused_wherever_it_stands(project):
    (project / "jobs" / "linked.py").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="a link is not uploaded"):
        package.collect(project, [])
    (project / "jobs" / "linked.py").unlink()
    (project / "more").symlink_to(project / "data")
    with pytest.raises(ConfigError, match="a link is not uploaded"):
        package.collect(project, ["more/rows.jsonl"])


@pytest.mark.parametrize("name", ["../outside.yaml", "/etc/hostname", "jobs/../../outside.yaml"])
def test_nothing_outside_of_the_project_goes_along(project, name):
    (project.parent / "outside.yaml").write_text("a: 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="outside of the project"):
        package.collect(project, [name])


def test_a_recipe_that_is_named_goes_along_and_other_files_only_when_asked(project):
    (project / "mine.yaml").write_text("tier: slm\n", encoding="utf-8")
    arguments = ["sft", "--recipe", "mine.yaml", "--train-data", "data/rows.jsonl"]
    with pytest.raises(ConfigError, match="the job would not find") as caught:
        submission.plan(project, arguments, OPTIONS)
    assert "--include data/rows.jsonl" in str(caught.value)
    made = submission.plan(project, arguments, Options(None, (), ("data/rows.jsonl",), None, "python"))
    assert made.files is not None
    assert {"mine.yaml", "data/rows.jsonl"} <= {entry.path for entry in made.files}


def test_a_directory_of_data_is_not_left_behind_in_silence_and_a_name_is_no_directory(project):
    with pytest.raises(ConfigError, match="the job would not find"):
        submission.plan(project, ["pipeline", "--data-dir", "./data/"], OPTIONS)
    made = submission.plan(
        project, ["pipeline", "--data-dir", "./data/", "--name", "tests"], Options(None, (), ("data",), None, "python")
    )
    assert made.files is not None
    assert "data/rows.jsonl" in {entry.path for entry in made.files}


def test_too_large_a_package_is_refused_with_its_largest_files(project):
    with (project / "ucotron_ray" / "huge.yaml").open("wb") as file:
        file.truncate(package.MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="too large") as caught:
        package.check_size(package.collect(project, []))
    assert "ucotron_ray/huge.yaml" in str(caught.value)


def test_the_same_submission_has_the_same_id_and_any_difference_another(project):
    first = submission.plan(project, ["sft", "--epochs", "1"], OPTIONS)
    assert submission.plan(project, ["sft", "--epochs", "1"], OPTIONS).run == first.run
    others = {submission.plan(project, ["sft", "--epochs", "2"], OPTIONS).run}
    others.add(submission.plan(project, ["sft", "--epochs", "1"], Options(None, ("A=1",), (), None, "python")).run)
    (project / "ucotron_ray" / "training" / "a.py").write_text("changed = 1\n", encoding="utf-8")
    others.add(submission.plan(project, ["sft", "--epochs", "1"], OPTIONS).run)
    assert len(others | {first.run}) == 4
    assert first.run.startswith("ucotron-sft-")


def test_arguments_reach_the_driver_as_they_are(project):
    made = submission.plan(project, ["sft", "--name", "a b; $(touch x) 'c'"], OPTIONS)
    import shlex

    assert shlex.split(made.command) == ["python", "-m", "ucotron_ray", *made.arguments, "--json"]


@pytest.mark.parametrize("arguments", [[], ["doctor"], ["--recipe", "x"]])
def test_what_is_no_job_is_refused(project, arguments):
    with pytest.raises(ConfigError, match="what shall be submitted"):
        submission.plan(project, arguments, OPTIONS)


def test_every_entrypoint_in_jobs_can_be_submitted_and_the_other_way_round():
    files = {path.stem.replace("_", "-") for path in (ROOT / "jobs").glob("*.py")}
    assert files == set(submission.VERBS)


def test_the_known_keys_are_those_of_the_installed_ray():
    assert set(environment.KNOWN) == known_keys()
    assert set(environment.KNOWN_CONFIG) == known_config_keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workingdir: .", "`workingdir` is no key"),
        ("config: {setup_timeout: 3}", "`setup_timeout` is no key"),
        ("env_vars: {A: 1}", "the variable A is no text"),
        ("env_vars: {FIREWORKS_API_KEY: abc}", "FIREWORKS_API_KEY looks like a secret"),
        ("env_vars: {HF_TOKEN: abc}", "HF_TOKEN looks like a secret"),
        ("env_vars: {HARMLESS: sk-canary-0123}", "HARMLESS looks like a secret"),
        ("env_vars: {URL: 'https://me:canary@host/'}", "URL looks like a secret"),
        ("working_dir: .", "working_dir is made by this command"),
        ("working_dir: local://relative", "working_dir is made by this command"),
    ],
)
def test_what_ray_would_let_pass_is_refused_and_no_value_is_said(tmp_path, text, said):
    file = tmp_path / "env.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        environment.read(file, (), None)
    assert said in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "RAY_AUTH_MODE", "HF_HOME", "MONKEY", "FIREWORKS_KEY_FILE"])
def test_harmless_names_pass(name):
    assert environment.read(None, (f"{name}=1",), None) == {"env_vars": {name: "1"}}


def test_a_secret_in_the_command_is_refused_without_saying_it():
    with pytest.raises(ConfigError) as caught:
        environment.check_arguments(["sft", "--set", "api.key=fw_canary0123456789"])
    assert "canary" not in str(caught.value)
    # Names of artifacts and hashes are no secrets.
    environment.check_arguments(["sft", "--train-data", "f" * 64, "--name", "relation-extraction-balanced-1-5b-2026"])


def test_the_projects_own_runtime_environment_passes_and_leaves_no_excludes():
    made = environment.read(ROOT / "cluster" / "runtime_env.yaml", (), None)
    assert made == {"config": {"setup_timeout_seconds": 600}}


def test_an_image_with_the_code_uploads_nothing(tmp_path):
    made = submission.plan(tmp_path, ["sft"], Options(None, (), (), "local:///app", "python"))
    assert made.files is None
    assert made.runtime_env["working_dir"] == "local:///app"


def test_a_relative_store_is_refused_before_anything_is_sent(tmp_path):
    with pytest.raises(ConfigError, match="absolute path in a submitted job"):
        submission.check_store("./store")
    assert submission.check_store(str(tmp_path)) == tmp_path
