"""Calls of the control plane: what is repeated, what is not, and what is said."""

import json

import pytest
from aiohttp import web

from tests.teacher import serving
from tests.vendor import KEY, TINY, chat_file, vending
from ucotron_ray import cli
from ucotron_ray.core import config
from ucotron_ray.core.errors import AuthError, ConfigError, FireworksError, NotFoundError, RateLimitError
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks import datasets
from ucotron_ray.fireworks.account import Account, account_of


def answering(*answers):
    """An application that gives these answers in turn (the last one for ever), and a list of what it was asked."""
    left, asked = list(answers), []

    async def handle(request):
        asked.append((request.method, request.path, request.headers.get("Authorization")))
        status, body, headers = left.pop(0) if len(left) > 1 else left[0]
        return web.json_response(body, status=status, headers=headers)

    application = web.Application()
    application.router.add_route("*", "/{rest:.*}", handle)
    return application, asked


@pytest.fixture
def caller(monkeypatch):
    monkeypatch.setenv("FIREWORKS_API_KEY", KEY)
    return lambda url: Account(f"{url}/v1", "acme", "FIREWORKS_API_KEY", None, timeout=5.0, retry_delay=0.001)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_can_pass_is_repeated(caller, status):
    application, asked = answering((status, {"message": "not now"}, {}), (200, {"name": "x"}, {}))
    with serving(application) as url:
        assert control.call(caller(url), "GET", "accounts/acme/models/x") == {"name": "x"}
    assert len(asked) == 2


def test_retry_after_is_honoured(caller, monkeypatch):
    pauses = []
    monkeypatch.setattr(control.time, "sleep", pauses.append)
    application, _ = answering((429, {}, {"Retry-After": "7"}), (503, {}, {}), (200, {}, {}))
    with serving(application) as url:
        control.call(caller(url), "GET", "accounts/acme/models/x")
    assert pauses[0] == 7.0
    assert 0 <= pauses[1] <= 0.002


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, FireworksError, 1),
        (401, AuthError, 2),
        (402, AuthError, 2),
        (403, AuthError, 2),
        (404, NotFoundError, 2),
        (413, FireworksError, 1),
    ],
)
def test_a_refusal_is_not_repeated_and_says_the_vendors_words(caller, status, kind, code):
    application, asked = answering((status, {"error": {"message": f"because of {KEY} and more"}}, {}))
    with serving(application) as url, pytest.raises(kind) as raised:
        control.call(caller(url), "POST", "accounts/acme/datasets", {})
    assert len(asked) == 1
    assert raised.value.exit_code == code
    assert raised.value.status_code == status
    assert "because of *** and more" in str(raised.value)
    assert KEY not in str(raised.value)


def test_a_quota_ends_after_the_retries_and_can_be_gone_on_with(caller):
    application, asked = answering((429, {"code": 8, "message": "quota exceeded: jobs"}, {}))
    with serving(application) as url, pytest.raises(RateLimitError, match="quota") as raised:
        control.call(caller(url), "GET", "accounts/acme/models/x")
    assert len(asked) == 4
    assert raised.value.exit_code == 75
    assert "quota exceeded: jobs (3 retries)" in str(raised.value)


def test_a_server_that_is_not_there_is_said(caller):
    with pytest.raises(FireworksError, match="did not answer") as raised:
        control.call(caller("http://127.0.0.1:9"), "GET", "accounts/acme/models/x")
    assert "refused" in str(raised.value)


def test_errors_travel_between_processes():
    import pickle

    error = AuthError("no", found="HTTP 401")
    error.status_code = 401
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.status_code, str(copy)) == (AuthError, 401, str(error))


@pytest.mark.parametrize("missing", ["FIREWORKS_API_KEY", "FIREWORKS_ACCOUNT_ID"])
def test_a_missing_variable_is_named_before_any_work(tmp_path, capsys, monkeypatch, missing):
    with vending(monkeypatch) as vendor:
        monkeypatch.delenv(missing)
        for verb in (["upload", str(chat_file(tmp_path / "rows.jsonl"))], ["list"], ["sft", "--dataset", "x"]):
            assert cli.main(["fireworks", *verb, *vendor.settings(tmp_path / "store")]) == 2
            assert f"the environment variable {missing} is not set" in capsys.readouterr().err
        assert vendor.control()["requests"] == {}


def test_a_key_never_travels_in_clear_text(monkeypatch):
    monkeypatch.setenv("FIREWORKS_API_KEY", KEY)
    api = config.load(overrides=[("api.fine_tuning_base_url", "http://vendor.example/v1")]).place.api
    with pytest.raises(ConfigError, match="http is not encrypted"):
        account_of(api, "acme")


def test_a_wrong_key_is_exit_2(tmp_path, capsys, monkeypatch):
    with vending(monkeypatch) as vendor:
        monkeypatch.setenv("FIREWORKS_API_KEY", "fw-other")
        assert cli.main(["fireworks", "sft", "--dataset", "x", *vendor.settings(tmp_path / "store"), "--json"]) == 2
        out, err = capsys.readouterr()
    assert "The API key you provided is invalid" in err
    assert "fw-other" not in out + err
    assert json.loads(out.splitlines()[-1])["exit_code"] == 2


def test_the_key_does_not_go_to_signed_addresses(tmp_path, monkeypatch):
    """The simulator refuses a PUT with a key, as a storage that checks its signature does."""
    monkeypatch.setattr(datasets, "DIRECT_UPLOAD_BYTES", 10)
    with vending(monkeypatch) as vendor:
        assert datasets.upload(vendor.account, chat_file(tmp_path / "rows.jsonl")).sent


def test_a_base_model_that_is_missing_is_exit_2(tmp_path, capsys, monkeypatch):
    with vending(monkeypatch) as vendor:
        arguments = ["fireworks", "sft", "--dataset", "x", "--base-model", TINY + "-no", *vendor.settings(tmp_path)]
        assert cli.main(arguments) == 2
        assert "resource not found" in capsys.readouterr().err
        assert vendor.created("supervisedFineTuningJobs") == 0
