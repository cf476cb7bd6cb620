"""Every signal reaches the job, in each of the modes that dumb-init and tini have, whoever the job is (T20, T21)."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.job.rewrite import parse
from tests.support.cli import PROGRAM, Launcher
from tests.support.entrypoint import PLACES, Entrypoint, entrypoint, environment, state, tree, until
from tests.support.print_signals import languages

JOB_CONTROL = [signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU]
EVERY = [each for each in range(1, 32) if each not in (9, 17, 19, *JOB_CONTROL)]
"""Of 1 to 31 all that can be caught, less CHLD and job control."""
FAULTS = [4, 5, 6, 7, 8, 11, 13, 24, 25, 29, 31]
"""Of those the ones that the kernel also raises at a process for what that does itself: the main job keeps them."""
PRINT = str(Path(__file__).parents[1] / "support/print_signals.py")
PRINTING = ("env", sys.executable, PRINT)


def receives(it: Entrypoint, sent: int, expected: int) -> None:
    it.send(sent)
    assert it.line() == str(expected), f"sent {sent}"


@pytest.mark.parametrize("language", ["dash", "bash", "python"])
@pytest.mark.parametrize("mode", ["group", "single child"])
@pytest.mark.parametrize("place", PLACES)
def test_every_signal_reaches_the_command(place: str, mode: str, language: str) -> None:
    numbers = [*EVERY, 34, 64] if language == "python" else EVERY
    flags = ("--single-child",) if mode == "single child" else ()
    with entrypoint(*flags, "--", *languages(numbers)[language], place=place) as it:
        assert it.line() == "ready"
        for number in numbers:
            receives(it, number, number)
    print(f"{place}, {mode}, {language}: {len(numbers)} of {len(numbers)} signals received")


@pytest.mark.parametrize("mode", ["group", "single child"])
@pytest.mark.parametrize("place", PLACES)
def test_every_signal_but_those_of_faults_reaches_a_main_job(launcher: Launcher, place: str, mode: str) -> None:
    numbers = [each for each in EVERY if each not in FAULTS and each not in (1, 2, 15)] + [34, 64, 15]
    flags = ("--single-child",) if mode == "single child" else ()
    words = ("--name", "signals", *flags, "--", *PRINTING)
    with entrypoint(*words, place=place, env=launcher.env) as it:
        assert it.line() == "ready"
        for number in numbers:
            receives(it, number, number)
    print(f"main job, {place}, {mode}: {len(numbers)} of {len(numbers)} signals received")


REWRITES = [
    (["TERM:INT"], [15, 3, 18, 2], [2, 3, 18, 2]),
    (["SIGTERM:int", "2:15", "QUIT:QUIT"], [15, 3, 18, 2], [2, 3, 18, 15]),
    (["1:31", "31:1"], [1, 31], [31, 1]),
    (["term:quit", "INT:0", "WINCH:0"], [2, 15, 28, 1], [3, 1]),
]


def received(it: Entrypoint, sent: list[int], expected: list[int]) -> None:
    """Sends them all, each once the one before has arrived, as far as any arrives."""
    dropped = len(sent) - len(expected)
    left = list(expected)
    for number in sent:
        it.send(number)
        if dropped == 0 or number not in (1, 2, 28):
            assert it.line() == str(left.pop(0)), f"sent {number}"
    assert [it.line() for _ in left] == [str(each) for each in left]


@pytest.mark.parametrize(("pairs", "sent", "expected"), REWRITES)
def test_signals_are_rewritten_and_dropped(pairs: list[str], sent: list[int], expected: list[int]) -> None:
    words = [word for pair in pairs for word in ("--rewrite", pair)]
    with entrypoint(*words, "--", *PRINTING) as it:
        assert it.line() == "ready"
        received(it, sent, expected)


def test_signals_are_rewritten_and_dropped_for_a_main_job(launcher: Launcher) -> None:
    words = ("--name", "x", "--rewrite", "TERM:USR1", "--rewrite", "HUP:0", "--rewrite", "USR2:QUIT")
    with entrypoint(*words, "--", *PRINTING, "18", env=launcher.env) as it:
        assert it.line() == "ready"
        received(it, [1, 12, 15, 1, 18], [3, 10, 18])  # HUP, dropped, is no request to stop either
        assert it.wait() == 0
    assert launcher.result("x")["stopped"] is True


def test_what_cannot_be_rewritten_is_refused(launcher: Launcher) -> None:
    for pair, part in (("KILL:TERM", "never reaches"), ("TERM", "FROM:TO"), ("TERM:NOPE", "no signal"), ("99:1", "no")):
        with pytest.raises(ValueError, match=part):
            parse([pair])
    assert "'TERM:NOPE'" in launcher("entrypoint", "--rewrite", "TERM:NOPE", "--", "true", code=64)


def asleep(pid: int) -> bool:
    return state(pid) == "S"


def test_the_whole_group_is_told_by_default_and_the_child_alone_on_request() -> None:
    """dumb-init's test: two pipelines in the background of a shell."""
    pipelines = "trap 'exit 0' USR1; sleep 300 | cat & echo ready; while :; do read line; done"
    for flags, expected in (((), []), (("--single-child",), ["sleep", "cat"])):
        with entrypoint(*flags, "--", "dash", "-c", pipelines) as it:
            assert it.line() == "ready"
            pids = until(lambda it=it: len(found := tree(it.pid)) == 3 and all(map(asleep, found)) and found)
            it.send(signal.SIGUSR1)
            until(lambda pids=pids: state(pids[0]) in ("", "Z"))
            if expected:  # The others go on: nobody told them.
                until(lambda pids=pids: [state(pid) for pid in pids[1:]] == ["S", "S"])
            else:
                assert it.wait() == 0
                until(lambda pids=pids: [state(pid) for pid in pids] == ["", "", ""])


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "main job"])
@pytest.mark.parametrize("number", JOB_CONTROL)
def test_job_control_stops_the_tree_and_then_the_launcher(launcher: Launcher, plain: bool, number: int) -> None:
    flags = () if plain else ("--name", "control")
    script = f"setsid {sys.executable} {PRINT} & exec {sys.executable} {PRINT}"
    with entrypoint(*flags, "--", "sh", "-c", script, env=None if plain else launcher.env) as it:
        assert [it.line(), it.line()] == ["ready", "ready"]
        job = [pid for pid in tree(it.pid) if PRINT.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(job) == 2
        it.send(number)
        until(lambda: state(it.pid) == "T")
        until(lambda: [state(pid) for pid in job] == ["T", "T"])  # Also in another session, as torchrun's ranks are.
        it.send(signal.SIGCONT)
        assert {it.line(), it.line()} == {str(int(signal.SIGCONT))}
        assert state(it.pid) != "T"
        receives(it, signal.SIGUSR1, signal.SIGUSR1)


def test_a_rewritten_job_control_signal_still_stops_the_launcher() -> None:
    """dumb-init's test."""
    with entrypoint("--rewrite", "TSTP:HUP", "--", *PRINTING) as it:
        assert it.line() == "ready"
        receives(it, signal.SIGTSTP, signal.SIGHUP)
        until(lambda: state(it.pid) == "T")
        receives(it, signal.SIGCONT, signal.SIGCONT)


@pytest.mark.parametrize(("place", "number"), [("child", signal.SIGTERM), ("PID 1", signal.SIGINT)])
def test_a_torchrun_of_the_users_own_ends_its_ranks(tmp_path: Path, place: str, number: int) -> None:
    """torchrun itself tells its ranks of TERM, INT, HUP and QUIT, and is told like any command."""
    script = tmp_path / "rank.py"
    script.write_text(f"exec(open({PRINT!r}).read())")
    torchrun = (Path(sys.executable).with_name("torchrun"), "--standalone", "--local-addr=127.0.0.1")
    words = (*torchrun, "--nproc-per-node=1", script, str(int(number)))
    with entrypoint("--", *words, place=place) as it:
        assert it.line() == "ready"
        receives(it, number, number)
        code = it.wait()
    print(f"torchrun, {place}, {signal.Signals(number).name}: the rank got it, exit code {code}")
    assert code != 0


def test_blocked_and_ignored_signals_of_the_parent() -> None:
    """What was blocked (images do that) is not blocked for the command; what was ignored stays so (tini's test, nohup)."""
    command = f"{PROGRAM} entrypoint -- cat /proc/self/status"
    script = f"trap '' TTOU SEGV INT HUP; exec env --block-signal=TTIN,ILL,TERM {command}"
    done = subprocess.run(["sh", "-c", script], env=environment(), capture_output=True, text=True, timeout=60)
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    ignored = {number for number in range(1, 65) if int(status["SigIgn"], 16) >> (number - 1) & 1}
    assert ignored == {signal.SIGTTOU, signal.SIGSEGV, signal.SIGINT, signal.SIGHUP}
