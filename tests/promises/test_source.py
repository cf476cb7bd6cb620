"""A job's code: any revision of any repository, nothing executed while it is fetched, no token anywhere; the lineage has it."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import AccessDenied, LauncherError, NotFoundError, RepositoryUnavailable, UsageError
from launcher.inputs import source
from launcher.inputs.source import Repository
from tests.conftest import REQUIRE_ALL
from tests.promises.test_storages import keep
from tests.support.cli import Launcher
from tests.support.git_server import GitServer, commit, git, git_server

SAVE = r"""#!/bin/sh
cd "$FLEXAI_OUTPUT_CHECKPOINT_DIR" && mkdir checkpoint-1
printf '\002\000\000\000\000\000\000\000{}' > checkpoint-1/model.safetensors
"""
"""Writes the smallest checkpoint."""
SCRIPT = "#!/bin/sh\necho the code is of $(cat version)\n"
TOKEN = "canary-token-4f2e81"


def nothing() -> None:
    """A `stop` that nobody asks for."""


def resolve(url: str, revision: str = "", token: str = "", **env: str) -> str:
    return source.check(Repository(url, revision, token), os.environ | env, timeout=10, stop=nothing)


def fetch(url: str, revision: str, folder: Path, token: str = "", **env: str) -> Path:
    repository = Repository(url, revision, token)
    environ = os.environ | env
    found = source.check(repository, environ, timeout=10, stop=nothing)
    source.fetch(repository, found, folder, environ, timeout=10, stop=nothing, emit=lambda event: None)
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A repository with five commits, a tag on the second (annotated) and the third, a branch and main at the fifth."""
    folder = tmp_path / "served" / "code"
    for number in range(1, 6):
        commit(folder, {"train.sh": SCRIPT, "version": f"{number}\n"}, f"number {number}")
        if number == 2:
            git(folder, "tag", "-a", "v2", "-m", "two")
        if number == 3:
            git(folder, "tag", "v3")
            git(folder, "branch", "team/three")
    return folder


@pytest.fixture
def server(code: Path) -> Iterator[GitServer]:
    with git_server(code.parent) as running:
        yield running


@pytest.mark.parametrize("transport", ["http", "file", "path", "ssh"])
def test_branches_tags_and_commits_short_or_whole(
    code: Path, server: GitServer, tmp_path: Path, transport: str
) -> None:
    """ssh with a program in its place that runs git-upload-pack here: the transport is git's own."""
    (tmp_path / "ssh").write_text('#!/bin/sh\nwhile [ "$1" != host ]; do shift; done\nshift\nexec sh -c "$*"\n')
    (tmp_path / "ssh").chmod(0o755)
    env = {"GIT_SSH_COMMAND": str(tmp_path / "ssh"), "GIT_SSH_VARIANT": "ssh"}
    url = {"http": f"{server.url}/code", "file": f"file://{code}", "path": str(code), "ssh": f"host:{code}"}[transport]
    ids = git(code, "log", "--reverse", "--format=%H").split()
    wanted = {"": 5, "main": 5, "v2": 2, "v3": 3, "team/three": 3, "refs/heads/team/three": 3, "HEAD": 5,
              ids[0]: 1, ids[0][:7]: 1, ids[4]: 5, ids[3][:12]: 4}  # fmt: skip
    assert [resolve(url, each, **env) for each in wanted] == [ids[number - 1] for number in wanted.values()]
    folder = fetch(url, ids[0][:8], tmp_path / "source", **env)
    assert (folder / "version").read_text() == "1\n" and os.access(folder / "train.sh", os.X_OK)
    assert git(folder, "rev-list", "--all", "--count") == "1", "shallow"
    for missing in ("v4", "0" * 40, "deadbeef", "mian"):
        with pytest.raises(NotFoundError, match=f"no branch, tag or commit '{missing}'") as raised:
            resolve(url, missing, **env)
        assert "main, team/three, v2, v3" in raised.value.hint


def test_the_beginning_of_several_commits(tmp_path: Path) -> None:
    """1,200 commits: two of them begin with the same four digits."""
    git(tmp_path, "init", "--quiet", "--bare", "many")
    lines = "".join(f"commit refs/heads/main\ncommitter T <t@example.invalid> {i} +0000\ndata 0\n" for i in range(1200))
    subprocess.run(["git", "-C", tmp_path / "many", "fast-import", "--quiet"], input=lines.encode(), check=True)
    beginnings = [each[:4] for each in git(tmp_path / "many", "log", "--format=%H", "main").split()]
    twice = next(each for each in beginnings if beginnings.count(each) > 1)
    with pytest.raises(UsageError, match=f"Several commits of .* begin with '{twice}'"):
        resolve(str(tmp_path / "many"), twice)


