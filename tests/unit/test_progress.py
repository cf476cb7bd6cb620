"""What is said while bytes move: how much of all, how fast, how long still, and which large file needs longest."""

from __future__ import annotations

import time

import pytest

from launcher import progress as progresses
from launcher.events import Event
from launcher.progress import Progress

MIB = 1 << 20


def test_rate_and_time_left_of_the_whole_and_of_the_slowest_file(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said: list[Event] = []
    with Progress("Fetching base", 1000 * MIB, said.append) as progress:
        fast, slow = progress.file("model-1.safetensors", 600 * MIB), progress.file("model-2.safetensors", 300 * MIB)
        small = progress.file("config.json", 100)
        for count in (fast, slow, small):
            count(0)
        now[0] += 2
        fast(300 * MIB)
        slow(10 * MIB)
        now[0] += 2
        fast(90 * MIB)
        small(100)
        now[0] += progresses._EACH
        slow(290 * MIB)
    lines = [each.text for each in said]
    print("\n".join(lines))
    assert len(lines) == 2, "not more often than so"
    assert (
        "400.0 MiB of 1000.0 MiB, 100.0 MiB/s, 6.00 s left; slowest: model-2.safetensors, 2.5 MiB/s, 1 min 56 s left"
        in lines[0]
    )
    assert "slowest: model-1.safetensors" in lines[1], "the other one has ended"
