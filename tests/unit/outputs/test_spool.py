"""What gives way when captures pile up, and the cap on the rate: tables and figures."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.job import spec as specs
from launcher.outputs.capture import Capture
from launcher.outputs.spool import Spool
from launcher.transfer.throttle import Throttle


def captured(path: str, size: int) -> Capture:
    files = {"model.safetensors": (size, 0, 1)}
    return Capture(
        id=path, job="j", name=f"j/{path}", path=path, root="/", how="link", format="x", step=1, files=files, captured=0.0
    )  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "limit", "waiting", "dropped"),
    [
        ("newest", "100", "a10 b10 c10", ""),
        ("newest", "100", "a50 b50 c50", "a"),
        ("newest", "100", "a50 b50 c50 d50", "a b"),
        ("newest", "10", "a50 b50 c50", "a b"),  # The newest stays, whatever its size.
        ("newest", "100", ".50 b50 c50", "b"),  # The root's own stays: it is the job's result.
        ("newest", "10", ".50", ""),
        ("keep-all", "10", "a50 b50 c50", ""),
    ],
)
def test_the_oldest_give_way_where_the_policy_says_so(
    tmp_path: Path, policy: str, limit: str, waiting: str, dropped: str
) -> None:
    captures = [captured(each[0], int(each[1:])) for each in waiting.split()]
    spool = Spool(tmp_path, limit, policy)  # type: ignore[arg-type]
    held = sum(each.size for each in captures)
    assert [each.path for each in spool.excess(captures, held)] == dropped.split()


def test_a_capture_that_is_being_uploaded_counts_and_is_never_dropped(tmp_path: Path) -> None:
    waiting = [captured("b", 50), captured("c", 50)]
    assert [each.path for each in Spool(tmp_path, "100", "newest").excess(waiting, 50 + 100)] == ["b"]


def test_a_full_spool_is_said_once_for_each_doubling(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "100")
    said = [held for held in range(0, 1000, 10) if spool.rises(held)]
    assert said == [110, 210, 410, 810]


def test_a_share_is_of_what_is_free(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert Spool(tmp_path, "30%").limit(0) == pytest.approx(0.3 * free, rel=0.2)
    assert Spool(tmp_path, "2GiB").limit(0) == 2 << 30


@pytest.mark.parametrize(
    ("text", "right"), [("30%", True), ("20GiB", True), ("0%", False), ("120%", False), ("x", False)]
)
def test_a_wrong_spool_is_found_before_anything_starts(text: str, right: bool) -> None:
    flags = {"name": "j", "command": ("true",), "spool": text, "bandwidth": "4MB/s"}
    if right:
        assert specs.load(flags, environ={}).bandwidth == 4_000_000
    else:
        with pytest.raises(UsageError, match="--spool"):
            specs.load(flags, environ={})


def test_4_mb_at_4_mb_a_second_take_a_second_whatever_the_number_of_threads() -> None:
    throttle = Throttle(4_000_000)
    started = time.monotonic()

    def send() -> None:
        for _ in range(10):
            throttle.take(100_000)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - started
    print(f"4 MB by 4 threads at 4 MB/s: {seconds:.2f} s")
    assert seconds >= 1.0
