"""The job's code: one commit of a git repository, or a folder of this machine and what git says of it.

The repository is not trusted until the job runs it: nothing of it is executed while it is fetched. No hooks, no template, no
transport but https, http and ssh (and local paths where the repository is one itself), no filter but Git LFS. What the
user and the machine's owner have configured (proxies, certificates, credential helpers, ssh) holds.

A token is in no argument, variable, file or URL: git asks a credential helper for it, which reads a memory file that only git
and its children inherit, and only for the repository's own scheme, host and port.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import (
    AccessDenied,
    LauncherError,
    LocalResourceError,
    NotFoundError,
    RepositoryUnavailable,
    UsageError,
)
from launcher.events import Emit, event
from launcher.inputs import programs
from launcher.inputs.programs import Done, Stop
from launcher.text import duration
from launcher.transfer import digest as digests

_SILENCE = 300.0
"""Seconds without a word after which git counts as hanging."""
_HARDENED = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.symlinks=true", "submodule.recurse=false", "gc.auto=0",
    "maintenance.auto=false", "advice.detachedHead=false", "http.lowSpeedLimit=1000", "http.lowSpeedTime=60",
    "transfer.fsckObjects=true",
    # What old tools wrote into many a history, and harms nobody.
    *(f"{kind}.{harmless}=ignore" for kind in ("fetch.fsck", "receive.fsck") for harmless in
      ("zeroPaddedFilemode", "badTimezone", "missingSpaceBeforeDate", "missingSpaceBeforeEmail")),
)  # fmt: skip
_LFS = (
    "filter.lfs.process=git-lfs filter-process", "filter.lfs.smudge=git-lfs smudge -- %f", "filter.lfs.clean=git-lfs clean -- %f",
    "filter.lfs.required=true",
)  # fmt: skip
_NO_LFS = ("filter.lfs.process=", "filter.lfs.smudge=", "filter.lfs.clean=", "filter.lfs.required=false")
_FOREIGN = re.compile(
    r"GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|COMMON_DIR|NAMESPACE|PREFIX|CONFIG_PARAMETERS|TRACE.*|CURL_VERBOSE)"
)
"""Variables of another repository, and those that make git write down what it sends."""
_REFUSED = re.compile(
    r"Authentication failed|could not read (Username|Password)|returned error: 40[13]\b|Permission denied|"
    r"Host key verification failed|dubious ownership", re.I,
)  # fmt: skip
_AWAY = re.compile(
    r"Could not resolve host|Failed to connect|Couldn't connect|Connection (refused|reset|timed out|closed)|"
    r"timed out|too slow|early EOF|RPC failed|unexpected disconnect|hung up unexpectedly|Empty reply|"
    r"returned error: (408|429|5\d\d)\b|TLS connection|SSL_read|SSL_connect|kex_exchange|Network is unreachable|No route to host",
    re.I,
)  # fmt: skip
_TOKEN = re.compile(r"gh[pousr]_|github_pat_|glpat-|gldt-|glcbt-|hf_")
"""What the tokens of well-known servers begin with: as a user's name in a URL they are its password."""
_UNADVERTISED = re.compile(r"unadvertised object|not our ref|no such remote ref", re.I)
_SMALL = 1 << 20
"""Bytes of an untracked file up to which its content counts as code."""
_MANY = 10_000
"""Untracked files that are data, not code."""
_PATIENCE = 8.0
"""Seconds for what git says of a folder: the job waits for it."""


@dataclass(frozen=True)
class Repository:
    """Where the code is: an address as git takes it, a branch, tag or commit of it (empty: its default branch), and the token
    that its server asks for."""

    url: str
    revision: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class State:
    """What a job's code was. `changes`: a digest of what differs from the commit, empty where nothing does, "unknown" where it
    could not be found out."""

    repository: str = ""
    commit: str = ""
    changes: str = ""


