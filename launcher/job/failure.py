"""The classes of failure, by what is to be done about them."""

from __future__ import annotations

from typing import Literal

Failure = Literal["", "oom", "rendezvous", "hang", "exception", "exit", "signal", "stopped", "launcher"]
"""Empty: it did not fail. docs/verdict.md says what each is, and how it is known."""
