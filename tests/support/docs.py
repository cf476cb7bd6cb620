"""The pages of docs/ that are made from the code: `python -m tests.support.docs` writes them, a test compares them."""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterable
from types import ModuleType
from typing import Annotated, Any

import msgspec

from launcher import plan, result, settings
from launcher.errors import LauncherError, tree
from launcher.job import record, restarts, spec, states
from tests.support import documents
from tests.support.cli import ROOT
from tests.support.documents import DOCUMENTS

ERRORS = ROOT / "docs/errors.md"
SETTINGS = ROOT / "docs/settings.md"
VERDICT = ROOT / "docs/verdict.md"
JSON = ROOT / "docs/json.md"
JOBS = ROOT / "docs/jobs.md"
SCHEMA = ROOT / "docs/result.schema.json"


def errors_page() -> str:
    """Every error class: code, kind, whether trying again can help, and what it means."""
    lines = [
        "# Exit codes and errors",
        "",
        "The exit code is the job's own: 0 to 255 as it was, 128+n where signal n ended it, 127 where its program does not",
        "exist, 126 where it cannot be executed. 130 is Ctrl-C, 141 that nobody read the output any more. The codes below are",
        "the launcher's own failures. 64 to 78 can be a job's code",
        "too: `origin` in the job's `result.json` tells whose it is. A job's failure is never masked, and its success never",
        "hides a lost checkpoint. With `--json` an error is one object: `error` (its kind), `message`, `hint`, `exit_code`.",
        "",
        "| Code | Kind | Try again | Meaning | Message |",
        "|---|---|---|---|---|",
    ]
    for error in sorted(tree(LauncherError), key=lambda each: (each.exit_code, each.kind)):
        meaning = " ".join((error.__doc__ or "").split())
        again = "yes" if error.retryable else "no"
        lines.append(f"| {error.exit_code} | `{error.kind}` | {again} | {meaning} | {error.message} |")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Every setting and every key of a job, with its variable."""
    lines = [
        "# Settings",
        "",
        "Flags win over `LAUNCHER_*` variables, those over the job file (`--file job.yaml`), that over the user's",
        "configuration file (`$LAUNCHER_CONFIG`, else `config.yaml` in the user's configuration folder). `launcher config show`",
        "prints what is in force and where each value came from. Durations are `90s`, `5m`, `2h`; sizes `512MiB`, `2GiB`.",
        "",
        "## Of this machine (variables, configuration file)",
        "",
        *_table(settings, "Settings"),
        "",
        "## Of a job (flags, variables, job file)",
        "",
        "A variable's list is separated by commas. `command` and `env` have no variable.",
        "",
        *_table(spec, "JobSpec"),
    ]
    return "\n".join(lines) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of result.json, with the fields' meanings."""
    made = msgspec.json.schema(result.Result)
    meanings = {key: text for key, _, text in _fields(record, "Outcome") + _fields(result, "Result")}
    for name, field in made["$defs"]["Result"]["properties"].items():
        field["description"] = meanings[name]
    return made


def schema_page() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def verdict_page() -> str:
    """docs/verdict.md with its tables as the code has them: what is retried, and the fields of result.json."""
    rows = ["| Field | Type | Meaning |", "|---|---|---|"]
    for name, field in schema()["$defs"]["Result"]["properties"].items():
        rows.append(f"| `{name}` | {_type(field)} | {field['description']} |")
    retried = [line for line in (restarts.__doc__ or "").splitlines() if line.startswith("|")]
    return _filled(_filled(VERDICT.read_text(), "retried", retried), "fields", rows)


def jobs_page() -> str:
    """docs/jobs.md with its tables as the code has them: the states, and the fields of a plan."""
    rows = [line for line in (states.__doc__ or "").splitlines() if line.startswith("|")]
    fields = [f"| `{name}` | {text} |" for name, _, text in _fields(plan, "Plan")]
    page = _filled(JOBS.read_text(), "states", rows)
    return _filled(page, "plan", ["| Field | Meaning |", "|---|---|", *fields])


def _filled(page: str, name: str, lines: list[str]) -> str:
    """The page with these lines between `<!-- name: … -->` and the next `<!-- end -->`."""
    before, mark, rest = page.partition(f"<!-- {name}: ")
    end = rest.index("<!-- end -->")
    return before + mark + "\n".join([rest.partition("\n")[0], *lines, rest[end:]])


