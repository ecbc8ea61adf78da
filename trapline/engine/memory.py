"""Memory accesses of handlers: the inline TLB probe, and what happens beside it."""

from __future__ import annotations

from trapline.arm64 import effects as fx
from trapline.arm64.record import Recorder
from trapline.bits import Bits
from trapline.bits.to_llvm import LIKELY, REAL, Emitter
from trapline.engine.state import TLB_BITS, EngineState, TlbEntry

WRITE, ATOMIC, UNPRIVILEGED, ALIGNED, UPDATE = 0x100, 0x200, 0x400, 0x800, 0x1000
PARTS_SHIFT = 16
"""Flags of the `meta` argument of slow memory paths; the low byte is the access size in bytes, and from PARTS_SHIFT on stands
log2 of the number of elements."""

MEMORY_EFFECTS = (fx.Load, fx.Store, fx.Update, fx.CompareSwap, fx.LoadExclusive, fx.StoreExclusive)
"""Effects that access memory."""


class MemoryAccess:
    """The part of a handler that emits loads, stores and atomic accesses."""

    emit: Emitter
    recording: Recorder
    externs: set[str]
    careful: bool
    """Whether slow paths are called in place, or the instruction is given up."""

    def _field(self, offset: int, base: str = "%cpu") -> str:
        """A pointer to a field of the vCPU."""
        raise NotImplementedError

    def _load_field(self, field: str, width: int) -> str:
        """The value of a field."""
        raise NotImplementedError

    def _store_field(self, field: str, width: int, value: str) -> None:
        """Write a field."""
        raise NotImplementedError

    def _label(self, hint: str) -> str:
        """A fresh label."""
        raise NotImplementedError

    def _tail(self, function: str, record: str = "%rec", aux: str = "poison") -> None:
        """Leave for a function of the glue."""
        raise NotImplementedError

    def _give_up(self) -> None:
        """Leave the instruction undone."""
        raise NotImplementedError

    def _probe(self, addr: str, size: int, write: bool, access: fx.Access) -> tuple[str, str, str]:
        """Look `addr` up in the data TLB. Returns (hit condition, host pointer, meta); the pointer is valid on a hit."""
        emit = self.emit
        tlb = "%tlb"
        if access.unprivileged:
            tlb = self.emit.let(f"load ptr, ptr {self._field(EngineState.tlb_user.offset)}")
        entry = self._tlb_entry(addr, tlb)
        field = TlbEntry.write_tag if write else TlbEntry.read_tag
        tag = emit.let(f"load i64, ptr {self._field(field.offset, entry)}")
        if access.aligned:
            page = emit.let(f"and i64 {addr}, {-4096 | size - 1}")
        else:
            last = emit.let(f"add i64 {addr}, {size - 1}") if size > 1 else addr
            page = emit.let(f"and i64 {last}, -4096")
        hit = emit.let(f"icmp eq i64 {tag}, {page}")
        addend = emit.let(f"load i64, ptr {self._field(TlbEntry.addend.offset, entry)}")
        host = emit.let(f"add i64 {addr}, {addend}")
        meta = size | (WRITE if write else 0) | (UNPRIVILEGED if access.unprivileged else 0) | (ALIGNED if access.aligned else 0)
        meta |= access.parts.bit_length() - 1 << PARTS_SHIFT
        return hit, emit.let(f"inttoptr i64 {host} to ptr"), str(meta)

    def _tlb_entry(self, addr: str, tlb: str) -> str:
        """The entry where the translation of an address would be."""
        emit = self.emit
        shifted = emit.let(f"lshr i64 {addr}, 7")
        index = emit.let(f"and i64 {shifted}, {((1 << TLB_BITS) - 1) << 5}")
        return emit.let(f"getelementptr i8, ptr {tlb}, i64 {index}")

    def _translate(self, addr: str, size: int, write: bool, access: fx.Access, atomic: int = 0) -> str:
        """A host pointer for the access, through the TLB or the slow path; a fault leaves the handler.

        `atomic` is ATOMIC for an exclusive store, ATOMIC | UPDATE for what both reads and writes.
        """
        emit = self.emit
        hit, fast, meta = self._probe(addr, size, write, access)
        done, slow, failed, merged = (self._label(x) for x in ("hit", "slow", "abort", "memory"))
        emit.add(f"br i1 {hit}, label %{done}, label %{slow}, {LIKELY}")
        emit.add(f"{slow}:")
        if not self.careful:
            self._give_up()
            emit.add(f"{done}:")
            return fast
        self.externs.add("declare i64 @trapline_slow_host(ptr, ptr, i64, i32)")
        flags = int(meta) | atomic
        found = emit.let(f"call i64 @trapline_slow_host(ptr %cpu, ptr %rec, i64 {addr}, i32 {flags})")
        bad = emit.let(f"icmp eq i64 {found}, 0")
        pointer = emit.let(f"inttoptr i64 {found} to ptr")
        emit.add(f"br i1 {bad}, label %{failed}, label %{merged}")
        emit.add(f"{failed}:")
        self._tail("trapline_resume")
        emit.add(f"{done}:")
        emit.add(f"br label %{merged}")
        emit.add(f"{merged}:")
        return emit.let(f"phi ptr [ {fast}, %{done} ], [ {pointer}, %{slow} ]")

    def _load(self, e: fx.Load) -> None:
        pointer = self._translate(self.emit(e.addr), e.width // 8, False, e.access)
        assert e.result is not None
        self.emit.set(e.result, self._read_memory(pointer, e.width))
        if e.access.acquire:
            self.emit.add("fence acquire")

    def _read_memory(self, pointer: str, width: int, align: int = 1) -> str:
        if width == 128:
            pair = self.emit.let(f"load <2 x i64>, ptr {pointer}, align {align}")
            return self.emit.let(f"bitcast <2 x i64> {pair} to i128")
        if self.recording.uses_fp and width in REAL:  # most likely a number, which then needs not pass by a general register
            number = self.emit.let(f"load {REAL[width]}, ptr {pointer}, align {align}")
            return self.emit.let(f"bitcast {REAL[width]} {number} to i{width}")
        return self.emit.let(f"load i{width}, ptr {pointer}, align {align}")

    def _store(self, e: fx.Store) -> None:
        emit = self.emit
        size = e.value.width // 8
        addr, value = emit(e.addr), emit(e.value)
        if e.access.release:
            emit.add("fence release")
        hit, fast, meta = self._probe(addr, size, True, e.access)
        done, slow, failed, merged = (self._label(x) for x in ("hit", "slow", "abort", "stored"))
        emit.add(f"br i1 {hit}, label %{done}, label %{slow}, {LIKELY}")
        emit.add(f"{slow}:")
        if not self.careful:
            self._give_up()
            emit.add(f"{done}:")
            self._put(fast, value, size)
            if e.access.release:
                emit.add("fence seq_cst")
            return
        low = emit.let(f"trunc i128 {value} to i64") if size == 16 else "0" if size == 64 else value
        low = low if size >= 8 else emit.let(f"zext i{8 * size} {value} to i64")
        high = "0"
        if size == 16:
            high = emit.let(f"trunc i128 {emit.let(f'lshr i128 {value}, 64')} to i64")
        self.externs.add("declare i32 @trapline_slow_store(ptr, ptr, i64, i64, i64, i32)")
        call = f"call i32 @trapline_slow_store(ptr %cpu, ptr %rec, i64 {addr}, i64 {low}, i64 {high}, i32 {meta})"
        ok = emit.let(f"icmp ne i32 {emit.let(call)}, 0")
        emit.add(f"br i1 {ok}, label %{merged}, label %{failed}")
        emit.add(f"{failed}:")
        self._tail("trapline_resume")
        emit.add(f"{done}:")
        self._put(fast, value, size)
        emit.add(f"br label %{merged}")
        emit.add(f"{merged}:")
        if e.access.release:
            emit.add("fence seq_cst")

    def _put(self, pointer: str, value: str, size: int) -> None:
        """Store `size` bytes at a host address; 64 of them are zeroes."""
        emit = self.emit
        if size == 64:
            emit.add(f"store <8 x i64> zeroinitializer, ptr {pointer}, align 1")
        elif size == 16:
            pair = emit.let(f"bitcast i128 {value} to <2 x i64>")
            emit.add(f"store <2 x i64> {pair}, ptr {pointer}, align 1")
        else:
            emit.add(f"store i{8 * size} {value}, ptr {pointer}, align 1")

    def _update(self, e: fx.Update) -> None:
        emit = self.emit
        assert e.result is not None
        pointer = self._translate(emit(e.addr), e.width // 8, True, e.access, ATOMIC | UPDATE)
        t = f"i{e.width}"
        new = e.new
        direct = _ATOMICS.get(new.op) if new.op != "state" else None
        if direct and new.args[0] is e.result and new.esize == e.width:
            old = emit.let(f"atomicrmw {direct} ptr {pointer}, {t} {emit(new.args[1])} seq_cst")
            emit.set(e.result, old)
            return
        begin, loop, done = self._label("begin"), self._label("retry"), self._label("updated")
        for operand in _operands(new, e.result):
            emit(operand)
        emit.add(f"br label %{begin}")
        emit.add(f"{begin}:")
        first = emit.let(f"load {t}, ptr {pointer}, align {e.width // 8}")
        emit.add(f"br label %{loop}")
        emit.add(f"{loop}:")
        old = emit.name()
        again = emit.name()
        emit.add(f"{old} = phi {t} [ {first}, %{begin} ], [ {again}, %{loop} ]")
        emit.set(e.result, old)
        value = emit(new)
        pair = emit.let(f"cmpxchg ptr {pointer}, {t} {old}, {t} {value} seq_cst seq_cst, align {e.width // 8}")
        emit.add(f"{again} = extractvalue {{ {t}, i1 }} {pair}, 0")
        ok = emit.let(f"extractvalue {{ {t}, i1 }} {pair}, 1")
        emit.add(f"br i1 {ok}, label %{done}, label %{loop}")
        emit.add(f"{done}:")

    def _compare_swap(self, e: fx.CompareSwap) -> None:
        emit = self.emit
        assert e.result is not None
        t = f"i{e.expected.width}"
        expected, new = emit(e.expected), emit(e.new)
        pointer = self._translate(emit(e.addr), e.expected.width // 8, True, e.access, ATOMIC | UPDATE)
        pair = emit.let(f"cmpxchg ptr {pointer}, {t} {expected}, {t} {new} seq_cst seq_cst, align {e.expected.width // 8}")
        emit.set(e.result, emit.let(f"extractvalue {{ {t}, i1 }} {pair}, 0"))

    def _load_exclusive(self, e: fx.LoadExclusive) -> None:
        emit = self.emit
        assert e.result is not None
        addr = emit(e.addr)
        pointer = self._translate(addr, e.width // 8, False, e.access)
        data = self._read_memory(pointer, e.width)
        emit.set(e.result, data)
        self._store_field("excl_valid", 64, "1")
        self._store_field("excl_addr", 64, addr)
        self._store_field("excl_size", 64, str(e.width // 8))
        low = data if e.width == 64 else emit.let(f"{'trunc' if e.width > 64 else 'zext'} i{e.width} {data} to i64")
        self._store_field("excl_lo", 64, low)
        if e.width == 128:
            self._store_field("excl_hi", 64, emit.let(f"trunc i128 {emit.let(f'lshr i128 {data}, 64')} to i64"))
        emit.add("fence acquire")

    def _store_exclusive(self, e: fx.StoreExclusive) -> None:
        emit = self.emit
        assert e.result is not None
        width = e.value.width
        t = f"i{width}"
        addr, value = emit(e.addr), emit(e.value)
        pointer = self._translate(addr, width // 8, True, e.access, ATOMIC)
        valid = emit.let(f"icmp ne i64 {self._load_field('excl_valid', 64)}, 0")
        same = emit.let(f"icmp eq i64 {self._load_field('excl_addr', 64)}, {addr}")
        fits = emit.let(f"icmp eq i64 {self._load_field('excl_size', 64)}, {width // 8}")
        held = emit.let(f"and i1 {emit.let(f'and i1 {valid}, {same}')}, {fits}")
        self._store_field("excl_valid", 64, "0")
        before, attempt, done = self._label("monitor"), self._label("attempt"), self._label("status")
        emit.add(f"br label %{before}")
        emit.add(f"{before}:")
        emit.add(f"br i1 {held}, label %{attempt}, label %{done}")
        emit.add(f"{attempt}:")
        low = self._load_field("excl_lo", 64)
        if width == 128:
            high = self._load_field("excl_hi", 64)
            wide = emit.let(f"shl i128 {emit.let(f'zext i64 {high} to i128')}, 64")
            expected = emit.let(f"or i128 {wide}, {emit.let(f'zext i64 {low} to i128')}")
        else:
            expected = low if width == 64 else emit.let(f"trunc i64 {low} to {t}")
        pair = emit.let(f"cmpxchg ptr {pointer}, {t} {expected}, {t} {value} seq_cst seq_cst, align {width // 8}")
        ok = emit.let(f"extractvalue {{ {t}, i1 }} {pair}, 1")
        failed = emit.let(f"xor i1 {ok}, true")
        emit.add(f"br label %{done}")
        emit.add(f"{done}:")
        status = emit.let(f"phi i1 [ true, %{before} ], [ {failed}, %{attempt} ]")
        emit.set(e.result, emit.let(f"zext i1 {status} to i32"))


_ATOMICS = {"add": "add", "and": "and", "or": "or", "xor": "xor", "smax": "max", "smin": "min", "umax": "umax", "umin": "umin"}


def _operands(node: Bits, old: Bits) -> list[Bits]:
    """The largest parts of `node` that do not depend on `old`; they are computed before the retry loop."""
    if node is old:
        return []
    if not _depends(node, old):
        return [node]
    return [part for arg in node.args for part in _operands(arg, old)]


def _depends(node: Bits, old: Bits) -> bool:
    return node is old or any(_depends(a, old) for a in node.args)