def check(repository: Repository, environ: Mapping[str, str], *, timeout: float, stop: Stop) -> str:
    """The commit that the revision means, asked from the repository before anything long starts. `timeout`: seconds for which
    a server that does not answer is asked again.

    Raises UsageError, NotFoundError, AccessDenied, RepositoryUnavailable, LocalResourceError, and what `stop` raises.
    """
    _refuse(repository)
    url, revision = repository.url, repository.revision
    with _git(repository, environ, timeout, stop) as git:
        listed = git(["ls-remote", "--quiet", "--", url], f"The repository {url} cannot be read")
        refs = {name: commit for commit, tab, name in (line.partition("\t") for line in listed.splitlines()) if tab}
        if not revision:
            if "HEAD" not in refs:
                raise NotFoundError(what=f"The repository {url} has no commit.")
            return refs["HEAD"]
        for name in (f"refs/tags/{revision}^{{}}", f"refs/tags/{revision}", f"refs/heads/{revision}", revision):
            if name in refs:
                return refs[name]
        found = ""
        if re.fullmatch(r"[0-9a-f]{4,64}", revision):
            found = revision if revision in refs.values() else _look_for(revision, url, git)
    if found:
        return found
    known = sorted(name.split("/", 2)[2] for name in refs if name.count("/") >= 2 and not name.endswith("^{}"))
    raise NotFoundError(
        what=f"The repository {url} has no branch, tag or commit {revision!r}.",
        hint=f"It has: {', '.join(known[:8])}{', …' if len(known) > 8 else ''}" if known else "",
    )


def _refuse(repository: Repository) -> None:
    url = repository.url
    if url.startswith("-") or repository.revision.startswith("-") or "::" in url:
        raise UsageError(what=f"{url!r} at {repository.revision!r} is no repository.")
    try:
        scheme = urllib.parse.urlsplit(url).scheme if "://" in url else ""
    except ValueError as error:
        raise UsageError(what=f"--repository-url {url}: {error}.") from error
    if scheme not in ("", "https", "http", "ssh", "file"):
        raise UsageError(
            what=f"--repository-url {url}: the code comes by https, http, ssh or from a path here, not by {scheme}."
        )
    user = urllib.parse.urlsplit(url).username or "" if scheme else ""
    if scheme and (urllib.parse.urlsplit(url).password is not None or _TOKEN.match(user)):
        raise UsageError(
            what="--repository-url holds a password, which every process list and log would show.",
            hint="`launcher secret create NAME`, then --repository-token-secret NAME; in the URL only the user's name.",
        )
    if repository.token and (scheme not in ("https", "http") or (scheme == "http" and not _loopback(url))):
        raise UsageError(
            what=f"--repository-token-secret is for https, and {url} is not.",
            hint="By http anybody could read the token on its way; ssh takes keys from your agent and ~/.ssh.",
        )
    if any(character in repository.token for character in "\r\n\0"):
        raise UsageError(what="The secret of --repository-token-secret is no token: it has more than one line.")


def _loopback(url: str) -> bool:
    return (urllib.parse.urlsplit(url).hostname or "") in ("127.0.0.1", "::1", "localhost")


def _local(url: str) -> bool:
    return url.startswith("file://") or ("://" not in url and not re.match(r"[^/]+:", url))


def _look_for(revision: str, url: str, git: _Git) -> str:
    """The whole id of a commit by its id or the beginning of it, "" where there is none. A whole one is asked for alone; a short
    one can only be looked up in the history, which comes without its files where the server can do that."""
    what = f"The commits of {url} cannot be read"
    with tempfile.TemporaryDirectory(prefix="launcher-git-") as folder:
        inside = ["-C", folder]
        git(["init", "--quiet", "--bare", "--template=", folder], what)
        git([*inside, "remote", "add", "origin", url], what)
        fetch = [*inside, "fetch", "--quiet", "--filter=tree:0", "--no-tags"]
        if len(revision) in (40, 64):
            offered = _offered(git, [*fetch, "--depth=1", "origin", revision], what)
            if offered is not None:
                return revision if offered else ""
        git([*fetch, "origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"], what)
        try:
            return git([*inside, "rev-parse", "--verify", f"{revision}^{{commit}}"], what).strip()
        except NotFoundError as error:
            if "ambiguous" in str(error):
                raise UsageError(
                    what=f"Several commits of {url} begin with {revision!r}.", hint="Write more of it."
                ) from error
            return ""


def fetch(
    repository: Repository,
    commit: str,
    folder: Path,
    environ: Mapping[str, str],
    *,
    timeout: float,
    stop: Stop,
    emit: Emit,
) -> None:
    """Puts the files of one commit into a folder, with its submodules and Git LFS files; the folder is there only when it is
    whole. Raises what `check` does."""
    started = time.monotonic()
    url = repository.url
    for left in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(left, ignore_errors=True)  # Of a launcher that was killed; git may still write there.
    part = folder.parent / f".{folder.name}-{os.getpid()}"
    try:
        with _git(
            repository, environ, timeout, stop, lfs=_lfs(environ), told=programs.Told(f"Fetching {url}", emit)
        ) as git:
            _fill(git, part, commit)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    seconds = time.monotonic() - started
    text = f"Code: commit {commit[:12]} of {url} ready in {duration(seconds)}"
    emit(event("source-ready", text, commit=commit, seconds=round(seconds, 3)))


