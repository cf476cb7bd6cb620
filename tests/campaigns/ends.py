"""Every exit code and every signal that ends a process comes through exactly, and result.json says whose it is (T20).

    python -m tests.campaigns.ends [--count 0] [--seed 1] [--how torchrun,exec]

Each round is one job by `launcher training run`: rank 1 of two under torchrun, or a shell, ends with a code of 0 to 255 or by a
signal of 1 to 31. `--count 0`: all of them, else so many by chance.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cli import ROOT, Launcher

SIGNALS = tuple(each for each in range(1, 32) if each not in (17, 18, 19, 20, 21, 22, 23, 28))
"""Those that end a process which does nothing about them."""
HOW = ("torchrun", "exec")
SCRIPT = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    code = int(sys.argv[1])
    if code >= 0: os._exit(code)
    signal.signal(-code, signal.SIG_DFL) if -code != 9 else None
    os.kill(os.getpid(), -code)
time.sleep(300 * (sys.argv[1] != "0"))
"""


@dataclass
class Figures:
    """What was counted, and every violation in words."""

    rounds: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The table's line."""
        exact = ", ".join(f"{count} {how}" for how, count in sorted(self.rounds.items()))
        return f"{exact}: every code and signal exact but {len(self.violations)}"


def run_round(folder: Path, how: str, end: int, figures: Figures) -> None:
    """One job that ends with the code `end`, or by the signal `-end`."""
    launcher = Launcher(folder / f"{how}-{end}")
    words = ["training", "run", "j", "--device", "cpu"]
    if how == "torchrun":
        words += ["--accels", "2", "--", str(folder / "end.py"), str(end)]
    else:
        words += ["--", "sh", "-c", f"exit {end}" if end >= 0 else f"kill {end} $$"]
    done = launcher.start(*words)
    output, _ = done.communicate(timeout=600)
    code = end if end >= 0 else 128 - end
    result = launcher.result("j")
    rank = 1 if how == "torchrun" and end else None
    wanted = (code, code, "job", signal.Signals(-end).name if end < 0 else None, rank)
    found = (done.returncode, result["code"], result["origin"], result["signal"], result["rank"])
    figures.rounds[how] += 1
    if found != wanted:
        figures.violations.append(f"{how} {end}: {found}, not {wanted}\n{output}")
    subprocess.run(["rm", "-rf", str(launcher.home)], check=True)


def main(arguments: list[str] | None = None) -> Figures:
    """Runs the campaign; prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--how", default=",".join(HOW))
    options = parser.parse_args(arguments)
    ends = [(how, end) for how in options.how.split(",") for end in (*range(256), *(-each for each in SIGNALS))]
    random.Random(options.seed).shuffle(ends)
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="launcher-ends-") as name, ThreadPoolExecutor(2) as pool:
        (Path(name) / "end.py").write_text(SCRIPT)
        for each in [pool.submit(run_round, Path(name), *end, figures) for end in ends[: options.count or None]]:
            each.result()
    print(f"ends, seed {options.seed}, {ROOT.name}: {figures.text()}")
    for violation in figures.violations:
        print(violation)
    return figures


if __name__ == "__main__":
    sys.exit(1 if main().violations else 0)
