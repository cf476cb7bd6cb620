"""The plain init against tini and dumb-init, and what it and the main job do to output, interleaved.

    python -m benchmarks.init [--rounds 30]

Prints the wall and processor time of `INIT sh -c :`, the resident memory of an init beside its command, the time from a
SIGTERM to the end, and the rate of a command that prints 500 MB against `setsid command | cat` (Linux schedules by session).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.support.cli import PROGRAM, Launcher
from tests.support.entrypoint import environment

INITS = {"tini -s": ["tini", "-s", "--"], "dumb-init": ["dumb-init"], "launcher": [PROGRAM, "entrypoint", "--"]}
_MEGABYTES = 500


def cost(init: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of a command that does nothing."""
    started = time.perf_counter()
    process = subprocess.Popen([*init, "sh", "-c", ":"], env=environment())
    _, _, usage = os.wait4(process.pid, 0)
    process.returncode = 0
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime


def beside(init: list[str]) -> tuple[float, float]:
    """Resident MB beside a command, and seconds from SIGTERM to the end of both."""
    process = subprocess.Popen(
        [*init, "sh", "-c", "echo; exec sleep 60"], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    memory = int(Path(f"/proc/{process.pid}/status").read_text().partition("VmRSS:")[2].split()[0])
    started = time.perf_counter()
    process.terminate()
    process.wait()
    process.stdout.close()
    return memory / 1000, time.perf_counter() - started


def rate(command: list[str], env: dict[str, str], folder: Path) -> float:
    """MB/s of a command's output into a pipe that is copied to a file, its start and end included."""
    started = time.perf_counter()
    with open(folder / "out", "wb") as file:
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        subprocess.run(command, env=env, stdout=cat.stdin, stderr=subprocess.DEVNULL, check=True)
        assert cat.stdin
        cat.stdin.close()
        cat.wait()
    assert (folder / "out").stat().st_size == _MEGABYTES * 1_000_000
    return _MEGABYTES / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    costs = [{name: cost(init) for name, init in INITS.items()} for _ in range(rounds)]
    more = [{name: beside(init) for name, init in INITS.items()} for _ in range(rounds // 3 + 1)]
    for name in INITS:
        wall, processor = (statistics.median(each[name][part] for each in costs) * 1000 for part in (0, 1))
        memory, end = (statistics.median(each[name][part] for each in more) for part in (0, 1))
        print(
            f"{name:10} {wall:7.1f} ms wall, {processor:6.1f} ms processor, {memory:5.1f} MB, ends {end * 1000:5.1f} ms after"
        )
    over = sorted(each["launcher"][0] - each["tini -s"][0] for each in costs)
    print(
        f"launcher over tini: median of the rounds {statistics.median(over) * 1000:.1f} ms, least {over[0] * 1000:.1f} ms"
    )
    text = ["sh", "-c", f"yes 0123456789abcdef0123456789abcdef | head -c {_MEGABYTES}000000"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = Launcher(folder).env
        kinds = {
            "bare": (["setsid", "--wait", *text], environment()),
            "plain init": ([*INITS["launcher"], *text], environment()),
            "main job": ([PROGRAM, "training", "run", "x", "--", *text], job),
        }
        rates = [{kind: rate(*given, folder) for kind, given in kinds.items()} for _ in range(max(3, rounds // 10))]
    for kind in kinds:
        print(f"output, {kind}: {statistics.median(each[kind] for each in rates):.0f} MB/s")


if __name__ == "__main__":
    main()
