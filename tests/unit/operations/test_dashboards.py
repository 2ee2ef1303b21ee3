"""The pages of a store listen on loopback only and end with the command; the monitoring files name metrics that are."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from ucotron_ray.core.errors import StageFailed
from ucotron_ray.operations import dashboards
from ucotron_ray.operations.dashboards import Page
from ucotron_ray.synthesis import watch

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "cluster" / "monitoring"


def served(port: int) -> list[str]:
    """A server whose child outlives it unless the whole group is ended."""
    script = (
        "import subprocess, sys\nfrom http.server import HTTPServer, BaseHTTPRequestHandler\n"
        "subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(15, signal.SIG_IGN); signal.pause()'])\n"
        f"HTTPServer(('127.0.0.1', {port}), BaseHTTPRequestHandler).serve_forever()"
    )
    return [sys.executable, "-c", script]


def test_pages_run_while_the_block_lasts_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(dashboards, "END_SECONDS", 5.0)
    port = dashboards.free_port()
    page = Page("One", served(port), f"http://127.0.0.1:{port}")
    with pytest.raises(KeyboardInterrupt), dashboards.Shown([page], tmp_path) as shown:
        assert dashboards.answers(page.url)
        leader = psutil.Process(shown._processes[0].pid)
        family = [leader, *leader.children(recursive=True)]
        assert len(family) == 2
        raise KeyboardInterrupt
    psutil.wait_procs(family, timeout=5)
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not dashboards.answers(page.url)


def test_a_page_that_does_not_start_names_its_log_and_ends_the_others(tmp_path):
    port = dashboards.free_port()
    good = Page("Good", served(port), f"http://127.0.0.1:{port}")
    bad = Page("Bad", [sys.executable, "-c", "print('no such table'); raise SystemExit(3)"], "http://127.0.0.1:9")
    with pytest.raises(StageFailed, match="Bad does not start"), dashboards.Shown([good, bad], tmp_path):
        raise AssertionError("it started")
    assert "no such table" in (tmp_path / "bad.log").read_text()
    assert not dashboards.answers(good.url)


def test_every_page_is_on_loopback(tmp_path):
    pages = dashboards.pages(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    assert [page.name for page in pages] == ["MLflow", "TensorBoard"]
    for page in pages:
        assert page.url.startswith("http://127.0.0.1:")
        assert page.command[page.command.index("--host") + 1] == "127.0.0.1"
    assert [page.name for page in dashboards.pages(tmp_path, "http://mlflow.example:5000")] == ["TensorBoard"]


def test_a_taken_port_of_rays_page_is_not_taken_again(tmp_path, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(dashboards, "RAY_PORT", taken.getsockname()[1])
        page = dashboards.ray_page(ROOT / "cluster/local-head.sh", tmp_path)
    assert page.url != f"http://127.0.0.1:{dashboards.RAY_PORT}"
    script = (ROOT / "cluster/local-head.sh").read_text()
    for setting in re.findall(r"(RAY_[A-Z_]+)=", " ".join(page.command)):
        assert setting in script or setting == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


def test_the_dashboard_shows_every_metric_of_ours_and_none_that_is_not():
    board = json.loads((MONITORING / "grafana" / "ucotron.json").read_text(encoding="utf-8"))
    text = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    shown = set(re.findall(r"ray_ucotron_synthesis_(\w+)\{", text))
    assert shown == set(watch.GAUGES)
    source = (ROOT / "ucotron_ray/serving/metrics.py").read_text(encoding="utf-8")
    for name in re.findall(r"ucotron_serving_(\w+)", text):
        stem = re.sub(r"_(bucket|total)$", "", name)
        assert f'"{stem}"' in source, name
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    uids = {panel["datasource"]["uid"] for panel in board["panels"]}
    (source_of_data,) = yaml.safe_load((MONITORING / "grafana/datasource.yaml").read_text())["datasources"]
    assert uids == {source_of_data["uid"]}


def test_prometheus_reads_the_file_that_our_heads_write_and_nothing_listens_wide():
    settings = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    (file,) = settings["scrape_configs"][0]["file_sd_configs"][0]["files"]
    default = re.search(r'RAY_TEMP_DIR:=(\S+)}"', (ROOT / "cluster/local-head.sh").read_text())
    assert default is not None
    assert file == f"{default[1]}/prom_metrics_service_discovery.json"
    for path in MONITORING.rglob("*"):
        if path.is_file():
            assert "0.0.0.0" not in path.read_text(encoding="utf-8"), path


@pytest.mark.slow
def test_mlflow_and_tensorboard_really_start_and_end(tmp_path):
    (tmp_path / "tracking").mkdir()
    pages = dashboards.pages(tmp_path, f"sqlite:///{tmp_path}/tracking/mlflow.db")
    with dashboards.Shown(pages, tmp_path / "logs") as shown:
        family = [psutil.Process(process.pid) for process in shown._processes]
        family += [child for process in family for child in process.children(recursive=True)]
        listening = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=True).stdout
        for page in pages:
            port = page.url.rpartition(":")[2]
            assert re.findall(rf"(\S+):{port}\s", listening) == ["127.0.0.1"]
    psutil.wait_procs(family, timeout=5)
    assert not [process for process in family if process.is_running()]
