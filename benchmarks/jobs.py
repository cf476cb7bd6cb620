"""How long `launcher training list` takes with many jobs: `python -m benchmarks.jobs --jobs 10000`.

Each run is a new process, start-up included. `cold`: the list's own notes are not there, every record is read.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

from launcher import names
from launcher.ids import new_id
from launcher.job.record import Attempt, JobRecord, Outcome
from launcher.job.spec import JobSpec
from launcher.job.states import at_end
from tests.support.cli import PROGRAM


def make(data_dir: Path, count: int) -> None:
    """So many jobs that have ended, a tenth of them not well, with two attempts each, an hour ago."""
    began = time.time() - 3600
    for number in range(count):
        name = f"job_{number:05d}"
        spec = JobSpec(
            name=name, command=("train.py", "--epochs", "3"), checkpoint=("base",), env={"SEED": str(number)}
        )
        outcome = Outcome(code=0 if number % 10 else 1, origin="job", cause="The job ended.")
        attempts = [
            Attempt(number=each, host="here", pid=1, started=began, ended=began + 9, outcome=outcome) for each in (1, 2)
        ]
        record = JobRecord(id=new_id(), name=name, created=began + number / count, spec=spec, attempts=attempts)
        record.checkpoints = [new_id() for _ in range(5)]
        for state in ("pending", "scheduling", "building", "in progress", at_end(outcome)):
            record.change(state, "Because.")  # type: ignore[arg-type]
        folder = data_dir / "jobs" / names.key(name) / record.id
        folder.mkdir(parents=True)
        (folder / "record.json").write_bytes(msgspec.json.encode(record))


def processor() -> float:
    """Seconds of processor time that this process's children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(data_dir: Path, *words: str) -> tuple[float, str]:
    """How long a list takes, and what it prints."""
    env = os.environ | {"LAUNCHER_DATA_DIR": str(data_dir), "LAUNCHER_CONFIG": os.devnull}
    started = time.monotonic()
    done = subprocess.run([PROGRAM, "training", "list", *words], env=env, capture_output=True, text=True, check=True)
    return time.monotonic() - started, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10000)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        make(data, given.jobs)
        time.sleep(2.1)  # What is younger is read again each time.
        print(f"{given.jobs} jobs; load {os.getloadavg()[0]:.1f}")
        print(f"cold: {seconds(data)[0]:.2f} s")
        for words in ((), ("--json",), ("--limit", "20"), ("--state", "failed")):
            before = processor()
            found = [seconds(data, *words) for _ in range(given.rounds)]
            used = (processor() - before) / given.rounds
            times = sorted(each for each, _ in found)
            what, spread = " ".join(words) or "all", f"{times[0]:.2f} to {times[-1]:.2f}"
            print(f"{what}: median {statistics.median(times):.2f} s ({spread}), {used:.2f} s of processor")


if __name__ == "__main__":
    main()
