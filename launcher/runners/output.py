"""The job's output: passed through live, byte by byte as it came, and kept in a file."""

from __future__ import annotations

import os
import threading


class Pump:
    """Copies one stream of the job to one of ours and to the log, in a thread, until the last writer closes it.

    A terminal that goes away, or a full disk, never stops the job: what cannot be written is dropped there and only there.
    """

    def __init__(self, source: int, target: int, log: int) -> None:
        self._source, self._sinks = source, [target, log]
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                data = os.read(self._source, 1 << 16)
            except OSError:
                return
            if not data:
                return
            for sink in list(self._sinks):
                try:
                    view = memoryview(data)
                    while view:
                        view = view[os.write(sink, view) :]
                except OSError:
                    self._sinks.remove(sink)

    def join(self, timeout: float) -> bool:
        """Waits for the end of the stream; False when somebody still holds it open."""
        self._thread.join(timeout)
        return not self._thread.is_alive()
