"""`launcher entrypoint` as an init: when it is a plain one, how it ends, and what it does with orphans and terminals (T21)."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.init import request
from tests.campaigns.orphans import orphans, storm
from tests.support.cli import PROGRAM, Launcher
from tests.support.entrypoint import PLACES, entrypoint, environment, run, state, tree, until

SH = ["sh", "-c", ":"]


@pytest.mark.parametrize(
    ("words", "variables", "plain"),
    [
        (["--", *SH], {}, True),
        (["--single-child", "--rewrite", "TERM:INT", "--rewrite=HUP:0", "--grace", "5s", "--", *SH], {}, True),
        (["--", *SH], {"LAUNCHER_GRACE": "2m", "LAUNCHER_SINGLE_CHILD": "true", "LAUNCHER_REWRITE": "TERM:INT"}, True),
        (["--", *SH], {"LAUNCHER_DEVICE": "cpu", "LAUNCHER_LOG_FORMAT": "json"}, True),
        (["--", "torchrun", "train.py"], {}, True),
        (["--", "python", "-c", "pass"], {}, True),
        (["--", *SH], {"LAUNCHER_CHECKPOINT": "base"}, False),
        (["--", *SH], {"LAUNCHER_STORE": "s3://bucket"}, False),
        (["--", *SH], {"LAUNCHER_DATA_DIR": "/elsewhere"}, False),
        (["--", *SH], {"FLEXAI_OUTPUT_CHECKPOINT_DIR": "/out"}, False),
        (["-C", "base", "--", *SH], {}, False),
        (["--name", "x", "--", *SH], {}, False),
        (["--", "train.py"], {}, False),
        (["--", "python3", "-u", "train.py"], {}, False),
        (["--", "-m", "module"], {}, False),
        (["--", "train.py"], {"LAUNCHER_STORE": "none"}, True),
        (["--", *SH], {"LAUNCHER_STORE": "none", "LAUNCHER_CHECKPOINT": "base"}, True),
        (["-C", "base", "--", *SH], {"LAUNCHER_STORE": "none"}, False),  # and an error, as nothing can be provided
        (["--", *SH], {"LAUNCHER_STORE": "none", "LAUNCHER_SECRET": "A=b"}, False),
        (["--rewrite", "KILL:1", "--", *SH], {}, False),  # the main job's command line says what is wrong
        (["--grace", "soon", "--", *SH], {}, False),
        (["--help"], {}, False),
        (["sh"], {}, False),
        (["--"], {}, False),
    ],
)
def test_when_it_is_a_plain_init(tmp_path: Path, words: list[str], variables: dict[str, str], plain: bool) -> None:
    found = request(words, {"HOME": str(tmp_path), **variables})
    assert (found is not None) == plain
    if found and (len(words) > 5 or len(variables) == 3):
        assert found.single_child and found.rewrite[15] == 2 and found.grace in (5, 120)


def test_a_configuration_file_or_a_volume_asks_for_the_main_job(tmp_path: Path) -> None:
    assert request(["--", *SH], {"HOME": str(tmp_path)})
    (tmp_path / ".config/launcher").mkdir(parents=True)
    (tmp_path / ".config/launcher/config.yaml").write_text("{}")
    assert not request(["--", *SH], {"HOME": str(tmp_path)})
    output = Path("/output-checkpoint")
    if os.geteuid() != 0:
        pytest.skip("needs root to mount something at /output-checkpoint")
    there = output.exists()
    script = (
        "mkdir -p /output-checkpoint && mount -t tmpfs none /output-checkpoint && "
        f'{sys.executable} -c \'from launcher.init import request; print(request(["--", "sh"], {{"HOME": "/tmp/x"}}))\''
    )
    try:
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    finally:
        if not there:
            output.rmdir()
    assert done.stdout == "None\n", done.stderr


def test_without_a_store_what_needs_one_is_refused(launcher: Launcher) -> None:
    launcher.env["LAUNCHER_STORE"] = "none"
    assert "plain init" in launcher("entrypoint", "-C", "base", "--", "true", code=64)


EACH = """
import os, signal, sys
from launcher import init
from launcher.runners import signals

def code_of(script):
    if (pid := os.fork()) == 0:
        signals.hold()
        asked = init.Request(["sh", "-c", script], grace=5, single_child=False, rewrite={})
        os._exit(init.run(asked, os.environ))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

