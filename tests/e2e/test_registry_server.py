"""promote and pull against a real MLflow server: the files go there and come back from there."""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from tests.registered import answer_with, base_directory, held_out_file, make_bundle
from ucotron_ray import cli
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.files import content_hash, list_files
from ucotron_ray.operations.dashboards import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/kept"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_healthy(url, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None
        with suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        # Polling a service that is starting, with a deadline: there is nothing to be told by.
        time.sleep(0.3)
    raise AssertionError("the server is not healthy")


def test_a_bundle_goes_to_the_server_and_comes_back_whole_without_the_store(server, tmp_path, capsys, monkeypatch):
    answer_with(monkeypatch, {"base": 0.2, "good": 0.8, "worse": 0.5})
    store = Store(tmp_path / "store")
    base, data = base_directory(tmp_path / "base"), held_out_file(tmp_path)
    bundles = {name: make_bundle(store, name, base) for name in ("good", "worse")}
    where = ["--registry", server, "--set", "tracking.mlflow_uri=none", "--json"]

    def call(*arguments, root=store.root):
        code = cli.main([*arguments, *where, "--set", f"store={root}"])
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]), err

    code, _, err = call("promote", "good", "--data", str(data))
    assert code == 0, err
    code, result, _ = call("promote", "worse", "--data", str(data))
    assert (code, len(result["refused"])) == (1, 1)
    shutil.rmtree(store.path("bundle", "good"))
    code, result, err = call("pull", root=tmp_path / "elsewhere")
    assert code == 0, err
    assert content_hash(list_files(tmp_path / "elsewhere/bundle/good")) == bundles["good"].manifest.content
    # What the server keeps is damaged: nothing takes the place of what was pulled before.
    (kept,) = [path for path in (tmp_path / "kept").rglob("model.onnx") if b"good" in path.read_bytes()]
    kept.write_bytes(b"damaged")
    code, _, err = call("pull", root=tmp_path / "elsewhere")
    assert (code, "damaged" in err) == (1, True)
    assert content_hash(list_files(tmp_path / "elsewhere/bundle/good")) == bundles["good"].manifest.content
