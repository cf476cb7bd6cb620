"""What collecting costs the training, and how soon a checkpoint is stored.

    python -m benchmarks.collecting [--rounds 5] [--seconds 30] [--every 10] [--size 1GiB] [--workers 1] [--store local|s3]
        [--device cpu|cuda]

Slow-down: a loop of matrix products in `--workers` processes (on the accelerator: one) that saves a checkpoint of `--size`
each `--every` seconds and keeps one, under the launcher and on its own, interleaved; counted are the products of the whole
run. Time to committed: one such checkpoint beside an idle job, against the same bytes read, hashed, written and synced (or
put) by a plain program.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher.settings import parse_bytes
from tests.campaigns.kills import uploaders
from tests.support.cli import ROOT, Launcher
from tests.support.s3_server import serve

TRAINING = """
import json, multiprocessing, os, shutil, struct, sys, time
import numpy
seconds, every, size, workers = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
device = sys.argv[5] if len(sys.argv) > 5 else "cpu"
out = os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"]

def accelerate(end, done):
    import torch
    a = torch.rand(2048, 2048, device=device, dtype=torch.bfloat16)
    (a @ a).sum().item()
    while time.monotonic() < end:
        for _ in range(8):
            torch.mm(a, a)
        torch.cuda.synchronize()
        done.value += 8

def compute(end, done):
    if device != "cpu":
        return accelerate(end, done)
    a = numpy.random.rand(256, 256)
    while time.monotonic() < end:
        a = a @ a
        a /= numpy.abs(a).max()
        done.value += 1