def test_a_server_that_gives_no_commit_by_its_id(code: Path, server: GitServer, tmp_path: Path) -> None:
    """Protocol version 0, as old servers speak it."""
    old = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.version", "GIT_CONFIG_VALUE_0": "0"}
    first = git(code, "log", "--reverse", "--format=%H").split()[0]
    folder = fetch(f"{server.url}/code", first, tmp_path / "source", **old)
    assert (folder / "version").read_text() == "1\n"
    with pytest.raises(NotFoundError):
        resolve(f"{server.url}/code", "1" * 40, **old)


def test_a_job_runs_it_and_its_checkpoints_name_the_commit(launcher: Launcher, code: Path, server: GitServer) -> None:
    wanted = commit(code, {"save.sh": SAVE.replace("cd ", "echo of $(cat version)\ncd "), "version": "six"})
    words = ("-u", f"{server.url}/code", "-b", "main", "--settle", "0.2s", "--", "./save.sh")
    assert "of six" in launcher("training", "run", "j", *words)
    (found,) = launcher.json("training", "checkpoints", "j")
    lineage = found["spec"]["lineage"]
    assert (lineage["repository"], lineage["commit"]) == (f"{server.url}/code", wanted) and not lineage.get("changes")
    assert f"code {server.url}/code at {wanted}" in launcher("checkpoint", "log", "job:j")
    commit(code, {"version": "seven"})
    launcher.env["LAUNCHER_JOB_ID"] = launcher.job("j").name
    assert "of six" in launcher("training", "run", "j", *words), "a job that is started again has the code that it had"
    del launcher.env["LAUNCHER_JOB_ID"]
    assert "of seven" in launcher("training", "run", "j", *words)


