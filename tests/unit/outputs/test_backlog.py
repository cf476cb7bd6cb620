"""The grace is shared by what storing took before."""

from __future__ import annotations

import pytest

from launcher.outputs.backlog import reserve
from launcher.outputs.uploader import Stored
from launcher.runners.stopping import Reserve


def stored(sent: int, seconds: float) -> Stored:
    return Stored(id="1", name="a", version=1, step=1, size=sent, sent=sent, saved=0, seconds=seconds)


@pytest.mark.parametrize(
    ("before", "waiting", "expected"),
    [
        (
            [],
            0,
            Reserve(6, 30),
        ),  # Nothing is known: the job is promised three quarters, and has all while nothing waits.
        ([], 1000, Reserve(30, 30)),
        ([stored(1000, 10)], 0, Reserve(6, 15)),  # 100 B/s and half as much again.
        ([stored(1000, 10)], 1000, Reserve(15, 30)),
        ([stored(1000, 10)], 10**6, Reserve(40, 40)),
        ([stored(1000, 0.1)], 1000, Reserve(6, 6)),
        ([stored(10, 20), stored(1000, 10), stored(1000, 20)], 0, Reserve(6, 15)),  # The best rate counts.
        ([stored(1000, 10), stored(0, 5)], 0, Reserve(6, 15)),  # Nothing sent, nothing measured.
    ],
)
def test_of_two_minutes(before: list[Stored], waiting: int, expected: Reserve) -> None:
    assert reserve(before, waiting, 120.0) == expected
