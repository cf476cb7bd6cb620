"""The language of fault scripts: words, one for each request that matches a rule, in order.

A used-up script lets everything pass. `word*3` is three times, `word*` for ever. N is bytes or per cent of
the body (`@1000`, `@70%`; 50% if left out), S seconds.

  ok                      passes
  503, 409, 429:S, …      answered with that status and S3's error document; S is Retry-After
  expired                 400 ExpiredToken                 redirect   307 to the server itself, past the proxy
  html200                 200 with a page of HTML          cut        the connection is reset
  no-answer:S             silence for S seconds, then cut  close      an orderly end without an answer
  cut-upload@N            reset when N bytes of the request's body have come
  flip-upload@N           the lowest bit of byte N of the request's body is wrong at the server
  short@N                 N bytes of the body, consistently framed as if they were all
  short-with-full-length@N  full Content-Length, N bytes, orderly close
  cut-body@N              full Content-Length, N bytes, reset
  flip@N                  the lowest bit of byte N is wrong
  stall@N:S               silence for S seconds after N bytes of the body, then the rest
  slow:B                  the body at B bytes per second
  wrong-range             206 for a range one byte further on
  200-for-206             the whole object, whatever range was asked for

The words of the lines 2 to 6 forward nothing. With `-after-landing` (or `-after`) the request is carried out
first, then answered so: `500-after-landing`, `no-answer-after-landing:5`; all but `cut-upload` can have it.
"""

from __future__ import annotations

import http
import re
import threading
from dataclasses import dataclass, field

STATUSES = {each.value: each.phrase for each in http.HTTPStatus if each >= 200}
_WORD = re.compile(
    r"(?P<name>[a-z0-9-]+?)(?P<landing>-after(-landing)?)?(@(?P<at>\d+)(?P<percent>%)?)?(:(?P<number>[\d.]+))?"
    r"(?P<times>\*(\d*))?"
)
_INSTEAD = {"expired", "redirect", "html200", "cut", "close", "no-answer"}
_FRAMED = {"short", "short-with-full-length", "cut-body"}
ALTERED = _FRAMED | {"flip", "stall", "slow", "wrong-range", "200-for-206"}


@dataclass(frozen=True)
class Fault:
    """One word of a script. `at`: where in a body; `number`: seconds, or bytes per second."""

    word: str
    name: str
    landing: bool
    at: int
    percent: bool
    number: float

    def place(self, size: int) -> int:
        """Where in a body of `size` bytes."""
        return min(size, size * self.at // 100 if self.percent else self.at)


def parse(script: str) -> list[tuple[Fault, float]]:
    """The faults of a script, each with how many times. Raises ValueError for a word that doesn't exist."""
    faults = []
    for word in script.split():
        found = _WORD.fullmatch(word)
        name = found["name"] if found else ""
        instead = name in _INSTEAD or (name.isdigit() and int(name) in STATUSES)
        plain = name in ALTERED or name in ("ok", "cut-upload", "flip-upload")
        if found is None or not (instead or (plain and not found["landing"])):
            raise ValueError(f"{word!r} is no word of a fault script")
        if name in ("no-answer", "stall", "slow") and not found["number"]:
            raise ValueError(f"{word!r} needs a number: {name}:N")
        times = float(found["times"][1:] or "inf") if found["times"] else 1.0
        text = word[: found.start("times")] if found["times"] else word
        at, percent = (int(found["at"]), bool(found["percent"])) if found["at"] else (50, True)
        number = float(found["number"] or 0)
        faults.append((Fault(text, name, bool(found["landing"]), at, percent, number), times))
    return faults


OK = parse("ok")[0][0]


@dataclass
class Rule:
    """What happens to requests of a method ("*": any) whose target (path and query, as sent) matches."""

    method: str
    target: re.Pattern[str]
    script: list[tuple[Fault, float]]
    seen: list[str] = field(default_factory=list)
    """The word that each matching request got, in order of arrival."""
    landed: list[int] = field(default_factory=list)
    """The server's statuses, in order of its answers, for the requests that were forwarded."""
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def requests(self) -> int:
        """How many requests have matched."""
        return len(self.seen)

    def matches(self, method: str, target: str) -> bool:
        return self.method in ("*", method) and self.target.search(target) is not None

    def wait(self, requests: int, *, deadline: float) -> None:
        """Returns when that many requests have matched, or raises TimeoutError after `deadline` seconds."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.seen) >= requests, deadline):
                raise TimeoutError(f"{len(self.seen)} of {requests} requests after {deadline} s")

    def take(self) -> Fault:
        with self.changed:
            fault = OK
            if self.script:
                fault, times = self.script[0]
                self.script[:1] = [(fault, times - 1)] if times > 1 else []
            self.seen.append(fault.word)
            self.changed.notify_all()
            return fault