def _lfs(environ: Mapping[str, str]) -> bool:
    return shutil.which("git-lfs", path=environ.get("PATH")) is not None


def _fill(git: _Git, part: Path, commit: str) -> None:
    url, inside = git.repository.url, ["-C", str(part)]
    what = f"Commit {commit} of {url} cannot be fetched"
    git(["init", "--quiet", "--template=", str(part)], what)
    git([*inside, "remote", "add", "origin", url], what)
    fetch = [*inside, "fetch", "--progress", "--no-tags", "--no-recurse-submodules"]
    if not _offered(git, [*fetch, "--depth=1", "origin", commit], what):
        git([*fetch, "origin", "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"], what)
    git([*inside, "checkout", "--progress", "--detach", commit], what)
    if (part / ".gitmodules").exists():
        words = ["--init", "--recursive", "--checkout", "--depth=1", "--jobs=4", "--progress"]
        git([*inside, "submodule", "update", *words], f"The submodules of {url} cannot be fetched")
    if not _lfs(git.environ) and not git.environ.get("GIT_LFS_SKIP_SMUDGE"):
        _refuse_lfs(url, git, inside)


def _offered(git: _Git, fetch: list[str], what: str) -> bool | None:
    """Fetches a commit by its id; False where the server has none, None where it gives none by its id (an old one)."""
    try:
        git(fetch, what)
    except NotFoundError as error:
        if error.facts.get("unadvertised"):
            return False if "not our ref" in error.text else None
        raise
    return True


def _refuse_lfs(url: str, git: _Git, inside: list[str]) -> None:
    what, listing = f"The files of {url} cannot be listed", "git ls-files -- ':(attr:filter=lfs)'"
    files = git([*inside, "ls-files", "--", ":(attr:filter=lfs)"], what)
    if os.path.exists(os.path.join(inside[1], ".gitmodules")):
        files += git([*inside, "submodule", "foreach", "--quiet", "--recursive", listing], what)
    if names := files.splitlines():
        raise LocalResourceError(
            what=f"The repository {url} keeps {len(names)} files in Git LFS ({', '.join(names[:3])}{', …' if names[3:] else ''}),"
            " and git-lfs is not installed.",
            hint="Install it (Debian: apt-get install git-lfs), or set GIT_LFS_SKIP_SMUDGE=1 where the job needs none of them.",
        )


@dataclass(frozen=True)
class _Git:
    """Runs git commands for one repository. `key`: the descriptor with what the credential helper says; -1: none."""

    repository: Repository
    environ: Mapping[str, str]
    timeout: float
    stop: Stop
    config: tuple[str, ...]
    key: int
    told: Callable[[str], None]

    def __call__(self, arguments: list[str], what: str) -> str:
        """Its output. Raises what `check` does, with `what` before git's own words."""
        return programs.patiently(lambda: self._once(arguments, what), self.timeout, self.stop).output

    def _once(self, arguments: list[str], what: str) -> Done:
        words = ["git", *(word for each in self.config for word in ("-c", each)), *arguments]
        fds = () if self.key < 0 else (self.key,)
        try:
            done = programs.run(words, env=self.environ, stop=self.stop, silence=_SILENCE, fds=fds, on_line=self.told)
        except FileNotFoundError as error:
            raise LocalResourceError(what=f"{what}: the git command is not installed.") from error
        except programs.Silent as error:
            raise RepositoryUnavailable(what=what, cause=f"git said nothing for {_SILENCE:.0f} s") from error
        if done.code == 0:
            return done
        raise self._error(done, what)

    def _error(self, done: Done, what: str) -> LauncherError:
        said = "\n".join(done.said)
        for pattern in (_REFUSED, _UNADVERTISED, _AWAY, re.compile(r"^(fatal|error): ", re.M)):
            if cause := next((line for line in done.said if pattern.search(line)), ""):
                break
        else:
            cause = done.said[-1] if done.said else f"git ended with {done.code}"
        cause = re.sub(r"^(remote: )?(fatal|error): ", "", cause.strip()).rstrip(".")
        if "dubious ownership" in said:
            hint = "Another user owns it; where you trust him: git config --global --add safe.directory PATH."
            return AccessDenied(what=self.repository.url, cause=cause, hint=hint)
        if _REFUSED.search(said):
            token = "The token of --repository-token-secret may be expired or lack the right to read it."
            none = "A private one needs --repository-token-secret NAME (https), or a key that ssh finds by itself."
            return AccessDenied(what=self.repository.url, cause=cause, hint=token if self.key >= 0 else none)
        if _UNADVERTISED.search(said):
            return NotFoundError(what=f"{what}: {cause}.", unadvertised=True)
        if _AWAY.search(said):
            return RepositoryUnavailable(what=what, cause=cause)
        if "No space left" in said:
            return LocalResourceError(
                what=f"{what}: {cause}.", hint="Free some space, or choose another LAUNCHER_DATA_DIR."
            )
        return NotFoundError(what=f"{what}: {cause}.", hint="Check --repository-url and your access to it.")