def save(step, block):
    os.mkdir(f"{out}/step-{step}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(f"{out}/step-{step}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(0, size, len(block)):
            file.write(block)
    if step > 1:
        shutil.rmtree(f"{out}/step-{step - 1}")

block = os.urandom(1 << 20)
end = time.monotonic() + seconds
counters = [multiprocessing.Value("q", 0, lock=False) for _ in range(workers)]
processes = [multiprocessing.Process(target=compute, args=(end, each)) for each in counters]
for each in processes:
    each.start()
step, saving = 0, 0.0
while every and time.monotonic() < end - every / 2:
    time.sleep(min(every, max(0, end - time.monotonic())) / 2 if step == 0 else max(0, every - last))
    step += 1
    started = time.monotonic()
    save(step, block)
    last = time.monotonic() - started
    saving += last
for each in processes:
    each.join()
print("FIGURES", json.dumps({"products": sum(each.value for each in counters), "saves": step, "saving": saving}), flush=True)
"""

RAW = """
import os, sys, time
import blake3
source, target = sys.argv[1:3]
started = time.monotonic()
if target.startswith("s3://"):
    import obstore
    from obstore.store import from_url
    with open(source, "rb") as file:
        obstore.put(from_url(target.rpartition("/")[0]), "raw", file, chunk_size=8 << 20, max_concurrency=4)
else:
    digest, buffer = blake3.blake3(), bytearray(1 << 20)
    with open(source, "rb", buffering=0) as file, open(target, "wb", buffering=0) as copy:
        while count := file.readinto(buffer):
            copy.write(memoryview(buffer)[:count])
            digest.update(memoryview(buffer)[:count])
        os.fsync(copy.fileno())
print(time.monotonic() - started)
"""


class Bench:
    """One home for all rounds."""

    def __init__(self, home: Path, launcher: Launcher, arguments: argparse.Namespace, target: str) -> None:
        self._home, self._launcher, self._arguments, self._raw = home, launcher, arguments, target
        self._size = parse_bytes(arguments.size)
        self._number = 0

    def train(self, collected: bool) -> tuple[dict[str, float], float]:
        """(the loop's own figures, processor seconds of the uploader)"""
        self._number += 1
        script = [
            str(self._arguments.seconds),
            str(self._arguments.every),
            str(self._size),
            str(self._arguments.workers),
            self._arguments.device,
        ]
        env = self._launcher.env | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        if not collected:
            output = self._home / f"bare-{self._number}"
            output.mkdir()
            bare = [sys.executable, "-c", TRAINING, *script]
            done = subprocess.run(
                bare,
                env=env | {"FLEXAI_OUTPUT_CHECKPOINT_DIR": str(output)},
                check=True,
                capture_output=True,
                text=True,
            )
            subprocess.run(["rm", "-rf", output], check=True)
            return _figures(done.stdout), 0.0
        name = f"job-{self._number}"
        words = [
            "training",
            "run",
            name,
            "--settle",
            "1s",
            "--launch",
            "exec",
            "--",
            sys.executable,
            "-c",
            TRAINING,
            *script,
        ]
        with open(self._home / "output", "w+") as output_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher", *words],
                env=env,
                cwd=ROOT,
                stdout=output_file,
                stderr=subprocess.STDOUT,
            )
            used: dict[int, float] = {}
            while process.poll() is None:
                for pid in uploaders(process.pid):
                    with contextlib.suppress(OSError):
                        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                        used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                time.sleep(0.25)
            output_file.seek(0)
            text = output_file.read()
        assert process.returncode == 0, text
        self._forget(name)
        return _figures(text), sum(used.values())

    def commit(self) -> tuple[float, float]:
        """(seconds from captured to committed, seconds of the plain program)"""
        self._number += 1
        name = f"job-{self._number}"
        job = [sys.executable, "-c", TRAINING, "16", "14", str(self._size), "0"]
        self._launcher("training", "run", name, "--settle", "1s", "--launch", "exec", "--", *job, timeout=600)
        folder = self._launcher.job(name)
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        captured = next(each["time"] for each in events if each["kind"] == "checkpoint-captured")
        committed = next(each["time"] for each in events if each["kind"] == "checkpoint-committed")
        source = next((folder / "output-checkpoint").glob("*/model.safetensors"))
        raw = [sys.executable, "-c", RAW, str(source), self._raw]
        done = subprocess.run(raw, env=self._launcher.env, check=True, capture_output=True, text=True)
        self._forget(name)
        return committed - captured, float(done.stdout)

    def _forget(self, name: str) -> None:
        for each in self._launcher.json("training", "checkpoints", name):
            self._launcher("checkpoint", "delete", each["metadata"]["id"], "--yes")
        subprocess.run(["rm", "-rf", self._launcher.job(name), self._home / "raw"], check=True)


def _figures(text: str) -> dict[str, float]:
    line = next(line for line in text.splitlines() if line.startswith("FIGURES"))
    figures: dict[str, float] = json.loads(line.removeprefix("FIGURES"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--size", default="1GiB")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--store", choices=("local", "s3"), default="local")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="launcher-bench-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        launcher = Launcher(home)
        target = str(home / "raw")
        if arguments.store == "s3":
            server = stack.enter_context(serve(home / "s3"))
            target = f"s3://{server.new_bucket()}/raw"
            launcher.env |= server.env() | {"LAUNCHER_STORE": f"s3://{server.new_bucket()}/store"}
        bench = Bench(home, launcher, arguments, target)
        slower, used, saves = [], [], 0
        for number in range(arguments.rounds):
            order = (False, True) if number % 2 else (True, False)
            pair = {collected: bench.train(collected) for collected in order}
            (with_it, seconds), (without, _) = pair[True], pair[False]
            slower.append(100 * (1 - with_it["products"] / without["products"]))
            used.append(seconds)
            saves += int(with_it["saves"])
            print(
                f"round {number + 1}: {with_it['products']:.0f} products with, {without['products']:.0f} without: "
                f"{slower[-1]:+.2f} %; saving took {with_it['saving']:.2f} s with, {without['saving']:.2f} s without; "
                f"uploader {seconds:.2f} s of processor",
                flush=True,
            )
        print(
            f"slow-down: median {statistics.median(slower):+.2f} % ({min(slower):+.2f} to {max(slower):+.2f}), "
            f"{arguments.rounds} rounds of {arguments.seconds:.0f} s, {arguments.workers} worker(s); uploader "
            f"{sum(used) / max(saves, 1):.2f} s of processor for each {arguments.size}"
        )
        pairs = [bench.commit() for _ in range(arguments.rounds)]
        ratios = [ours / raw for ours, raw in pairs]
        print(
            f"captured to committed: median {statistics.median(ours for ours, _ in pairs):.2f} s, plain "
            f"{statistics.median(raw for _, raw in pairs):.2f} s: {statistics.median(ratios):.2f} times "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
        subprocess.run(["chmod", "-R", "u+w", folder], check=True)


if __name__ == "__main__":
    os.environ.pop("LAUNCHER_STORE", None)
    main()
