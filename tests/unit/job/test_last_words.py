"""What the last words of a process mean: real texts of Python, torch, gloo, NCCL, C++ and the kernel."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launcher.job import last_words as module
from launcher.job.last_words import LastWords, last_words

FRAMES = 'Traceback (most recent call last):\n  File "train.py", line 14, in <module>\n    step(x)\n'
TORCHRUN = (
    "E1127 14:45:51.266000 30359 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 0\n\n"
    "============================================================\ntrain.py FAILED\n----\nFailures:\n  <NO_OTHER_FAILURES>\n"
)
GLOO = "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/"

LOST = [  # As torch 2.13 with gloo wrote them, two ranks, one of which …
    f"RuntimeError: {GLOO}pair.cc:537] Read error [127.0.0.1]:18585: Connection reset by peer. This is typically …",
    f"RuntimeError: {GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:19361. This is typically caused …",
    f"RuntimeError: {GLOO}unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete",
    "torch.distributed.DistStoreError: wait timeout after 4000ms, keys: /default_pg/0//cpu//0/1",
    f"RuntimeError: [Rank 0]: Rank 1 failed to pass monitoredBarrier in 4000 ms\n Original exception: \n{GLOO}pair.cc:553] C",
    # From torch's and NCCL's sources and documentation:
    "torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of (host, 29500).",
    "torch.distributed.elastic.rendezvous.api.RendezvousConnectionError: The connection to the C10d store has failed.",
    "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1275, unhandled "
    "system error, NCCL version 2.18.3\nncclSystemError: System call (e.g. socket, malloc) or external library call failed",
    "torch.distributed.DistBackendError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d "
    "key-value store by key '0', but store->get('0') got error: Connection reset by peer",
    "torch.distributed.DistBackendError: NCCL error\nncclRemoteError: A call failed possibly due to a network error",
    "RuntimeError: NCCL communicator was aborted on rank 1.",
]
OWN = [
    "ValueError: no such batch",
    "requests.exceptions.ConnectionError: ('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp\nncclInvalidUsage: This usually reflects invalid "
    "usage of NCCL library.\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 2000",
]
MEMORY = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79", "accelerator"),
    ("torch.cuda.OutOfMemoryError: HIP out of memory. Tried to allocate 20.00 MiB.", "accelerator"),
    ("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some", "accelerator"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "accelerator"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
     "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)", "host"),
    ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 7.28 TiB for an array", "host"),
    ("MemoryError", "host"),
    ("OSError: [Errno 12] Cannot allocate memory", "host"),
    ("RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. ", "host"),
    ("ValueError: no such batch", None),
]  # fmt: skip


@pytest.mark.parametrize("message", LOST)
def test_lost_peers_are_told_from_own_failures(message: str) -> None:
    words = last_words(FRAMES + message + "\n" + TORCHRUN)
    assert words.lost_peers and words.exception and words.memory is None
    assert words.summary == message.partition("\n")[0].strip()[:300]


@pytest.mark.parametrize("message", OWN)
def test_own_failures_are_not_lost_peers(message: str) -> None:
    words = last_words(FRAMES + message + "\n" + TORCHRUN)
    assert not words.lost_peers and words.exception and words.message == message


@pytest.mark.parametrize(("message", "which"), MEMORY)
def test_which_memory_ran_out(message: str, which: str | None) -> None:
    assert last_words(FRAMES + message).memory == which


def test_words_in_lines_of_code_are_no_cause() -> None:
    output = "Traceback (most recent call last):\n  File 'a.py', line 1\n    raise MemoryError('ncclSystemError')\nKeyError: 3\n"
    assert last_words(output).memory is None and not last_words(output).lost_peers


def test_a_traceback_is_taken_with_those_it_came_from_and_without_marks() -> None:
    """As Python itself prints them, marked by torch and by the launcher."""
    code = "try:\n    {}['a']\nexcept KeyError as error:\n    raise RuntimeError('two\\nlines') from error"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    marked = "".join(f"[rank1]: [rank1]: {line}\n" for line in printed.splitlines())
    words = last_words("epoch 1\n" + marked + TORCHRUN)
    assert words.traceback == printed.rstrip() and words.message == "RuntimeError: two\nlines"


def test_an_exception_group_and_richs_box_are_tracebacks() -> None:
    code = "raise ExceptionGroup('many', [ValueError('one')])"
    if sys.version_info >= (3, 11):
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
        assert "ExceptionGroup: many" in last_words(printed).traceback
    box = "╭───── Traceback (most recent call last) ─────╮\n│ train.py:3 in <module> │\n╰──────────────╯\nValueError: boxed\n"
    assert last_words(box).message == "ValueError: boxed"


def test_a_traceback_that_was_caught_long_ago_is_no_last_word() -> None:
    words = last_words(FRAMES + "ValueError: handled\n" + "step 1 loss 0.1\n" * 2000)
    assert words == LastWords("", "step 1 loss 0.1")


def test_a_crash_tells_its_stack_and_not_an_earlier_exception() -> None:
    """As faulthandler prints it."""
    code = "import os, signal\ntry:\n    {}['a']\nexcept KeyError:\n    import traceback; traceback.print_exc()\n"
    code += "import sys; print('went on', file=sys.stderr, flush=True)\ndef step(): os.kill(os.getpid(), signal.SIGSEGV)\nstep()"
    printed = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True).stderr
    words = last_words(printed)
    assert (
        words.traceback.startswith("Fatal Python error: Segmentation fault\n\nCurrent thread")
        and "in step" in words.traceback
    )
    assert not words.exception and "KeyError" not in words.traceback


def test_an_exception_whose_end_is_a_crash_stays_an_exception() -> None:
    """Gloo's threads abort an interpreter that ends by itself (as torch 2.13 wrote it)."""
    crash = "terminate called without an active exception\nFatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n"
    words = last_words(FRAMES + "ValueError: mine\n" + crash)
    assert words.exception and words.message == "ValueError: mine" and words.traceback.endswith("ValueError: mine")


