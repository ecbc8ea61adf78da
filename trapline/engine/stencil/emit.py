"""Stencils: what a handler does, as machine code with holes.

A handler reads its operands from the instruction's record and jumps to the handler of the next one. Its stencil has symbols there
that nobody defines: the assembler (`assemble.py`) copies the code, fills in what the record says, and lays the next instruction's
behind it. LLVM knows from a symbol's range how small an immediate may be. What a stencil cannot do (a TLB miss, rounding that the
host must not decide) it leaves to the handler, before anything has changed.

The idea is Xu and Kjolstad's "Copy-and-Patch Compilation" (OOPSLA 2021).
"""

from __future__ import annotations

from typing import Any

from trapline.arm64 import effects as fx
from trapline.arm64.record import Recorder
from trapline.bits import Bits
from trapline.bits.to_llvm import LIKELY, METADATA, UNLIKELY, Emitter, declare_intrinsics
from trapline.engine.handler import CC, STATE_FUNCTIONS, Handler
from trapline.engine.memory import MEMORY_EFFECTS
from trapline.engine.slots import Slot, SlotLayout

NATIVE = "native:"
"""Before the name of a native function: the hole for its address."""
PARAMETERS = "ptr %cpu, ptr %dead, ptr %tlb, i64 %aux"
ELSEWHERE = {
    "trapline_poll": "poll",
    "trapline_goto": "goto",
    "trapline_goto_landing": "landing",
}
"""Functions of the glue that stencils continue in, and the holes for them; whatever else a handler would call is its own business."""

ANYTHING = (-1, -1)
"""The range of a hole that may hold any 64 bits."""

OPAQUE = 'call ptr asm "", "=r,0"(ptr'
"""An address that LLVM knows nothing of, from an empty piece of assembly: without it, it would count on 32-bit distances."""


class Unsuited(Exception):
    """A shape without a stencil."""


class Stencil(Handler):
    """Emits the stencil of a shape whose handler has been emitted, and found a place for its operands."""

    def __init__(self, name: str, recording: Recorder, far: bool, layout: SlotLayout) -> None:
        super().__init__(name, recording, far)
        self.careful, self.layout = False, layout
        self.emit = Emitter(self._leaf, decline="declined")
        self.holes: dict[str, tuple[int, int]] = {"record": ANYTHING}
        """Symbols and the ranges of their values."""
        self.called: dict[str, Any] = {}
        """Native functions by symbol: the handler's, so they are there whenever a record has the handler."""

    # -- holes -----------------------------------------------------------------------------------------------------------
    def _hole(self, symbol: str, low: int, high: int, width: int) -> str:
        self.holes[symbol] = (low, high)
        if width > 64:
            return self.emit.let(f"zext i64 {self._hole(symbol, low, high, 64)} to i{width}")
        if (low, high) == ANYTHING or high > 1 << 31:
            return self.emit.let(f"ptrtoint ptr {self.emit.let(f'{OPAQUE} @{symbol})')} to i{width}")
        return self.emit.let(f"ptrtoint ptr @{symbol} to i{width}")

    def _slot(self, slot: Slot, width: int) -> str:
        bits = 8 * slot.size
        low = -(1 << bits - 1) if slot.signed else 0
        limits = ANYTHING if slot.size == 8 else (low, low + (1 << bits))
        return self._hole(slot_symbol("slot", slot), *limits, width)

    def _state_pointer(self, offset: int | Bits) -> str:
        if isinstance(offset, int) or offset.op != "decoded":
            return super()._state_pointer(offset)
        place = self._slot(self.layout.place(offset), 64)
        return self.emit.let(f"getelementptr i8, ptr %cpu, i64 {place}")

    def _pc(self) -> str:
        return self.emit.let(f"add i64 {self._load_field('page_va', 64)}, {self._hole('offset', 0, 4096, 64)}")

    # -- control ---------------------------------------------------------------------------------------------------------
    def _tail(self, function: str, record: str = "%rec", aux: str = "poison") -> None:
        hole = ELSEWHERE.get(function)
        if hole is None:
            self._give_up()
            return
        self.emit.add(f"musttail call {CC} void @{hole}(ptr %cpu, ptr {record}, ptr %tlb, i64 {aux})")
        self.emit.add("ret void")

    def _give_up(self) -> None:
        self.emit.add(f"musttail call {CC} void @slow(ptr %cpu, ptr poison, ptr %tlb, i64 poison)")
        self.emit.add("ret void")

    def _next(self, poll: bool = False) -> None:
        self.emit.add(f"musttail call {CC} void @next(ptr %cpu, ptr poison, ptr %tlb, i64 poison)")
        self.emit.add("ret void")

    def _target_record(self, branch: fx.Branch) -> str:
        if isinstance(branch.delta, int):
            return super()._target_record(branch)
        symbol = slot_symbol("target", self._delta_slot(branch))
        self.holes[symbol] = ANYTHING
        return self.emit.let(f"{OPAQUE} @{symbol})")

    # -- the rest --------------------------------------------------------------------------------------------------------
    def _system(self, e: fx.System) -> None:
        if e.when is None:
            super()._system(e)
            return
        trap, go = self._label("trap"), self._label("granted")
        self.emit.add(f"br i1 {self.emit(e.when)}, label %{trap}, label %{go}")
        self.emit.add(f"{trap}:")
        self._give_up()
        self.emit.add(f"{go}:")

    def _query(self, e: fx.Query) -> None:
        emit, fn = self.emit, e.function
        self.called[fn.symbol] = fn
        hole = f'"{NATIVE}{fn.symbol}"'
        self.holes[hole] = ANYTHING
        function = emit.let(f"{OPAQUE} @{hole})")
        args = ", ".join(["ptr %cpu"] + [f"i{a.width} {emit(a)}" for a in e.args])
        if fn.ret is None:
            emit.add(f"call void {function}({args})")
            return
        assert e.result is not None
        emit.set(e.result, emit.let(f"call i{fn.ret.width} {function}({args})"))

    # -- the function ----------------------------------------------------------------------------------------------------
    def text(self) -> str:
        """IR of the stencil. Unsuited if the shape must be left to its handler."""
        recording = self.recording
        if recording.after or not all(map(_suits, recording.effects)):
            raise Unsuited
        slots = len(self.layout.slots)
        text = super().text().replace("define internal", "define dso_local")
        if len(self.layout.slots) != slots or self.externs or self.emit.natives:
            raise Unsuited
        head, _, body = text.partition("entry:\n")
        head = head.replace("ptr %rec,", "ptr %dead,").replace(") {", ") optsize {")
        body = body.removesuffix("}\n").replace(f", {LIKELY}", "").replace(f", {UNLIKELY}", "")  # or ways out get blocks of their own
        if self.emit.declined:
            self.emit.lines.clear()
            self.emit.add("declined:")
            self._give_up()
            body += "\n".join(self.emit.lines) + "\n"
        return f"{head}entry:\n%rec = getelementptr i8, ptr @record, i64 0\n{body}}}\n"