@contextlib.contextmanager
def _git(
    repository: Repository,
    environ: Mapping[str, str],
    timeout: float,
    stop: Stop,
    *,
    lfs: bool = False,
    told: Callable[[str], None] = lambda line: None,
) -> Iterator[_Git]:
    kept = {name: value for name, value in environ.items() if not _FOREIGN.fullmatch(name)}
    allowed = "https:http:ssh" + (":file" if _local(repository.url) else "")
    env = kept | {
        "GIT_ALLOW_PROTOCOL": allowed, "GIT_TERMINAL_PROMPT": "0", "GIT_TEMPLATE_DIR": "", "GIT_OPTIONAL_LOCKS": "0",
        "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C",
    }  # fmt: skip
    config, key = (*_HARDENED, *(_LFS if lfs else _NO_LFS)), -1
    try:
        if repository.token:
            parts = urllib.parse.urlsplit(repository.url)
            key = os.memfd_create("token")
            user = "" if parts.username else "username=x-access-token\n"
            os.write(key, f"{user}password={repository.token}\n".encode())
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            helper = f'!f() {{ test "$1" = get && cat /proc/self/fd/{key}; }}; f'
            config = (*config, "credential.helper=", f"credential.{place}.helper={helper}")
            env["GIT_ASKPASS"] = env["SSH_ASKPASS"] = ""
        yield _Git(repository, env, timeout, stop, config, key, told)
    finally:
        if key >= 0:
            os.close(key)


def state(folder: str, environ: Mapping[str, str]) -> State:
    """Of a folder of this machine: its repository's address (without who asks there), its commit, and what is not committed in
    the whole repository. All empty where it is in none; some 10 ms where nothing is changed, and 10 s at most."""
    if not any(os.path.exists(os.path.join(parent, ".git")) for parent in [folder, *map(str, Path(folder).parents)]):
        return State()
    env = {name: value for name, value in environ.items() if not _FOREIGN.fullmatch(name)}
    env |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    deadline = time.monotonic() + _PATIENCE

    def git(*words: str, least: float = 0.0) -> bytes:
        command = ["git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-C", folder, *words]
        left = max(deadline - time.monotonic(), least)
        done = subprocess.run(command, env=env, capture_output=True, timeout=left, check=True, stdin=subprocess.DEVNULL)
        return done.stdout

    def line(*words: str) -> str:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return git(*words, least=1.0).decode("utf-8", "surrogateescape").strip()
        return ""

    changes = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changes = _changes(git, line("rev-parse", "--show-toplevel"))
    url = re.sub(r"^(https?://)[^/@]*@", r"\1", line("config", "--get", "remote.origin.url"))
    return State(url, line("rev-parse", "--verify", "--quiet", "HEAD"), changes)


def _changes(git: Callable[..., bytes], top: str) -> str:
    """A digest (`blake3:…`) of the difference to the commit and of untracked files, of each its path and content, of one above
    1 MiB its size, and so of all where they are very many; "" where there is nothing."""
    listed = git("status", "--porcelain=v2", "-z", "--untracked-files=all", "--ignore-submodules=none")
    entries = listed.decode("utf-8", "surrogateescape").split("\0")
    untracked = sorted(each[2:] for each in entries if each.startswith("? "))
    if not any(entries):
        return ""
    lines = [digests.of_bytes(git("diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv"))]
    for name in untracked:
        path = Path(top, name)
        status = path.lstat()
        whole = stat.S_ISREG(status.st_mode) and status.st_size <= _SMALL and len(untracked) <= _MANY
        lines.append(f"{name}\0{digests.of_file(path) if whole else status.st_size}")
    return digests.of_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
