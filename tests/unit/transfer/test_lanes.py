"""How many requests are in flight finds itself: few to a near server, many to a far one, fewer to one that has too much to do."""

from __future__ import annotations

import contextlib
from collections import deque

from launcher.errors import StoreUnavailable
from launcher.transfer.lanes import Lanes

MIB = 1 << 20


class Server:
    """A modelled server: a request takes `latency` seconds and then its bytes at the rate that is left, `rate` for all."""

    def __init__(self, lanes: Lanes, latency: float, rate: float) -> None:
        self.lanes, self.latency, self.rate = lanes, latency, rate
        self.now = 0.0

    def serve(self, seconds: float, size: int) -> None:
        """So many seconds of requests of one size, each begun as soon as there is a lane, `limit` at once."""
        end = self.now + seconds
        flying: deque[tuple[float, contextlib.ExitStack]] = deque()
        while self.now < end:
            while len(flying) < self.lanes.limit:
                flying.append((self.now, contextlib.ExitStack()))
                flying[-1][1].enter_context(self.lanes.one(size))
            began, request = flying.popleft()
            self.now = max(began + self.latency, self.now + size / self.rate)
            request.close()
        for _, request in flying:
            request.close()


def lanes_of(most: int, latency: float, rate: float) -> tuple[Lanes, Server]:
    server: list[Server] = []
    lanes = Lanes(most, clock=lambda: server[0].now if server else 0.0)
    server.append(Server(lanes, latency, rate))
    return lanes, server[0]


def test_a_near_server_is_asked_for_little_at_once() -> None:
    for size in (64 << 10, 16 * MIB):
        lanes, server = lanes_of(64, 0.0001, 1e9)
        server.serve(5, size)
        print(f"1 GB/s, 0.1 ms, {size >> 10} KiB: {lanes.limit} at once")
        assert lanes.limit == 4


def test_a_far_server_is_asked_for_as_much_as_it_can_give() -> None:
    lanes, server = lanes_of(64, 0.03, 1e9)
    server.serve(5, 64 << 10)
    assert lanes.limit == 64, "64 KiB each 30 ms are 2 MB/s a lane"
    lanes, server = lanes_of(64, 0.2, 1e9)
    server.serve(10, 16 * MIB)
    print(f"1 GB/s, 0.2 s, 16 MiB: {lanes.limit} at once")
    assert lanes.limit >= 16, "16 MiB each 0.2 s are 84 MB/s a lane: 12 fill it"
    lanes, server = lanes_of(16, 0.03, 1e9)
    server.serve(5, 64 << 10)
    assert lanes.limit == 16, "never more than allowed"


def test_a_server_that_becomes_far_is_asked_for_more() -> None:
    lanes, server = lanes_of(64, 0.0001, 1e9)
    server.serve(5, 64 << 10)
    server.latency = 0.03
    server.serve(60, 64 << 10)
    assert lanes.limit == 64


def test_a_server_that_says_slow_down_gets_half_and_no_more_for_ten_seconds() -> None:
    lanes, server = lanes_of(64, 0.03, 1e9)
    server.serve(5, 64 << 10)
    for cause in ("503 SlowDown", "503 SlowDown"):
        lanes.failed(StoreUnavailable(store="s", cause=cause))
    assert lanes.limit == 32, "one burst counts once"
    server.serve(9, 64 << 10)
    assert lanes.limit == 32
    server.serve(20, 64 << 10)
    assert lanes.limit == 64
    lanes.failed(StoreUnavailable(store="s", cause="timed out"))
    assert lanes.limit == 64, "a connection that breaks says nothing about how many there may be"
    for _ in range(10):
        server.now += 1
        lanes.failed(StoreUnavailable(store="s", cause="Server returned non-2xx status code: 503 Service Unavailable"))
    assert lanes.limit == 1