codes = [code_of(f"exit {code}") for code in range(256)]
assert codes == list(range(256)), codes
deadly = [each for each in range(1, 32) if each not in (17, 18, 19, 20, 21, 22, 23, 28)]
codes = [code_of(f"kill -{each} $$") for each in deadly]
assert codes == [128 + each for each in deadly], codes
print(f"256 of 256 exit codes and {len(deadly)} of {len(deadly)} signals exact")
"""


def test_every_exit_code_and_signal_is_exact() -> None:
    """In forks of one process, without starting Python 279 times; and a few in whole."""
    done = subprocess.run([sys.executable, "-c", EACH], capture_output=True, text=True, timeout=250)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    for code in (0, 1, 2, 32, 127, 254, 255):
        assert run(["--", "sh", "-c", f"exit {code}"]).returncode == code
    assert run(["--", "sh", "-c", "kill -9 $$"]).returncode == 137


def test_what_cannot_be_executed_is_127_or_126(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("#!/no/such/interpreter\n")
    bad.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("hello")
    for command, code in (("no-such-program", 127), ("/doesnotexist", 127), (bad, 127), (plain, 126), (tmp_path, 126)):
        for flags in ((), ("--single-child",)):
            done = run([*flags, "--", command])
            assert (done.returncode, str(command) in done.stderr) == (code, True)


def test_the_command_keeps_its_folder_environment_and_streams(tmp_path: Path) -> None:
    done = run(
        ["--", "sh", "-c", "pwd; cat; echo $X; echo bad >&2"], cwd=tmp_path, input="in\n", env=environment(X="y")
    )
    assert (done.stdout, done.stderr) == (f"{tmp_path}\nin\ny\n", "bad\n")


def test_a_thousand_orphans_are_reaped_while_a_job_runs() -> None:
    """T24's slice; `python -m tests.campaigns.orphans` is the whole."""
    for kind in ("plain", "main job"):
        assert orphans(kind, 1000, seconds=0, megabytes=50)
    assert storm(20)


BUSY = "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end: pass\nopen({path!r}, 'w').close()"


@pytest.mark.parametrize("place", PLACES)
def test_what_still_works_is_waited_for_and_what_was_forgotten_is_ended(tmp_path: Path, place: str) -> None:
    """A grandchild that still saves is not cut off when the command ends; a daemon that waits for ever is."""
    saved = tmp_path / "saved"
    script = 'setsid "$0" -I -S -c "$1" & exit 5'
    with entrypoint("--", "sh", "-c", script, sys.executable, BUSY.format(path=str(saved)), place=place) as it:
        assert it.wait() == 5
    assert saved.exists()
    with entrypoint("--", "sh", "-c", "setsid sleep 4321 & exit 5", place=place, stderr=subprocess.PIPE) as it:
        assert it.wait() == 5
        assert it.process.stderr
        assert re.search(rb"left behind was ended: sleep \(\d+\)", it.process.stderr.read())


def test_what_the_main_job_left_is_waited_for_too(launcher: Launcher, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    script = 'setsid "$0" -I -S -c "$1" & exit 5'
    launcher("training", "run", "x", "--", "sh", "-c", script, sys.executable, BUSY.format(path=str(saved)), code=5)
    assert saved.exists() and "left processes" not in launcher.result("x")["cause"]


def test_signals_reach_what_outlives_the_command() -> None:
    worker = "trap 'echo saved; exit' TERM; echo ready; while :; do :; done"
    with entrypoint("--", "sh", "-c", f'(setsid sh -c "{worker}") & exit 3') as it:
        assert it.line() == "ready"
        until(lambda: len(tree(it.pid)) <= 2)
        it.send(signal.SIGTERM)
        assert it.line() == "saved"
        assert it.wait() == 3


def test_a_stopped_child_ends_with_the_others() -> None:
    with entrypoint("--", "sh", "-c", "setsid sleep 4321 & kill -STOP $!; exit 4") as it:
        assert it.wait() == 4


def test_a_command_that_ignores_signals_goes_on_until_it_is_killed() -> None:
    with entrypoint("--", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done") as it:
        assert it.line() == "ready"
        for _ in range(3):
            it.send(signal.SIGTERM)
        command = tree(it.pid)[0]
        assert state(command) in "SRD"
        os.kill(command, signal.SIGKILL)
        assert it.wait() == 137


def test_the_command_ends_with_its_init() -> None:
    for place in PLACES:
        with entrypoint("--", "sh", "-c", "echo ready; while :; do sleep 0.1; done", place=place) as it:
            assert it.line() == "ready"
            command = tree(it.pid)[0]
            it.send(signal.SIGKILL)
            until(lambda command=command: state(command) in ("", "Z"))


@pytest.mark.parametrize(("plain", "blocked"), [(True, True), (False, True), (True, False)])
def test_a_stop_in_the_first_moments_of_pid_1(launcher: Launcher, blocked: bool, plain: bool) -> None:
    """T22's first row. As images start it, no SIGTERM is ever lost; without `env` the kernel drops it until Python runs."""
    flags = [] if plain else ["--name", "first"]
    start = ["env", "--block-signal=TERM,INT,HUP"] if blocked else []
    kept = {}
    for moment in (0.0, 0.01, 0.03, 0.1, 0.3):
        command = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child", *start, PROGRAM, "entrypoint", *flags]
        words = [*command, "--", "sleep", "10" if blocked else "1"]
        env = environment() if plain else launcher.env
        process = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL)
        pid = until(lambda process=process: tree(process.pid))[0]
        # From the moment that `env` has blocked it; without, from the start of Python.
        until(lambda pid=pid: blocks_term(pid) if blocked else b"launcher" in Path(f"/proc/{pid}/cmdline").read_bytes())
        time.sleep(moment)
        os.kill(pid, signal.SIGTERM)
        kept[moment] = process.wait(120) in (143, 75, -15)
    print(f"{'blocked' if blocked else 'bare'}, {'plain' if plain else 'main job'}: honoured by seconds: {kept}")
    if blocked:
        assert all(kept.values()), kept


def blocks_term(pid: int) -> bool:
    blocked = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:\t")[2].split()[0]
    return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1)


