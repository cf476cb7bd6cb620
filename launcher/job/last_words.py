"""What the output of a process that failed ends with, and what that means.

The texts are of torch 2.4 to 2.13, gloo and NCCL: those of gloo and the stores were provoked with two ranks (a peer that
exits, is killed, is late, never comes), those of NCCL are from its documentation and torch's ProcessGroupNCCL.cpp.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal

TRACEBACK_LIMIT = 16 << 10
"""Characters that are kept of a traceback: half of them of its last frames, half of the beginning of its message."""

_AFTER = 100
"""So many lines may follow the first of an exception's message, its others and libraries' farewells; then the process went on."""

_LATEST = 64 << 10
"""In so much of the output's end, where there is no traceback, what C++ threw is looked for."""

_DEVICE_MEMORY = re.compile(
    r"OutOfMemoryError|(?:CUDA|HIP|XPU) out of memory|(?:CUDA|HIP) error: out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|(?:Cuda|HIP) failure \d* ?'out of memory'|RESOURCE_EXHAUSTED"
)
_HOST_MEMORY = re.compile(
    r"MemoryError|DefaultCPUAllocator: (?:can't allocate|not enough) memory|Cannot allocate memory|std::bad_alloc"
    r"|killed by signal: Killed|out of shared memory"
)
_COMMUNICATION = re.compile(
    r"DistNetworkError|DistStoreError|Rendezvous\w+Error|gloo/\S+\] |gloo::(?:Io|Timeout)Exception|connectFullMesh"
    r"|monitoredBarrier|nccl(?:System|Remote|Internal)Error|ncclUniqueId|NCCL communicator was aborted|SocketImpl"
    r"|Watchdog caught collective operation timeout|Some NCCL operations have failed or timed out|: Socket Timeout"
)
_NOT_COMMUNICATION = re.compile(r"enforce fail at|ncclInvalid(?:Usage|Argument)")
"""Mistakes of the program that are noticed by its communication: tensors of different shapes, one GPU for two ranks."""

_MARK = re.compile(r"^(?:\[rank\d+\]: ?)+", re.MULTILINE)
_HEADER = re.compile(r"^[\s|+╭─]*(?:Exception Group )?Traceback \(most recent call last\)")
_FRAME = re.compile(r"^(?:[ \t|+│╭╰]|$)")
_CHAIN = re.compile(r"^(?:During handling of the above exception|The above exception was the direct cause)")
_FATAL = re.compile(r"^Fatal Python error: ")
_CURRENT = re.compile(r"^Current thread .*(?:\n[ \t].*)*", re.MULTILINE)
_TORCHRUN = re.compile(r"^[EWI]\d{4} \d\d:|^=+$")
_REPORT = re.compile(r"^E\d{4} .*failed \(exitcode: ")
_AFTERWARDS = re.compile(_TORCHRUN.pattern + r"|^terminate called |^Fatal Python error: ")
"""Where a message ends for sure: torchrun's own lines and report, C++, faulthandler."""


@dataclass(frozen=True)
class LastWords:
    """How a process's output ended; all empty where it says nothing."""

    traceback: str = ""
    message: str = ""
    """The exception and its message, without the frames, whose lines of code can hold any word; else the last line."""
    exception: bool = False
    """It is a Python exception that nobody caught, as far as the output tells."""

    @property
    def summary(self) -> str:
        """The message in one line of at most 300 characters."""
        return next((line.strip() for line in self.message.splitlines() if line.strip()), "")[:300]

    @property
    def memory(self) -> Literal["host", "accelerator"] | None:
        """Which memory the process ran out of."""
        if _DEVICE_MEMORY.search(self.message):
            return "accelerator"
        return "host" if _HOST_MEMORY.search(self.message) else None

    @property
    def lost_peers(self) -> bool:
        """Whether it ended because it lost the other ranks: the cause is then elsewhere, a peer or the network."""
        return bool(_COMMUNICATION.search(self.message)) and not _NOT_COMMUNICATION.search(self.message)


def last_words(output: str) -> LastWords:
    """What `output`, the end of a process's or of a whole job's output, ends with.

    The last Python traceback with those it came from, if little follows it; else the stack that faulthandler printed; else
    the message of the C++ exception that ended the process; else the last line. Marks of ranks and torchrun's own lines are left
    out.
    """
    lines = _MARK.sub("", output.replace("\r\n", "\n")).split("\n")
    headers = [index for index, line in enumerate(lines) if _HEADER.match(line)]
    fatal = next((index for index in reversed(range(len(lines))) if _FATAL.match(lines[index])), len(lines))
    dump = "\n".join(lines[fatal + 1 :]).partition("\nExtension modules: ")[0].strip("\n")
    current = _CURRENT.search(dump)
    # An interpreter that crashes while it ends has no frames any more: then the exception before it is what happened.
    working = current is not None and "\n  File " in current[0]
    if headers:
        message, end = _message(lines, headers[-1])
        over = next((index for index in range(end, len(lines)) if _TORCHRUN.match(lines[index])), len(lines))
        if not working and min(over, fatal) - message <= _AFTER:
            start = _first_of_chain(lines, headers)
            frames = "\n".join(lines[start:message])
            if len(frames) > TRACEBACK_LIMIT // 2:
                frames = f"…{frames[-TRACEBACK_LIMIT // 2 :]}"
            text = _beginning("\n".join(lines[message:end]), TRACEBACK_LIMIT // 2)
            return LastWords(f"{frames}\n{text}", text, True)
    stack = f"{lines[fatal]}\n\n{current[0] if current else dump}" if fatal < len(lines) else ""
    _, thrown, rest = "\n".join(lines[:fatal])[-_LATEST:].rpartition("terminate called after throwing")
    if thrown:
        text = (rest.partition("what():")[2].strip() or rest.strip()).partition("\nException raised from ")[0]
        return LastWords(_beginning(f"{thrown}{rest.rstrip()}\n\n{stack}".rstrip(), TRACEBACK_LIMIT), text)
    if stack:
        return LastWords(_beginning(stack, TRACEBACK_LIMIT), lines[fatal])
    said = itertools.takewhile(lambda line: not _REPORT.match(line), lines)
    last = next((line for line in reversed(list(said)) if line.strip() and not _TORCHRUN.match(line)), "")
    return LastWords("", last.rstrip("\r").rpartition("\r")[2].strip())


def _message(lines: list[str], header: int) -> tuple[int, int]:
    """Where the exception's message begins and ends, below a traceback's header."""
    start = header + 1
    while start < len(lines) and _FRAME.match(lines[start]):
        start += 1
    end = min(start + 1, len(lines))
    while end < len(lines) and lines[end].strip() and not _AFTERWARDS.match(lines[end]):
        end += 1
    return start, end


def _first_of_chain(lines: list[str], headers: list[int]) -> int:
    """The header of the first of the tracebacks that the last one came from."""
    start = headers[-1]
    for index in reversed(headers[:-1]):
        if not any(_CHAIN.match(line) for line in lines[max(index, start - 3) : start]):
            break
        start = index
    return start


def _beginning(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
