"""torchrun with a truthful exit code, run by the job's own interpreter: `python agent.py <torchrun's arguments>`.

torchrun itself returns 1 whatever code or signal its worker ended with. This calls the same entry point, and when a worker
failed exits with the first failing worker's own code (128+n for signal n) and writes which rank it was to the file named
by LAUNCHER_VERDICT. Imports nothing of the launcher: it also runs in images that do not have it.
"""

import json
import os
import sys
from typing import List


def main(arguments: List[str]) -> int:
    """Runs torchrun; returns the exit code that tells the truth."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
    from torch.distributed.run import get_args_parser, run

    verdict = os.environ.pop("LAUNCHER_VERDICT", "")
    try:
        record(run)(get_args_parser().parse_args(arguments))
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        rank, failure = error.get_first_failure()
        code: int = failure.exitcode
        if verdict:
            message = failure.message if isinstance(failure.message, str) else str(failure.message)
            with open(verdict, "w") as file:
                json.dump({"rank": rank, "code": code, "pid": failure.pid, "message": message[:2000]}, file)
        return code if code >= 0 else 128 - code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
