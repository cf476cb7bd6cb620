"""A Trainer that saves when it is told to stop, whose save takes long: saved and stored within the grace, or an honest end.

    python -m tests.campaigns.stops [--count 50] [--grace 120] [--save 60] [--seed 1] [--at-once 8]

Each round runs a real Trainer with `enable_jit_checkpoint` under torchrun, sends SIGTERM to the launcher at a random moment of
its training, and looks at everything afterwards: the exit code, the time that it took, what is stored, what is left. A save that
cannot fit into the grace must be cut off in time, with a report that says so, and with nothing half-written stored.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaigns.kills import lives, tree
from tests.support.cli import ROOT, Launcher

_EACH = 5
"""Steps between two ordinary saves, which are quick."""


@dataclass
class Round:
    """What one stop came to."""

    code: int
    used: float
    """Seconds from the signal to the launcher's end."""
    stored: list[int]
    """Steps of the checkpoints in the store."""
    result: dict[str, Any]
    violations: list[str] = field(default_factory=list)


def stop(home: Path, number: int, *, grace: float, save: float, seed: int) -> Round:
    """One job, one stop."""
    chance = random.Random(f"{seed}/{number}")
    launcher = Launcher(home / f"round-{number}")
    process = launcher.start(
        "training", "run", "job", "--grace", f"{grace}s",
        "--", "tests/campaigns/slow_save.py", str(save), "--save-steps", str(_EACH),
    )  # fmt: skip
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if "Stored job/checkpoint-5" in line:
            break
    time.sleep(chance.uniform(0, 3))
    below, sent = tree(process.pid), time.monotonic()
    process.send_signal(signal.SIGTERM)
    output += process.communicate()[0]
    used = time.monotonic() - sent
    checkpoints = launcher.json("training", "checkpoints", "job")
    steps = [each["status"]["facts"].get("step") for each in checkpoints]
    result = launcher.result("job")
    found = Round(process.returncode, used, steps, result)
    saved = next((int(each) for each in re.findall(r"saving step (\d+)", output)), None)
    fits = save <= grace * 0.6
    wrong = found.violations
    if process.returncode != (143 if fits else 137):
        wrong.append(f"exit code {process.returncode}")
    if used > grace + 2:
        wrong.append(f"took {used:.1f} s")
    if fits and saved not in steps:
        wrong.append(f"step {saved} is not stored")
    again = (
        saved is not None and saved % _EACH == 0
    )  # The step was stored already; it was saved once more in its place.
    if not fits and ((saved in steps and not again) or "killed" not in result["cause"]):
        wrong.append(f"no honest end: {result['cause']}")
    if not (
        result["stopped"] and result["retryable"] and result["bytes_not_stored"] == 0 and "SIGTERM" in result["cause"]
    ):
        wrong.append(f"result: {result}")
    if None in steps:
        wrong.append(f"without a step: {[each for each in checkpoints if each['status']['facts'].get('step') is None]}")
    if left := [pid for pid in below if lives(pid)]:
        wrong.append(f"left processes {left}")
    if any((launcher.job("job") / "spool").iterdir()):
        wrong.append("captures left")
    if wrong:
        print(f"round {number}: {wrong}\n{output}", file=sys.stderr, flush=True)
    shutil.rmtree(launcher.home)
    return found


def campaign(count: int, *, grace: float, save: float, seed: int, at_once: int) -> list[Round]:
    """All rounds, so many at once."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stops-")))
        pool = stack.enter_context(ThreadPoolExecutor(at_once))
        return list(pool.map(lambda number: stop(home, number, grace=grace, save=save, seed=seed), range(count)))


def text(rounds: list[Round]) -> str:
    """The table's line."""
    used = sorted(each.used for each in rounds)
    codes = {code: sum(each.code == code for each in rounds) for code in sorted({each.code for each in rounds})}
    bad = [each for each in rounds if each.violations]
    return (
        f"{len(rounds)} stops: exit codes {codes}; {sum(len(each.stored) > 1 for each in rounds)} stored the checkpoint of the "
        f"stop; from the signal to the end {used[0]:.1f} to {used[-1]:.1f} s, median {statistics.median(used):.1f} s; "
        f"{len(bad)} violations"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--grace", type=float, default=120.0)
    parser.add_argument("--save", type=float, default=60.0, help="seconds that the save takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=8)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    rounds = campaign(
        arguments.count,
        grace=arguments.grace,
        save=arguments.save,
        seed=arguments.seed,
        at_once=arguments.at_once,
    )
    print(f"save {arguments.save:g} s, grace {arguments.grace:g} s: {text(rounds)}")
    for each in rounds:
        for violation in each.violations:
            print(f"  violation: {violation}")
    sys.exit(any(each.violations for each in rounds))


if __name__ == "__main__":
    main()
