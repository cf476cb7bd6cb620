"""Names, references, paths, units, the command line of torchrun: tables."""

from __future__ import annotations

import pytest

from launcher import names, settings
from launcher.checkpoint import paths, reference
from launcher.errors import LauncherError, UnsafePath, UsageError, tree
from launcher.events import Redactor
from launcher.ids import is_id, new_id
from launcher.runners.torchrun import command_line


@pytest.mark.parametrize("name", ["a", "ft_01/checkpoint-500", "epoch=0-step=8.ckpt", "模型 v2", "a" * 200, "x@y", "é"])
def test_valid_names(name: str) -> None:
    assert names.check(name) == name and names.clean(name) == name


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "a/../b", ".", "a\nb", "a:b", "x@v3", "a" * 201, " a", "a\0", "a\\b", "a!b"]
)
def test_invalid_names_are_refused_and_can_be_cleaned(name: str) -> None:
    with pytest.raises(UsageError):
        names.check(name)
    assert names.check(names.clean(name))


def test_cleaned_names_and_keys_stay_different() -> None:
    several = ["a:b", "a;b", "a?b", "a_b", "a b"]
    assert len({names.clean(each) for each in several}) == len(several)
    long = ["漢" * 199 + each for each in "ab"]
    assert len({names.key(each) for each in long}) == 2 and all(len(names.key(each).encode()) <= 200 for each in long)


@pytest.mark.parametrize(
    ("text", "kind", "value", "version", "mount"),
    [
        ("base", "name", "base", None, "base"),
        ("base@v3", "name", "base", 3, "base"),
        ("job:ft_01", "job", "ft_01", None, "ft_01"),
        ("job:ft_01/checkpoint-5@v2", "job", "ft_01/checkpoint-5", 2, "ft_01/checkpoint-5"),
        ("s3://b/p/model", "url", "s3://b/p/model", None, "model"),
        ("./model", "path", "./model", None, "model"),
        ("01a20a54-bf53-79d8-8e64-9b93eb73984d", "id", "01a20a54-bf53-79d8-8e64-9b93eb73984d", None, None),
    ],
)
def test_references(text: str, kind: str, value: str, version: int | None, mount: str | None) -> None:
    found = reference.parse(text)
    assert (found.kind, found.value, found.version) == (kind, value, version)
    assert found.mount_name == (mount or value)


UNSAFE = [
    "",
    "/etc/passwd",
    "../x",
    "a/../b",
    "a//b",
    "./a",
    "a\0b",
    "a\nb",
    "C:x",
    "a\\b",
    "x" * 300,
    "a/" * 600 + "b",
    "\udcff",
]


@pytest.mark.parametrize("path", UNSAFE)
def test_unsafe_paths(path: str) -> None:
    with pytest.raises(UnsafePath):
        paths.check(path)


@pytest.mark.parametrize("several", [["a", "A"], ["é", "e\u0301"], ["a", "a/b"], ["x/Y", "x/y"]])
def test_twins_are_refused(several: list[str]) -> None:
    with pytest.raises(UnsafePath):
        paths.check_all(several)


def test_units() -> None:
    assert [settings.parse_seconds(text) for text in ("90s", "5m", "2h", "1d", "20", "1.5", "250ms")] == [
        90, 300, 7200, 86400, 20, 1.5, 0.25,
    ]  # fmt: skip
    assert [settings.parse_bytes(text) for text in ("512MiB", "2GB", "1k", "7")] == [512 << 20, 2 * 10**9, 1024, 7]
    for text in ("", "-1", "soon", "5 apples"):
        with pytest.raises(ValueError, match="is no"):
            settings.parse_seconds(text)


def test_ids_sort_by_time() -> None:
    several = [new_id() for _ in range(1000)]
    assert all(map(is_id, several)) and len(set(several)) == 1000
    assert [each[:13] for each in several] == sorted(each[:13] for each in several)


@pytest.mark.parametrize(
    ("command", "wrapped"),
    [
        (["train.py", "--x"], True),
        (["-m", "pkg.train"], True),
        (["python", "train.py"], True),
        (["python3", "-u", "train.py"], True),
        (["python", "-m", "pkg"], True),
        (["torchrun", "train.py"], False),
        (["accelerate", "launch", "train.py"], False),
        (["python", "-m", "torch.distributed.run", "x.py"], False),
        (["bash", "-lc", "torchrun x.py"], False),
        (["yolo", "train"], False),
        (["python", "-c", "print()"], False),
    ],
)
def test_what_torchrun_starts(command: list[str], wrapped: bool) -> None:
    line = command_line(command, accels=2, launch="auto", python="/py", log_dir="/logs")
    assert line.wrapped is wrapped
    assert ("--nproc-per-node=2" in line.arguments) is wrapped
    if not wrapped:
        assert list(line.arguments) == command


def test_secrets_are_redacted() -> None:
    redactor = Redactor.of_environment({"HF_TOKEN": "hf_abcdefgh", "HOME": "/home/someone"})
    assert redactor.text("x hf_abcdefgh /home/someone s3://u:pw@host/b") == "x *** /home/someone s3://***@host/b"
    assert redactor.command(["--api-key", "k1", "--token=abc", "--lr", "1"]) == [
        "--api-key",
        "***",
        "--token=***",
        "--lr",
        "1",
    ]


def test_errors_are_a_tree_with_stable_kinds_and_documented_codes() -> None:
    errors = list(tree())
    for error in errors:
        assert error.__doc__
        assert error.exit_code in {64, 65, 66, 69, 70, 73, 74, 75, 77, 78, 126, 127}
    assert issubclass(UsageError, LauncherError)
