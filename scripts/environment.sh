# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with this project and the extras named in $1, and puts it on PATH.
# Quick when nothing has changed: pip runs only when pyproject.toml or the extras are others than last time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment() {
    local extras=$1 stamp=.venv/.installed wanted
    wanted="$extras $(sha256sum pyproject.toml launcher/__init__.py | sha256sum | cut -c1-64)"
    if [ ! -x .venv/bin/python ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "Python 3.10 or newer is needed, with the venv module (Debian: apt-get install python3-venv)." >&2
            exit 1
        }
        python3 -m venv .venv
    fi
    if ! grep -qsxF "$wanted" "$stamp"; then
        echo "Installing into .venv ($extras) …" >&2
        # torch alone first: an index that offers a CPU build is used where pip is set up for one.
        .venv/bin/python -m pip install --quiet --editable ".[$extras]"
        echo "$wanted" >>"$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
