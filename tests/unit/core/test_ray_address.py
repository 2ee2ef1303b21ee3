"""Addresses of Ray that are none, or where nobody answers, end in seconds and in words."""

import socket
import time

import pytest

from ucotron_ray.core import config, ray_address, redaction, session
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.operations import address as dashboards


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("http://127.0.0.1:8265", "submit --address"),
        ("https://alice:hunter2222@head.example", "address of a dashboard"),
        ("127.0.0.1", "no port"),
        ("head.example:", "no port"),
        (":6379", "no port"),
        ("head.example:port", "no port"),
        ("ray://head.example", "no port"),
    ],
)
def test_what_is_no_address_of_a_head_is_said(given, said):
    with pytest.raises(ConfigError, match=said) as caught:
        ray_address.check(given)
    assert caught.value.exit_code == 2
    assert "hunter2222" not in str(caught.value)


def test_a_closed_port_ends_at_once_and_an_open_one_passes():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ray_address.check(f"127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(ConfigError, match="no Ray cluster to connect to"):
        ray_address.check(f"127.0.0.1:{port}")
    assert time.monotonic() - began < ray_address.CONNECT_SECONDS
    ray_address.check("auto")


def test_a_head_beside_a_run_without_an_address_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ray_address, "CURRENT_CLUSTER", tmp_path / "current")
    ray_address.note_other_head()
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "current").write_text(head, encoding="utf-8")
        ray_address.note_other_head()
        assert head in caplog.text
        caplog.clear()
    # It is gone, and the file stayed.
    ray_address.note_other_head()
    assert caplog.text == ""


def test_the_place_goes_before_the_variable(monkeypatch):
    place = config.load().place
    monkeypatch.setenv("RAY_ADDRESS", "there:6379")
    assert session.address_of(place) == "there:6379"
    assert session.address_of(place.model_copy(update={"ray": place.ray.model_copy(update={"address": "here:1"})}))
    monkeypatch.delenv("RAY_ADDRESS")
    assert session.address_of(place) is None


def test_a_job_goes_to_the_dashboard_in_ray_address(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://head.example:8265")
    assert dashboards.of_cluster(None) == "http://head.example:8265"
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    assert dashboards.of_cluster(None) == dashboards.DEFAULT


@pytest.mark.parametrize(
    "text",
    [
        "tracking.mlflow_uri=http://alice:hunter2222@host:5000",
        "postgresql+psycopg2://alice:hunter2222@db/mlflow?sslmode=require",
        "https://host/v1?api-version=2024&api-key=hunter2222#x",
        "http://h/?sig=hunter2222&x=1",
        "http://h/?X-Amz-Security-Token=hunter2222",
        "sft --api-key hunter2222 --name n",
        "sft --token=hunter2222",
        "http://alice:hunter2222%40x@host/path",
    ],
)
def test_passwords_of_addresses_and_flags_are_hidden_and_the_rest_stays(text):
    hidden = redaction.without_passwords(text)
    assert "hunter2222" not in hidden
    assert "***" in hidden
    assert hidden.split("***")[0] == text.split("hunter2222")[0]
    assert redaction.without_passwords(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8421/inference/v1",
        "accounts/fireworks/models/qwen2p5 at step 3: 17 tokens",
        "sqlite:////tmp/mlflow.db",
        "--set api.key_variable=MY_KEY --key-file /run/key --max-tokens 512",
        "mail to ana@example.org: all is well",
        "http://h/?keyword=relation&monkey=1&page=2",
        "ray://head.example:10001",
    ],
)
def test_what_is_no_password_stays(text):
    assert redaction.without_passwords(text) == text
