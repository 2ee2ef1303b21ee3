"""The limiter, with a clock of our own."""

import pytest

from ucotron_ray.synthesis import governor as g
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.ledger import Budget, Finished, Need, Reserved, Settings
from ucotron_ray.teacher.outcome import Limits, OutcomeKind
from ucotron_ray.teacher.prices import Price

NEED = Need("task.step", 100, 300, 400)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def settings(**changes) -> Settings:
    values = {
        "first_in_flight": 8,
        "max_in_flight": 64,
        "requests_per_minute": None,
        "prompt_tokens_per_minute": None,
        "generated_tokens_per_minute": None,
        "give_up_after": 300.0,
    }
    return Settings(**{**values, **changes})


def made(clock: Clock, *, budget: Budget | None = None, **changes) -> Governor:
    governor = Governor(settings(**changes), clock)
    governor.join("run", budget or Budget(None, None), settings(**changes))
    return governor


def done(reserved: Reserved, kind: OutcomeKind = OutcomeKind.ANSWER, **changes) -> Finished:
    values = {"prompt_tokens": 100, "cached_tokens": 0, "completion_tokens": 200, "usd": 0.0, "attempt": 1}
    if kind is not OutcomeKind.ANSWER:
        values |= {"prompt_tokens": 0, "completion_tokens": 0}
    return Finished(need=NEED, reserved=reserved, kind=kind, **{**values, **changes})


def ask(governor: Governor, finished=(), queue: int = 1000, name: str = "a"):
    governor.driver_is_alive("run")
    return governor.exchange("run", name, list(finished), [NEED] * queue)


def wait(governor: Governor, clock: Clock, seconds: float) -> None:
    """Time in which the drivers that live speak every second."""
    for _ in range(int(seconds)):
        clock.now += 1
        governor.driver_is_alive("run")


def test_no_more_than_the_window_are_in_flight_and_it_doubles_a_round_up_to_its_bound():
    clock = Clock()
    governor = made(clock)
    grant, at_once, held = ask(governor), [], []
    for _ in range(5):
        at_once.append(grant.at_once)
        held.append(len(grant.reserved))
        clock.now += 1
        grant = ask(governor, [done(reserved) for reserved in grant.reserved])
    assert held == [10, 22, 50, 80, 80], "a quarter more than the window, to be sent when something comes back"
    assert at_once == [8, 18, 40, 64, 64]


def test_workers_share_the_window_by_what_they_hold():
    clock = Clock()
    governor = made(clock, first_in_flight=64)
    first = ask(governor, queue=60, name="a")
    second = ask(governor, queue=60, name="b")
    assert (len(first.reserved), len(second.reserved)) == (60, 20)
    assert (ask(governor, queue=0, name="a").at_once, second.at_once) == (48, 16)


def test_leave_that_was_not_used_costs_nothing():
    clock = Clock()
    governor = made(clock, budget=Budget(Price(0.0, 0.0, 1_000_000.0), None), requests_per_minute=60.0)
    (reserved,) = ask(governor, queue=1).reserved
    ask(governor, [done(reserved, None)], queue=0)
    assert (governor.in_flight, governor.runs["run"].usd, governor.runs["run"].totals.sent) == (0, 0.0, 0)
    assert len(ask(governor, queue=1).reserved) == 1, "the rate has it back"


def test_a_no_halves_the_window_once_a_second_and_pauses_as_long_as_the_server_says():
    clock = Clock()
    governor = made(clock, first_in_flight=64)
    granted = ask(governor).reserved
    refused = [done(reserved, OutcomeKind.RATE_LIMITED, retry_after=7.0) for reserved in granted]
    grant = ask(governor, refused)
    assert (grant.reserved, grant.at_once) == ((), 0)
    assert governor.window == 32, "all refusals of one moment are one signal"
    clock.now += 6.9
    assert ask(governor).reserved == ()
    clock.now += 0.2
    assert ask(governor).at_once == 32


