"""What a pickle says, read from its opcodes. Nothing is imported, called or built: names stay names, calls stay calls.

The opcodes are those of CPython's `pickle` (protocols 0 to 5), interpreted symbolically: a name that would be imported
becomes a `Name`, what would be called a `Call` (see `symbols`). Time and memory are bounded
by the bytes read and by OPCODES; sizes and memo indexes that the pickle claims allocate nothing. A pickle that cannot be
read to its end keeps what was found before, and its `mistake` says why: whoever asks about safety must not call it known.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launcher.checkpoint.symbols import Call, Mapping, Name, Persistent

OPCODES = 2_000_000
"""Opcodes of one pickle that are read: a state dictionary of 40,000 tensors."""
LARGEST = 64 << 20
"""Bytes of one pickle that are read, tensors excluded: torch keeps those elsewhere."""
_CHUNK = 256 << 10
_LONG_BYTES = 64
_LONGEST = 8

Read = Callable[[int, int], bytes]
"""(start, length) to bytes, as `Tree.read` of one file."""


@dataclass(frozen=True)
class Pickle:
    """One pickle. `end`: offset after its last opcode. `uses`: names with how they are used (named, called, made, changed), in
    order of appearance. `limit`: reading stopped at a limit of ours, so that nothing is said about the rest."""

    value: object
    end: int
    uses: tuple[tuple[Name, str], ...]
    mistake: str | None
    limit: bool = False
    opcodes: int = 0


def read(source: Read, start: int = 0, size: int = LARGEST) -> Pickle:
    """Reads one pickle that begins at `start`, of at most `size` bytes. Raises OSError only."""
    machine = _Machine(source, start, min(size, LARGEST))
    value, mistake, limit = None, None, False
    try:
        value = machine.run()
    except _Mistake as error:
        mistake, limit = str(error), isinstance(error, _Limit) or (machine.full and size > LARGEST)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError, MemoryError):
        mistake = f"its opcodes make no sense at byte {start + machine.position}"
    return Pickle(value, start + machine.position, tuple(machine.uses), mistake, limit, machine.opcodes)


class _Mistake(Exception):
    pass


class _Limit(_Mistake):
    pass


class _Mark:
    pass


_MARK = _Mark()
_FIXED: dict[int, struct.Struct] = {
    ord("J"): struct.Struct("<i"), ord("M"): struct.Struct("<H"), ord("G"): struct.Struct(">d"),
}  # fmt: skip
_SINGLE: dict[int, object] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_TEXT = {ord("X"): 4, 0x8C: 1, 0x8D: 8}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_IGNORED = {0x95: 8, 0x80: 1, 0x97: 0, 0x98: 0}  # FRAME, PROTO, NEXT_BUFFER (see below), READONLY_BUFFER
_NEXT_BUFFER = 0x97


class _Machine:
    """The pickle machine's stack, with marks in it, and its memo."""

    def __init__(self, source: Read, start: int, size: int) -> None:
        self._source, self._start, self._size = source, start, size
        self._data = bytearray()
        self.position = 0
        self.full = False
        self.opcodes = 0
        self.uses: dict[tuple[Name, str], None] = {}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """The object at STOP. The opcodes that make nine tenths of a state dictionary are handled here, the rest in `_step`."""
        data, stack, memo, position = self._data, self._stack, self._memo, 0
        for self.opcodes in range(OPCODES):
            if position + _LONGEST > len(data):
                self._fetch(position + _LONGEST)
            if position >= len(data):
                self.position = position
                self._more(position + 1)
            op = data[position]
            if op == 0x71 and stack[-1] is not _MARK:  # BINPUT
                memo[data[position + 1]] = stack[-1]
                position += 2
            elif op == 0x72 and stack[-1] is not _MARK:  # LONG_BINPUT
                memo[int.from_bytes(data[position + 1 : position + 5], "little")] = stack[-1]
                position += 5
            elif op == 0x68:  # BINGET
                stack.append(memo[data[position + 1]])
                position += 2
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[int.from_bytes(data[position + 1 : position + 5], "little")])
                position += 5
            elif op == 0x4B:  # BININT1
                stack.append(data[position + 1])
                position += 2
            elif op == 0x28:  # MARK
                stack.append(_MARK)
                position += 1
            elif op == 0x94 and stack[-1] is not _MARK:  # MEMOIZE
                memo[len(memo)] = stack[-1]
                position += 1
            elif op == 0x2E:  # STOP
                self.position = position + 1
                return self._pop()
            else:
                self.position = position + 1
                self._step(op)
                position = self.position
        raise _Limit(f"it has more than {OPCODES} opcodes")

    def _fetch(self, end: int) -> None:
        """Has the bytes up to `end` at hand, where the pickle has so many."""
        while len(self._data) < min(end, self._size):
            data = self._source(self._start + len(self._data), min(_CHUNK, self._size - len(self._data)))
            if not data:
                return
            self._data += data

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            self._more(end)
        data = bytes(self._data[self.position : end])
        self.position = end
        return data

    def _more(self, end: int) -> None:
        if end > self._size:
            self.full = True
            raise _Mistake(f"it does not end within {self._size} bytes")
        self._fetch(end)
        if len(self._data) < end:
            raise _Mistake("it ends before its last opcode")

    def _line(self) -> str:
        found = self._data.find(b"\n", self.position)
        while found < 0:
            before = len(self._data)
            self._more(before + 1)
            found = self._data.find(b"\n", before)
        line = bytes(self._data[self.position : found]).decode("utf-8", "backslashreplace")
        self.position = found + 1
        return line

    def _number(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _step(self, op: int) -> None:
        stack = self._stack
        if op in _SINGLE:
            stack.append(_SINGLE[op])
        elif op in _FIXED:
            form = _FIXED[op]
            stack.append(form.unpack(self._take(form.size))[0])
        elif op in _TEXT:
            stack.append(self._take(self._number(_TEXT[op])).decode("utf-8", "surrogatepass"))
        elif op in _TUPLES:
            count = _TUPLES[op]
            items = tuple(stack[-count:])
            if len(items) != count or any(item is _MARK for item in items):
                raise _Mistake(f"its stack is short at byte {self.position}")
            stack[-count:] = [items]
        elif op in _IGNORED:
            self._take(_IGNORED[op])
            if op == _NEXT_BUFFER:
                stack.append(b"")
        else:
            _RARER.get(op, _Machine._unknown)(self)

    def _unknown(self) -> None:
        raise _Mistake(f"it has an unknown opcode at byte {self._start + self.position - 1}")

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise _Mistake(f"its stack is short at byte {self.position}")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _marked(self) -> list[Any]:
        """What lies above the last mark, which goes too."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise _Mistake(f"its stack has no mark at byte {self.position}")

    def _use(self, callee: object, how: str) -> None:
        if isinstance(callee, Name):
            self.uses[callee, how] = None
        elif how != "changed":
            self.uses[Name(None, "what another call gives"), how] = None

    def _import(self, module: object, name: object) -> None:
        plain = isinstance(module, str) and isinstance(name, str)
        found = Name(str(module), str(name)) if plain else Name(None, "a name that is computed")
        self._use(found, "named")
        self._stack.append(found)

    # ── the rarer opcodes ────────────────────────────────────────────────────────────────────────────────────────

    def _global(self) -> None:
        module = self._line()
        self._import(module, self._line())

    def _stack_global(self) -> None:
        name = self._pop()
        self._import(self._pop(), name)

    def _extension(self, width: int) -> None:
        found = Name(None, f"entry {self._number(width)} of copyreg's registry")
        self._use(found, "named")
        self._stack.append(found)

    def _call(self, how: str = "called") -> None:
        arguments = self._pop()
        callee = self._pop()
        self._use(callee, how)
        self._stack.append(Call(callee, arguments))

    def _new_with_keywords(self) -> None:
        keywords = self._pop()
        arguments = self._pop()
        callee = self._pop()
        self._use(callee, "made")
        self._stack.append(Call(callee, (arguments, keywords)))

    def _instance(self) -> None:
        module, name = self._line(), self._line()
        arguments = tuple(self._marked())
        self._import(module, name)
        callee = self._stack.pop()
        self._use(callee, "called")
        self._stack.append(Call(callee, arguments))

    def _object(self) -> None:
        callee, *arguments = self._marked()
        self._use(callee, "called")
        self._stack.append(Call(callee, tuple(arguments)))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        self._use(target, "changed")
        if isinstance(target, Call):
            target.state = state

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list) and not isinstance(target, Mapping):
            target.extend(items)
        elif isinstance(target, Call):
            if not isinstance(target.items, list):
                target.items = []
            target.items.extend(enumerate(items, len(target.items)))
        else:
            raise _Mistake(f"it appends to no list at byte {self.position}")

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        pairs = list(zip(items[::2], items[1::2]))
        if isinstance(target, Mapping):
            target.extend(pairs)
        elif isinstance(target, Call):
            if not isinstance(target.items, list):
                target.items = []
            target.items.extend(pairs)
        else:
            raise _Mistake(f"it sets an item of no dictionary at byte {self.position}")

    def _set_item(self) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def _add_items(self) -> None:
        items = self._marked()
        target = self._top()
        if not isinstance(target, list) or isinstance(target, Mapping):
            raise _Mistake(f"it adds to no set at byte {self.position}")
        target.extend(items)

    def _bytes(self, width: int) -> None:
        self._stack.append(self._take(self._number(width)))

    def _old_text(self, width: int) -> None:
        self._stack.append(self._take(self._number(width)).decode("latin-1"))

    def _long(self, width: int) -> None:
        data = self._take(self._number(width))
        self._stack.append(int.from_bytes(data, "little", signed=True) if len(data) <= _LONG_BYTES else b"")

    def _integer(self) -> None:
        line = self._line().rstrip("L")
        self._stack.append({"00": False, "01": True}.get(line, int(line) if len(line) <= 3 * _LONG_BYTES else b""))

    def _dictionary(self) -> None:
        items = self._marked()
        self._stack.append(Mapping(zip(items[::2], items[1::2])))

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_one(self) -> None:
        self._stack.pop()

    def _pop_marked(self) -> None:
        self._marked()

    def _get(self) -> None:
        self._stack.append(self._memo[int(self._line())])

    def _put(self) -> None:
        self._memo[int(self._line())] = self._top()


_RARER: dict[int, Callable[[_Machine], None]] = {
    ord("c"): _Machine._global,
    0x93: _Machine._stack_global,
    0x82: lambda machine: machine._extension(1),
    0x83: lambda machine: machine._extension(2),
    0x84: lambda machine: machine._extension(4),
    ord("R"): _Machine._call,
    0x81: lambda machine: machine._call("made"),
    0x92: _Machine._new_with_keywords,
    ord("i"): _Machine._instance,
    ord("o"): _Machine._object,
    ord("b"): _Machine._build,
    ord("a"): lambda machine: machine._append([machine._pop()]),
    ord("e"): lambda machine: machine._append(machine._marked()),
    ord("s"): _Machine._set_item,
    ord("u"): lambda machine: machine._set(machine._marked()),
    0x90: _Machine._add_items,
    0x91: lambda machine: machine._push(tuple(machine._marked())),
    0x8F: lambda machine: machine._push([]),
    ord("]"): lambda machine: machine._push([]),
    ord("l"): lambda machine: machine._push(list(machine._marked())),
    ord("}"): lambda machine: machine._push(Mapping()),
    ord("d"): _Machine._dictionary,
    ord("t"): lambda machine: machine._push(tuple(machine._marked())),
    ord("Q"): lambda machine: machine._push(Persistent(machine._pop())),
    ord("P"): lambda machine: machine._push(Persistent(machine._line())),
    ord("0"): _Machine._pop_one,
    ord("1"): _Machine._pop_marked,
    ord("2"): lambda machine: machine._push(machine._top()),
    ord("g"): _Machine._get,
    ord("p"): _Machine._put,
    ord("I"): _Machine._integer,
    ord("L"): _Machine._integer,
    ord("F"): lambda machine: machine._push(float(machine._line())),
    ord("S"): lambda machine: machine._push(machine._line()[1:-1]),
    ord("V"): lambda machine: machine._push(machine._line()),
    0x8A: lambda machine: machine._long(1),
    0x8B: lambda machine: machine._long(4),
    ord("B"): lambda machine: machine._bytes(4),
    ord("C"): lambda machine: machine._bytes(1),
    0x8E: lambda machine: machine._bytes(8),
    0x96: lambda machine: machine._bytes(8),
    ord("T"): lambda machine: machine._old_text(4),
    ord("U"): lambda machine: machine._old_text(1),
}