def test_what_c_plus_plus_threw_is_the_message() -> None:
    watchdog = (
        "[rank0]:[E1127 ProcessGroupNCCL.cpp:632] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)\n"
        "terminate called after throwing an instance of 'c10::DistBackendError'\n"
        "  what():  [PG ID 0 Rank 0] Process group watchdog thread terminated with exception: [Rank 0] Watchdog caught "
        "collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600029 milliseconds.\n"
        "Exception raised from checkTimeout at ProcessGroupNCCL.cpp:632 (most recent call first):\nframe #0: c10::Error\n"
        "\nFatal Python error: Aborted\n\nThread 0x00007f (most recent call first):\n  <no Python frame>\n"
    )
    words = last_words(watchdog)
    assert words.lost_peers and words.message.endswith("600029 milliseconds.") and "frame #0" in words.traceback
    thrown = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    assert last_words(thrown).memory == "host"
    thrown = "terminate called after throwing an instance of 'gloo::EnforceNotMet'\n"
    assert not last_words(f"{thrown}  what():  [enforce fail at {GLOO[1:]}pair.cc:456] 8 vs 4.").lost_peers


def test_a_megabyte_of_emoji_stays_a_bounded_traceback() -> None:
    words = last_words(FRAMES + "ValueError: " + "\U0001f389" * 1_000_000 + "\n" + TORCHRUN)
    assert words.message.startswith("ValueError: \U0001f389") and 'File "train.py"' in words.traceback
    assert len(words.traceback) <= module.TRACEBACK_LIMIT + 10


def test_nothing_is_made_of_nothing() -> None:
    for output in ("", "\n\n", "step 1\nstep 2\n", "\x00\xff" * 100, "Traceback (most recent call last):"):
        assert isinstance(last_words(output).message, str)
    assert last_words("\n" + TORCHRUN) == LastWords()


@pytest.mark.parametrize("last", ["train.py: error: the following arguments are required: --lr", "no data, giving up"])
def test_without_a_traceback_the_last_line_tells(last: str) -> None:
    assert last_words(
        f"W1127 14:45:51.2 1 torch/distributed/run.py:874] *****\nusage: train.py\n 10%|#  |\r 20%|## |\r{last}\r\n\n{TORCHRUN}"
    ) == LastWords("", last)