def rounds_of_answers(governor: Governor, clock: Clock, count: int) -> list[float]:
    """The window after each of some rounds of answers."""
    sizes = []
    granted = ask(governor).reserved
    for _ in range(count):
        clock.now += 1
        granted = ask(governor, [done(reserved) for reserved in granted]).reserved
        sizes.append(governor.window)
    ask(governor, [done(reserved) for reserved in granted], queue=0)
    return sizes


def test_after_a_no_the_window_is_soon_nearly_what_it_was_and_slow_beyond():
    clock = Clock()
    governor = made(clock, first_in_flight=32, max_in_flight=1000)
    granted = ask(governor).reserved
    ask(governor, [done(granted[0], OutcomeKind.OVERLOADED), *[done(r) for r in granted[1:]]], queue=0)
    clock.now += 2
    sizes = rounds_of_answers(governor, clock, 12)
    assert 16 < sizes[0] < 28
    assert sizes[5] > 0.9 * 32
    assert sizes[-1] - sizes[5] < 10


def test_a_reset_ends_no_slow_start_and_noise_cuts_nothing():
    clock = Clock()
    governor = made(clock, max_in_flight=256)
    granted = ask(governor).reserved
    for number in range(200):
        clock.now += 1
        # One request in twenty fails, whatever the window is.
        kinds = [OutcomeKind.TRANSIENT if (number + i) % 20 == 0 else OutcomeKind.ANSWER for i in range(len(granted))]
        granted = ask(governor, [done(r, kind) for r, kind in zip(granted, kinds, strict=True)]).reserved
        if number == 6:
            assert governor.window == 256, "doubled with every round, though the first answer was a reset"
    assert governor.window == 256


@pytest.mark.parametrize("kind", [OutcomeKind.RATE_LIMITED, OutcomeKind.OVERLOADED])
def test_one_no_of_the_server_is_enough(kind):
    clock = Clock()
    governor = made(clock, first_in_flight=64)
    granted = ask(governor).reserved
    ask(governor, [done(granted[0], kind), *[done(r) for r in granted[1:]]], queue=0)
    assert governor.window < 64


def test_a_server_that_resets_what_is_too_much_is_relieved_once_for_all_that_was_in_flight():
    clock = Clock()
    governor = made(clock, first_in_flight=64)
    granted = ask(governor).reserved
    half = len(granted) // 2
    clock.now += 1
    ask(governor, [done(r, OutcomeKind.TRANSIENT) for r in granted[:half]], queue=0)
    assert governor.window == 32
    # The others were sent before the cut: they say nothing of the window after it.
    clock.now += 2
    ask(governor, [done(r, OutcomeKind.TRANSIENT) for r in granted[half:]], queue=0)
    assert governor.window == 32
    clock.now += 2
    later = ask(governor).reserved
    clock.now += 2
    ask(governor, [done(r, OutcomeKind.TRANSIENT) for r in later], queue=0)
    assert governor.window == 16


def test_ahead_of_the_window_no_more_is_permitted_than_a_known_rate_sends_in_half_a_second():
    governor = made(Clock(), first_in_flight=64, max_in_flight=64, requests_per_minute=100 * 60)
    assert len(ask(governor, queue=64).reserved) == 64
    slow = made(Clock(), first_in_flight=8, max_in_flight=8, requests_per_minute=10 * 60)
    assert len(ask(slow).reserved) == 8 + 2
    slower = made(Clock(), first_in_flight=8, max_in_flight=8, requests_per_minute=2 * 60)
    wait(slower, slower.clock, 1)
    assert len(ask(slower).reserved) <= 8 + 1


def test_a_limit_that_is_not_told_is_guessed_by_refusals_and_used():
    clock = Clock()
    governor = made(clock, max_in_flight=1000, first_in_flight=100)
    room, taken, refused = 20.0, 0, 0
    for step in range(20 * 400):
        clock.now += 0.05
        # Ten a second, and two seconds of them saved up.
        room = min(20.0, room + 0.5)
        finished = []
        for reserved in ask(governor, queue=200).reserved:
            is_taken = room >= 1
            room -= is_taken
            finished.append(done(reserved, OutcomeKind.ANSWER if is_taken else OutcomeKind.RATE_LIMITED))
            taken, refused = taken + (is_taken and step >= 2000), refused + (not is_taken and step >= 2000)
        ask(governor, finished, queue=0)
    assert taken / 300 > 0.95 * 10
    assert refused < 0.01 * taken


