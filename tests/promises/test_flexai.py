"""`alias flexai=launcher`: every form in the table of docs/flexai.md runs, as it is typed."""

from __future__ import annotations

import re
import subprocess
import textwrap

import pytest

from tests.support.cli import PROGRAM, ROOT, Launcher
from tests.support.s3_server import S3Server

HEADER = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
STEP = "$FLEXAI_OUTPUT_CHECKPOINT_DIR/checkpoint-5"
WRITE = f"echo 1 > $FLEXAI_OUTPUT_DIR/metrics.json; mkdir {STEP}; cp m/* {STEP}"
COLUMNS = "ID NAME NODE STEP TRAIN LOSS EVAL LOSS MODEL VERSION INFERENCE READY TIMESTAMP"

ROWS: dict[str, str] = {
    "flexai checkpoint push NAME --file PATH": """
        flexai checkpoint push file --file m/model.safetensors
        flexai checkpoint push folder --file m
        flexai checkpoint fetch folder --destination back && diff -r m back""",
    "cd CKPT && flexai checkpoint push NAME --file ./": "cd m && flexai checkpoint push here --file ./",
    "flexai checkpoint push NAME --storage-provider CONN --source-path PATH": """
        flexai checkpoint export base --storage-provider lab --destination-path $BUCKET/models/base
        flexai checkpoint push remote --storage-provider lab --source-path $BUCKET/models/base
        flexai checkpoint fetch remote --destination remote && diff -r m remote""",
    "flexai checkpoint push NAME --source-path ./local": "flexai checkpoint push local --source-path ./m",
    "flexai checkpoint list": """
        flexai checkpoint list | grep -q base
        flexai checkpoint list | grep -qw 'ft_01/checkpoint-5'
        LAUNCHER_STORE=$PWD/nothing flexai checkpoint list""",
    "flexai checkpoint inspect NAME [--json]": """
        flexai checkpoint inspect base | grep -q '^kind: checkpoint'
        flexai checkpoint inspect base --json | python3 -c '
        import json, sys
        found = json.load(sys.stdin)
        assert set(found) == {"kind", "metadata", "spec", "status"}, found
        assert found["metadata"]["name"] == "base" and found["metadata"]["id"] and found["status"]["size"] > 60
        assert {"path", "size"} <= set(found["status"]["files"][0])'
        flexai checkpoint inspect nothing 2> /dev/null && exit 1
        test $? = 66""",
    "flexai checkpoint fetch ID [--destination DIR]": """
        flexai checkpoint fetch $(id base) --destination by-id && diff -r m by-id
        mkdir elsewhere && cd elsewhere && flexai checkpoint fetch base && diff -r base ../m""",
    "flexai checkpoint pull ID --destination DIR`, `flexai checkpoint ls": """
        flexai checkpoint pull $(id base) --destination pulled && diff -r m pulled
        flexai checkpoint ls | grep -qw base""",
    "flexai checkpoint export UUID --storage-provider CONN --destination-path PATH": """
        flexai checkpoint export $(id ft_01/checkpoint-5) --storage-provider lab --destination-path $BUCKET/exported/""",
    "flexai checkpoint delete NAME": """
        flexai checkpoint push goes --file m
        flexai checkpoint delete goes < /dev/null && exit 1
        flexai checkpoint delete goes --yes
        flexai checkpoint inspect goes && exit 1
        true""",
    "flexai training run NAME [flags] -- ENTRY_POINT [ARGS…]": """
        flexai training run run_1 -- bash -lc 'exit 7' && exit 1
        test $? = 7
        flexai training run run_2 -- python3 -m json.tool m/config.json | grep tiny_one""",
    "-a, --accels N": """
        flexai training run accels -a 2 -- train.py --epochs 3 | grep -c '2 of --epochs 3' | grep -x 2
        flexai training run accels --accels 2 --device cuda -- train.py && exit 1
        test $? = 73""",
    "-n, --nodes N": """
        flexai training run nodes -n 1 -- true
        flexai training run nodes --nodes 2 -- true && exit 1
        test $? = 64""",
    "-C, --checkpoint NAME_OR_UUID": """
        flexai training run input -C base -- sh -c 'diff -r m $FLEXAI_INPUT_CHECKPOINT_DIR/base'
        flexai training run input --checkpoint $(id base) -- sh -c 'diff -r m $FLEXAI_INPUT_CHECKPOINT_DIR/$0' $(id base)
        """,
    "-D, --dataset NAME`, `--dataset NAME=MOUNT": """
        flexai training run data -D words --dataset words=medical -- sh -c 'diff -r m $FLEXAI_INPUT_DIR/medical'""",
    "-u, --repository-url URL`, `-b, --repository-revision REV": """
        flexai training run code -u $PWD/code -b main -- ./entry.sh | grep 'from the repository'
        flexai training run code --repository-url $PWD/code --repository-revision main -- ./entry.sh""",
    "-E, --env K=V": "flexai training run env -E A=1 --env B=2 -- sh -c 'test $A$B = 12'",
    "-S, --secret ENV=SECRET_NAME": """
        flexai training run secret -S HF_TOKEN=token --secret OTHER=token -- sh -c 'test $HF_TOKEN = $OTHER'""",
    "--requirements-path FILE": """
        flexai training run packages --requirements-path none.txt -- true && exit 1
        test $? = 66
        flexai training run packages -u $PWD/code -- ./entry.sh""",
    "--runtime NAME": "flexai training run runtime --runtime nvidia-25.06 -- true 2>&1 | grep 'own environment'",
    "--affinity K=V": "flexai training run affinity --affinity cluster=a -- true 2>&1 | grep 'this machine alone'",
    "-s, --source-name NAME`, `-r REV": """
        (flexai training run old -s code -- train.py 2>&1 || true) | grep -e --repository-url
        flexai training run old -u $PWD/code -r main -- ./entry.sh""",
    "flexai fine-tuning run …": """
        flexai fine-tuning run tuned -- true
        flexai fine-tuning inspect tuned | grep 'kind: fine-tuning'""",
    "flexai training checkpoints NAME": f"""
        flexai training checkpoints ft_01 | sed -n 1p | tr -s ' ' | grep -x '{COLUMNS}'
        flexai training checkpoints ft_01 | grep -w ft_01/checkpoint-5""",
    "flexai training list": "flexai training list | grep -w ft_01",
    "flexai training inspect NAME": "flexai training inspect ft_01 | grep 'state: succeeded'",
    "flexai training logs NAME": "flexai training logs ft_01 | grep 'the log'",
    "flexai training fetch NAME": """
        flexai training fetch ft_01 --destination fetched
        python3 -m zipfile -l fetched/output_0.zip | grep '^output/metrics.json'""",
    "flexai training debug-ssh NAME": "(flexai training debug-ssh ft_01 2>&1 || true) | grep 'training logs ft_01'",
    "flexai training stop NAME": "flexai training stop ft_01",
    "flexai training delete NAME": """
        flexai training run goes -- true
        flexai training delete goes
        flexai training inspect goes && exit 1
        true""",
    "flexai dataset push NAME --file SRC[=DEST]": """
        flexai dataset push data --file m --file m/config.json=more/first.json
        flexai dataset fetch data --destination data && test -f data/config.json -a -f data/more/first.json""",
    "flexai dataset push NAME --storage-provider CONN --source-path PATH": """
        flexai checkpoint export base --storage-provider lab --destination-path $BUCKET/data
        flexai dataset push elsewhere --storage-provider lab --source-path $BUCKET/data""",
    "flexai dataset list`, `inspect NAME`, `delete NAME": """
        flexai dataset push gone --file m
        flexai dataset list | grep -w gone
        flexai dataset inspect gone | grep 'status: available'
        flexai dataset delete gone --yes""",
    "flexai inference serve NAME --checkpoint ID [--runtime R] [--accels N] [--affinity K=V] [--hf-token-secret S] -- ARGS": """
        flexai inference serve chat --checkpoint $(id base) --accels 1 --affinity cluster=a --hf-token-secret token \
            --force --health / --detach -- python3 -m http.server --bind {host} {port}
        get='import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())'
        python3 -c "$get" $(flexai inference wait chat) | grep train.py
        flexai inference stop chat""",
    "flexai inference list`, `inspect NAME`, `logs NAME": """
        flexai inference serve listed -C base --force --health / --detach -- python3 -m http.server --bind {host} {port}
        flexai inference list | grep -w listed
        flexai inference inspect listed | grep 'kind: inference'
        flexai inference logs listed
        flexai inference stop listed""",
    "flexai secret create NAME": "echo value-on-stdin | flexai secret create from-stdin",
    "flexai secret list`, `delete NAME": """
        echo value | flexai secret create short-lived
        flexai secret list | grep -x short-lived
        flexai secret delete short-lived""",
    "flexai storage create NAME --provider huggingface --hf-token-name SECRET": """
        flexai storage create hub --provider huggingface --hf-token-name token""",
    "flexai storage list": "flexai storage list | grep -w lab",
    "flexai code-registry connect`, `flexai source add NAME URL": """
        (flexai code-registry connect 2>&1 || true) | grep -e --repository-url
        (flexai source add code https://example.invalid/code 2>&1 || true) | grep -e --repository-url""",
    "flexai auth status": "(flexai auth status 2>&1 || true) | grep 'Nobody signs in'",
    "flexai -v …`, `flexai --version": "flexai -v checkpoint list && flexai --version",
}
"""The form, as the table has it, and a script that uses it."""


