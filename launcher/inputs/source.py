"""The job's code from a git repository, by the git command, with everything switched off that could execute or leave."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from launcher.errors import NotFoundError, UsageError

_SAFE = (
    "-c", "protocol.allow=never", "-c", "protocol.https.allow=always", "-c", "protocol.http.allow=always",
    "-c", "protocol.ssh.allow=always", "-c", "protocol.file.allow=user", "-c", "core.hooksPath=/dev/null",
    "-c", "core.symlinks=true", "-c", "submodule.recurse=false", "-c", "filter.lfs.smudge=", "-c", "filter.lfs.required=false",
)  # fmt: skip


def check(url: str, revision: str, environ: dict[str, str]) -> str:
    """The commit that the revision means, asked from the repository before anything long starts.

    A revision that is a whole commit id is taken as it is. Raises NotFoundError, UsageError.
    """
    if url.startswith("-") or revision.startswith("-") or "::" in url:
        raise UsageError(what=f"{url!r} at {revision!r} is no repository.")
    listed = _git(["ls-remote", "--quiet", "--", url], environ, f"The repository {url} cannot be read")
    refs = {name: commit for commit, tab, name in (line.partition("\t") for line in listed.splitlines()) if tab}
    if not revision:
        if "HEAD" not in refs:
            raise NotFoundError(what=f"The repository {url} has no commit.")
        return refs["HEAD"]
    for name in (f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}", revision):
        if name in refs:
            return refs[name]
    if len(revision) == 40 and all(character in "0123456789abcdef" for character in revision):
        return revision
    known = sorted(name.split("/", 2)[2] for name in refs if name.count("/") >= 2 and not name.endswith("^{}"))
    raise NotFoundError(
        what=f"The repository {url} has no branch, tag or commit {revision!r}.",
        hint=f"It has: {', '.join(known[:8])}" if known else "",
    )


def fetch(url: str, commit: str, folder: Path, environ: dict[str, str]) -> None:
    """Puts the files of one commit into a folder, which is new afterwards."""
    what = f"Commit {commit} of {url} cannot be fetched"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _git(["init", "--quiet", "--template=", str(folder)], environ, what)
    inside = ["-C", str(folder)]
    _git(
        [*inside, "fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", "--", url, commit],
        environ,
        what,
    )
    _git([*inside, "checkout", "--quiet", "--detach", "FETCH_HEAD"], environ, what)


def _git(arguments: list[str], environ: dict[str, str], what: str) -> str:
    env = environ | {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *_SAFE, *arguments], env=env, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise NotFoundError(what=f"{what}: the git command is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise NotFoundError(what=f"{what}: no answer within 600 s.") from error
    if done.returncode:
        cause = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()), f"git ended with {done.returncode}"
        )
        raise NotFoundError(
            what=f"{what}: {cause.removeprefix('fatal: ')}.", hint="Check --repository-url and your access to it."
        )
    return done.stdout


def head(folder: str) -> tuple[str, str]:
    """(remote URL, commit) of the folder's own repository, both empty where it is none: for the lineage."""
    if not any(os.path.exists(os.path.join(parent, ".git")) for parent in [folder, *map(str, Path(folder).parents)]):
        return "", ""
    try:
        commit = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        remote = subprocess.run(
            ["git", "-C", folder, "config", "--get", "remote.origin.url"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", ""
    return remote.stdout.strip(), commit.stdout.strip() if commit.returncode == 0 else ""
