"""Of a LoRA job's second checkpoint, in which the base is frozen, next to nothing is sent: the equal is copied in the store."""

from __future__ import annotations

from tests.support.cli import ROOT, Launcher
from tests.support.s3_server import S3Server


def test_of_a_lora_jobs_second_checkpoint_one_percent_is_sent(launcher: Launcher, s3_server: S3Server) -> None:
    launcher.env |= s3_server.env() | {"LAUNCHER_STORE": f"s3://{s3_server.new_bucket()}/store"}
    script = str(ROOT / "tests" / "libraries" / "lora_with_base.py")
    launcher("training", "run", "lora", "--settle", "0.5s", "--launch", "exec", "--", "python", script, timeout=400)
    attempt = launcher.json("training", "inspect", "lora")["attempts"][0]
    one, two = (launcher.json("checkpoint", "inspect", f"lora/checkpoint-{step}")["status"] for step in (1, 2))
    assert attempt["bytes_sent"] + attempt["bytes_saved"] == one["size"] + two["size"]
    sent = attempt["bytes_sent"] - one["size"]
    print(f"The second checkpoint names {two['size']:,} bytes, {sent:,} are sent ({100 * sent / two['size']:.2f} %)")
    assert sent <= two["size"] / 100
    for step in (1, 2):
        assert launcher.json("checkpoint", "verify", f"lora/checkpoint-{step}", "--read-data")["whole"]