def _suits(effect: fx.Effect) -> bool:
    """Whether a stencil can do this: what the handler does without a runtime that may have other plans afterwards."""
    if isinstance(effect, fx.System):
        return effect.when is not None or effect.name in STATE_FUNCTIONS
    return isinstance(effect, (*MEMORY_EFFECTS, fx.Branch, fx.Query)) or isinstance(effect, fx.Barrier) and effect.kind == "dmb"


def slot_symbol(kind: str, slot: Slot) -> str:
    """A hole for what a slot of the record says."""
    return f"{kind}_{slot.offset}_{slot.size}_{int(slot.signed)}"


def _special() -> str:
    """IR of the stencils that belong to no shape (template.SPECIAL)."""

    def function(name: str, target: str, record: str) -> str:
        call = f"musttail call {CC} void %to(ptr %cpu, ptr {record}, ptr %tlb, i64 %aux)"
        return f"define dso_local {CC} void @{name}({PARAMETERS}) {{\n{target}\n{call}\nret void\n}}\n"

    return (
        function("leave", f"%at = {OPAQUE} @record)\n%to = load ptr, ptr %at", "%at")
        + function("slow_", f"%to = {OPAQUE} @plain)", "@record")
        + function("far", f"%to = {OPAQUE} @function)", "%dead")
    )


def module(functions: list[Stencil], texts: list[str]) -> str:
    """A module of stencils."""
    holes = {"record": ANYTHING, "plain": ANYTHING, "function": ANYTHING}
    intrinsics: set[str] = set()
    for stencil in functions:
        holes |= stencil.holes
        intrinsics |= stencil.emit.intrinsics
    ranges = sorted(set(holes.values()))
    lines = [
        f"@{symbol} = extern_weak global i8, !absolute_symbol !{10 + ranges.index(limits)}"  # weak: it may be 0, and equal another
        for symbol, limits in sorted(holes.items())
    ]
    lines += [f"!{10 + k} = !{{i64 {low}, i64 {high}}}" for k, (low, high) in enumerate(ranges)]
    lines += [f"declare {CC} void @{hole}(ptr, ptr, ptr, i64)" for hole in ("next", "slow", *ELSEWHERE.values())]
    return "\n".join([*lines, _special(), *texts, *declare_intrinsics(intrinsics), METADATA])