def refusals(governor: Governor, count: int, kind=OutcomeKind.REJECTED, *, is_new: bool = True, **changes):
    need = Need("task.step", 100, 300, 400, "", is_new)
    stop = None
    for _ in range(count):
        governor.driver_is_alive("run")
        (reserved,) = governor.exchange("run", "a", [], [need]).reserved
        finished = Finished(need, reserved, kind, 0, 0, 0, 0.0, 1, **changes)
        stop = governor.exchange("run", "a", [finished], []).stop
        if stop:
            break
    return stop


def answer_one(governor: Governor) -> None:
    (reserved,) = ask(governor, queue=1).reserved
    ask(governor, [done(reserved)], queue=0)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (OutcomeKind.REJECTED, {}),
        (OutcomeKind.POISON, {}),
        (OutcomeKind.TRANSIENT, {"unreadable": True}),
    ],
)
def test_a_dozen_refusals_and_no_answer_stop_the_run_in_the_servers_words(kind, changes):
    governor = made(Clock())
    assert refusals(governor, 11, kind, detail="HTTP 403: no", **changes) is None
    stop = refusals(governor, 1, kind, detail="HTTP 403: no", **changes)
    assert stop == "12 requests were refused and none was answered, most often so: HTTP 403: no (12 of 12 failures)"
    assert governor.runs["run"].stop_kind is kind


def test_a_run_that_had_answers_stops_when_fifty_prompts_in_a_row_are_refused():
    governor = made(Clock())
    answer_one(governor)
    assert refusals(governor, 49) is None
    answer_one(governor)
    assert refusals(governor, 49) is None
    assert (refusals(governor, 1) or "").startswith("50 requests in a row were refused")


def test_prompts_that_were_refused_before_stop_nothing():
    governor = made(Clock())
    assert refusals(governor, 200, is_new=False) is None


def test_the_most_frequent_reason_is_known_whatever_ids_the_server_writes_into_it():
    governor = made(Clock())
    for number in range(6):
        (reserved,) = ask(governor, queue=1).reserved
        ask(governor, [done(reserved, OutcomeKind.TRANSIENT, detail=f"HTTP 500: request ab{number}f77cd3 failed")], 0)
    (reserved,) = ask(governor, queue=1).reserved
    ask(governor, [done(reserved, OutcomeKind.TRANSIENT, detail="timeout")], queue=0)
    assert governor.runs["run"].causes.most_frequent == "HTTP 500: request … failed (6 of 7 failures)"


def test_a_limiter_that_stood_still_takes_nobody_for_dead():
    clock = Clock()
    governor = made(clock, budget=Budget(Price(0.0, 0.0, 1_000_000.0), None))
    granted = ask(governor, name="a").reserved
    ask(governor, name="b")
    # Nobody could speak: the limiter's process, or its machine, was stopped.
    clock.now += 60
    permit = governor.exchange("run", "b", [], [NEED] * 2)
    assert permit.stop is None
    assert governor.runs["run"].lost_workers == 0
    assert governor.runs["run"].usd == 0
    governor.exchange("run", "a", [done(reserved) for reserved in granted], [])
    assert governor.runs["run"].totals.answered == len(granted)


