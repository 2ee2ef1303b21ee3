"""What the doctor says of Ray's token and of the store."""

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Request, Store
from ucotron_ray.operations import doctor


def test_a_token_that_others_can_read_is_noted_and_never_shown(tmp_path, monkeypatch):
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert doctor._ray_token().found == "none"
    token.write_text("canary-token", encoding="utf-8")
    token.chmod(0o644)
    noted = doctor._ray_token()
    assert (noted.verdict, noted.advice) == (doctor.NOTE, f"chmod 600 {token}")
    token.chmod(0o600)
    assert doctor._ray_token().verdict == doctor.OK
    assert "canary" not in str(noted)


def test_what_is_unfinished_in_the_store_is_noted(tmp_path):
    settings = config.load(overrides=[("store", str(tmp_path))])
    assert doctor._store(settings).verdict == doctor.OK
    with pytest.raises(KeyboardInterrupt), Store(tmp_path).building(Request("adapter", "mine", {})):
        raise KeyboardInterrupt
    noted = doctor._store(settings)
    assert noted.verdict == doctor.NOTE
    assert "unfinished: adapter/mine" in noted.found


def test_what_only_a_setting_asks_for_is_no_gap(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor._package("ray", "ray").verdict == doctor.GAP
    noted = doctor._package("optuna", "optuna", wanted_for="tuning.search=optuna")
    assert (noted.verdict, "tuning.search=optuna" in noted.found) == (doctor.NOTE, True)
