"""Identifiers: UUIDv7 (RFC 9562), which sort by the time they were drawn.

Own code because it is one line of bit arithmetic, and `import uuid` alone costs a tenth of the start-up budget.
"""

from __future__ import annotations

import os
import re
import time

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_id() -> str:
    """A UUIDv7: 48 bits of Unix milliseconds, version, 74 random bits."""
    random = int.from_bytes(os.urandom(10), "big")
    return _uuid(time.time_ns() // 1_000_000, random)


def first_id(seconds: float) -> str:
    """The smallest UUIDv7 of a Unix time."""
    return _uuid(max(0, int(seconds * 1000)), 0)


def dashed(digits: str) -> str:
    """A UUID's 32 digits as it is written."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _uuid(milliseconds: int, random: int) -> str:
    value = (milliseconds & (1 << 48) - 1) << 80 | random
    return dashed(f"{value & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62:032x}")


def is_id(text: str) -> bool:
    """Whether `text` is a whole identifier, in the lower-case form that we write."""
    return _UUID.fullmatch(text) is not None


def is_id_prefix(text: str) -> bool:
    """Whether `text` could be the beginning (4 characters and more) of an identifier."""
    return 4 <= len(text) < 36 and re.fullmatch(r"[0-9a-f-]+", text) is not None
