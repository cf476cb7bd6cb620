"""Which failures are retried, and when: the whole table."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import UsageError
from launcher.job import restarts
from launcher.job.record import Attempt, Outcome
from launcher.job.spec import JobSpec, load


def ended(**facts: Any) -> Attempt:
    outcome = Outcome(**({"code": 1, "origin": "job", "cause": "", "failure": "exit"} | facts))
    return Attempt(number=1, host="node", pid=1, started=1000.0, outcome=outcome)


def decided(*attempts: Attempt, **spec: Any) -> restarts.Restart | None:
    return restarts.decide(JobSpec(**({"name": "j", "command": ("x",), "max_restarts": 10} | spec)), attempts)


@pytest.mark.parametrize(
    ("facts", "spec", "again"),
    [
        ({"code": 0, "failure": ""}, {}, False),
        ({"failure": "exit"}, {}, True),
        ({"failure": "exception"}, {}, True),
        ({"failure": "signal", "code": 139}, {}, True),
        ({"failure": "rendezvous"}, {}, True),
        ({"failure": "hang", "code": 143}, {}, True),
        ({"failure": "oom", "code": 137}, {}, False),
        ({"failure": "oom", "code": 137}, {"retry_on": "oom"}, True),
        ({"failure": "oom", "code": 137}, {"retry_on": "137"}, True),
        ({"failure": "stopped", "code": 143, "stopped": True}, {}, False),
        ({"failure": "stopped", "code": 143, "stopped": True}, {"retry_on": "143"}, False),
        ({"failure": "launcher", "code": 69, "kind": "store-unavailable", "retryable": True}, {}, True),
        ({"failure": "launcher", "code": 73, "kind": "no-space"}, {}, False),
        ({"failure": "launcher", "code": 74, "kind": "collection-incomplete", "retryable": True}, {}, False),
        ({"failure": "exit", "code": 42}, {"no_retry_on": "42"}, False),
        ({"failure": "exit", "code": 43}, {"no_retry_on": "42"}, True),
        ({"failure": "exit", "code": 70}, {"no_retry_on": "64-78"}, False),
        ({"failure": "hang", "code": 143}, {"no_retry_on": "hang"}, False),
        ({"failure": "signal", "code": 134}, {"retry_on": "134", "no_retry_on": "signal"}, True),
        ({"failure": "exit", "code": 5}, {"max_restarts": 0}, False),
    ],
)
def test_each_class_and_code_by_its_rule(facts: dict[str, Any], spec: dict[str, Any], again: bool) -> None:
    assert (decided(ended(**facts), **spec) is not None) is again


@pytest.mark.parametrize("failure", ["exit", "exception"])
def test_the_same_end_at_the_same_step_is_retried_once(failure: str) -> None:
    def at(step: int | None, code: int = 1, resumed: str = "") -> Attempt:
        attempt = ended(failure=failure, code=code, last_step_seen=step, last_step_committed=step and step - 10)
        attempt.resumed = resumed
        return attempt

    assert decided(at(30)) and not decided(at(30), at(30)) and not decided(at(None), at(None))
    assert not decided(at(30), at(30, resumed="one"))
    assert decided(at(30), at(50)), "it came further"
    assert decided(at(30), at(30, code=2)), "it ended otherwise"
    assert decided(at(30), at(30), retry_on="1"), "asked for by its code"
    assert decided(at(30), at(20, resumed="one"), at(20, resumed="one")), "the checkpoint may be bad: one back"
    assert not decided(at(20, resumed="two"), at(20, resumed="two"), at(20, resumed="one")), "that was not the reason"
    going_on = ended(failure=failure, last_step_seen=None, last_step_committed=30)
    assert not decided(at(30), going_on), "it wrote nothing after the step from which it went on"


def test_a_peer_that_is_lost_again_and_again_is_retried_to_the_limit() -> None:
    lost = ended(failure="rendezvous")
    assert [decided(*[lost] * count, max_restarts=3) is not None for count in (1, 2, 3, 4)] == [True, True, True, False]


def test_each_wait_is_twice_the_last_less_up_to_half_of_it_and_at_most_a_minute() -> None:
    for count in range(1, 40):
        found = decided(*[ended(failure="signal")] * count, max_restarts=100)
        longest = min(60.0, 2.0 ** (count - 1))
        assert found and longest / 2 <= found.wait <= longest
        assert found == decided(*[ended(failure="signal")] * count, max_restarts=100), (
            "it depends on its arguments alone"
        )


def test_mistakes_in_the_lists_are_told_before_anything_starts() -> None:
    flags = {"name": "j", "command": ("x",), "retry_on": "1,oon", "no_retry_on": "0"}
    with pytest.raises(UsageError, match=r"(?s)--retry-on: 'oon' is no exit code.*--no-retry-on: '0'"):
        load(flags, environ={})
    with pytest.raises(UsageError, match="both name 42"):
        load(flags | {"retry_on": "40-45", "no_retry_on": "42"}, environ={})
