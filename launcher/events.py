"""What happened: one event type, the one redactor, and where events go.

Events are passed to an `Emit` function; there is no bus, so that the path of every event can be read in the code.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import IO, Any, Literal

import msgspec

Level = Literal["debug", "info", "warning", "error"]


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened, for people (`text`) and for machines (`kind`, `facts`)."""

    kind: str
    """Stable name, such as checkpoint-committed: append new ones, never rename."""
    text: str
    level: Level = "info"
    facts: dict[str, Any] = {}
    time: float = 0.0
    """Unix seconds."""


Emit = Callable[[Event], None]
OnEvent = Callable[[Event], object]
"""What a Python program is told of events with: by `run` in the caller's thread, else also in others."""


def event(kind: str, text: str, level: Level = "info", **facts: Any) -> Event:
    """An event of now."""
    return Event(kind, text, level, facts, time.time())


_URL_PASSWORD = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^/@\s:]*:[^/@\s]+@", re.I)
_SIGNED = re.compile(r"(?P<name>[?&](?:X-Amz-\w+|X-Goog-\w+|sig|signature|token|key|password)=)[^&\s\"']+", re.I)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY", re.I)
_SECRET_ARGUMENT = re.compile(r"(?P<name>--?[\w-]*(?:token|secret|passw|api[-_]?key)[\w-]*=)\S+", re.I)
_SECRET_FLAG = re.compile(r"--?[\w-]*(?:token|secret|password|api[-_]?key)[\w-]*", re.I)


def secret_name(name: str) -> bool:
    """Whether the name of a variable says that its value is secret."""
    return _SECRET_NAME.search(name) is not None


class Redactor:
    """Replaces secret values by *** in everything that is written: events, records, manifests, command lines."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        kept = sorted({value for value in values if len(value) >= 6}, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, kept))) if kept else None

    @classmethod
    def of_environment(cls, env: dict[str, str], others: Iterable[str] = ()) -> Redactor:
        """A redactor of the values of variables whose names say that they are secret, and of other values."""
        return cls([*(value for name, value in env.items() if secret_name(name)), *others])

    def text(self, text: str) -> str:
        """`text` without secret values, and without passwords and signatures in URLs."""
        if self._values:
            text = self._values.sub("***", text)
        if "://" not in text:
            return text
        return _SIGNED.sub(r"\g<name>***", _URL_PASSWORD.sub(r"\g<scheme>***@", text))

    def command(self, command: Iterable[str]) -> list[str]:
        """A command line without secret values; `--token X` and `--api-key=X` lose theirs whatever it is."""
        result: list[str] = []
        hide_next = False
        for word in command:
            if hide_next and not word.startswith("-"):
                result.append("***")
            else:
                result.append(_SECRET_ARGUMENT.sub(r"\g<name>***", self.text(word)))
            hide_next = _SECRET_FLAG.fullmatch(word) is not None
        return result

    def value(self, value: Any) -> Any:
        """A JSON-like value with every string in it redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value

    def event(self, event: Event) -> Event:
        """The event with its text and facts redacted."""
        return Event(event.kind, self.text(event.text), event.level, self.value(event.facts), event.time)


class JsonLines:
    """Appends events to a file, one JSON object a line, each with one write (so that lines never mix)."""

    def __init__(self, path: str | os.PathLike[str], redactor: Redactor) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._redactor = redactor

    def __call__(self, event: Event) -> None:
        try:
            os.write(self._fd, msgspec.json.encode(self._redactor.event(event)) + b"\n")
        except OSError:
            pass  # A full disk must not end the job; the end of the job reports what was not stored.

    def close(self) -> None:
        os.close(self._fd)


class Console:
    """Prints events for a person (plain or coloured lines) or for a machine (JSON lines)."""

    _COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "debug": "\x1b[2m"}

    def __init__(
        self,
        stream: IO[str] | None = None,
        form: str = "auto",
        redactor: Redactor | None = None,
        *,
        verbose: bool = False,
    ) -> None:
        self._stream = stream or sys.stderr
        self._json = form == "json"
        self._verbose = verbose
        self._colour = form == "auto" and self._stream.isatty()
        self._redactor = redactor or Redactor()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        if event.level == "debug" and not (self._json or self._verbose):
            return
        event = self._redactor.event(event)
        if self._json:
            line = msgspec.json.encode(event).decode()
        else:
            mark = {"warning": "warning: ", "error": "error: "}.get(event.level, "")
            line = "\n".join(f"launcher: {mark}{part}" for part in event.text.splitlines())
            if self._colour and event.level in self._COLOURS:
                line = f"{self._COLOURS[event.level]}{line}\x1b[0m"
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                pass  # The terminal is gone; the record still has every event.


class Caller:
    """Passes events on to a Python program that uses the launcher as a library, and where it wants none keeps them to itself:
    on its terminal nothing is drawn either."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event

    def __call__(self, event: Event) -> None:
        if self._on_event:
            self._on_event(event)


def to_all(*sinks: Emit) -> Emit:
    """An Emit that passes each event to every sink."""

    def emit(event: Event) -> None:
        for sink in sinks:
            sink(event)

    return emit


def silent(event: Event) -> None:
    """An Emit that keeps nothing."""