class Pty:
    """A command on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvpe(words[0], words, environment(TERM="dumb", PS1="prompt> ", HOME="/nonexistent"))
        attributes = termios.tcgetattr(self.fd)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> bytes:
        """Reads until the text comes; what came before it."""
        while text.encode() not in self.seen:
            assert select.select([self.fd], [], [], 60)[0], self.seen
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # the other end is closed
                data = b""
            assert data, self.seen
            self.seen += data
        before, _, self.seen = self.seen.partition(text.encode())
        return before

    def wait(self) -> int:
        """Reads to the end; the exit code."""
        try:
            while data := os.read(self.fd, 4096):
                self.seen += data
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal() -> Iterator[type[Pty]]:
    made: list[Pty] = []

    class Made(Pty):
        def __init__(self, *words: str) -> None:
            made.append(self)
            super().__init__(*words)

    yield Made
    for each in made:
        for pid in (*tree(each.pid), each.pid):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(each.pid, 0)
        except ChildProcessError:
            pass
        os.close(each.fd)


INIT = (PROGRAM, "entrypoint", "--")


@pytest.mark.parametrize("place", PLACES)
def test_a_shell_on_a_terminal_has_job_control(terminal: type[Pty], place: str) -> None:
    """As in `docker run -it`: the init is the session's leader, the shell has the terminal."""
    it = terminal(*PLACES[place], *INIT, "bash", "--norc", "--noprofile", "-i")
    it.until("prompt> ")
    it.type('test -t 0 -a -t 1 -a -t 2 && echo "[$-]$((1+1))"\n')
    it.until("]2")
    it.type("sh -c 'echo go-$((1+1)); exec sleep 4321'\n")
    it.until("go-2")
    it.type("\x1a")
    it.until("Stopped")
    it.type("kill %1; echo still-$((1+1))-here\n")
    it.until("still-2-here")
    it.type("sh -c 'echo go-$((2+2)); exec sleep 4321'\n")
    it.until("go-4")
    it.type("\x03")
    it.type("exit 9\n")
    assert it.wait() == 9


def test_a_command_on_a_terminal_reads_and_writes_it(terminal: type[Pty]) -> None:
    """dumb-init's test, with tac."""
    it = terminal(*INIT, "tac")
    it.type("1\n2\n3\n")
    it.type("\x04\x04")
    assert it.wait() == 0
    assert it.seen.split() == [b"3", b"2", b"1"]


def test_ctrl_c_at_a_terminal_ends_the_command(terminal: type[Pty]) -> None:
    it = terminal(*INIT, "sh", "-c", "echo ready; exec sleep 4321")
    it.until("ready")
    it.type("\x03")
    assert it.wait() == 130


def test_ctrl_z_stops_command_and_init_and_fg_continues_both(terminal: type[Pty]) -> None:
    """Under a shell, the init is a job like any other; the shell has the terminal back when it is stopped, and at the end."""
    it = terminal("bash", "--norc", "--noprofile", "-i")
    it.until("prompt> ")
    script = "trap 'echo continued' CONT; echo ready; while :; do sleep 0.1; done"
    it.type(f'{" ".join(INIT)} sh -c "{script}"\n')
    it.until("ready")
    it.type("\x1a")
    it.until("Stopped")
    it.until("prompt> ")
    until(lambda: {state(pid) for pid in tree(it.pid)} == {"T"})
    it.type("fg\n")
    it.until("continued")
    it.type("\x03")
    it.until("prompt> ")
    it.type("echo code=$?; exit 4\n")
    it.until("code=130")
    assert it.wait() == 4


def test_in_a_pipeline_the_terminal_stays_with_the_reader(terminal: type[Pty]) -> None:
    it = terminal("sh", "-c", f"{' '.join(INIT)} echo hello | (read line; read key < /dev/tty; echo got $line $key)")
    time.sleep(0.5)
    it.type("k\n")
    it.until("got hello k")
    assert it.wait() == 0