def test_what_is_open_is_known_by_request_also_of_the_lost():
    clock = Clock()
    governor = made(clock, budget=Budget(Price(0.0, 0.0, 1_000_000.0), None))
    needs = [Need("task.step", 100, 300, 400, rid) for rid in ("r1", "r2", "r1")]
    granted = governor.exchange("run", "a", [], needs).reserved
    assert governor.open_of("run") == {"r1": 800.0, "r2": 400.0}
    governor.exchange("run", "a", [Finished(needs[0], granted[0], OutcomeKind.ANSWER, 1, 0, 1, 3.0, 1)], [])
    assert governor.open_of("run") == {"r1": 400.0, "r2": 400.0}
    wait(governor, clock, g.LEASE_SECONDS + 1)
    ask(governor, name="other", queue=0)
    assert governor.runs["run"].lost_usd == 800.0
    assert governor.open_of("run") == {"r1": 400.0, "r2": 400.0}


def test_the_floor_is_one_probe():
    clock = Clock()
    governor = made(clock)
    for _ in range(20):
        clock.now += 70
        granted = ask(governor).reserved
        if governor.runs["run"].stop:
            break
        assert granted, "it never stops probing by itself before `give_up_after`"
        ask(governor, [done(reserved, OutcomeKind.OVERLOADED) for reserved in granted], queue=0)
    assert governor.window == 1
    assert governor.runs["run"].stop == "the server gave no answer for 300 s"


def test_the_rate_of_requests_is_kept_over_time():
    clock = Clock()
    governor = made(clock, requests_per_minute=600, max_in_flight=10_000, first_in_flight=10_000)
    sent = 0
    for _ in range(1000):
        granted = ask(governor).reserved
        sent += len(granted)
        ask(governor, [done(reserved) for reserved in granted], queue=0)
        clock.now += 0.02
    assert sent == pytest.approx(20 * 10 + 10, abs=2), "20 s at 10 a second, and one second saved up"


def test_token_limits_are_learned_from_headers_and_settled_by_what_answers_really_take():
    clock = Clock()
    governor = made(clock, max_in_flight=10_000, first_in_flight=100)
    limits = Limits(generated_tokens=60_000)
    ask(governor, [done(ask(governor, queue=1).reserved[0], limits=limits)], queue=0)
    tokens = 0
    for _ in range(3000):
        granted = ask(governor).reserved
        tokens += 350 * len(granted)
        # Answers are longer than max_tokens / 2, which is what is reserved before anything is known.
        ask(governor, [done(reserved, completion_tokens=350) for reserved in granted], queue=0)
        clock.now += 0.02
    assert tokens / 60 == pytest.approx(1000 * g.RATE_SHARE, rel=0.03)


def test_a_budget_is_never_passed_even_in_the_worst_case():
    clock = Clock()
    price = Price(0.0, 0.0, 1_000_000.0)  # a dollar a generated token
    governor = made(clock, budget=Budget(price, 1300.0, spent_before=400.0), first_in_flight=64)
    first = ask(governor)
    assert len(first.reserved) == 2, "900 dollars are left, a request may cost 400"
    second = ask(governor, [done(reserved, usd=100.0) for reserved in first.reserved])
    assert len(second.reserved) == 1, "cheaper than feared: 700 are left"
    third = ask(governor, [done(second.reserved[0], usd=400.0)])
    assert third.reserved == ()
    assert third.stop is not None
    assert third.stop.startswith("budget")
    assert governor.runs["run"].usd == 1000.0


@pytest.mark.parametrize("kind", [OutcomeKind.AUTH, OutcomeKind.BILLING, OutcomeKind.MODEL_MISSING])
def test_what_no_request_can_pass_stops_the_run_at_once(kind):
    clock = Clock()
    governor = made(clock)
    granted = ask(governor).reserved
    answer = ask(governor, [done(granted[0], kind, detail="HTTP 401: no")])
    assert answer.reserved == ()
    assert answer.stop == f"{kind}: HTTP 401: no"


def test_a_silent_worker_is_counted_out_and_what_it_had_counts_as_paid():
    clock = Clock()
    price = Price(0.0, 0.0, 1_000_000.0)
    governor = made(clock, budget=Budget(price, None))
    ask(governor, name="dead")
    assert governor.in_flight == 10
    wait(governor, clock, g.LEASE_SECONDS + 1)
    assert len(ask(governor, name="alive").reserved) == 10
    assert governor.runs["run"].usd == 10 * 400


