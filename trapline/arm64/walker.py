"""The walker: runs one recorded instruction on a `CpuState` in plain Python.

It is the definition that compiled code is tested against, and slow. Memory and system operations are answered by the caller.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

from trapline.arm64 import effects as fx
from trapline.arm64.record import Recorder
from trapline.arm64.state import CpuState
from trapline.bits import Bits
from trapline.bits.evaluate import Evaluator


class Memory(Protocol):
    """Memory as the walker sees it: little-endian integers at virtual addresses; faults are exceptions of the caller's own."""

    def load(self, address: int, size: int) -> int: ...

    def store(self, address: int, size: int, value: int) -> None: ...


SystemCall = Callable[..., int | None]
"""Answers `System`, `Raise` and `Barrier` effects: `(kind, name, *args)`."""


class Walker:
    """Executes recordings against one CPU state."""

    def __init__(self, state: CpuState, memory: Memory, system: SystemCall) -> None:
        self.state, self.memory, self.system = state, memory, system
        self._base = ctypes.addressof(state)
        self.monitor: tuple[int, int, int] | None = None

    def _read(self, offset: int, width: int) -> int:
        return int.from_bytes(ctypes.string_at(self._base + offset, width // 8), "little")

    def _write(self, offset: int, width: int, value: int) -> None:
        ctypes.memmove(self._base + offset, value.to_bytes(width // 8, "little"), width // 8)

    def run(self, recording: Recorder) -> None:
        """Perform one instruction at `state.pc`, and advance it."""
        pc = self.state.pc

        def leaf(node: Bits) -> int:
            if node.op == "state":
                return self._read(node.attr, node.width)
            if node.op == "pc":
                return pc
            raise ValueError(f"unanswered leaf {node!r}")

        value = Evaluator(leaf)
        next_pc = pc + 4
        for effect in recording.effects:
            if isinstance(effect, fx.Branch):
                if effect.when is None or value(effect.when):
                    next_pc = value(effect.target)
                continue
            result = _ANSWERS[type(effect)](self, effect, value)
            if effect.result is not None and result is not None:
                value.set(effect.result, result & (1 << effect.result.width) - 1)
        writes = [
            (w.offset if isinstance(w.offset, int) else value(w.offset), w.storage, value(w.value)) for w in recording.writes
        ]
        for offset, storage, new in writes:
            self._write(offset, storage, new)
        self.state.pc = next_pc & (1 << 64) - 1

    def _load(self, e: fx.Load, value: Evaluator) -> int:
        return self.memory.load(value(e.addr), e.width // 8)

    def _store(self, e: fx.Store, value: Evaluator) -> None:
        self.memory.store(value(e.addr), e.value.width // 8, value(e.value))

    def _update(self, e: fx.Update, value: Evaluator) -> int:
        address, size = value(e.addr), e.width // 8
        old = self.memory.load(address, size)
        assert e.result is not None
        value.set(e.result, old)
        self.memory.store(address, size, value(e.new))
        return old

    def _compare_swap(self, e: fx.CompareSwap, value: Evaluator) -> int:
        address, size = value(e.addr), e.expected.width // 8
        old = self.memory.load(address, size)
        if old == value(e.expected):
            self.memory.store(address, size, value(e.new))
        return old

    def _load_exclusive(self, e: fx.LoadExclusive, value: Evaluator) -> int:
        address = value(e.addr)
        data = self.memory.load(address, e.width // 8)
        self.monitor = (address, e.width // 8, data)
        return data

    def _store_exclusive(self, e: fx.StoreExclusive, value: Evaluator) -> int:
        address, size = value(e.addr), e.value.width // 8
        marked, self.monitor = self.monitor, None
        if marked is None or marked[:2] != (address, size) or self.memory.load(address, size) != marked[2]:
            return 1
        self.memory.store(address, size, value(e.value))
        return 0

    def _system(self, e: fx.System, value: Evaluator) -> int | None:
        if e.when is not None and not value(e.when):
            return None
        if e.name == "clrex":
            self.monitor = None
        return self.system("system", e.name, *(value(a) for a in e.args))

    def _query(self, e: fx.Query, value: Evaluator) -> int | None:
        result = e.function(self.state, *(value(a) for a in e.args))
        return None if result is None else int(result)

    def _raise(self, e: fx.Raise, value: Evaluator) -> int | None:
        return self.system("raise", e.kind, value(e.imm))

    def _barrier(self, e: fx.Barrier, value: Evaluator) -> int | None:
        return self.system("barrier", e.kind, e.option)


_ANSWERS: dict[type, Callable[[Walker, Any, Evaluator], int | None]] = {
    fx.Load: Walker._load,
    fx.Store: Walker._store,
    fx.Update: Walker._update,
    fx.CompareSwap: Walker._compare_swap,
    fx.LoadExclusive: Walker._load_exclusive,
    fx.StoreExclusive: Walker._store_exclusive,
    fx.System: Walker._system,
    fx.Query: Walker._query,
    fx.Raise: Walker._raise,
    fx.Barrier: Walker._barrier,
}
