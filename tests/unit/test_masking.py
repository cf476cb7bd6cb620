"""Secrets are taken out of a stream however it is cut, in each form that programs print them in, and nothing else is."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import shlex
import time
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import secrets
from launcher.job.logs import Times
from launcher.masking import Mask, Masker, Parts, forms
from launcher.runners.output import Pump, RankLogs, clean
from tests.support.entrypoint import until

TOKEN = "hf_ABCDefgh/IJKL+mnop&QRST=uvwx"


def mask_of(found: dict[str, list[str]]) -> Mask:
    return Mask({name: Parts(values, []) for name, values in found.items()})


def by_regular_expression(found: dict[str, list[str]], text: bytes) -> bytes:
    """The same by other means: of the alternatives at one place, the longest."""
    shown: dict[bytes, bytes] = {}
    for name, values in sorted(found.items()):
        for value in values:
            if len(value.encode()) >= 8:
                shown |= dict.fromkeys(forms(value.encode()) - shown.keys(), f"[secret {name}]".encode())
    every = b"|".join(re.escape(each) for each in sorted(shown, key=len, reverse=True))
    return re.sub(every, lambda match: shown[match[0]], text) if shown else text


def cut(text: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from("ABC"), st.lists(st.text("ab\n", min_size=7, max_size=14), max_size=2), min_size=1),
    st.lists(st.one_of(st.text("ab\n", max_size=20), st.integers(0, 99)), max_size=12),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_however_the_stream_is_cut(found: dict[str, list[str]], texts: list[str | int], places: list[int]) -> None:
    """Secrets that are the beginnings, ends and parts of each other; texts of their letters, and forms of them (numbers)."""
    known = sorted({form for values in found.values() for value in values for form in forms(value.encode())})
    text = b"".join(
        each.encode() if isinstance(each, str) else known[each % len(known)] if known else b"-" for each in texts
    )
    mask, places_found = mask_of(found), []
    stream = Masker(mask, lambda first, end: places_found.append((first, end)))
    pieces = []
    for piece in cut(text, places):
        pieces.append(stream.feed(piece))
        if stream.held:
            assert any(form.startswith(stream.held) and form != stream.held for form in known), "held without a reason"
    result = b"".join(pieces) + stream.flush()
    assert result == mask.whole(text) == by_regular_expression(found, text)
    assert [text[first:end] in known for first, end in places_found] == [True] * result.count(b"[secret ")


@pytest.mark.parametrize(
    "printed",
    [
        TOKEN,
        f"Authorization: Bearer {TOKEN}",
        json.dumps({"token": TOKEN + "é"}),
        repr({"it's": TOKEN}),
        shlex.quote(TOKEN),
        urllib.parse.quote(TOKEN),
        urllib.parse.quote(TOKEN, safe=""),
        re.sub("%..", lambda code: code[0].lower(), urllib.parse.quote_plus(TOKEN)),
        urllib.parse.urlencode({"token": TOKEN}),
        *(base64.b64encode(f"{a}{TOKEN}{b}".encode()).decode() for a in ("", "u", "u:") for b in ("", "!", "!!")),
        base64.urlsafe_b64encode(f"user:{TOKEN}".encode()).decode(),
    ],
)  # fmt: skip
def test_the_forms_that_programs_print(printed: str) -> None:
    shown = Mask({"hf": secrets.parts(TOKEN)}).whole(printed.encode()).decode()
    assert shown.count("[secret hf]") == 1
    assert TOKEN[3:11] not in shown
    left = shown.replace("[secret hf]", "").encode()
    hidden = {form[start : start + 6] for form in forms(TOKEN.encode()) for start in range(len(form) - 5)}
    assert not any(piece in left for piece in hidden)


LINES = ["MIIEvQIBADANBgkq" * 3, "Zz9yY8xX7wW6vV5u" * 2, "q=="]
KEY = "\n".join(["-----BEGIN PRIVATE KEY-----", *LINES, "-----END PRIVATE KEY-----"])
ACCOUNT = json.dumps({"type": "service_account", "private_key": f"{KEY}\n", "client_email": "me@example.org"}, indent=1)
CREDENTIALS = """[default]
aws_access_key_id = AKIAIOSFODNN7EXAMPLE
aws_secret_access_key = wJalrXUtnFEMI/K7MDENG
region = eu-west-1x"""


@pytest.mark.parametrize(
    ("secret", "text", "shown"),
    [
        (KEY, KEY, "[secret s]"),
        (KEY, "\n> ".join(LINES), "[secret s]\n> [secret s]\n> q=="),
        (ACCOUNT, KEY, "[secret s]"),
        (ACCOUNT, ACCOUNT, "[secret s]"),
        (ACCOUNT, json.dumps(json.loads(ACCOUNT)["private_key"]), '"[secret s]\\n"'),
        (ACCOUNT, "me@example.org service_account", "me@example.org service_account"),
        (CREDENTIALS, "eu-west-1x wJalrXUtnFEMI/K7MDENG AKIAIOSFODNN7EXAMPLE", "eu-west-1x [secret s] [secret s]"),
        ("pässwörter", "a pässwörter b p\\u00e4ssw\\u00f6rter", "a [secret s] b [secret s]"),
        ("1234567", "1234567", "1234567"),
        ("12345678", "1234567 12345678", "1234567 [secret s]"),
    ],
)  # fmt: skip
def test_what_of_a_secret_is_one(secret: str, text: str, shown: str) -> None:
    assert Mask({"s": secrets.parts(secret)}).whole(text.encode()).decode() == shown


def test_bytes_that_are_no_text() -> None:
    value = bytes(range(128, 160))
    mask = Mask({"s": secrets.parts(value.decode("utf-8", "surrogateescape"))})
    assert mask.whole(b"<" + value + b">" + base64.b64encode(value)) == b"<[secret s]>[secret s]"


@pytest.mark.parametrize("kind", ["lines", "bytes"])
def test_a_secret_of_a_mebibyte(kind: str) -> None:
    value = base64.encodebytes(os.urandom(770_000)) if kind == "lines" else os.urandom(1 << 20)
    started = time.process_time()
    mask = Mask({"s": secrets.parts(value.decode("utf-8", "surrogateescape"))})
    stream = Masker(mask)
    text = b"<" + value.strip() + b">"
    pieces = [stream.feed(text[start : start + 65536]) for start in range(0, len(text), 65536)]
    assert b"".join(pieces) + stream.flush() == b"<[secret s]>"
    print(f"{kind}: {len(mask.shown)} texts, {time.process_time() - started:.2f} s")
    assert time.process_time() - started < 20


def test_a_file_keeps_its_length(tmp_path: Path) -> None:
    path = tmp_path / "log"
    around = os.urandom(3 << 20)
    path.write_bytes(TOKEN.encode() + around[: (1 << 20) - 40] + TOKEN.encode() + around + TOKEN.encode())
    mask = mask_of({"hf": [TOKEN]})
    mask.scrub(path, start=1)
    stars = b"*" * len(TOKEN)
    assert path.read_bytes() == TOKEN.encode() + around[: (1 << 20) - 40] + stars + around + stars
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for each in ("link", "pipe", "missing", "."):
        mask.scrub(tmp_path / each)
    assert path.read_bytes().startswith(TOKEN.encode())


def test_at_160_megabytes_a_second_it_costs_less_than_a_tenth() -> None:
    """benchmarks/RESULTS.md has the figures of a whole job; here, the best of five, which a busy machine changes little."""
    mask = mask_of({f"s{number}": [base64.b64encode(os.urandom(30)).decode()] for number in range(3)})
    text = (b"step 1200 loss 0.2345 lr 1.0e-05 epoch 3.2 {'eval_loss': 1.23, 'hf_': 'ABCDEFGH'}\n" * 1000)[: 1 << 16]
    stream, best = Masker(mask), float("inf")
    for _ in range(5):
        started = time.thread_time()
        for _ in range(200):
            stream.feed(text)
        best = min(best, (time.thread_time() - started) / 200)
    print(f"{best * 1e6:.1f} us for 64 KiB, of {(1 << 16) / 160:.0f} us")
    assert best < (1 << 16) / 160e6 / 10


class Passed:
    """A pump of one stream, and what has come out of it."""

    def __init__(self, folder: Path, mask: Mask | None) -> None:
        self.out, self._writer = os.pipe()
        self._source, self.job = os.pipe()
        self.log = folder / "job.log"
        self._log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._times = Times(self.log)
        self.pump = Pump({self._source: self._writer}, self._log, self._times, mask)

    def end(self) -> bytes:
        os.close(self.job)
        assert self.pump.join(60)
        os.close(self._writer)
        text = b"".join(iter(lambda: os.read(self.out, 1 << 16), b""))
        for fd in (self._source, self.out, self._log):
            os.close(fd)
        self._times.close()
        return text


def test_what_may_be_a_secret_waits_a_moment_and_nothing_else_does(tmp_path: Path) -> None:
    passed = Passed(tmp_path, mask_of({"hf": [TOKEN]}))
    waited = {}
    for text in (b"\r 50%", b"name? ", b"\n"):
        started = time.monotonic()
        os.write(passed.job, text)
        assert os.read(passed.out, 100) == text
        waited[text] = time.monotonic() - started
    assert min(waited.values()) < 0.09, waited  # Not the patience, by the least: the machine may be busy.
    started = time.monotonic()
    os.write(passed.job, b"a prompt: hf_A")
    assert os.read(passed.out, 100) == b"a prompt: "
    assert os.read(passed.out, 100) == b"hf_A"
    assert time.monotonic() - started >= 0.09
    os.write(passed.job, TOKEN[:10].encode())
    os.write(passed.job, TOKEN[10:].encode() + b" hf_")
    assert passed.end() == b"[secret hf] hf_"
    assert passed.log.read_bytes() == b"\r 50%name? \na prompt: hf_A[secret hf] hf_"


def test_what_comes_too_slowly_is_taken_out_of_the_log_at_the_end(tmp_path: Path) -> None:
    mask = mask_of({"hf": [TOKEN]})
    passed = Passed(tmp_path, mask)
    os.write(passed.job, TOKEN[:10].encode())
    assert os.read(passed.out, 100) == TOKEN[:10].encode()
    os.write(passed.job, TOKEN[10:].encode())
    assert passed.end() == TOKEN[10:].encode()
    clean(mask, passed.log, 0, tmp_path)
    assert passed.log.read_bytes() == b"*" * len(TOKEN)


def test_the_files_of_ranks_are_overwritten_while_they_grow(tmp_path: Path) -> None:
    rank = tmp_path / "run" / "attempt_0" / "1"
    rank.mkdir(parents=True)
    out, log = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("out", "log"))
    times = Times(tmp_path / "log")
    key = KEY.encode()
    with open(rank / "stderr.log", "wb", buffering=0) as file:
        logs = RankLogs(tmp_path, 2, out, out, log, times, Mask({"key": secrets.parts(KEY)}))
        file.write(b"one\n" + key[:70])
        file.write(key[70:] + b"\ntwo " + key + b"\r 5%")
        until(lambda: b"MIIE" not in (rank / "stderr.log").read_bytes())
        file.write(b"\nthree\n")
        logs.finish(60)
    times.close()
    os.close(out)
    os.close(log)
    stars = b"*" * len(key)
    assert (rank / "stderr.log").read_bytes() == b"one\n" + stars + b"\ntwo " + stars + b"\r 5%\nthree\n"
    shown = b"[rank1]: one\n[rank1]: [secret key]\n[rank1]: two [secret key]\r[rank1]:  5%\n[rank1]: three\n"
    assert (tmp_path / "out").read_bytes() == (tmp_path / "log").read_bytes() == shown
