"""A slice of tests/campaigns/catalog.py and versions.py on a real S3 server: large stores are listed by few requests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.store.store import Store
from launcher.transfer.places import open_place
from tests.campaigns import catalog, versions
from tests.support.cli import Launcher
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_server import S3Server


@pytest.fixture
def url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3_server.new_bucket()}/store"


def test_2000_checkpoints_are_listed_by_few_requests(url: str, s3_server: S3Server, tmp_path: Path) -> None:
    """Seconds are for `python -m tests.campaigns.catalog`; requests are the same on every machine."""
    made = list(catalog.written(2000, 100, seed=3))
    store = Store(open_place(url, timeout=60, environ=os.environ), timeout=60, threads=16)
    catalog.build(store, made, seed=3)
    for figure in catalog.campaign(store, url, made, tmp_path / "campaign", rounds=1, seed=3):
        print(figure)
        assert figure.seconds < 30, figure
    bars = {
        ("list",): 10,  # On a node that never saw the store.
        ("list", "--limit", "10"): 6,
        ("list", "--name", "ft_00003/*"): 6,
        ("inspect", made[700][0].name): 6,
        ("inspect", catalog.POPULAR): 6,
        ("inspect", made[800][0].id[:23]): 8,
    }
    with FaultProxy(s3_server.endpoint) as proxy:
        env = s3_server.env() | {"AWS_ENDPOINT_URL": proxy.endpoint}
        launcher = Launcher(tmp_path / "node", LAUNCHER_STORE=url, **env)
        for words, bar in bars.items():
            before = len(proxy.passed)
            launcher("checkpoint", *words)
            made_now = proxy.passed[before:]
            print(words, len(made_now))
            assert len(made_now) <= bar, made_now


def test_16_writers_of_one_name(url: str) -> None:
    print(versions.campaign(url, writers=16, commits=2))