def json_page() -> str:
    """What every command prints with --json, from the types that the tests hold it to."""
    lines = [
        "# JSON",
        "",
        "With `--json` a command prints one JSON document on stdout, in UTF-8, and everything else on stderr. Keys are only ever",
        "added: ignore those that you do not know. Sizes are bytes, times Unix seconds. Where a command fails, the document",
        "is an [Error](#error), and the exit code says so as well; `verify`, `check` and `doctor` have a code of their own for",
        "what they found, with the document below. A job's end for machines is its `result.json` ([verdict.md](verdict.md)).",
        "",
        "| Command | Document |",
        "|---|---|",
        *(f"| `launcher {command}` | {_shape(shape)} |" for command, shape in DOCUMENTS.items()),
    ]
    for found in _structs([documents.Error, *DOCUMENTS.values()]):
        lines += [
            "",
            f"## {found.__name__}",
            "",
            " ".join((found.__doc__ or "").split()),
            "",
            "| Key | Type | Meaning |",
        ]
        lines += ["|---|---|---|"]
        meanings = {
            key: text
            for each in reversed(found.__mro__)
            if issubclass(each, msgspec.Struct) and each.__module__ != "msgspec"
            for key, _, text in _fields(sys.modules[each.__module__], each.__name__)
        }
        hints = typing.get_type_hints(found)
        for field in msgspec.structs.fields(found):
            absent = not field.required and found.__struct_config__.omit_defaults
            shape = _shape(hints[field.name]) + (", may be absent" if absent else "")
            lines.append(f"| `{field.encode_name}` | {shape} | {meanings.get(field.name, '')} |")
    return "\n".join(lines) + "\n"


def _structs(hints: Iterable[Any]) -> list[type[msgspec.Struct]]:
    """Every struct in types and in their fields, each once, in the order of their first mention."""
    found: dict[type[msgspec.Struct], None] = {}
    todo = list(hints)
    while todo:
        hint = todo.pop(0)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            if hint not in found:
                found[hint] = None
                todo = list(typing.get_type_hints(hint).values()) + todo
        else:
            todo = list(typing.get_args(hint)) + todo
    return list(found)


def _shape(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _shape(inner[0])
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in inner if each)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_shape(each) for each in inner)
    if origin in (list, tuple):
        several = [each for each in inner if each is not Ellipsis]
        return f"list of {_shape(several[0])}" if len(several) == 1 else f"[{', '.join(map(_shape, several))}]"
    if origin is dict:
        return f"object of {_shape(inner[1])} by name"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    return _WORDS[hint]


_WORDS = {
    str: "text", int: "whole number", float: "number", bool: "`true`, `false`", type(None): "`null`", Any: "any",
}  # fmt: skip


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"] if each)
    return " or ".join(each["type"] for each in field.get("anyOf", [field]))


def _table(module: ModuleType, name: str) -> list[str]:
    rows = ["| Key | Variable | Default | Meaning |", "|---|---|---|---|"]
    for key, default, text in _fields(module, name):
        variable = "" if key in ("command", "env", "kind") else f"`LAUNCHER_{key.upper()}`"
        rows.append(
            f"| `{key.replace('_', '-')}` | {variable} | {'' if default in ('()', '{}') else default} | {text} |"
        )
    return rows


def _fields(module: ModuleType, name: str) -> list[tuple[str, str, str]]:
    """Of a class: each field's name, default and meaning, as written in its source."""
    body = next(node for node in ast.parse(inspect.getsource(module)).body if getattr(node, "name", "") == name)
    assert isinstance(body, ast.ClassDef)
    found = []
    for index, node in enumerate(body.body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        after = body.body[index + 1] if index + 1 < len(body.body) else None
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        found.append((node.target.id, ast.unparse(node.value).strip("'") if node.value else "required", text))
    return found


def main() -> None:
    for path, page in PAGES.items():
        path.write_text(page())


PAGES = {
    JSON: json_page, ERRORS: errors_page, SETTINGS: settings_page, SCHEMA: schema_page, VERDICT: verdict_page,
    JOBS: jobs_page,
}  # fmt: skip


if __name__ == "__main__":
    main()
