"""Makes an environment with a job's packages, run by the interpreter that the job would have: `python -I installer.py PLAN`.

PLAN is JSON. `{}`: prints what this interpreter is, as JSON: everything that decides what a requirements file comes to. Else:

    folder         where the environment is made, empty
    place          where it will lie: what it holds of paths says this one
    requirements   the file; relative paths in it are as pip takes them
    hashes         whether every package must have one of the file's hashes
    pip            a folder with a pip, for where the interpreter has none and there is no uv; may be empty

It is a virtual environment that sees all that the interpreter sees, also where that is one itself (which Python's own
`--system-site-packages` does not), so that only what is missing there, or there in another version, is installed. Prints
JSON: `installer` and `installed` (NAME==VERSION of each package). What pip or uv say goes to stderr; their exit code is
this program's. Imports nothing of the launcher: it also runs in images that do not have it.
"""

import ctypes
import json
import os
import platform
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from typing import Any, Dict, List

_METADATA = (".dist-info", ".egg-info", ".egg-link")
_MISLEADING = (
    "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PYTHONPATH", "PYTHONHOME", "UV_TARGET", "UV_PREFIX",
)  # fmt: skip
"""They would install elsewhere, or find what the job does not."""
_FOR_UV = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL": "UV_INDEX", "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_NO_INDEX": "UV_NO_INDEX",
}  # fmt: skip
"""uv does not read pip's variables; its own win."""
_STAND_IN = "INSTALLER-STAND-IN"
_SCRIPT = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
import sys
from {module} import {first}
sys.exit({attribute}())
"""


def in_venv() -> bool:
    return sys.prefix != sys.base_prefix


def seen() -> List[str]:
    """The folders in which this interpreter finds packages, when it is not isolated as now."""
    found = list(site.getsitepackages())
    if _sees_system() and not os.environ.get("PYTHONNOUSERSITE"):
        found.append(site.getusersitepackages())
    return [each for each in dict.fromkeys(found) if os.path.isdir(each)]


def describe() -> Dict[str, Any]:
    return {
        "python": "{} {}".format(platform.python_implementation(), platform.python_version()),
        "abi": sysconfig.get_config_var("SOABI") or "",
        "platform": sysconfig.get_platform(),
        "executable": os.path.realpath(sys.executable),
        "prefix": sys.prefix,
        "packages": sorted(name for each in seen() for name in os.listdir(each) if name.endswith(_METADATA)),
    }


def make(plan: Dict[str, Any]) -> int:
    folder = plan["folder"]
    venv.EnvBuilder(system_site_packages=_sees_system(), symlinks=True, with_pip=False).create(folder)
    python = os.path.join(folder, "bin", "python")
    own = os.path.join(folder, "lib", os.path.basename(sysconfig.get_path("stdlib")), "site-packages")
    if in_venv():
        with open(os.path.join(own, "launcher-base.pth"), "w") as file:
            file.writelines("import site; site.addsitedir({!r})\n".format(each) for each in seen())
    uv = shutil.which("uv") or shutil.which("uv", path=os.path.dirname(sys.executable))
    code = _by_uv(uv, python, own, plan) if uv else _by_pip(python, plan)
    if code:
        return code
    _commands(python, folder)
    if plan["place"] != folder:
        _move(folder, plan["place"])
    made = ["{}=={}".format(each.metadata["Name"], each.version) for each in metadata.distributions(path=[own])]
    print(json.dumps({"installer": "uv" if uv else "pip", "installed": sorted(made)}))
    return 0


def _sees_system() -> bool:
    if not in_venv():
        return True
    with open(os.path.join(sys.prefix, "pyvenv.cfg")) as file:
        pairs = [line.lower().partition("=") for line in file]
    return any(key.strip() == "include-system-site-packages" and value.strip() == "true" for key, _, value in pairs)


def _by_pip(python: str, plan: Dict[str, Any]) -> int:
    words = ["install", "--no-input", "--disable-pip-version-check", "--requirement", plan["requirements"]]
    words += ["--require-hashes"] if plan["hashes"] else []
    start = ["-m", "pip"]
    if subprocess.call([python, "-c", "import pip"], env=_environment(), stderr=subprocess.DEVNULL):
        if not plan["pip"]:
            print(
                "ERROR: neither uv nor pip is here: the interpreter {} has none.".format(sys.executable),
                file=sys.stderr,
            )
            return 1
        lent = (
            "import runpy, sys; sys.path.insert(0, {!r}); runpy.run_module('pip', run_name='__main__', alter_sys=True)"
        )
        start = ["-c", lent.format(plan["pip"])]
    return _run([python, *start, *words])


def _by_uv(uv: str, python: str, own: str, plan: Dict[str, Any]) -> int:
    """uv looks for installed packages in the environment's own folder alone, so it gets the metadata of the others for the time
    of the installation. Their files are not listed in there: what it replaces stays where it is."""
    for each in seen():
        for name in os.listdir(each):
            if name.endswith(".dist-info") and os.path.exists(os.path.join(each, name, "METADATA")):
                _stand_in(os.path.join(each, name), os.path.join(own, name))
    words = ["pip", "install", "--python", python, "--compile-bytecode", "--requirements", plan["requirements"]]
    words += ["--link-mode", "copy"]  # Else hard links: whoever changed a file of uv's cache would change it here too.
    code = _run([uv, *words, *(["--require-hashes"] if plan["hashes"] else [])])
    for name in os.listdir(own):
        marked = os.path.join(own, name, "INSTALLER")
        if name.endswith(".dist-info") and os.path.exists(marked):
            with open(marked) as file:
                if file.read() == _STAND_IN:
                    shutil.rmtree(os.path.join(own, name))
    return code


def _stand_in(original: str, place: str) -> None:
    if os.path.exists(place):
        return
    os.mkdir(place)
    shutil.copyfile(os.path.join(original, "METADATA"), os.path.join(place, "METADATA"))
    name = os.path.basename(place)
    listed = "".join("{}/{},,\n".format(name, each) for each in ("METADATA", "INSTALLER", "RECORD"))
    for file, text in (("INSTALLER", _STAND_IN), ("RECORD", listed)):
        with open(os.path.join(place, file), "w") as written:
            written.write(text)


def _environment() -> Dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
    translated = {_FOR_UV[name]: value for name, value in env.items() if name in _FOR_UV}
    if "UV_FIND_LINKS" in translated:
        translated["UV_FIND_LINKS"] = ",".join(translated["UV_FIND_LINKS"].split())
    return {**translated, **env}


def _run(words: List[str]) -> int:
    """With its output on stderr; it ends with this process."""
    return subprocess.call(
        words, env=_environment(), stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=_die_with_parent
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _commands(python: str, folder: str) -> None:
    """The commands of the packages that the interpreter had before (accelerate, torchrun …), for the environment's interpreter:
    by their own they would not see what was installed."""
    if sys.version_info >= (3, 10):
        points = list(metadata.entry_points(group="console_scripts"))
    else:
        points = list(metadata.entry_points().get("console_scripts", ()))
    for point in points:
        path = os.path.join(folder, "bin", point.name)
        module, _, attribute = point.value.partition("[")[0].strip().partition(":")
        if os.path.exists(path) or not attribute or os.sep in point.name:
            continue
        with open(path, "w") as file:
            first = attribute.partition(".")[0].strip()
            file.write(_SCRIPT.format(python=python, module=module.strip(), first=first, attribute=attribute.strip()))
        os.chmod(path, 0o755)


def _move(folder: str, place: str) -> None:
    bin = os.path.join(folder, "bin")
    for path in [os.path.join(folder, "pyvenv.cfg"), *(os.path.join(bin, name) for name in os.listdir(bin))]:
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            content = file.read()
        moved = content.replace(os.fsencode(folder), os.fsencode(place))
        if moved != content:
            with open(path, "wb") as file:
                file.write(moved)


def main(plan: Dict[str, Any]) -> int:
    _die_with_parent()
    if plan:
        return make(plan)
    print(json.dumps(describe()))
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