def test_without_a_driver_nothing_is_sent():
    clock = Clock()
    governor = made(clock)
    for _ in range(int(g.DRIVER_SECONDS / 2) + 1):
        clock.now += 2
        answer = governor.exchange("run", "a", [], [NEED])
    assert answer.reserved == ()
    assert answer.stop == "the driver fell silent"


def test_two_runs_share_the_window_and_not_the_budget():
    clock = Clock()
    governor = made(clock, first_in_flight=10)
    governor.join("other", Budget(Price(0, 0, 1.0), 0.0), settings(first_in_flight=10, max_in_flight=100))
    assert governor.settings.max_in_flight == 64, "the stricter limit holds for both"
    mine = ask(governor, queue=6).reserved
    theirs = governor.exchange("other", "b", [], [NEED] * 10)
    assert len(mine) == 6
    assert theirs.reserved == ()
    assert theirs.stop is not None
    assert len(ask(governor, queue=10).reserved) == 6
    assert governor.leave("other") == 1
    assert governor.exchange("other", "b", [], [NEED]).stop == "the run is over"


def test_a_clock_that_jumps_makes_no_burst():
    clock = Clock()
    governor = made(clock, requests_per_minute=600, max_in_flight=10_000, first_in_flight=10_000)
    ask(governor)
    clock.now += 3600
    assert len(ask(governor).reserved) <= 11
    clock.now -= 7200
    ask(governor)
    clock.now += 0.5
    assert ask(governor).stop is None


def test_a_worker_that_was_only_slow_is_counted_once():
    clock = Clock()
    price = Price(0.0, 0.0, 1_000_000.0)
    governor = made(clock, budget=Budget(price, None))
    slow = ask(governor, name="slow").reserved
    wait(governor, clock, g.LEASE_SECONDS + 1)
    ask(governor, queue=0, name="other")
    assert governor.runs["run"].usd == 10 * 400
    ask(governor, [done(reserved, usd=10.0) for reserved in slow], queue=0, name="slow")
    assert governor.in_flight == 0
    assert governor.runs["run"].usd == 10 * 10


def test_the_prompt_too_is_reserved_at_its_worst():
    governor = made(Clock(), budget=Budget(Price(1_000_000.0, 0.0, 0.0), 700.0), first_in_flight=64)
    assert len(ask(governor).reserved) == 2, "300 tokens at most, though 100 are expected"


def test_workers_that_die_again_and_again_end_the_run():
    clock = Clock()
    governor = made(clock)
    for number in range(g.MOST_LOST_WORKERS + 2):
        answer = ask(governor, queue=1, name=str(number))
        wait(governor, clock, g.LEASE_SECONDS + 1)
    assert answer.stop == "its workers died again and again"


def test_rounds_of_workers_that_end_in_order_are_no_deaths():
    clock = Clock()
    governor = made(clock)
    for number in range(g.MOST_LOST_WORKERS + 2):
        granted = ask(governor, queue=1, name=str(number)).reserved
        answer = ask(governor, [done(granted[0])], queue=0, name=str(number))
        wait(governor, clock, g.LEASE_SECONDS + 1)
    assert answer.stop is None


def test_the_limits_of_a_run_end_with_it_and_with_its_driver():
    clock = Clock()
    governor = made(clock, max_in_flight=64)
    governor.join("strict", Budget(None, None), settings(max_in_flight=4))
    assert governor.settings.max_in_flight == 4
    assert governor.leave("strict") == 1
    assert governor.settings.max_in_flight == 64
    # Killed: nobody says that it is over.
    governor.join("killed", Budget(None, None), settings(max_in_flight=4))
    for _ in range(int(g.DRIVER_SECONDS) + 1):
        clock.now += 1
        governor.exchange("gone", "a", [], [])
    governor.join("next", Budget(None, None), settings(max_in_flight=32))
    assert governor.settings.max_in_flight == 32
    assert governor.leave("next") == 0, "nobody is left to keep the limiter for"
