"""TAB in bash, zsh and fish offers the names that are known here, quickly, and asks no store."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.store import catalog
from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.commits import commit, open_store, tiny_checkpoint

REQUIRE_ALL = os.environ.get("LAUNCHER_TEST_REQUIRE_ALL") == "1"

# What bash divides at (COMP_WORDBREAKS), as it does before it calls the function.
BASH = r"""
eval "$(launcher completion bash)"
compopt() { echo "(files)"; }
while IFS= read -r LINE; do
    COMP_LINE=$LINE COMP_POINT=${#LINE} COMPREPLY=()
    mapfile -t COMP_WORDS < <(grep -oE '[:=]+|[^[:space:]:=]+' <<< "$LINE")
    [[ $LINE == *[[:space:]] ]] && COMP_WORDS+=('')
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _launcher_completion launcher
    printf '%s\n' "${COMPREPLY[@]}" ==
done <<< "$LINES_"
"""
ZSH = r"""
compdef() { :; }
_path_files() { echo "(files)"; }
_describe() { shift 2; printf '%s\n' "${(@)${(P)1}%%:*}"; }
compadd() { printf '%s\n' $completions; }
eval "$(launcher completion zsh)"
for LINE in "${(@f)LINES_}"; do
    words=(${(z)LINE}); [[ $LINE == *' ' ]] && words+=('')
    CURRENT=$#words
    _launcher_completion
    echo '=='
done
"""
FISH = r"""
launcher completion fish | source
for line in (string split \n -- $LINES_)
    complete -C $line
    echo '=='
end
"""
SHELLS = {"bash": ["bash", "--norc", "-c", BASH], "zsh": ["zsh", "-f", "-c", ZSH], "fish": ["fish", "-N", "-c", FISH]}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """A machine whose catalog, jobs, secrets and storages have names."""
    launcher = Launcher(tmp_path_factory.mktemp("completion") / "home")
    store = open_store(str(launcher.home / "data" / "store"))
    for name, job in (("ft_01/checkpoint-5", "ft_01"), ("ft_01/checkpoint-10", "ft_01"), ("base", ""), ("step=5", "")):
        commit(store, name, {"x": name.encode()}, job=job)
    for number in range(2):
        commit(store, "base", {"x": b"%d" % number})
    (launcher.home / "data" / "jobs" / "eval!one").mkdir(parents=True)
    subprocess.run([PROGRAM, "secret", "create", "hf-token"], input=b"abc", env=launcher.env, check=True)
    launcher("storage", "create", "hub", "--provider", "huggingface")
    launcher("checkpoint", "list")
    (launcher.home / "data.txt").write_text("x")
    launcher("dataset", "push", "medical", "--file", launcher.home / "data.txt")
    launcher("dataset", "list")
    return launcher


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Iterator[str]:
    if not shutil.which(request.param) and not REQUIRE_ALL:
        pytest.skip(f"{request.param} is not installed")
    yield request.param


def offered(launcher: Launcher, shell: str, lines: list[str]) -> list[list[str]]:
    """What the shell would offer at the end of each line."""
    env = launcher.env | {"LINES_": "\n".join(lines)}
    done = subprocess.run(SHELLS[shell], env=env, capture_output=True, text=True, timeout=120)
    assert not done.stderr.strip(), done.stderr
    answers = done.stdout.split("==\n")[:-1]
    return [[each.partition("\t")[0] for each in answer.splitlines() if each.strip()] for answer in answers]


NAMES = {
    "launcher check": ["checkpoint"],
    "launcher checkpoint p": ["path", "pin", "prune", "push"],
    "launcher checkpoint inspect ft": ["ft_01/checkpoint-10", "ft_01/checkpoint-5"],
    "launcher checkpoint inspect ": ["base", "ft_01/checkpoint-10", "ft_01/checkpoint-5", "step=5"],
    "launcher checkpoint fetch base@": ["base@v1", "base@v2", "base@v3"],
    "launcher checkpoint fetch base@v3": ["base@v3"],
    "launcher checkpoint inspect nothing-like": [],
    "launcher checkpoint diff base ft_01/checkpoint-1": ["ft_01/checkpoint-10"],
    "launcher training run x -C job:": ["job:eval/one", "job:ft_01"],
    "launcher training run x --checkpoint job:f": ["job:ft_01"],
    "launcher checkpoint inspect step=": ["step=5"],
    "launcher checkpoint list --job f": ["ft_01"],
    "launcher training logs ev": ["eval/one"],
    "launcher training run x -S HF_TOKEN=h": ["HF_TOKEN=hf-token"],
    "launcher checkpoint push x --storage-provider h": ["hub"],
    "launcher secret delete ": ["hf-token"],
    "launcher dataset inspect m": ["medical"],
    "launcher training run x -D medical@": ["medical@v1"],
}


def test_names_are_offered(here: Launcher, shell: str) -> None:
    expected = dict(NAMES)
    if shell == "bash":  # It has put what it takes for earlier words on the line already.
        for line, words in NAMES.items():
            known = re.match(r".*[:=]|", line.rpartition(" ")[2])
            assert known
            expected[line] = [each.removeprefix(known[0]) for each in words]
    found = [sorted(each) for each in offered(here, shell, list(NAMES))]  # fish sorts numbers as numbers.
    assert dict(zip(NAMES, found)) == expected


def test_paths_are_the_shells_own(here: Launcher, shell: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (found,) = offered(here, shell, [f"launcher checkpoint inspect {tmp_path}/"])
    assert found == ["(files)"] or f"{tmp_path}/model/" in found, found


@pytest.mark.parametrize("wrong", ["no catalog", "a damaged catalog", "a wrong setting"])
def test_what_is_wrong_is_not_written_into_the_line(here: Launcher, tmp_path: Path, wrong: str) -> None:
    env = {"LAUNCHER_CACHE_DIR": str(tmp_path)} if wrong != "a wrong setting" else {"LAUNCHER_STORE_TIMEOUT": "soon"}
    other = Launcher(here.home, **env)
    if wrong == "a damaged catalog":
        shutil.copytree(here.home / "cache" / "catalog", tmp_path / "catalog")
        for path in (tmp_path / "catalog").iterdir():
            path.write_bytes(b'{}\n["01\n\n["' + b"\xff" * 50 + b"\n" + b'["0199' + b"f" * 60)
    assert offered(other, "bash", ["launcher checkpoint inspect f"]) == [[]]


def test_jobs_of_other_machines_are_offered_where_none_has_run(here: Launcher, tmp_path: Path) -> None:
    store = {"LAUNCHER_STORE": str(here.home / "data" / "store"), "LAUNCHER_DATA_DIR": str(tmp_path)}
    assert offered(Launcher(here.home, **store), "bash", ["launcher training run x -C job:f"]) == [["ft_01"]]


def test_what_is_pushed_is_offered_at_once(here: Launcher, tmp_path: Path) -> None:
    other = Launcher(tmp_path / "home")
    for name in ("zebra-1", "zebra-2"):
        other("checkpoint", "push", name, "--file", tiny_checkpoint(tmp_path / name))
        other("checkpoint", "list", "--limit", "1")
    other("checkpoint", "push", "zebra-3", "--file", tiny_checkpoint(tmp_path / "zebra-3"))
    assert offered(other, "bash", ["launcher checkpoint fetch z"]) == [["zebra-1", "zebra-2", "zebra-3"]]


def test_it_is_quick_and_asks_no_store(here: Launcher) -> None:
    """Of a store that nobody answers for; the time is at most 2.5 times that of --help, which is bounded elsewhere."""
    url = "s3://nobody/there"
    env = Launcher(here.home, LAUNCHER_STORE=url, AWS_ENDPOINT_URL="http://127.0.0.1:9").env
    cache = str(here.home / "cache")
    copy, elsewhere = catalog.path(cache, str(here.home / "data" / "store")), Path(catalog.path(cache, url))
    shutil.copy(copy, elsewhere)
    words = {"COMP_WORDS": "launcher checkpoint inspect ft", "COMP_CWORD": "3", "_LAUNCHER_COMPLETE": "zsh_complete"}

    def seconds(command: list[str], more: dict[str, str]) -> float:
        started = time.perf_counter()
        done = subprocess.run(command, env=env | more, capture_output=True, text=True, cwd=ROOT)
        taken = time.perf_counter() - started
        assert done.returncode in (0, 1) and ("ft_01/checkpoint-5" in done.stdout or not more)
        return taken

    try:
        pairs = [(seconds([PROGRAM], words), seconds([PROGRAM, "--help"], {})) for _ in range(5)]
    finally:
        elsewhere.unlink()
    assert statistics.median(one / other for one, other in pairs) < 2.5, pairs
