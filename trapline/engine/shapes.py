"""Shapes on demand: which handlers exist, compiling the missing ones, and finding them again on disk.

A shape is compiled the first time its instruction is about to run, together with whatever else its page needs. Every batch is
one object file in the cache; its table of shape numbers lies beside it, so that the next process links instead of compiling.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from trapline.arm64.insn import InstructionSet
from trapline.arm64.record import Recorder
from trapline.bits.native import emit_module
from trapline.bits.to_llvm import declare_intrinsics
from trapline.engine.handler import Handler
from trapline.engine.jit import Jit, ObjectCache
from trapline.engine.predecode import PredecoderEmitter, Shape, ShapeSpace, direct_branch, fill_text

METADATA = "!0 = !{!\"branch_weights\", i32 100000, i32 1}\n!1 = !{!\"branch_weights\", i32 1, i32 100000}\n"


class ShapeTable:
    """Handlers and fill functions by shape number, shared by all engines of the process."""

    def __init__(
        self, isa: InstructionSet, jit: Jit, cache: ObjectCache, slot: Callable[[str], int], enabled: Callable[[str], bool],
        counting: bool = False,
    ) -> None:  # fmt: skip
        self.space = ShapeSpace(isa)
        self._isa, self._jit, self._cache, self._slot, self._enabled = isa, jit, cache, slot, enabled
        self._counting = counting
        self._suffix = ".counting" if counting else ".shapes"
        self.handlers = (ctypes.c_uint64 * self.space.count)()
        self.fills = (ctypes.c_uint64 * self.space.count)()
        self._natives: set[str] = set()
        self.compiled = 0

    def load(self) -> None:
        """Link what earlier processes compiled; the runtime must be loaded."""
        for name in self._cache.names(self._suffix + ".json"):
            self._load_batch(name.removesuffix(".json"))
        self.compile([0])

    def decoder_text(self) -> str:
        """IR of the predecoder."""
        direct = {}
        for insn in self.space.insns:
            shape = next((k for k in range(1 << insn.shape_bits) if insn.allows(k)), None)
            delta = direct_branch(insn, shape, self._slot) if shape is not None else None
            if delta is not None:
                direct[insn.name + insn.pattern.text] = delta
        return PredecoderEmitter(self.space, self._isa, direct).text()

    # -- compiling -------------------------------------------------------------------------------------------------------
    def compile(self, numbers: Iterable[int]) -> None:
        """Compile the handlers of these shape numbers and enter them."""
        wanted = sorted({n for n in numbers if not self.handlers[n]})
        if not wanted:
            return
        text, natives = self._module(wanted)
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
                data = self._jit.compile(emit_module([function], ""))
                self._cache.put(name, data)
            self._jit.load(data)
            self._jit.define(symbol, self._jit.address(symbol))
            self._natives.add(symbol)

    def _load_batch(self, name: str) -> None:
        meta, data = self._cache.get(name + ".json"), self._cache.get(name)
        if meta is None or data is None:
            return
        index = json.loads(meta)
        for symbol in index["natives"]:
            if symbol not in self._natives:
                stored = self._cache.get(symbol + ".o")
                if stored is None:
                    return
                self._jit.load(stored)
                self._jit.define(symbol, self._jit.address(symbol))
                self._natives.add(symbol)
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

    def _module(self, numbers: list[int]) -> tuple[str, dict[str, Any]]:
        functions: list[str] = []
        externs: set[str] = set()
        intrinsics: set[str] = set()
        natives: dict[str, Any] = {}
        fill_names: dict[tuple[Any, ...], str] = {}
        fills: list[str] = []
        for number in numbers:
            handler = self._handler(number)
            functions.append(handler.text())
            externs |= handler.externs
            intrinsics |= handler.emit.intrinsics
            natives |= handler.emit.natives
            slots = [(s.offset, s.size, s.expr) for s in handler.layout.slots.values()]
            key = tuple((offset, size, expr.key) for offset, size, expr in slots)
            if key not in fill_names:
                fill_names[key] = f"fill{len(fill_names)}"
                text, used, more = fill_text(fill_names[key], slots)
                functions.append(text.replace("define void", "define internal void"))
                natives |= used
                intrinsics |= more
            fills.append(fill_names[key])
        tag = hashlib.sha256(repr(numbers).encode()).hexdigest()[:16]
        count = len(numbers)
        tables = (
            f"@handlers_{tag} = constant [{count} x ptr] [{', '.join(f'ptr @h{n}' for n in numbers)}]\n"
            f"@fills_{tag} = constant [{count} x ptr] [{', '.join(f'ptr @{f}' for f in fills)}]\n"
        )
        declared = [f.declare() for f in natives.values()]
        parts = [tables, *functions, *sorted(externs), *declared, *declare_intrinsics(intrinsics), METADATA]
        return "\n".join(parts), natives

    def _handler(self, number: int) -> Handler:
        shape = self.space.resolve(number)
        recording = self._record(shape)
        return Handler(f"h{number}", recording, shape is not None and shape.far, self._counting)

    def _record(self, shape: Shape | None) -> Recorder:
        if shape is None or (shape.insn.feature is not None and not self._enabled(shape.insn.feature)):
            recorder = Recorder(self._slot)
            recorder.undefined()
            return recorder
        return shape.insn.record_shape(shape.number, self._slot)