def test_a_folders_commit_and_what_was_not_committed(launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    wanted = commit(folder, {"save.sh": SAVE, ".gitignore": "ignored\n"})
    git(folder, "remote", "add", "origin", "https://me:canary-password@git.example.invalid/mine")

    def lineage(name: str) -> dict[str, str]:
        launcher("training", "run", name, "--settle", "0.2s", "--", "./save.sh", cwd=folder)
        (found,) = launcher.json("training", "checkpoints", name)
        return found["spec"]["lineage"]

    clean = lineage("clean")
    assert (clean["commit"], clean["repository"]) == (wanted, "https://git.example.invalid/mine")
    assert not clean.get("changes")
    found = [source.state(str(folder), os.environ).changes]
    for name, text in (
        ("save.sh", SAVE + "# more\n"),
        ("new.py", "1"),
        ("new.py", "2"),
        ("big.bin", "x" * (1 << 20) + "y"),
    ):
        (folder / name).write_text(text)
        found.append(source.state(str(folder), os.environ).changes)
    (folder / "ignored").write_text("x")
    assert source.state(str(folder), os.environ).changes == found[-1]
    assert found[0] == "" and len(set(found)) == 5 and all(each.startswith("blake3:") for each in found[1:])
    changed = lineage("changed")
    assert (changed["commit"], changed["changes"]) == (wanted, found[-1])
    assert "with uncommitted changes (blake3:" in launcher("checkpoint", "log", "job:changed")
    assert "canary-password" not in "".join(
        path.read_text(errors="replace") for path in launcher.home.rglob("*") if path.is_file()
    )
    git(folder, "update-ref", "-d", "HEAD")
    assert source.state(str(folder), os.environ).changes == "unknown"
    assert source.state(str(tmp_path), os.environ) == source.State()


def test_a_token_comes_from_a_secret_and_is_nowhere(
    launcher: Launcher, code: Path, server: GitServer, tmp_path: Path
) -> None:
    """Looked for in every process's arguments and variables while git has it, and in all that the launcher keeps."""
    server.password = f"x-access-token:{TOKEN}"
    keep(launcher, "code-token", TOKEN)
    inner = commit(code.parent / "inner", {"lib.txt": "inner"})
    git(code, "submodule", "add", "--quiet", "../inner", "inner")
    commit(code, {"train.sh": SCRIPT + "cat inner/lib.txt inner/.git; env\n"})
    url = f"{server.url}/code"
    words = ("training", "run", "j", "-u", url, "--repository-token-secret", "code-token", "--", "./train.sh")
    server.hold.clear()
    process = launcher.start(*words)
    assert server.waiting.wait(30)
    seen, looked = "", 0
    for pid in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                seen += (pid / name).read_bytes().decode("utf-8", "replace")
                looked += 1
            except OSError:
                continue
    assert "ls-remote" in seen and "credential." in seen
    server.hold.set()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "inner" in output, output
    assert server.authorized >= 4 and inner
    kept = [path for path in launcher.home.rglob("*") if path.is_file() and "secrets" not in path.parts]
    everything = seen + output + "".join(path.read_text(errors="replace") for path in kept)
    print(f"looked into {looked} files of processes and {len(kept)} files")
    for form in (TOKEN, base64.b64encode(server.password.encode()).decode()):
        assert form not in everything


def test_a_token_goes_to_its_own_server_alone(server: GitServer, code: Path) -> None:
    """Not to where that one redirects, nor to another one's submodules."""
    server.password = f"x-access-token:{TOKEN}"
    with git_server(code.parent) as other:
        other.password, server.redirect = server.password, other.url
        with pytest.raises(AccessDenied):
            resolve(f"{server.url}/code", token=TOKEN)
        server.redirect = ""
        commit(code.parent / "inner", {"lib.txt": "inner"})
        git(code, "submodule", "add", "--quiet", "../inner", "inner")
        git(code, "config", "--file", ".gitmodules", "submodule.inner.url", f"{other.url}/inner")
        commit(code, {})
        with pytest.raises(AccessDenied):
            fetch(f"{server.url}/code", "main", code.parent / "source", token=TOKEN)
        assert server.authorized and other.given == []


def test_access_denied_is_said_as_such(launcher: Launcher, server: GitServer, code: Path) -> None:
    server.password = f"me:{TOKEN}"
    url = f"{server.url}/code"
    with pytest.raises(AccessDenied) as none:
        resolve(url)
    assert "--repository-token-secret" in none.value.hint
    with pytest.raises(AccessDenied) as wrong:
        resolve(url, token="wrong-token")
    assert "may be expired" in wrong.value.hint
    named = url.replace("://", "://me@")
    assert resolve(named, token=TOKEN) == git(code, "rev-parse", "HEAD"), "the URL's user is the one that is asked as"
    with pytest.raises(AccessDenied):
        resolve(url, token=TOKEN)
    assert "No secret 'absent'" in launcher(
        "training", "run", "j", "-u", url, "--repository-token-secret", "absent", "--", "true", code=66
    )


@pytest.mark.parametrize(
    ("url", "token", "cause"),
    [
        ("ext::sh -c true", "", "is no repository"),
        ("--upload-pack=touch x", "", "is no repository"),
        ("git://git.example.invalid/x", "", "not by git"),
        ("ftp://git.example.invalid/x", "", "not by ftp"),
        ("https://me:pass@git.example.invalid/x", "", "holds a password"),
        ("https://ghp_0123456789@git.example.invalid/x", "", "holds a password"),
        ("https://[bad/x", "", "Invalid IPv6 URL"),
        ("http://git.example.invalid/x", TOKEN, "is for https"),
        ("git@git.example.invalid:x", TOKEN, "is for https"),
        ("ssh://git.example.invalid/x", TOKEN, "is for https"),
        ("/a/path", TOKEN, "is for https"),
        ("https://git.example.invalid/x", "two\nlines", "more than one line"),
    ],
)
def test_addresses_that_are_refused(url: str, token: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause) as raised:
        resolve(url, token=token)
    assert "pass@" not in str(raised.value) and TOKEN not in str(raised.value)


def test_submodules_come_and_none_may_leave_the_protocols(code: Path, server: GitServer, tmp_path: Path) -> None:
    deep = code.parent / "deep"
    commit(deep, {"deep.txt": "deep"})
    inner = code.parent / "inner"
    commit(inner, {"lib.txt": "old"})
    git(inner, "submodule", "add", "--quiet", "../deep", "deep")
    pinned = commit(inner, {"lib.txt": "pinned"})
    git(code, "submodule", "add", "--quiet", "../inner", "inner")
    commit(code, {})
    commit(inner, {"lib.txt": "newer"})
    for url in (f"{server.url}/code", str(code)):
        folder = fetch(url, "main", tmp_path / "source")
        assert (folder / "inner/lib.txt").read_text() == "pinned"
        assert (folder / "inner/deep/deep.txt").read_text() == "deep"
        assert git(folder / "inner", "rev-parse", "HEAD") == pinned
    for bad, cause in (
        (str(inner), "transport 'file' not allowed"),
        ("ext::touch%20" + str(tmp_path / "x"), "not allowed"),
    ):
        git(code, "config", "--file", ".gitmodules", "submodule.inner.url", bad)
        commit(code, {})
        with pytest.raises(LauncherError, match=cause):
            fetch(f"{server.url}/code", "main", tmp_path / "other")
        assert not list(tmp_path.glob("*other*")) and not (tmp_path / "x").exists()


def test_a_submodules_commit_that_is_nowhere(code: Path, server: GitServer, tmp_path: Path) -> None:
    inner = code.parent / "inner"
    commit(inner, {"lib.txt": "inner"})
    git(code, "submodule", "add", "--quiet", "../inner", "inner")
    git(code, "update-index", "--cacheinfo", f"160000,{'1' * 40},inner")
    git(code, "commit", "--quiet", "-m", "gone")
    with pytest.raises(NotFoundError, match=r"The submodules of .* cannot be fetched"):
        fetch(f"{server.url}/code", "main", tmp_path / "source")


def test_nothing_of_a_repository_is_executed_by_fetching_it(code: Path, tmp_path: Path) -> None:
    """Hooks of the user's template, filters that a repository asks for, links out of it."""
    template, home = tmp_path / "template", tmp_path / "home"
    (template / "hooks").mkdir(parents=True)
    (template / "hooks/post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\n")
    (template / "hooks/post-checkout").chmod(0o755)
    home.mkdir()
    (home / ".gitconfig").write_text(f"[init]\ntemplateDir = {template}\n[core]\nhooksPath = {template}/hooks\n")
    commit(code, {".gitattributes": "version filter=evil\n"})
    fetch(str(code), "main", tmp_path / "source", HOME=str(home), GIT_TEMPLATE_DIR=str(template))
    assert not (tmp_path / "hooked").exists() and not (tmp_path / "source/.git/hooks").exists()


def test_a_damaged_object_is_refused(code: Path, tmp_path: Path) -> None:
    """fsckObjects: a tree with an entry called .git is what attacks are made of."""
    blob = git(code, "hash-object", "-w", "version")
    raw = b"100644 .git\0" + bytes.fromhex(blob)
    write = ["git", "-C", code, "hash-object", "-w", "-t", "tree", "--literally", "--stdin"]
    tree = subprocess.run(write, input=raw, capture_output=True, check=True).stdout.decode().strip()
    bad = git(code, "commit-tree", tree, "-m", "bad")
    git(code, "update-ref", "refs/heads/bad", bad)
    with pytest.raises(LauncherError, match=r"hasDotgit|fsck|\.git"):
        fetch(str(code), "bad", tmp_path / "source")


def test_a_server_that_fails_is_asked_again(server: GitServer, code: Path) -> None:
    server.fail = 2
    assert resolve(f"{server.url}/code") == git(code, "rev-parse", "HEAD")
    server.fail = 1000
    started = time.monotonic()
    with pytest.raises(RepositoryUnavailable, match="503"):
        source.check(Repository(f"{server.url}/code"), os.environ, timeout=1, stop=nothing)
    assert time.monotonic() - started < 10


def test_ctrl_c_ends_it_while_the_server_does_not_answer(launcher: Launcher, server: GitServer, code: Path) -> None:
    server.hold.clear()
    process = launcher.start("training", "run", "j", "-u", f"{server.url}/code", "--", "./train.sh")
    assert server.waiting.wait(30)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    print(f"ended {time.monotonic() - started:.2f} s after Ctrl-C")
    assert process.returncode == 75 and "Stopped by SIGINT before the job started" in output, output
    assert time.monotonic() - started < 10


def lfs_repository(folder: Path) -> None:
    git(folder, "init", "--quiet")
    git(folder, "lfs", "install", "--local", "--skip-smudge")
    commit(
        folder,
        {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", "weights.bin": "w" * 5000, "a.txt": "a"},
    )


@pytest.mark.parametrize("nested", [False, True])
def test_lfs_files_come_or_are_said_to_be_missing(tmp_path: Path, nested: bool) -> None:
    if not shutil.which("git-lfs"):
        pytest.fail("git-lfs is missing") if REQUIRE_ALL else pytest.skip("git-lfs is missing")
    data = tmp_path / "data"
    data.mkdir()
    lfs_repository(data)
    assert git(data, "show", "HEAD:weights.bin").startswith("version https://git-lfs.github.com/spec/v1")
    top, at = data, ""
    if nested:
        top, at = tmp_path / "top", "data/"
        commit(top, {"b.txt": "b"})
        git(top, "submodule", "add", "--quiet", str(data), "data")
        commit(top, {})
    folder = fetch(f"file://{top}", "main", tmp_path / "source")
    assert (folder / at / "weights.bin").read_text() == "w" * 5000
    bare = tmp_path / "bin"
    bare.mkdir()
    for each in ("git", "sh", "sed", "uname", "basename"):
        (bare / each).symlink_to(str(shutil.which(each)))
    with pytest.raises(LauncherError, match=r"keeps 1 files in Git LFS \(weights.bin\), and git-lfs is not installed"):
        fetch(f"file://{top}", "main", tmp_path / "other", PATH=str(bare))
    assert not (tmp_path / "other").exists()
    fetch(f"file://{top}", "main", tmp_path / "other", PATH=str(bare), GIT_LFS_SKIP_SMUDGE="1")
