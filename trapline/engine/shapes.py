"""Shapes on demand: which handlers exist, compiling the missing ones, and finding them again on disk.

A shape is compiled the first time its instruction is about to run, together with whatever else its page needs. Every batch is
one object file in the cache, after a line that says what it holds, so that the next process links instead of compiling.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trapline.engine.cache import ObjectCache
from trapline.engine.jit import Jit

if TYPE_CHECKING:
    from trapline.engine.compiler import Compiler

NATIVE = ".o"
"""What follows the symbol of a native function in the name of its object file."""
QUICK = ".quick"
"""What follows the name of an object that was made in haste."""


def batch_tag(numbers: list[int]) -> str:
    """A name for the shapes with these numbers."""
    return hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Batch:
    """Shapes that were compiled together: their numbers, the symbols of the native functions that they call, the object file."""

    numbers: list[int]
    natives: list[str]
    code: bytes

    @property
    def tag(self) -> str:
        """What its table is called after."""
        return batch_tag(self.numbers)

    @classmethod
    def unpack(cls, data: bytes) -> Batch:
        """From what `pack` made."""
        line, _, code = data.partition(b"\n")
        numbers, _, natives = line.decode().partition(";")
        return cls(list(map(int, numbers.split())), natives.split(), code)

    def pack(self) -> bytes:
        """For the cache."""
        return f"{' '.join(map(str, self.numbers))};{' '.join(self.natives)}\n".encode() + self.code


def needed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Those that have a shape that none before them has."""
    known: set[int] = set()
    for batch in batches:
        if not known.issuperset(batch.numbers):
            known.update(batch.numbers)
            yield batch


class ShapeTable:
    """Handlers and fill functions by shape number, shared by all engines of the process.

    `compiler()` gives the compiler, which is made when it is first needed: a process that finds all its code in the cache
    never imports the instruction set.
    """

    def __init__(self, count: int, jit: Jit, cache: ObjectCache, compiler: Callable[[], Compiler], suffix: str, haste: bool) -> None:
        """`suffix` of the names of batches; `haste`: somebody will make good code later."""
        self._haste = haste
        self._jit, self._cache, self._compiler, self._suffix = jit, cache, compiler, suffix
        self.handlers = (ctypes.c_uint64 * count)()
        self.fills = (ctypes.c_uint64 * count)()
        self._natives: set[str] = set()
        self.compiled = 0

    def load(self) -> None:
        """Link what earlier processes compiled; the runtime must be loaded."""
        names = self._cache.names()
        good = self._stored(name for name in names if name.endswith(self._suffix))
        quick = self._stored(name for name in names if name.endswith(self._suffix + QUICK))
        batches = list(needed([*good, *quick]))
        natives = self.stored_natives({symbol for batch in batches for symbol in batch.natives})
        usable = [batch for batch in batches if natives.keys() >= set(batch.natives)]
        self.link(natives, [batch.code for batch in usable])
        for batch in usable:
            self._enter(batch)
        self.compile([0])

    def _stored(self, names: Iterable[str]) -> list[Batch]:
        """Batches of the cache, the largest first."""
        stored = map(self._cache.get, names)
        return sorted((Batch.unpack(data) for data in stored if data is not None), key=lambda batch: -len(batch.numbers))

    # -- compiling -------------------------------------------------------------------------------------------------------
    def compile(self, numbers: Iterable[int]) -> None:
        """Compile the handlers of these shape numbers and enter them."""
        wanted = sorted({n for n in numbers if not self.handlers[n]})
        if not wanted:
            return
        text, natives = self._compiler().module(wanted)
        for symbol, function in natives.items():
            self._load_native(symbol, function)
        code = self._jit.compile_in_haste(text) if self._haste else self._jit.compile(text)
        batch = Batch(wanted, sorted(natives), code)
        self._cache.put(batch.tag + self._suffix + (QUICK if self._haste else ""), batch.pack())
        self._jit.load(batch.code)
        self._enter(batch)
        self.compiled += len(wanted)

    def _load_native(self, symbol: str, function: Any) -> None:
        """Make a native function callable from handlers: compiled apart, once."""
        if symbol in self._natives:
            return
        code = self._cache.get(symbol + NATIVE)
        if code is None:
            code = self._jit.compile(self._compiler().native_text(function))
            self._cache.put(symbol + NATIVE, code)
        self.link({symbol: code}, [])

    def stored_natives(self, symbols: Iterable[str]) -> dict[str, bytes]:
        """Object files of those native functions that are not linked yet, as far as the cache has them."""
        found = {symbol: self._cache.get(symbol + NATIVE) for symbol in symbols if symbol not in self._natives}
        return {symbol: code for symbol, code in found.items() if code is not None}

    def link(self, natives: dict[str, bytes], codes: Iterable[bytes]) -> None:
        """Link object files and, with them, native functions that they call."""
        self._jit.load(*natives.values(), *codes)
        self._natives.update(natives)

    def knows(self, natives: Iterable[str]) -> bool:
        """Whether all of these native functions are linked."""
        return self._natives.issuperset(natives)

    def _enter(self, batch: Batch) -> None:
        count = len(batch.numbers)
        table = self._jit.table(f"shapes_{batch.tag}", 2 * count)
        for number, handler, fill in zip(batch.numbers, table[:count], table[count:], strict=True):
            self.fills[number] = fill
            self.handlers[number] = handler
