"""What it costs to keep secrets out of a job's output, interleaved.

    python -m benchmarks.masking [--rounds 5] [--megabytes 500]

Prints the processor time that the launcher's pump takes for a command's output, to /dev/null and to a log, without secrets and
with some. Processor time, because the wall time of a busy machine says nothing; and against the time that the output takes at
160 MB/s.
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from launcher import secrets
from launcher.job.logs import Times
from launcher.masking import Mask
from launcher.runners.output import Pump, wide_pipe

LINE = "step 1200 loss 0.2345 lr 1.0e-05 epoch 3.2 {'eval_loss': 1.23, 'hf_': 'ABCDEFGH'}"
_RATE = 160e6


def mask(*values: str) -> Mask:
    return Mask({f"s{number}": secrets.parts(value) for number, value in enumerate(values)})


def token() -> str:
    return base64.urlsafe_b64encode(os.urandom(30)).decode()


def cost(masked: Mask | None, size: int, folder: Path) -> float:
    """Seconds of processor time of this process."""
    reader, writer = wide_pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    times = Times(folder / "log")
    started = time.process_time()
    pump = Pump({reader: null}, log, times, masked)
    job = subprocess.Popen(["sh", "-c", f'yes "$0" | head -c {size}', LINE], stdout=writer)
    os.close(writer)
    job.wait()
    pump.join(600)
    spent = time.process_time() - started
    assert os.fstat(log).st_size == size
    for fd in (reader, null, log):
        os.close(fd)
    times.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=500)
    asked = parser.parse_args()
    size = asked.megabytes * 1_000_000
    kinds = {
        "no secret": None,
        "one token": mask(token()),
        "three tokens": mask(token(), token(), token()),
        "a private key of 3 KB": mask(base64.encodebytes(os.urandom(2400)).decode()),
    }
    with tempfile.TemporaryDirectory() as name:
        rounds = [{kind: cost(each, size, Path(name)) for kind, each in kinds.items()} for _ in range(asked.rounds)]
    for kind, each in kinds.items():
        spent = statistics.median(taken[kind] for taken in rounds)
        more = statistics.median(taken[kind] - taken["no secret"] for taken in rounds)
        share = f", {more / (size / _RATE):+.1%} of the time at 160 MB/s" if each else ""
        print(f"{kind:22} {len(each.shown) if each else 0:3} texts  {spent:5.2f} s of processor{share}")


if __name__ == "__main__":
    main()
