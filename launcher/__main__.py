"""The program. An entrypoint's first act, before it imports anything else of ours: from then on no signal is lost."""

import os
import sys


def main() -> None:
    """Runs the command line, or the plain init where `launcher entrypoint` is asked for no more. Does not return."""
    _open_streams()
    words = sys.argv[1:]
    if words[:1] == ["entrypoint"]:
        from launcher.runners import signals

        signals.hold()
        from launcher import init

        asked = init.request(words[1:], os.environ)
        if asked:
            os._exit(init.run(asked, os.environ))  # Nothing is left to be done, and Python takes 5 ms for that.
    from launcher.cli import main as command_line

    command_line()


def _open_streams() -> None:
    """Opens what was closed of stdin, stdout and stderr: the next file, of a checkpoint maybe, would get its number and what is
    printed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, open(number, mode, closefd=False))


if __name__ == "__main__":
    main()
