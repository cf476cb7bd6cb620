"""The program. An entrypoint's first act, before it imports anything else of ours: from then on no signal is lost."""

import os
import sys


def main() -> None:
    """Runs the command line, or the plain init where `launcher entrypoint` is asked for no more. Does not return."""
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


if __name__ == "__main__":
    main()
