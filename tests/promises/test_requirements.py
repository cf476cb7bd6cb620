"""The packages of a job: what its requirements file names is there, installed once for all jobs, beside what was there before."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import requirements
from launcher.errors import LauncherError
from launcher.job.spec import JobSpec
from tests.promises.test_docker import BASE, containers, docker
from tests.promises.test_storages import keep
from tests.support.cli import PROGRAM, Launcher
from tests.support.git_server import commit

__all__ = ["docker"]
SHOW = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    found = importlib.metadata.distribution(name)
    sys.stdout.write(f"found {name} {found.version} {found.locate_file('')}\\n")  # One write, which nothing gets into.
"""


def wheel(folder: Path, name: str, version: str, *needs: str) -> str:
    """A wheel with a module of the package's name and a command NAME-cmd; returns its digest as a requirements file has it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"def main():\n    import top_level_only_in_env as other\n    print('command of {name}', other.VERSION)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {each}\n" for each in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name}-cmd = {name}:main\n",
    }
    if name == "top_level_only_in_env":
        files[f"{name}.py"] = f"VERSION = '{version}'\ndef main(): print(VERSION)\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for each, text in (*files.items(), (f"{info}/RECORD", record + f"{info}/RECORD,,\n")):
            file.writestr(each, text)
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """An index in a folder."""
    folder = tmp_path / "wheels"
    wheel(folder, "top_level_only_in_env", "1.5")
    wheel(folder, "heavy", "2.0")
    wheel(folder, "heavy", "3.0")
    wheel(folder, "needy", "1.0", "heavy>=2", "top_level_only_in_env")
    return folder


@pytest.fixture(params=["pip", "uv"])
def job(request: pytest.FixtureRequest, launcher: Launcher, tmp_path: Path, wheels: Path) -> Launcher:
    """A launcher whose jobs have an interpreter of their own, a virtual environment without pip that has `heavy` 2.0."""
    base = tmp_path / "base"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base], check=True)
    (site,) = base.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheels / "heavy-2.0-py3-none-any.whl") as file:
        file.extractall(site)
    programs = tmp_path / "programs"
    programs.mkdir()
    if request.param == "uv":
        (programs / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    launcher.env |= {"VIRTUAL_ENV": str(base), "PATH": f"{programs}:/usr/bin:/bin"}
    launcher.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    launcher.env |= {"UV_CACHE_DIR": str(tmp_path / "uv")}
    launcher.env["LAUNCHER_STORE_TIMEOUT"] = "2s"
    return launcher


def folder_of(tmp_path: Path, text: str, **more: str) -> Path:
    """A repository with a requirements file."""
    folder = tmp_path / "code"
    commit(
        folder,
        {"show.py": SHOW, "requirements.txt": text} | {key.replace("__", "/"): each for key, each in more.items()},
    )
    return folder


def run(job: Launcher, code: Path, *words: str, name: str = "j", command: tuple[str, ...] = (), code_: int = 0) -> str:
    command = command or ("show.py", "heavy", "top_level_only_in_env")
    return job("training", "run", name, "-u", code, "--launch", "exec", *words, "--", *command, code=code_)


def environments(job: Launcher) -> list[dict[str, str]]:
    return [each for each in job.json("cache", "list") if each["kind"] == "environment"]


def test_what_is_missing_is_installed_once_and_what_is_there_is_not(job: Launcher, tmp_path: Path) -> None:
    code = folder_of(tmp_path, "# ours\nheavy >= 2\nneedy == 1.0  # with top_level_only_in_env\n", empty="")
    started = time.monotonic()
    output = run(job, code)
    first = time.monotonic() - started
    base = str(tmp_path / "base")
    assert re.search(f"found heavy 2.0 {base}", output), output
    (environment,) = environments(job)
    place = str(tmp_path / "home/cache/checkpoints" / environment["id"])
    assert re.search(f"found top_level_only_in_env 1.5 {place}", output) and "Installed 2 package(s)" in output
    started = time.monotonic()
    output = run(job, code)
    print(f"installed in a job of {first:.2f} s, found in one of {time.monotonic() - started:.2f} s")
    assert "are here from before" in output and "found top_level_only_in_env" in output and "Install" not in output
    # Commands: the environment's own, and those that were there before, which see what was installed.
    assert "command of needy 1.5" in run(job, code, command=("needy-cmd",))
    script = f"heavy-cmd; python --version; echo $VIRTUAL_ENV; {PROGRAM} cache prune --all; echo x > $VIRTUAL_ENV/bin/x; true"
    shown = run(job, code, command=("sh", "-c", script))
    assert "Removed 0 checkpoint(s)" in shown, "never under a job"
    assert "command of heavy 1.5" in shown and "Python 3" in shown
    assert place in shown and "Read-only file system" in shown
    assert "whole" in job("cache", "verify") and "environment" in job("cache", "list")
    module = next(Path(place).glob("lib/*/site-packages/needy.py"))
    assert module.stat().st_nlink == 1 and module.stat().st_mode & 0o222 == 0
    # Another version than the interpreter's goes beside it.
    (code / "other.txt").write_text("heavy == 3.0\n-c limits.txt\n")
    commit(code, {"limits.txt": "top_level_only_in_env<2\n"})
    output = run(job, code, "--requirements-path", "other.txt", command=("show.py", "heavy"))
    assert "found heavy 3.0" in output and (Path(base).glob("lib/*/site-packages/heavy-2.0.dist-info/METADATA"))
    (metadata,) = Path(base).glob("lib/*/site-packages/heavy-*.dist-info")
    assert metadata.name == "heavy-2.0.dist-info" and (metadata / "RECORD").stat().st_size > 0
    assert len(environments(job)) == 2
    commit(code, {"limits.txt": "top_level_only_in_env<3\n"})
    run(job, code, "--requirements-path", "other.txt", command=("show.py", "heavy"))
    assert len(environments(job)) == 3, "a file that is included is another one now"
    assert "3 environment(s)" in job("cache", "prune", "--all") and environments(job) == []
    assert not list((tmp_path / "home/cache/partial").iterdir())


def test_hashes_hold(job: Launcher, tmp_path: Path, wheels: Path) -> None:
    right = wheel(wheels, "top_level_only_in_env", "1.5")
    code = folder_of(tmp_path, f"top_level_only_in_env==1.5 --hash={right}\n")
    assert "Installed 1 package(s)" in run(job, code, command=("show.py", "top_level_only_in_env"))
    wrong = right[:-4] + ("0000" if not right.endswith("0000") else "1111")
    commit(code, {"requirements.txt": f"top_level_only_in_env==1.5 \\\n    --hash={wrong}\n"})
    output = run(job, code, code_=65)
    assert "requirements.txt cannot be installed" in output and wrong.partition(":")[2] in output, output
    commit(code, {"requirements.txt": f"top_level_only_in_env==1.5 --hash={right}\nneedy==1.0\n"})
    assert "hash" in run(job, code, code_=65), "one hash: all must have one"
    assert len(environments(job)) == 1 and not list((tmp_path / "home/cache/partial").iterdir())


def test_the_installers_own_error_is_shown(job: Launcher, tmp_path: Path) -> None:
    code = folder_of(tmp_path, "no_such_package==7.0\n")
    output = run(job, code, code_=65)
    assert "no_such_package" in output.replace("-", "_") and "requirements.txt cannot be installed" in output
    assert job.json("training", "inspect", "j")["attempts"][-1]["outcome"]["kind"] == "requirements-failed"
    assert environments(job) == []


@pytest.mark.parametrize(
    ("path", "files", "code", "cause"),
    [
        (
            "absent.txt",
            {"dev-requirements.txt": "", "x/requirements.txt": ""},
            66,
            "There is: dev-requirements.txt, x/requirements",
        ),
        ("absent.txt", {}, 66, "absent.txt is not in"),
        ("../up.txt", {}, 64, "not below"),
        ("/etc/passwd", {}, 64, "not below"),
        ("link.txt", {}, 64, "not below"),
        ("r.txt", {"r.txt": "-r gone.txt\n"}, 66, r"gone.txt \(included by r.txt\)"),
        ("r.txt", {"r.txt": "--requirement=../../x.txt\n"}, 64, "not below"),
        (
            "deep/r.txt",
            {"deep/r.txt": "-r deeper/r.txt\n", "deep/deeper/r.txt": "-crest.txt\n"},
            66,
            "deep/deeper/rest.txt",
        ),
        ("folder", {"folder/x": ""}, 64, "is no file"),
        ("pipe.txt", {}, 64, "is no file"),
        ("bytes.txt", {}, 64, "no text in UTF-8"),
        ("large.txt", {"large.txt": "#" * (1 << 20) + "\n#"}, 64, "larger than 1 MiB"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, path: str, files: dict[str, str], code: int, cause: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LauncherError) as raised:
        requirements.find(JobSpec(name="j", requirements_path=path), str(tmp_path))
    assert raised.value.exit_code == code and re.search(cause, str(raised.value)), str(raised.value)


def test_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    """Also in a ring, and 3,000 deep; what says whether all must have a hash, or names paths, counts wherever it is."""
    for number in range(3000):
        (tmp_path / f"{number}.txt").write_text(f"-r {(number + 1) % 3000}.txt\n")
    assert requirements.find(JobSpec(name="j", requirements_path="0.txt"), str(tmp_path)) is None
    (tmp_path / "2999.txt").write_text("a==1 \\\n  --hash=sha256:00\n-r0.txt\n")
    found = requirements.find(JobSpec(name="j", requirements_path="0.txt"), str(tmp_path))
    assert found and len(found.texts) == 3000 and (found.hashes, found.local) == (True, False)
    for line in (
        "-e .",
        "--editable=git+https://x",
        "./a",
        "a @ file:///b",
        "a@./b",
        "wheels/a-1-py3-none-any.whl",
        ".",
    ):
        (tmp_path / "2999.txt").write_text(line)
        found = requirements.find(JobSpec(name="j", requirements_path="0.txt"), str(tmp_path))
        assert found and found.local, line
    for line in (
        "a>=1",
        "a @ https://host/a.whl",
        "https://host/a.zip",
        "a[b]==1.0 ; python_version > '3'",
        "git+ssh://git@host/x",
    ):
        (tmp_path / "2999.txt").write_text(line)
        found = requirements.find(JobSpec(name="j", requirements_path="0.txt"), str(tmp_path))
        assert found and not found.local, line


def test_no_file_and_one_that_asks_for_nothing_are_no_error(launcher: Launcher, tmp_path: Path) -> None:
    code = tmp_path / "code"
    commit(code, {"run.sh": "#!/bin/sh\necho ${VIRTUAL_ENV:-none} ran\n"})
    assert "ran" in launcher("training", "run", "j", "-u", code, "--", "./run.sh")
    commit(code, {"requirements.txt": "# nothing\n--no-index\n"})
    assert "ran" in launcher("training", "run", "j", "-u", code, "--", "./run.sh")
    (code / "requirements.txt").write_text("no_such_package\n")
    assert "absent.txt is not in" in launcher(
        "training", "run", "j", "-u", code, "--requirements-path", "absent.txt", "--", "./run.sh", code=66
    )
    output = launcher("training", "run", "j", "--", "./run.sh", cwd=code)
    assert "ran" in output, "of a folder of this machine nothing is installed unasked"


def test_four_that_ask_at_once_install_once(job: Launcher, tmp_path: Path) -> None:
    code = folder_of(tmp_path, "needy\n")
    words = ["-u", str(code), "--launch", "exec", "--", "show.py", "needy"]
    processes = [job.start("training", "run", f"j{number}", *words) for number in range(4)]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sum("Installed 2 package(s)" in each for each in outputs) == 1
    assert sum("are here from before" in each for each in outputs) == 3 and all(
        "found needy" in each for each in outputs
    )


def cut_off(launcher: Launcher, tmp_path: Path, wheels: Path, how: signal.Signals, *words: str) -> str:
    """An index that does not answer for the second package: the launcher is killed, or interrupted, meanwhile. Returns what the
    next one says."""
    asked, go_on = threading.Event(), threading.Event()

    class Index(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith("/needy/"):
                asked.set()
                go_on.wait(60)
            with contextlib.suppress(BrokenPipeError):  # Who asked is gone.
                super().do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    for path in [*wheels.iterdir()]:
        place = wheels / "simple" / path.name.split("-")[0].replace("_", "-")
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=wheels)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/simple"
        code = folder_of(tmp_path, f"--index-url {url}\ntop_level_only_in_env\nneedy\n")
        command = ["training", "run", "j", "-u", str(code), *words, "--", "show.py", "needy", "torch"]
        process = launcher.start(*command)
        assert asked.wait(60)
        started = time.monotonic()
        process.send_signal(how)
        output = process.communicate(timeout=30)[0]
        took = time.monotonic() - started
        print(f"ended {took:.2f} s after {how.name}")
        if how == signal.SIGINT:
            assert process.returncode == 75 and took < 10, output
        assert environments(launcher) == []
        go_on.set()
        output = launcher(*command)
        assert "Installed 3 package(s)" in output and "found needy" in output and "found torch" in output, output
        assert "whole" in launcher("cache", "verify")
        server.shutdown()
        return output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_installation_that_was_cut_off_is_never_used(
    launcher: Launcher, tmp_path: Path, wheels: Path, how: signal.Signals
) -> None:
    """The job that uses it is started by torchrun, whose packages are the interpreter's."""
    assert "No accelerator" in cut_off(launcher, tmp_path, wheels, how)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_one_that_was_cut_off_in_a_container(
    docker: Launcher, tmp_path: Path, wheels: Path, how: signal.Signals
) -> None:
    cut_off(
        docker, tmp_path, wheels, how, "--runner", "docker", "--image", BASE, "--network", "host", "--launch", "exec"
    )
    assert containers(docker) == ""


