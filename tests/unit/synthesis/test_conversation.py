"""What a sample's reason says of a request that the server refused."""

import pytest

from ucotron_ray.synthesis import conversation
from ucotron_ray.synthesis.plan import Answer, Ask, Ended
from ucotron_ray.teacher.outcome import OutcomeKind

KEY = "sk-proj-0123456789abcdef0123"


def reason(answer: Answer) -> str:
    """Why a sample ended whose only request got this."""
    talk = conversation.whole(Ask("write", (("user", "q"),), 0.0, 8), cap=8)
    next(talk)
    with pytest.raises(Ended) as ended:
        talk.send(answer)
    assert ended.value.done.status == "quarantined"
    return ended.value.done.reason or ""


def test_a_refusal_is_in_the_servers_own_words_shortened():
    said = "HTTP 400: the model takes no seed" + " and so on" * 100
    found = reason(Answer(OutcomeKind.POISON, said))
    assert found.startswith("write: the server does not take this request: HTTP 400: the model takes no seed")
    assert len(found) < 260
    assert reason(Answer(OutcomeKind.POISON)) == "write: the server does not take this request"


@pytest.mark.parametrize("said", [f"HTTP 400: no such key: {KEY}", f"HTTP 400: {'x' * 185} {KEY}", "HTTP 400: \x1b[2J"])
def test_no_key_and_no_control_character_comes_in_by_a_servers_words(said):
    found = reason(Answer(OutcomeKind.POISON, said))
    assert "does not take this request: its words hold a" in found
    assert "sk-" not in found
    assert "\x1b" not in found


def test_what_a_model_said_is_not_quoted():
    assert "teacher's text" not in reason(Answer(OutcomeKind.REFUSED, "a teacher's text"))
