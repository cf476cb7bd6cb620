"""The controlling terminal, lent to the job's process group. Standard library only: the plain init starts with it."""

from __future__ import annotations

import os
import signal


class Terminal:
    """The terminal of stdin, in whose foreground the launcher was started."""

    @classmethod
    def ours(cls) -> Terminal | None:
        """It, where it is this process's to lend: stdin and stdout are terminals (in `launcher … | less` the keyboard is
        less's), stdin is the controlling one, and our process group is in its foreground."""
        try:
            lendable = os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp()
        except OSError:
            return None
        return cls() if lendable else None

    def lend(self, group: int) -> None:
        """Puts a process group of this session in the foreground."""
        # Whoever is not in the foreground is stopped for this by SIGTTOU, unless that is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            os.tcsetpgrp(0, group)
        except OSError:  # It hung up, or the group is gone.
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def suspend(self, group: int) -> None:
        """The job was stopped at the keyboard (Ctrl-Z): gives the terminal back to the shell by stopping as well, with all of
        our process group (`launcher … | tee log`), and goes on with the job when the shell does. Where no shell could do
        that, the job goes on at once."""
        if os.getpid() != 1 and os.getsid(0) != os.getpid():
            self.lend(os.getpgrp())
            os.killpg(os.getpgrp(), signal.SIGSTOP)
            if os.tcgetpgrp(0) == os.getpgrp():  # `fg`, not `bg`.
                self.lend(group)
        os.killpg(group, signal.SIGCONT)
