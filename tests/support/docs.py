"""The pages of docs/ that are made from the code: `python -m tests.support.docs` writes them, a test compares them."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import click
import msgspec

from launcher import plan, result, settings
from launcher.checkpoint import manifest
from launcher.errors import LauncherError, tree
from launcher.job import record, restarts, spec, states
from launcher.store import protection, reading, removal, tags
from tests.support import commands, documents
from tests.support.cli import ROOT
from tests.support.documents import DOCUMENTS

COMMANDS = ROOT / "docs/commands.md"
ERRORS = ROOT / "docs/errors.md"
SETTINGS = ROOT / "docs/settings.md"
STORE_FORMAT = ROOT / "docs/store-format.md"
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"
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
    return _filled(VERDICT, retried=retried, fields=rows)


def jobs_page() -> str:
    """docs/jobs.md with its tables as the code has them: the states, and the fields of a plan."""
    rows = [line for line in (states.__doc__ or "").splitlines() if line.startswith("|")]
    fields = [f"| `{name}` | {text} |" for name, _, text in _fields(plan, "Plan")]
    return _filled(JOBS, states=rows, plan=["| Field | Meaning |", "|---|---|", *fields])


def troubleshooting_page() -> str:
    """docs/troubleshooting.md with every message of an error class, and what to do about it."""
    lines = []
    for error in sorted(tree(LauncherError), key=lambda each: _plain(each.message).lower()):
        if error.message == "{what}":
            continue  # Its message is written where it is raised, with what to do.
        again = "trying again can help" if error.retryable else "trying again alone does not help"
        lines += [
            f"### {_escaped(_plain(error.message))}",
            "",
            f"{' '.join((error.__doc__ or '').split())} (`{error.kind}`, exit code {error.exit_code}; {again}.)",
            "",
            *([_escaped(_plain(error.default_hint)), ""] if error.default_hint else []),
        ]
    return _filled(TROUBLESHOOTING, messages=["", *lines])


def store_format_page() -> str:
    """docs/store-format.md with the fields of every object, as the code has them."""
    lines = [""]
    for key, module, name in (
        ("manifests/<id>.json", manifest, "Manifest"),
        ("… `files`, each", manifest, "File"),
        ("… `facts`", manifest, "Facts"),
        ("… `ready`", manifest, "Ready"),
        ("… `origin`", manifest, "Origin"),
        ("… `lineage`", manifest, "Lineage"),
        ("manifests/<id>.json, made by gc", manifest, "Abort"),
        ("names/<key>/v<number>.json", reading, "VersionBody"),
        ("deleted/<id>.json", removal, "Tombstone"),
        ("tags/<key>/<tag>/v<number>.json", tags, "Move"),
        ("pins/<id>.json", protection, "Pin"),
        ("uses/<id>/<job id>.json", protection, "Use"),
    ):
        title = key if key.startswith("…") else f"`{key.replace(', ', '`, ', 1)}" + ("" if ", " in key else "`")
        about = " ".join((getattr(module, name).__doc__ or "").split())
        lines += [f"### {title}", "", about, "", "| Key | Type | Default | Meaning |", "|---|---|---|---|"]
        types = {field.encode_name: field.type for field in msgspec.structs.fields(getattr(module, name))}
        for field, default, meaning in _fields(module, name):
            kind = _escaped(
                getattr(types[field], "__name__", "") if isinstance(types[field], type) else str(types[field])
            )
            default = "" if default in ("required", "''", '""', "()", "{}", "") else f"`{default}`"
            lines.append(f"| `{field}` | {kind.replace('launcher.checkpoint.manifest.', '')} | {default} | {meaning} |")
        lines.append("")
    return _filled(STORE_FORMAT, objects=lines)


def commands_page() -> str:
    """Every command as its `--help` has it."""
    lines = [
        "# Commands",
        "",
        "What `--help` says, of every command. Where `launcher fine-tuning` has the same command as `launcher training`, it is",
        "told once. What a job can be told is also a variable and a key of a job file: [settings.md](settings.md).",
        "",
    ]
    for path, command in commands.walk():
        if path[1:2] == ("fine-tuning",) and len(path) > 2:
            continue
        title = " ".join(path)
        if isinstance(command, click.Group):
            lines += [f"## {title}", "", _escaped(command.get_short_help_str(300)), ""]
        else:
            lines += [f"{'###' if len(path) > 2 else '##'} {title}", "", *_told(command.help or "")]
            usage = [_argument(each) for each in command.params if isinstance(each, click.Argument)]
            lines += [f"    {' '.join([title, '[OPTIONS]', *usage])}", ""]
        options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
        if options:
            lines += ["| Option | Meaning |", "|---|---|", *map(_option, options), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _told(text: str) -> list[str]:
    """A help text as Markdown: paragraphs, and what is written line by line (after \\b) as such."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if not paragraph.startswith("\b\n"):
            lines += [_escaped(paragraph), ""]
            continue
        for title, block in re.findall(r"^(\S.*)\n((?:^ +.*\n?)+)", paragraph.removeprefix("\b\n"), re.M):
            lines += [_escaped(title), "", "```sh", *textwrap.dedent(block).splitlines(), "```", ""]
    return lines


def _option(option: click.Option) -> str:
    value = option.metavar or ("|".join(option.type.choices) if isinstance(option.type, click.Choice) else "")
    value = value or ("" if option.is_flag else option.type.name.upper())
    names = ", ".join([*option.opts, *option.secondary_opts])
    text = f"{names} {value}".strip()
    # An escaped bar in backticks is a bar for some readers of Markdown, and a backslash and a bar for others.
    cell = f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"
    return f"| {cell} | {_escaped(option.help or '')} |"


def _argument(argument: click.Argument) -> str:
    return argument.make_metavar(click.Context(click.Command("")))


def _plain(template: str) -> str:
    """A message's template as a person sees it: {ref!r} is 'REF'."""
    text = re.sub(r"\{(\w+)!r\}", lambda each: f"'{each[1].upper()}'", template)
    return re.sub(r"\{(\w+)(?::[^}]*)?\}", lambda each: each[1].upper(), text)


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is, code in backticks too."""
    parts = text.split("`")
    outside = [re.sub(r"([*_<|\[\]])", r"\\\1", each) for each in parts[::2]]
    return "`".join(each for pair in zip(outside, [*parts[1::2], None]) for each in pair if each is not None)


def _filled(path: Path, **blocks: list[str]) -> str:
    """A page with these lines between `<!-- NAME: … -->` and `<!-- end -->`."""
    page = path.read_text()
    for name, lines in blocks.items():
        before, mark, rest = page.partition(f"<!-- {name}: ")
        end = rest.index("<!-- end -->")
        page = before + mark + "\n".join([rest.partition("\n")[0], *lines, rest[end:]])
    return page


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
    COMMANDS: commands_page,
    ERRORS: errors_page,
    JOBS: jobs_page,
    JSON: json_page,
    SCHEMA: schema_page,
    SETTINGS: settings_page,
    STORE_FORMAT: store_format_page,
    TROUBLESHOOTING: troubleshooting_page,
    VERDICT: verdict_page,
}


if __name__ == "__main__":
    main()