def test_the_table_and_the_tests_are_the_same() -> None:
    table = (ROOT / "docs/flexai.md").read_text()
    assert re.findall(r"^\| `(.*?)` \| ", table, re.M) == list(ROWS)
    print(f"{len(ROWS)} rows")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Launcher:
    """Somebody's machine: a model, code, a storage with its secret, a job that has run."""
    folder = tmp_path_factory.mktemp("flexai")
    home = Launcher(folder / "home", BUCKET=s3_server.new_bucket())
    (folder / "m").mkdir()
    (folder / "m/config.json").write_text('{"architectures": ["Tiny"], "model_type": "tiny_one"}')
    (folder / "m/model.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + b"ab")
    (folder / "train.py").write_text("import os, sys\nprint(os.environ['WORLD_SIZE'], 'of', *sys.argv[1:])\n")
    keys = f"aws_access_key_id={s3_server.access_key}\naws_secret_access_key={s3_server.secret_key}\n"
    setup = f"""
        mkdir code && printf '#!/bin/sh\\necho from the repository\\n' > code/entry.sh && chmod +x code/entry.sh
        git -C code init -q -b main && git -C code add .
        git -C code -c user.name=t -c user.email=t@example.invalid commit -qm code
        flexai checkpoint push base --file m
        flexai dataset push words --file m
        echo hidden-value | flexai secret create token
        printf '%s' '{keys}' | flexai secret create keys
        flexai storage create lab --provider minio --endpoint {s3_server.endpoint} --secret keys
        flexai training run ft_01 -C base --settle 0.1s -- sh -c 'echo the log; {WRITE}'"""
    assert run(home, setup).returncode == 0
    return home


def run(home: Launcher, script: str) -> subprocess.CompletedProcess[str]:
    """Bash runs the script's lines with the alias, and ends at the first that fails."""
    lines = textwrap.dedent(script)
    before = f"""
        shopt -s expand_aliases; set -o pipefail
        alias flexai={PROGRAM}
        id() {{
            flexai checkpoint inspect "$1" --json |
                python3 -c 'import json, sys; print(json.load(sys.stdin)["metadata"]["id"])'
        }}
    """
    return subprocess.run(
        ["bash", "-c", textwrap.dedent(before) + "set -e\n" + lines],
        env=home.env, cwd=home.home.parent, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("form", ROWS)
def test_the_form_runs(form: str, machine: Launcher) -> None:
    done = run(machine, ROWS[form])
    assert done.returncode == 0, done.stdout + done.stderr
