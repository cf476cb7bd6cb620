"""Transfers through a network that fails all the time: no wrong byte is accepted, and none fails that could succeed.

    python -m tests.campaigns.transfers [--count 1000] [--seed 1] [--stall 30] [--workers 16]

`count` files go to a real S3 server and `count` come back, all through a proxy that does to 5 % each of the requests: 503,
reset, short body, wrong byte, stall, slow start; and to 1 % each: 429 with Retry-After, 500 after the object landed,
expired credentials. Sizes are those of checkpoints: mostly small, some of a few MiB, some of several blocks. Afterwards every
object is read past the proxy, and every file that came is compared with what was sent.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.errors import LauncherError
from launcher.transfer.bulk import Damaged, Wanted, download
from launcher.transfer.cloud import CloudStore
from launcher.transfer.digest import BLOCK, of_file
from launcher.transfer.object_store import Moved
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server, serve

_CUT = 0.5
"""The share of a stall after which the launcher cuts the connection."""


def words(up: bool, stall: float) -> list[tuple[str, float]]:
    """The faults and how likely each is, for requests that send (`up`) or ask for bodies."""
    if up:
        often = ["503", "cut", "cut-upload@60%", "flip-upload@70%", f"no-answer:{stall}", f"no-answer-after:{stall}"]
    else:
        often = ["503", "cut", "short-with-full-length@60%", "flip@70%", f"stall@50%:{stall}", f"stall@0:{stall}"]
    return [*((word, 0.05) for word in often), ("429:1", 0.01), ("500-after", 0.01), ("expired", 0.01)]


def script(source: random.Random, up: bool, stall: float, length: int) -> str:
    """A word for each of the next `length` requests."""
    faults = words(up, stall)
    weights = [*(share for _, share in faults), 1 - sum(share for _, share in faults)]
    return " ".join(source.choices([*(word for word, _ in faults), "ok"], weights, k=length))


def size(source: random.Random, number: int) -> int:
    """Bytes of a file: every 20th has several blocks, every fourth a few MiB, the others less than one."""
    if number % 20 == 0:
        return source.randrange(BLOCK + 1, 2 * BLOCK + 1000)
    return source.randrange(1 << 20, 4 << 20) if number % 4 == 1 else source.randrange(1, 1 << 20)


def campaign(server: S3Server, folder: Path, count: int, seed: int, *, stall: float, workers: int) -> str:
    """Runs it both ways and returns the figures. Raises AssertionError for a wrong byte or a failure."""
    source = random.Random(seed)
    os.environ.update(server.env())
    url = f"s3://{server.new_bucket()}/store"
    clean = CloudStore(url, timeout=60, environ=os.environ)
    made = [size(source, number) for number in range(count)]
    with FaultProxy(server.endpoint) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        place = CloudStore(url, timeout=60, environ=os.environ, stalled=stall * _CUT)
        up = proxy.on("PUT", "/store/f", script(source, True, stall, 20 * count + 1000))
        posts = proxy.on("POST", "/store/f", script(source, True, stall, 5 * count + 1000))
        down = proxy.on("GET", "/store/f", script(source, False, stall, 20 * count + 1000))
        started = time.monotonic()

        def send(number: int) -> Moved | Exception:
            path = folder / f"sent-{number}"
            path.write_bytes(random.Random(seed * 1_000_003 + number).randbytes(made[number]))
            try:
                return place.upload(str(path), f"f{number}", lambda moved: None)
            except LauncherError as error:
                return error

        def receive(number: int) -> str:
            moved = sent[number]
            assert isinstance(moved, Moved)
            path = folder / f"came-{number}"
            wanted = Wanted(f"f{number}", moved.size, str(path), moved.digest, moved.blocks)
            try:
                download(place, [wanted], threads=4, timeout=60, on_bytes=lambda moved: None)
            except (LauncherError, Damaged) as error:
                return f"failed: {error}"
            finally:
                same = path.exists() and of_file(path) == moved.digest
                path.unlink(missing_ok=True)
            return "right" if same else "wrong"

        def check(number: int) -> str:
            """What the server has, read past the proxy, against the file."""
            moved, path = sent[number], folder / f"sent-{number}"
            if isinstance(moved, Exception):
                return f"failed: {moved}"
            found = bytearray()
            clean.stream(f"f{number}", 0, moved.size, found.extend)
            wrong = moved.digest != of_file(path) or bytes(found) != path.read_bytes()
            path.unlink()
            return "wrong" if wrong else "right"

        with ThreadPoolExecutor(workers) as pool:
            sent = list(pool.map(send, range(count)))
            stored = Counter(pool.map(check, range(count)))
            came = Counter(pool.map(receive, [number for number in range(count) if isinstance(sent[number], Moved)]))
        seconds = time.monotonic() - started
    lines = [f"{count} transfers each way, seed {seed}, {seconds:.0f} s, {sum(made) >> 20} MiB each way"]
    for name, rule in (("sent by PUT", up), ("begun and finished by POST", posts), ("asked for by GET", down)):
        met = Counter(word for word in rule.seen if word != "ok")
        lines.append(f"  {name}: {len(rule.seen)} requests, {sum(met.values())} faults {dict(sorted(met.items()))}")
    lines.append(f"  stored: {dict(stored)}; came: {dict(came)}")
    figures = "\n".join(lines)
    assert stored == came == {"right": count}, figures
    return f"{figures}\n  0 wrong bytes accepted, 0 transfers failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stall", type=float, default=30.0, help="seconds; the launcher cuts after half of them")
    parser.add_argument("--workers", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, serve(Path(name) / "server") as server:
        try:
            print(
                campaign(server, Path(name), given.count, given.seed, stall=given.stall, workers=given.workers),
                flush=True,
            )
        except AssertionError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