def test_files_with_paths_make_an_environment_of_the_jobs_own(job: Launcher, tmp_path: Path, wheels: Path) -> None:
    code = folder_of(tmp_path, "./wheels/needy-1.0-py3-none-any.whl\n")
    shutil.copytree(wheels, code / "wheels")
    commit(code, {})
    for count in (1, 2):
        assert "Installed 2 package(s)" in run(job, code, command=("show.py", "needy"))
        assert len(environments(job)) == count


def test_a_secret_of_the_job_reaches_the_installer_and_no_file(job: Launcher, tmp_path: Path) -> None:
    """An index's password in a variable that the requirements file names."""
    keep(job, "index", "canary-index-7781")
    code = folder_of(tmp_path, "--find-links ${FOLDER}\nneedy==${WHICH}\n", run="x")
    output = run(job, code, "-S", "WHICH=index", "-E", f"FOLDER={tmp_path}", code_=65)
    assert "needy" in output and "canary-index-7781" not in output
    kept = [path for path in job.home.rglob("*") if path.is_file() and "secrets" not in path.parts]
    assert not [path for path in kept if b"canary-index-7781" in path.read_bytes()]


@pytest.mark.timeout(1500)
def test_in_a_container_it_is_made_by_the_images_own_python(docker: Launcher, tmp_path: Path) -> None:
    """The image has neither pip nor uv, the work is done as nobody, the code is read-only, and the job finds it read-only."""
    wheels: Callable[[str, str], str] = lambda name, version: wheel(tmp_path / "code/wheels", name, version)
    wheels("top_level_only_in_env", "1.5")
    wheels("heavy", "2.0")
    keep(docker, "which", "2.0")
    code = folder_of(tmp_path, "--no-index\n--find-links wheels\nheavy==${WHICH}\ntop_level_only_in_env\n")
    words = ("training", "run", "j", "-u", str(code), "--runner", "docker", "--image", BASE, "--launch", "exec")
    words += ("-S", "WHICH=which")
    output = docker(*words, "--", "show.py", "heavy", "torch")
    assert "found heavy 2.0 /run/launcher/environment/lib/python3" in output, output
    assert re.search(r"found torch \S+ /usr/", output) and "Installed 2 package(s)" in output
    output = docker(*words, "--", "sh", "-c", "heavy-cmd; python --version; echo x > $VIRTUAL_ENV/x; exit 0")
    assert "command of heavy 1.5" in output and "Read-only file system" in output and "are here from before" in output
    (environment,) = environments(docker)
    assert environment["source"] == BASE and "whole" in docker("cache", "verify")
    commit(code, {"requirements.txt": "--no-index\nno_such_package\n"})
    assert "no_such_package" in docker(*words, "--", "show.py", code=65)
    assert (
        containers(docker) == ""
        and json.loads((docker.job("j") / "result.json").read_text())["kind"] == "requirements-failed"
    )
