"""Shapes on demand: which handlers exist, compiling the missing ones, and finding them again on disk.

A shape is compiled the first time its instruction is about to run, together with whatever else its page needs. Every batch is
one object file in the cache; its table of shape numbers lies beside it, so that the next process links instead of compiling.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from trapline.engine.jit import Jit, ObjectCache

if TYPE_CHECKING:
    from trapline.engine.compiler import Compiler


class ShapeTable:
    """Handlers and fill functions by shape number, shared by all engines of the process.

    `compiler()` gives the compiler, which is made when it is first needed: a process that finds all its code in the cache
    never imports the instruction set.
    """

    def __init__(self, count: int, jit: Jit, cache: ObjectCache, compiler: Callable[[], Compiler], suffix: str) -> None:
        self._jit, self._cache, self._compiler, self._suffix = jit, cache, compiler, suffix
        self.handlers = (ctypes.c_uint64 * count)()
        self.fills = (ctypes.c_uint64 * count)()
        self._natives: set[str] = set()
        self.compiled = 0

    def load(self) -> None:
        """Link what earlier processes compiled; the runtime must be loaded."""
        for name in self._cache.names(self._suffix + ".json"):
            self._load_batch(name.removesuffix(".json"))
        self.compile([0])

    # -- compiling -------------------------------------------------------------------------------------------------------
    def compile(self, numbers: Iterable[int]) -> None:
        """Compile the handlers of these shape numbers and enter them."""
        wanted = sorted({n for n in numbers if not self.handlers[n]})
        if not wanted:
            return
        text, natives = self._compiler().module(wanted)
        missing = {s: f for s, f in natives.items() if s not in self._natives}
        name = hashlib.sha256(repr(wanted).encode()).hexdigest()[:16] + self._suffix
        if missing:
            self._load_natives(missing)
        data = self._jit.compile(text)
        self._cache.put(name, data)
        index = {"shapes": wanted, "natives": sorted(natives)}
        self._cache.put(name + ".json", json.dumps(index).encode())
        self._jit.load(data)
        self._enter(wanted, name)
        self.compiled += len(wanted)

    def _load_natives(self, functions: dict[str, Any]) -> None:
        """Make native functions callable from handlers: compiled apart, once."""
        for symbol, function in functions.items():
            name = symbol + ".o"
            data = self._cache.get(name)
            if data is None:
                data = self._jit.compile(self._compiler().native_text(function))
                self._cache.put(name, data)
            self._jit.load(data)
            self._jit.define(symbol, self._jit.address(symbol))
            self._natives.add(symbol)

    def link_natives(self, symbols: Iterable[str]) -> bool:
        """Link native functions from the cache; whether all were there."""
        for symbol in symbols:
            if symbol in self._natives:
                continue
            stored = self._cache.get(symbol + ".o")
            if stored is None:
                return False
            self._jit.load(stored)
            self._jit.define(symbol, self._jit.address(symbol))
            self._natives.add(symbol)
        return True

    def _load_batch(self, name: str) -> None:
        meta, data = self._cache.get(name + ".json"), self._cache.get(name)
        if meta is None or data is None:
            return
        index = json.loads(meta)
        if not self.link_natives(index["natives"]):
            return
        self._jit.load(data)
        self._enter(index["shapes"], name)

    def _enter(self, numbers: list[int], name: str) -> None:
        tag = name.partition(".")[0]
        count = len(numbers)
        handlers = self._jit.table(f"handlers_{tag}", count)
        fills = self._jit.table(f"fills_{tag}", count)
        for number, handler, fill in zip(numbers, handlers, fills, strict=True):
            self.fills[number] = fill
            self.handlers[number] = handler
