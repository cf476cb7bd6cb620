"""How soon a job makes its first optimizer step: `--input-mode lazy` against `eager`, over a link with a cap.

    python -m benchmarks.lazy [--size 2048] [--rate 100] [--rounds 3] [--only all,shard,reads]

A Llama in bfloat16 of `--size` MiB in shards of a quarter each lies on a real S3 server (SeaweedFS) behind a proxy that lets
`--rate` MB a second through, for all connections together. Each run is a whole `launcher training run` with an empty node cache,
eager and lazy in turn; seconds from its start to the step.

    all     from_pretrained, then a step of its last layer: the step needs every byte
    shard   the headers of all shards and the tensors of the first, then a step: it needs a quarter
    reads   (no link) how fast the arrived files are read through the mount, its pages dropped before, against the cache's own
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.inputs.entries import remove
from tests.support.cli import Launcher
from tests.support.s3_server import serve

_CHUNK = 64 << 10
_JOB = """
import glob, os, sys, time
root = os.environ["LAUNCHER_INPUT_CHECKPOINT"]
shards = sorted(glob.glob(f"{root}/*.safetensors"))
if sys.argv[1] == "reads":
    buffer = bytearray(1 << 20)
    def read():
        started, total = time.perf_counter(), 0
        for path in shards:
            with open(path, "rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total += count
        return total / (time.perf_counter() - started) / 1e6
    read()
    if sys.argv[2] == "lazy":
        for path in shards:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    print("RATE", read(), read())
    sys.exit()
import torch
if sys.argv[1] == "all":
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(root, dtype="auto").requires_grad_(False)
    weights = model.model.norm.weight.requires_grad_(True)
    ids = torch.arange(8)[None]
    loss = model(input_ids=ids, labels=ids).loss
else:
    from safetensors import safe_open
    for path in shards:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
    with safe_open(shards[0], "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    weights = torch.ones((), requires_grad=True)
    loss = weights * sum(tensor.float().mean() for tensor in tensors.values())
loss.backward()
torch.optim.SGD([weights], 0.1).step()
print("STEP", time.time(), flush=True)
"""
_MODEL = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
folder, size = sys.argv[1], int(sys.argv[2]) << 20
layer = 4 * 1024 * 1024 + 3 * 1024 * 4096
config = LlamaConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, vocab_size=32000,
    num_hidden_layers=max((size // 2 - 2 * 32000 * 1024) // layer, 1), max_position_embeddings=128)
with torch.device("meta"):
    model = LlamaForCausalLM(config).to(torch.bfloat16)
model = model.to_empty(device="cpu")
for weights in model.parameters():
    weights.data.view(torch.int16).random_(0x3C00, 0x3D00)
model.save_pretrained(folder, max_shard_size=size // 4 + (8 << 20))
"""


class Link:
    """A TCP proxy on loopback that lets `rate` bytes a second through from the server, for all connections together."""

    def __init__(self, upstream: str, rate: float) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self._to, self._rate, self._free = (host, int(port)), rate, 0.0
        self._loop = asyncio.new_event_loop()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection(*self._to)
        await asyncio.gather(self._pass(reader, below, cap=False), self._pass(above, writer, cap=True))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, cap: bool) -> None:
        try:
            while data := await source.read(_CHUNK):
                if cap:
                    now = self._loop.time()
                    self._free = max(self._free, now) + len(data) / self._rate
                    await asyncio.sleep(self._free - now)
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()


@contextmanager
def stored(folder: Path, size: int) -> Iterator[dict[str, str]]:
    """The environment of a store that has the model as `base`."""
    model = folder / "model"
    with serve(folder / "s3", deadline=60) as server:
        env = server.env() | {"LAUNCHER_STORE": f"s3://{server.new_bucket()}/p"}
        subprocess.run([sys.executable, "-c", _MODEL, model, str(size)], check=True)
        Launcher(folder / "push", **env)("checkpoint", "push", "base", "--file", model, timeout=1800)
        print(
            f"{sum(path.stat().st_size for path in model.iterdir()) >> 20} MiB, {len(list(model.glob('*-of-*')))} shards"
        )
        remove(model)
        yield env


def run(folder: Path, env: dict[str, str], what: str, mode: str) -> tuple[float, str]:
    """A job with an empty cache: when it was started, and what it said."""
    launcher = Launcher(folder / "run", **env)
    (folder / "job.py").write_text(_JOB)
    words = ["training", "run", "j", "-C", "base", "--input-mode", mode, "--launch", "exec", "--device", "cpu", "--"]
    started = time.time()
    try:
        return started, launcher(*words, sys.executable, folder / "job.py", what, mode, timeout=1800)
    finally:
        remove(folder / "run")


def first_step(folder: Path, env: dict[str, str], what: str, rounds: int) -> None:
    found: dict[str, list[float]] = {"eager": [], "lazy": []}
    for number in range(rounds):
        for mode in ("eager", "lazy") if number % 2 == 0 else ("lazy", "eager"):
            started, said = run(folder, env, what, mode)
            (step,) = (float(line.split()[1]) for line in said.splitlines() if line.startswith("STEP"))
            found[mode].append(step - started)
    for mode, times in found.items():
        print(f"{what}, {mode}: first step after {_words(times)} s")
    ratio = statistics.median(found["eager"]) / statistics.median(found["lazy"])
    print(f"{what}: {ratio:.2f} times as soon", flush=True)


def reads(folder: Path, env: dict[str, str], rounds: int) -> None:
    found: dict[str, list[tuple[float, ...]]] = {"eager": [], "lazy": []}
    for _ in range(rounds):
        for mode, rates in found.items():
            said = run(folder, env, "reads", mode)[1]
            (line,) = (line for line in said.splitlines() if line.startswith("RATE"))
            rates.append(tuple(map(float, line.split()[1:])))
    for mode, rates in found.items():
        first, again = ([rate[index] for rate in rates] for index in (0, 1))
        print(f"reads, {mode}: {_words(first)} MB/s; once more: {_words(again)} MB/s", flush=True)


def _words(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="MiB")
    parser.add_argument("--rate", type=float, default=100, help="MB/s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="all,shard,reads")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="lazy-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with stored(folder, given.size) as env:
            link = Link(env["AWS_ENDPOINT_URL"], given.rate * 1e6)
            for what in given.only.split(","):
                if what == "reads":
                    reads(folder, env, given.rounds)
                else:
                    first_step(folder, env | {"AWS_ENDPOINT_URL": link.endpoint}, what, given.rounds)


if __name__ == "__main__":
    main()
