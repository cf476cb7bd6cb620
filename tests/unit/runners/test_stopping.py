"""What counts as a request to stop, what as insisting on it, and what is passed on to the job."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import Preempted
from launcher.runners.agent import Stopping
from launcher.runners.signals import Signals, catching
from launcher.runners.stopping import Stops


@pytest.fixture
def signals() -> Iterator[Signals]:
    with catching() as signals:
        yield signals


@pytest.mark.parametrize(
    ("came", "reason", "told", "insisted", "passed"),
    [
        (["TERM"], "SIGTERM", "TERM", 0, []),
        (["INT"], "SIGINT", "INT", 0, []),
        (["TERM", "TERM"], "SIGTERM", "TERM", 1, []),
        (["INT", "TERM", "HUP"], "SIGINT", "INT", 2, []),
        (["USR1"], "SIGUSR1", "TERM", 0, []),  # An early warning: no library saves by it.
        (["USR1", "TERM"], "SIGUSR1", "TERM", 0, []),  # What the scheduler sends later is not a second request.
        (["USR1", "TERM", "TERM"], "SIGUSR1", "TERM", 1, []),
        (["USR2", "TERM", "WINCH"], "SIGTERM", "TERM", 0, ["USR2", "WINCH"]),
        (["USR2"], "", "", 0, ["USR2"]),
    ],
)
def test_signals(signals: Signals, came: list[str], reason: str, told: str, insisted: int, passed: list[str]) -> None:
    stops = Stops(signals, grace=30, also=(signal.SIGUSR1,))
    for name in came:
        signal.raise_signal(signal.Signals[f"SIG{name}"])
    assert [signal.Signals(each).name for each in stops.take()] == [f"SIG{each}" for each in passed]
    assert stops.take() == []
    assert (stops.request.reason if stops.request else "", stops.insisted) == (reason, insisted)
    if stops.request:
        assert stops.request.told == signal.Signals[f"SIG{told}"]
        assert stops.request.deadline == stops.request.at + 30
        assert abs(time.time() - stops.request.at) < 20 and 0 < stops.left < 30
        with pytest.raises(Preempted, match=reason):
            stops.check()


def test_whoever_makes_the_file_asks_and_an_earlier_attempts_file_does_not(signals: Signals, tmp_path: Path) -> None:
    file = tmp_path / "stop.json"
    file.write_text("of an earlier attempt")
    stops = Stops(signals, grace=30)
    stops.watch(file)
    assert not stops.asked and not file.exists()
    file.touch()
    assert stops.asked and stops.request and (stops.request.reason, stops.request.signal) == ("the stop file", None)
    before = time.time()
    stops.tell(20)
    told = json.loads(file.read_text())
    assert told["reason"] == "the stop file" and before + 20 <= told["deadline"] <= time.time() + 20


def test_the_time_limit_asks_when_the_grace_is_left_of_it(signals: Signals) -> None:
    stops = Stops(signals, grace=30, limit=30.2)
    assert not stops.asked
    while not stops.asked:
        time.sleep(0.01)
    assert stops.request and stops.request.reason == "the time limit of 30 s"
    assert stops.request.told == signal.SIGTERM
    assert signals.since + 30.2 - time.monotonic() < 30


def test_work_after_the_job_is_left_to_itself_at_the_end_of_the_time(signals: Signals) -> None:
    stops = Stops(signals, grace=0.5)
    done: list[int] = []
    assert stops.within(lambda: done.append(1)) and done == [1]
    with pytest.raises(ZeroDivisionError):
        stops.within(lambda: 1 // 0)
    signal.raise_signal(signal.SIGTERM)
    assert not stops.within(lambda: time.sleep(100))


def test_a_further_signal_ends_work_after_the_job_and_the_first_does_not(signals: Signals) -> None:
    stops = Stops(signals, grace=1000)
    over = stops.patience()
    assert not over()
    signal.raise_signal(signal.SIGINT)
    assert not over()
    signal.raise_signal(signal.SIGINT)
    assert over()
    assert not stops.patience()()  # Of the next piece of work, from now on.


@pytest.mark.parametrize(
    ("stopped", "codes", "expected"),
    [
        (0, [], 0),
        (0, [42, -15], 42),
        (0, [-11, 1], 139),
        (15, [], 143),  # All saved and ended well: still no run that has finished.
        (15, [-15, 143], 143),
        (15, [143, 85], 85),  # A code of the script's own, such as "requeue me".
        (15, [-9, -15], 137),
        (2, [-2, 130], 130),
        (2, [1, -2], 1),
    ],
)
def test_the_agents_code_after_a_stop(stopped: int, codes: list[int], expected: int) -> None:
    stopping = Stopping()
    stopping.signal = stopped
    assert stopping.code(codes) == expected
