"""The symbolic pickle reader beside pickle itself."""

from __future__ import annotations

import pickle
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.checkpoint import pickles
from launcher.checkpoint.symbols import Call, Mapping, Name, get

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
_data = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5) | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


def _read(data: bytes) -> pickles.Pickle:
    return pickles.read(lambda start, length: data[start : start + length])


def _plain(value: object) -> object:
    """A read value as the data it stands for."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, Call) and isinstance(value.callee, Name) and value.callee.name in ("encode", "bytes"):
        text = (
            value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else ""
        )  # bytes, before protocol 3
        return text.encode("latin1") if isinstance(text, str) else text
    return value


@settings(max_examples=150, deadline=None)
@given(_data, st.integers(0, 5))
def test_plain_data_are_read_as_pickle_loads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    found = _read(data)
    assert found.mistake is None and found.end == len(data)
    if protocol:  # protocol 0 writes texts with escapes, which are kept as they are
        assert _plain(found.value) == value


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 5))
def test_no_bytes_make_the_reader_raise(data: bytes, protocol: int) -> None:
    for content in (data, pickle.dumps({"a": [1, (2, 3)]}, protocol)[:-1] + data):
        found = _read(content)
        assert found.mistake is not None or found.end <= len(content)


def test_every_cut_of_a_pickle_is_a_mistake() -> None:
    data = pickle.dumps({"step": 5, "model": [1.5, "x", b"y", (None, True)]}, 4)
    whole = _read(data)
    assert get(whole.value, "step") == 5
    for cut in range(len(data)):
        assert _read(data[:cut]).mistake


def test_a_pickle_of_many_opcodes_says_that_it_was_not_read_to_its_end() -> None:
    data = b"\x80\x02" + b"N0" * pickles.OPCODES + b"N."
    found = _read(data)
    assert found.limit and found.mistake
