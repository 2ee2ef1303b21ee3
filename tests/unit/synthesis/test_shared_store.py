"""A sender that does not see the driver's file writes nothing."""

import pytest

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.synthesis import shared_store


def test_the_drivers_file_is_seen_or_the_store_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_store, "PAUSE_SECONDS", 0.0)
    shared_store.leave_token(tmp_path, "this run")
    shared_store.check_token(tmp_path, "this run")
    (tmp_path / "node").mkdir()
    for directory, token in ((tmp_path / "node", "this run"), (tmp_path / "none", "this run"), (tmp_path, "another")):
        with pytest.raises(ConfigError, match="not shared by the nodes") as error:
            shared_store.check_token(directory, token)
        assert error.value.exit_code == 2
    assert not (tmp_path / "none").exists()


def test_a_file_that_comes_late_is_waited_for(tmp_path, monkeypatch):
    class Pause:
        def wait(self, seconds):
            shared_store.leave_token(tmp_path, "this run")

    monkeypatch.setattr(shared_store.threading, "Event", Pause)
    shared_store.check_token(tmp_path, "this run")
