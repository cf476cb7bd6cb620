"""torchrun with a truthful exit code, run by the job's own interpreter: `python agent.py <torchrun's arguments>`.

torchrun itself returns 1 whatever code or signal its worker ended with. This calls the same entry point, and when a worker
failed exits with the first failing worker's own code (128+n for signal n) and writes which rank it was to the file named
by LAUNCHER_VERDICT. And a stop that lets every rank save, see `Stopping`. Imports nothing of the launcher: it also runs in
images that do not have it.
"""

import json
import os
import signal
import sys
from typing import Any, List

_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT, signal.SIGWINCH)


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


def main(arguments: List[str]) -> int:
    """Runs torchrun; returns the exit code that tells the truth."""
    stopping = Stopping()
    stopping.catch()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
    from torch.distributed.run import get_args_parser, run

    stopping.take_over()
    verdict = os.environ.pop("LAUNCHER_VERDICT", "")
    try:
        record(run)(get_args_parser().parse_args(arguments))
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        if stopping.code([each.exitcode for each in failures]) == 128 + stopping.signal:
            return 128 + stopping.signal
        print(error, file=sys.stderr, flush=True)
        rank, failure = error.get_first_failure()
        code: int = failure.exitcode
        if verdict:
            message = failure.message if isinstance(failure.message, str) else str(failure.message)
            with open(verdict, "w") as file:
                json.dump({"rank": rank, "code": code, "pid": failure.pid, "message": message[:2000]}, file)
        return stopping.code([each.exitcode for each in failures])
    return stopping.code([])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
