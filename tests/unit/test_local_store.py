"""Writes beside deletes that take away the folders which they leave empty."""

from __future__ import annotations

import threading
from pathlib import Path

from launcher.transfer.local import LocalStore


def test_no_write_fails_because_a_delete_removed_its_folder(tmp_path: Path) -> None:
    """4 threads × 150 objects below the same two folders, each deleted at once: 600 writes, 0 failures."""
    store = LocalStore(str(tmp_path / "store"))
    (tmp_path / "source").write_bytes(b"1234")
    failures: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for number in range(150):
                key = f"a/b/{me}-{number}"
                if number % 3 == 0:
                    store.create_once(key, b"x")
                elif number % 3 == 1:
                    store.put(key, b"x")
                else:
                    store.upload(str(tmp_path / "source"), key, lambda count: None)
                store.delete([key])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"600 writes, {len(failures)} failures")
    assert not failures, failures
