"""torchrun with a truthful exit code, run by the job's own interpreter: `python agent.py <torchrun's arguments>`.

torchrun itself returns 1 whatever code or signal its worker ended with, and names as the first failure whatever rank comes
first in the same second. This calls the same entry point, notes when each rank ends, and when one failed exits with the code
(128+n for signal n) of the one that ended first. What it saw of every rank goes to the file named by LAUNCHER_VERDICT. And a
stop lets every rank save, see `Stopping`. Imports nothing of the launcher: it also runs in images that do not have it.
"""

import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any, Dict, List, Set, Tuple

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH)
_RANKS = 64
"""So many failed ranks are written down, the earliest: those after the first are killed by torchrun, all alike."""


class Stopping:
    """Tells every rank of a stop at once, and lets it end by itself: the launcher, which gave it its time, kills it at the end.

    torchrun would send the signal to all that a rank has started (its data loaders die, and the save fails with them), kill the
    rank after 30 s, and do the same to the other ranks as soon as one has ended. SIGUSR1 and SIGUSR2 would kill torchrun.
    """

    def __init__(self) -> None:
        self.signal = 0
        """The first that asked for a stop."""
        self._context: Any = None
        self._busy = False
        """torchrun starts the ranks, or looks at them: what comes now waits until that is over."""
        self._waiting: List[int] = []

    def catch(self) -> None:
        """From now on: a stop before there is any rank ends this process, as there is nothing to save."""
        for number in (*_STOPS, *_PASSED):
            signal.signal(number, self._came)

    def take_over(self) -> None:
        """Has torchrun start the ranks without its own handlers, and not look at them before all of them have ended once a stop
        was asked for."""
        from torch.distributed.elastic.multiprocessing import api

        start, wait = api.PContext.start, api.PContext.wait
        api._terminate_process_handler = self._came

        def started(context: Any) -> None:
            self._context, self._busy = context, True
            start(context)
            self.catch()
            self._tell()

        def waited(context: Any, *words: Any, **named: Any) -> Any:
            if self.signal and not all(map(_over, context.pids().values())):
                return None
            self._busy = True
            result = wait(context, *words, **named)
            if result is None:
                self._tell()
            return result

        api.PContext.start, api.PContext.wait = started, waited

    def code(self, codes: List[int]) -> int:
        """This process's exit code, by those of the ranks in the order of their ends: that of the first which neither succeeded
        nor ended by the signal, and else 128 + the signal."""
        asked = (0, -self.signal, 128 + self.signal) if self.signal else (0,)
        code = next((each for each in codes if each not in asked), -self.signal)
        return code if code >= 0 else 128 - code

    def _came(self, number: int, frame: object) -> None:
        if number in _STOPS and not self._context:
            os._exit(128 + number)
        if not self._context or (not self._busy and all(map(_over, self._context.pids().values()))):
            return  # There is nobody to tell yet, or any more.
        if number in _STOPS:
            self.signal = self.signal or number
        self._waiting.append(number)
        if not self._busy:
            self._tell()

    def _tell(self) -> None:
        self._busy = False
        while self._waiting:
            number = self._waiting.pop(0)
            for pid in self._context.pids().values():
                if not _over(pid):
                    os.kill(pid, number)


def _over(pid: int) -> bool:
    """Whether a child has ended. Leaves it to torchrun to reap it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


class Ranks:
    """When the ranks of this node ended, by local rank, and when torchrun began to end those that were left, the `cut` ones."""

    def __init__(self) -> None:
        self.ended: Dict[int, float] = {}
        self.logs: Dict[int, str] = {}
        self.closed = 0.0
        self.cut: Set[int] = set()

    def watch(self) -> None:
        """From now on, of every group of processes that torchrun starts. Where torch has no such classes, nothing is noted."""
        try:
            from torch.distributed.elastic.multiprocessing.api import PContext
        except ImportError:
            return
        start, close = PContext.start, PContext.close

        def started(context: Any) -> None:
            start(context)
            self.ended, self.closed, self.cut = {}, 0.0, set()
            self.logs = {rank: path for rank, path in getattr(context, "stderrs", {}).items() if path}
            threading.Thread(target=self._wait, args=(dict(context.pids()), self.ended), daemon=True).start()

        def closing(context: Any, *words: Any, **named: Any) -> None:
            if not self.closed:
                self.closed = time.time()
                self.cut = {rank for rank, pid in context.pids().items() if not _over(pid)}
            close(context, *words, **named)

        PContext.start, PContext.close = started, closing

    def _wait(self, pids: Dict[int, int], ended: Dict[int, float]) -> None:
        poll = select.poll()
        ranks = {}
        for rank, pid in pids.items():
            try:
                fd = os.pidfd_open(pid)
            except (AttributeError, OSError):  # Python 3.8, an old kernel; or it has ended already.
                ended[rank] = time.time()
                continue
            ranks[fd] = rank
            poll.register(fd, select.POLLIN)
        while ranks:
            for fd, _ in poll.poll():
                poll.unregister(fd)
                ended[ranks.pop(fd)] = time.time()
                os.close(fd)


def main(arguments: List[str]) -> int:
    """Runs torchrun; returns the exit code that tells the truth."""
    stopping = Stopping()
    stopping.catch()
    try:
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
        from torch.distributed.run import get_args_parser, run
    except ImportError as error:
        print(f"launcher: error: {sys.executable} cannot start it by torchrun: {error}.", file=sys.stderr)
        print(
            "  Install torch there, activate another environment, or start it without: --launch exec.", file=sys.stderr
        )
        return 1

    stopping.take_over()
    verdict = os.environ.pop("LAUNCHER_VERDICT", "")
    ranks = Ranks()
    ranks.watch()
    try:
        record(run)(get_args_parser().parse_args(arguments))
    except ChildFailedError as error:
        found = sorted((_failure(rank, each, ranks) for rank, each in error.failures.items()), key=_when)
        code = stopping.code([each["code"] for each in found])
        if not stopping.signal or code != 128 + stopping.signal:
            print(error, file=sys.stderr, flush=True)
            if verdict:
                _write(verdict, {"closed": ranks.closed, "ranks": found[:_RANKS]})
        return code
    return stopping.code([])


def _failure(rank: int, failure: Any, ranks: Ranks) -> Dict[str, Any]:
    """What is known of a failed rank. `error`: the traceback that it wrote to its TORCHELASTIC_ERROR_FILE, if it did."""
    words = failure.message if isinstance(failure.message, dict) else {}
    cut = failure.local_rank in ranks.cut
    noted = ranks.closed or float(failure.timestamp)  # Where the thread has not come to note it yet.
    return {
        "rank": rank,
        "pid": failure.pid,
        "code": failure.exitcode,
        "ended": time.time() if cut else min(noted, ranks.ended.get(failure.local_rank, noted)),
        "cut": cut,
        "log": ranks.logs.get(failure.local_rank, ""),
        "error": str((words.get("extraInfo") or {}).get("py_callstack") or words.get("message") or ""),
    }


def _when(failure: Dict[str, Any]) -> Tuple[bool, float]:
    return failure["cut"], failure["ended"]


def _write(path: str, verdict: Dict[str, Any]) -> None:
    """In one step: whoever finds the file finds all of it. Paths become relative to it, as a container has others."""
    for each in verdict["ranks"]:
        each["log"] = each["log"] and os.path.relpath(each["log"], os.path.dirname(path))
    with open(path + ".part", "w") as file:
        json.dump(verdict, file)
    os.replace(path + ".part", path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
