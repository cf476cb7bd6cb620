"""The pages of docs/ that are made from the code: `python -m tests.support.docs` writes them, a test compares them."""

from __future__ import annotations

import ast
import inspect
import json
from types import ModuleType
from typing import Any

import msgspec

from launcher import plan, result, settings
from launcher.errors import LauncherError, tree
from launcher.job import record, restarts, spec, states
from tests.support.cli import ROOT

ERRORS = ROOT / "docs/errors.md"
SETTINGS = ROOT / "docs/settings.md"
VERDICT = ROOT / "docs/verdict.md"
JOBS = ROOT / "docs/jobs.md"
SCHEMA = ROOT / "docs/result.schema.json"


def errors_page() -> str:
    """Every error class: code, kind, whether trying again can help, and what it means."""
    lines = [
        "# Exit codes and errors",
        "",
        "The exit code is the job's own: 0 to 255 as it was, 128+n where signal n ended it, 127 where its program does not",
        "exist, 126 where it cannot be executed. The codes below are the launcher's own failures. 64 to 78 can be a job's code",
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


PAGES = {ERRORS: errors_page, SETTINGS: settings_page, SCHEMA: schema_page, VERDICT: verdict_page, JOBS: jobs_page}


if __name__ == "__main__":
    main()
