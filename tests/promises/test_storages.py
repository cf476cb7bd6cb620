"""Storages with credentials of their own: from them, to them, and no credential is ever shown."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from launcher import secrets, storages
from launcher.errors import AccessDenied, SettingsError, UsageError
from launcher.settings import Settings
from launcher.storages import Storage
from tests.promises.test_sources import REPOSITORY, content, write
from tests.support.cli import PROGRAM, Launcher
from tests.support.hub_server import COMMIT, hub_server
from tests.support.s3_server import S3Server
from tests.support.web_server import web_server

MODEL = {"notes.json": b"{}", "deep/er/a b&?.bin": os.urandom(9_000_000), "optimizer.pt": b"o" * 100}


def keep(launcher: Launcher, name: str, value: str, *words: str) -> str:
    done = subprocess.run(
        [PROGRAM, "secret", "create", name, *words],
        input=value, env=launcher.env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return f"{done.returncode} {done.stdout}{done.stderr}"


def test_s3_to_s3_with_other_credentials_than_the_environments(
    launcher: Launcher, tmp_path: Path, s3_server: S3Server
) -> None:
    """The environment's credentials are wrong ones: the storage's own are used for it, and only for it."""
    keys = f"[default]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    (tmp_path / "credentials").write_text(keys)
    launcher.env |= s3_server.env() | {
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "wrong",
        "AWS_SESSION_TOKEN": "wrong",
    }
    launcher("secret", "create", "lab-keys", "--from-file", tmp_path / "credentials")
    lab = ("--provider", "minio", "--endpoint", s3_server.endpoint, "--secret", "lab-keys")
    launcher("storage", "create", "lab", *lab)
    launcher("checkpoint", "push", "base", "--file", write(tmp_path / "model", MODEL))
    bucket = s3_server.new_bucket()
    words = ("--storage-provider", "lab", "--destination-path", f"{bucket}/team/base/")
    output = launcher("checkpoint", "export", "base", *words)
    assert f"Exported base@v1 to s3://{bucket}/team/base" in output
    assert launcher("checkpoint", "export", "base", *words), "a second time finishes what is there"
    output = launcher("checkpoint", "export", "base", *words, "--only", "inference", code=64)
    assert "holds other files, such as optimizer.pt" in output
    launcher("checkpoint", "push", "back", "--storage-provider", "lab", "--source-path", f"{bucket}/team/base")
    launcher("checkpoint", "fetch", "back", "--destination", tmp_path / "back")
    assert content(tmp_path / "back") == MODEL
    found = launcher.json("checkpoint", "inspect", "back")
    assert found["spec"]["lineage"]["sources"] == [f"storage:lab/{bucket}/team/base"]
    job = ("--", "sh", "-c", "ls $LAUNCHER_INPUT_CHECKPOINT; echo $FLEXAI_INPUT_CHECKPOINT_DIR")
    assert "optimizer.pt" in launcher("training", "run", "j", "-C", f"storage:lab/{bucket}/team/base", *job)
    assert "was refused" in launcher("training", "run", "j", "-C", f"s3://{bucket}/team/base", *job, code=77)
    shown = launcher("storage", "list") + launcher("storage", "inspect", "lab") + launcher("secret", "list")
    everything = shown + "".join(
        path.read_text(errors="replace")
        for path in launcher.home.rglob("*")
        if path.is_file() and "secrets" not in path.parts and path.stat().st_size < 1_000_000
    )
    assert "lab-keys" in shown and s3_server.secret_key not in everything


def test_the_hub_as_a_storage_by_flexais_words(launcher: Launcher, tmp_path: Path) -> None:
    write(tmp_path / "hub" / "org" / "model", REPOSITORY)
    with hub_server(tmp_path / "hub") as hub:
        hub.token = "hf_verysecret"
        launcher.env |= {"HF_HUB_OFFLINE": "0"}
        assert keep(launcher, "hf-token", "hf_verysecret\n").startswith("0 ")
        launcher(
            "storage",
            "create",
            "hub",
            "--provider",
            "huggingface",
            "--endpoint",
            hub.url,
            "--hf-token-name",
            "hf-token",
        )
        output = launcher("checkpoint", "push", "m", "--storage-provider", "hub", "--source-path", "org/model")
        assert "Pushed m@v1" in output and "verysecret" not in output
        document = launcher.json("checkpoint", "inspect", "m")
        assert document["spec"]["lineage"]["sources"] == [f"hf://org/model@{COMMIT}"]
        assert "can only be read from" in launcher(
            "checkpoint", "export", "m", "--destination", "storage:hub/x/y", code=64
        )


def test_a_web_server_as_a_storage(launcher: Launcher, tmp_path: Path) -> None:
    write(tmp_path / "web" / "models" / "base", MODEL)
    with web_server(tmp_path / "web") as web:
        web.password = "me:top-secret-word"
        keep(launcher, "web", "me:top-secret-word")
        launcher(
            "storage",
            "create",
            "web",
            "--provider",
            "http",
            "--endpoint",
            web.url,
            "--prefix",
            "models",
            "--secret",
            "web",
        )
        launcher("checkpoint", "push", "m", "--storage-provider", "web", "--source-path", "base/")
        launcher("checkpoint", "fetch", "m", "--destination", tmp_path / "m")
        assert content(tmp_path / "m") == MODEL


def test_export_to_a_folder_and_part_of_it(launcher: Launcher, tmp_path: Path) -> None:
    launcher("checkpoint", "push", "base", "--file", write(tmp_path / "model", MODEL))
    launcher("checkpoint", "export", "base", "--destination", tmp_path / "out", "--only", "inference")
    assert content(tmp_path / "out") == {path: MODEL[path] for path in MODEL if path != "optimizer.pt"}
    assert "Say where to" in launcher("checkpoint", "export", "base", code=64)
    assert "Say where to" in launcher("checkpoint", "export", "base", "--storage-provider", "x", code=64)
    assert "cannot be exported to" in launcher("checkpoint", "export", "base", "--destination", "http://x/y", code=64)
    output = launcher("checkpoint", "export", "base", "--destination", "storage:nowhere/x", code=66)
    assert "No storage 'nowhere'" in output


def test_secrets_are_for_their_owner_and_never_shown(launcher: Launcher, tmp_path: Path) -> None:
    launcher.env["MY_TOKEN"] = "canary-from-env"
    launcher("secret", "create", "env", "--from-env", "MY_TOKEN")
    assert keep(launcher, "typed", "canary-from-stdin\n") == "0 Kept the secret typed.\n"
    assert keep(launcher, "typed", "x").startswith("64 ") and "--replace" in keep(launcher, "typed", "x")
    assert keep(launcher, "typed", "canary-replaced", "--replace").startswith("0 ")
    assert keep(launcher, "empty", "").startswith("64 ")
    folder = launcher.home / "data" / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {"env": 0o600, "typed": 0o600}
    assert launcher.json("secret", "list") == [{"name": "env"}, {"name": "typed"}]
    job = ("training", "run", "j", "--env", "SEEN=canary-replaced", "--", "sh", "-c", "echo $0", "canary-from-env")
    output = launcher(*job)
    kept = "".join(path.read_text() for path in launcher.job("j").iterdir() if path.is_file())
    assert "canary" not in kept and output.count("canary-from-env") == 1, "only the job's own output has it"
    (folder / "env").chmod(0o644)
    with pytest.raises(AccessDenied, match="others may read"):
        secrets.read(str(launcher.home / "data"), "env")
    launcher("secret", "delete", "env")
    launcher("secret", "delete", "env", code=66)


def test_what_is_secret_in_a_url_is_kept_nowhere(launcher: Launcher, tmp_path: Path) -> None:
    write(tmp_path / "web" / "base", MODEL)
    with web_server(tmp_path / "web") as web:
        web.password = "me:canary-1"
        url = f"{web.url.replace('://', '://me:canary-1@')}/base/notes.json?X-Amz-Signature=canary-2&token=canary-3"
        said = launcher("training", "run", "j", "-C", f"{url}=x", "--", "true")
        said += launcher("checkpoint", "push", "m", "--file", url)
        said += launcher("checkpoint", "push", "m", "--file", url.replace("notes", "none"), code=66)
        said += launcher("checkpoint", "push", "m", "--file", url.replace("me:", "you:"), code=77)
        said += launcher("checkpoint", "push", "m", "--file", f"zip://x::{url}", code=64)
        said += (
            launcher("checkpoint", "inspect", "m") + launcher("training", "inspect", "j") + launcher("cache", "list")
        )
    kept = [
        path for path in launcher.home.rglob("*") if path.is_file() and "canary" in path.read_text(errors="replace")
    ]
    assert kept == [] and "canary" not in said


def test_a_job_gets_a_secret_as_a_variable_and_nothing_keeps_it(launcher: Launcher) -> None:
    keep(launcher, "wandb", "canary-of-wandb")
    job = ("--", "sh", "-c", 'test "$WANDB_API_KEY$wandb" = canary-of-wandbcanary-of-wandb')
    output = launcher("training", "run", "j", "-S", "WANDB_API_KEY=wandb", "--secret", "wandb", *job)
    kept = [
        path for path in launcher.home.rglob("*") if path.is_file() and "canary" in path.read_text(errors="replace")
    ]
    assert [path.parent.name for path in kept] == ["secrets"] and "canary" not in output
    assert launcher.json("training", "inspect", "j")["spec"]["secret"] == {"WANDB_API_KEY": "wandb", "wandb": "wandb"}
    assert "No secret 'none'" in launcher("training", "run", "j", "-S", "X=none", *job, code=66)
    both = ("-S", "A=wandb", "--env", "A=b")
    assert "both set A" in launcher("training", "run", "j", *both, *job, code=64)


def test_what_a_storage_lacks_is_said_when_it_is_created(launcher: Launcher) -> None:
    def create(*words: str, code: int) -> str:
        return launcher("storage", "create", "s", "--provider", *words, code=code)

    assert "needs --endpoint" in create("minio", code=64)
    assert "needs --account" in create("azure", code=64)
    assert "needs --account" in create("r2", code=64)
    assert "write it with http://" in create("minio", "--endpoint", "minio:9000", code=64)
    assert "No secret 'none'" in create("s3", "--secret", "none", code=66)
    create("s3", "--bucket", "b", code=0)
    assert "exists" in create("s3", code=64)
    launcher("storage", "delete", "s")
    launcher("storage", "delete", "s", code=66)
    assert launcher.json("storage", "list") == []


def test_every_providers_url_and_credentials(tmp_path: Path) -> None:
    """Made without contacting anyone: the engines take what we give them."""
    settings = Settings(data_dir=str(tmp_path), store_timeout=1)
    secrets.create(str(tmp_path), "aws", b"export AWS_ACCESS_KEY_ID=AK\nexport AWS_SECRET_ACCESS_KEY='SK'\n")
    secrets.create(str(tmp_path), "json", json.dumps({"access_key_id": "A", "secret_access_key": "S"}).encode())
    secrets.create(str(tmp_path), "azure", b"c2VjcmV0")
    secrets.create(str(tmp_path), "sas", b"?sv=2024&sig=abc%3D&se=2030")
    for storage, url in [
        (Storage(name="a", provider="s3", bucket="b", prefix="/p/", region="eu-north-1", secret="aws"), "s3://b/p/x/y"),
        (Storage(name="b", provider="r2", account="acc", secret="json"), "s3://x/y"),
        (Storage(name="c", provider="gcs", bucket="b"), "gs://b/x/y"),
        (Storage(name="d", provider="azure", account="acc", bucket="c", secret="azure"), "az://c/x/y"),
        (Storage(name="e", provider="azure", account="acc", bucket="c", secret="sas"), "az://c/x/y"),
    ]:
        assert storages.open_target(storage, "x/y/", settings, {}).url == url
    assert secrets.fields(secrets.read(str(tmp_path), "aws")) == {
        "aws_access_key_id": "AK",
        "aws_secret_access_key": "SK",
    }
    with pytest.raises(SettingsError, match="lacks access_key_id"):
        storages.open_target(Storage(name="f", provider="s3", bucket="b", secret="azure"), "x", settings, {})
    with pytest.raises(UsageError, match="beginning with its bucket"):
        storages.open_target(Storage(name="g", provider="s3"), "/", settings, {})
