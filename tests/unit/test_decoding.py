"""Several threads may decode a struct for the first time at once."""

from __future__ import annotations

import subprocess
import sys

from tests.support.cli import ROOT

RACE = """
import sys, threading
import msgspec
from launcher.decoding import decode
sys.setswitchinterval(1e-6)
for number in range(200):
    fields = [(f"f{each}", "dict[str, list[int]] | None", None) for each in range(8)]
    inner = msgspec.defstruct("Inner", fields)
    outer = msgspec.defstruct("Outer", [("a", tuple[inner, ...]), ("b", inner)])
    barrier = threading.Barrier(6)
    def one():
        barrier.wait()
        READ(b'{"a": [{"f1": {"x": [1]}}], "b": {}}')
    threads = [threading.Thread(target=one) for _ in range(6)]
    [each.start() for each in threads]
    [each.join() for each in threads]
print("well")
"""


def test_first_decodes_in_several_threads_do_not_crash() -> None:
    """200 new structs, 6 threads each. msgspec alone dies of it in a few of them."""
    program = RACE.replace("READ(", "decode(").replace("{}}')", "{}}', outer)")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and done.stdout == "well\n", (done.returncode, done.stderr[-2000:])
