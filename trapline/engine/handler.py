"""Handlers: one compiled function per instruction shape.

A handler gets pointers to the CPU, to its predecoded record and to the data TLB in fixed host registers (`preserve_none`), does
the instruction and tail-calls the handler of the next record. Operands that differ between instructions of the shape are read
from the record; `SlotLayout` decides where they lie, and the predecoder's fill function writes them there.
"""

from __future__ import annotations

import ctypes

from trapline.arm64 import effects as fx
from trapline.arm64.pauth import pac_add, pac_auth, pac_generic, pac_strip
from trapline.arm64.record import Recorder
from trapline.arm64.state import CpuState
from trapline.bits import Bits
from trapline.bits.native import IntType
from trapline.bits.to_llvm import LIKELY, UNLIKELY, Emitter
from trapline.engine.memory import MEMORY_EFFECTS, MemoryAccess
from trapline.engine.slots import Slot, SlotLayout
from trapline.engine.state import (
    GUARDED,
    ITLB_BITS,
    PAGE_INSNS,
    RECORD_SHIFT,
    RECORD_SIZE,
    EngineState,
    ItlbEntry,
)

CC = "preserve_nonecc"
PROTOTYPE = "ptr %cpu, ptr %rec, ptr %tlb, i64 %aux"

class Handler(MemoryAccess):
    """Emits the handler of one recorded shape.

    A shape that accesses memory has two. The plain one knows only the fast paths and calls nothing, so it needs no stack; when it
    cannot go on it hands the instruction to the *careful* one, which starts it again and calls the runtime where it must.
    """

    def __init__(self, name: str, recording: Recorder, far: bool, counting: bool = False) -> None:
        self.name, self.recording, self.far, self.counting = name, recording, far, counting
        self.careful = not any(isinstance(e, MEMORY_EFFECTS) for e in recording.effects)
        self.layout = SlotLayout()
        self.record = "%rec"
        self.emit = Emitter(self._leaf)
        self.externs: set[str] = set()
        self._labels = 0
        self._slot_values: dict[int, str] = {}

    def careful_twin(self) -> Handler | None:
        """The handler that this one falls back on, if it is a plain one."""
        if self.careful:
            return None
        twin = Handler(f"{self.name}_careful", self.recording, self.far)
        twin.careful, twin.layout = True, self.layout
        return twin

    # -- leaves ----------------------------------------------------------------------------------------------------------
    def _field(self, offset: int, base: str = "%cpu") -> str:
        return self.emit.let(f"getelementptr i8, ptr {base}, i64 {offset}")

    def _load_field(self, field: str, width: int) -> str:
        return self.emit.let(f"load i{width}, ptr {self._field(getattr(EngineState, field).offset)}")

    def _store_field(self, field: str, width: int, value: str) -> None:
        self.emit.add(f"store i{width} {value}, ptr {self._field(getattr(EngineState, field).offset)}")

    def _slot(self, slot: Slot, width: int) -> str:
        pointer = self._field(slot.offset, "%rec")
        raw = self.emit.let(f"load i{8 * slot.size}, ptr {pointer}, align {slot.size}")
        have = 8 * slot.size
        if have == width:
            return raw
        if have > width:
            return self.emit.let(f"trunc i{have} {raw} to i{width}")
        return self.emit.let(f"{'sext' if slot.signed else 'zext'} i{have} {raw} to i{width}")

    def _leaf(self, node: Bits) -> str:
        if node.op == "decoded":
            return self._slot(self.layout.place(node), node.width)
        if node.op == "state":
            pointer = self._state_pointer(node.attr if node.attr is not None else node.args[0])
            if node.width == 128:
                return self._read_memory(pointer, 128, 16)
            return self.emit.let(f"load i{node.width}, ptr {pointer}, align {node.width // 8}")
        if node.op == "pc":
            return self._pc()
        raise ValueError(f"unexpected leaf {node!r}")

    def _state_pointer(self, offset: int | Bits) -> str:
        if isinstance(offset, int):
            return self._field(offset)
        index = self.emit.let(f"zext i{offset.width} {self.emit(offset)} to i64")
        return self.emit.let(f"getelementptr i8, ptr %cpu, i64 {index}")

    def _pc(self) -> str:
        here = self.emit.let("ptrtoint ptr %rec to i64")
        base = self._load_field("records", 64)
        distance = self.emit.let(f"sub i64 {here}, {base}")
        offset = self.emit.let(f"lshr i64 {distance}, {RECORD_SHIFT}")
        return self.emit.let(f"add i64 {self._load_field('page_va', 64)}, {offset}")

    def _label(self, hint: str) -> str:
        self._labels += 1
        return f"{hint}{self._labels}"

    # -- control ---------------------------------------------------------------------------------------------------------
    def _jump(self, record: str) -> None:
        """Tail-call the handler of a record."""
        handler = self.emit.let(f"load ptr, ptr {record}, align 32")
        self.emit.add(f"musttail call {CC} void {handler}(ptr %cpu, ptr {record}, ptr %tlb, i64 poison)")
        self.emit.add("ret void")

    def _tail(self, function: str, record: str = "%rec", aux: str = "poison") -> None:
        if not function.startswith(self.name):
            self.externs.add(f"declare {CC} void @{function}(ptr, ptr, ptr, i64)")
        self.emit.add(f"musttail call {CC} void @{function}(ptr %cpu, ptr {record}, ptr %tlb, i64 {aux})")
        self.emit.add("ret void")

    def _next(self, poll: bool = False) -> None:
        following = self.emit.let(f"getelementptr i8, ptr %rec, i64 {RECORD_SIZE}")
        if poll:
            self._poll(following)
        self._jump(following)

    def _poll(self, record: str) -> None:
        """Leave straight-line execution if something waits for this vCPU."""
        pending = self._load_field_volatile("poll_kick", 64)
        clear = self.emit.let(f"icmp eq i64 {pending}, 0")
        go, serve = self._label("go"), self._label("serve")
        self.emit.add(f"br i1 {clear}, label %{go}, label %{serve}, {LIKELY}")
        self.emit.add(f"{serve}:")
        self._tail("trapline_poll", record)
        self.emit.add(f"{go}:")

    def _load_field_volatile(self, field: str, width: int) -> str:
        pointer = self._field(getattr(EngineState, field).offset)
        return self.emit.let(f"load volatile i{width}, ptr {pointer}")

    def _goto(self, target: str, landing: bool, record: str = "%rec") -> None:
        """Continue at a virtual address: probe the instruction TLB, else leave it to the runtime.

        Guarded pages have a mark in their tag. A branch whose landing they check (`record` is the branch's) misses because of it;
        the others ignore it.
        """
        emit = self.emit
        page = emit.let(f"and i64 {target}, -4096")
        index = emit.let(f"lshr i64 {target}, 12")
        index = emit.let(f"and i64 {index}, {(1 << ITLB_BITS) - 1}")
        offset = emit.let(f"mul i64 {index}, {ctypes.sizeof(ItlbEntry)}")
        itlb = emit.let(f"load ptr, ptr {self._field(EngineState.itlb.offset)}")
        entry = emit.let(f"getelementptr i8, ptr {itlb}, i64 {offset}")
        tag = emit.let(f"load i64, ptr {entry}")
        if not landing:
            tag = emit.let(f"and i64 {tag}, {~GUARDED}")
        want = emit.let(f"and i64 {target}, {-4096 | 3}")
        hit = emit.let(f"icmp eq i64 {tag}, {want}")
        found, missed = self._label("found"), self._label("missed")
        emit.add(f"br i1 {hit}, label %{found}, label %{missed}, {LIKELY}")
        emit.add(f"{missed}:")
        self._tail("trapline_goto_landing" if landing else "trapline_goto", record, aux=target)
        emit.add(f"{found}:")
        records_at = self._field(ItlbEntry.records.offset, entry)
        records = emit.let(f"load i64, ptr {records_at}")
        low = emit.let(f"and i64 {target}, 4095")
        distance = emit.let(f"shl i64 {low}, {RECORD_SHIFT}")
        self._store_field("page_va", 64, page)
        self._store_field("records", 64, records)
        address = emit.let(f"add i64 {records}, {distance}")
        record = emit.let(f"inttoptr i64 {address} to ptr")
        self._poll(record)
        self._jump(record)

    # -- the function ----------------------------------------------------------------------------------------------------
    def text(self) -> str:
        """IR of the handler function."""
        emit, recording = self.emit, self.recording
        if self.counting:
            self._count()
        if recording.uses_fp:
            self._check_fp()
        if recording.sp_base and any(isinstance(e, MEMORY_EFFECTS) for e in recording.effects):
            self._check_sp()
        branch: fx.Branch | None = None
        ended = False
        for effect in recording.effects:
            if isinstance(effect, fx.Branch):
                branch = effect
                continue
            ended = self.effect(effect) or ended
        if not ended:
            if branch is not None:
                self._branch(branch)
            else:
                self._commit()
                self._finish()
        lines = "\n".join(emit.lines)
        return f"define internal {CC} void @{self.name}({PROTOTYPE}) {{\nentry:\n{lines}\n}}\n"

    def _count(self) -> None:
        """Count the instruction, or leave before it if as many as were asked for have run."""
        count = self._load_field("icount", 64)
        enough = self.emit.let(f"icmp uge i64 {count}, {self._load_field('stop', 64)}")
        leave, go = self._label("stop"), self._label("counted")
        self.emit.add(f"br i1 {enough}, label %{leave}, label %{go}, {UNLIKELY}")
        self.emit.add(f"{leave}:")
        self._tail("trapline_stop")
        self.emit.add(f"{go}:")
        self._store_field("icount", 64, self.emit.let(f"add i64 {count}, 1"))

    def effect(self, effect: fx.Effect) -> bool:
        """Emit one effect that is not a branch; whether it ends the instruction."""
        return bool(getattr(self, _EMIT[type(effect)])(effect))

    def _give_up(self) -> None:
        """What the plain handler cannot do is the careful one's."""
        self._tail(f"{self.name}_careful")

    def _finish(self) -> None:
        """Go on after the last effect, looking again at whatever the writes changed."""
        words = set(self.recording.after) & AFTER.keys()
        if not words:
            self._next()
            return
        mask = sum(AFTER[w] for w in words)
        self.externs.add("declare void @trapline_after(ptr, i32)")
        following = None if words <= KEEP_GOING else self.emit.let(f"add i64 {self._pc()}, 4")
        self.emit.add(f"call void @trapline_after(ptr %cpu, i32 {mask})")
        if following is None:
            self._next(poll=True)
            return
        self.emit.add(f"store i64 {following}, ptr {self._field(CpuState.pc.offset)}")
        self._tail("trapline_resume")

    def _commit(self) -> None:
        values = [self.emit(w.value) for w in self.recording.writes]
        for write, value in zip(self.recording.writes, values, strict=True):
            if write.when is None:
                self._write(write, value)
                continue
            changed, same = self._label("changed"), self._label("same")
            self.emit.add(f"br i1 {self.emit(write.when)}, label %{changed}, label %{same}, {UNLIKELY}")
            self.emit.add(f"{changed}:")
            self._write(write, value)
            self.emit.add(f"br label %{same}")
            self.emit.add(f"{same}:")

    def _write(self, write: fx.Write, value: str) -> None:
        if write.value.width < write.storage:
            value = self.emit.let(f"zext i{write.value.width} {value} to i{write.storage}")
        pointer = (
            self._field(write.offset)
            if isinstance(write.offset, int)
            else self._state_pointer(Bits("decoded", (write.offset,), 16))
        )
        self.emit.add(f"store i{write.storage} {value}, ptr {pointer}, align {min(write.storage // 8, 16)}")

    def _branch(self, branch: fx.Branch) -> None:
        when = self.emit(branch.when) if branch.when is not None else None
        target = None if branch.delta is not None and not self.far else self.emit(branch.target)
        self._commit()
        if when is not None:
            taken, fall = self._label("taken"), self._label("fall")
            self.emit.add(f"br i1 {when}, label %{taken}, label %{fall}")
            self.emit.add(f"{fall}:")
            self._next()
            self.emit.add(f"{taken}:")
        if target is not None:
            self._goto(target, branch.landing)
            return
        record = self._target_record(branch)
        self._poll(record)
        self._jump(record)

    def _target_record(self, branch: fx.Branch) -> str:
        """The record that an in-page direct branch goes to."""
        if isinstance(branch.delta, int):
            return self.emit.let(f"getelementptr i8, ptr %rec, i64 {branch.delta << RECORD_SHIFT}")
        return self.emit.let(f"getelementptr i8, ptr %rec, i64 {self._slot(self._delta_slot(branch), 64)}")

    def _delta_slot(self, branch: fx.Branch) -> Slot:
        """Where the distance of an in-page direct branch is, in bytes of records."""
        assert branch.delta is not None and not isinstance(branch.delta, int)
        scaled = branch.delta * (1 << RECORD_SHIFT)
        limit = PAGE_INSNS * RECORD_SIZE
        node = Bits("decoded", (scaled.bits,), 64, attr=(max(scaled.lo, -limit), min(scaled.hi, limit)))
        return self.layout.place(node)

    def _check_fp(self) -> None:
        disabled = self._load_field("fp_disabled", 32)
        enabled = self.emit.let(f"icmp eq i32 {disabled}, 0")
        go, trap = self._label("fp"), self._label("nofp")
        self.emit.add(f"br i1 {enabled}, label %{go}, label %{trap}, {LIKELY}")
        self.emit.add(f"{trap}:")
        self._tail("trapline_fp_trap")
        self.emit.add(f"{go}:")

    def _check_sp(self) -> None:
        """SP that is not a multiple of 16 may be a fault (SCTLR_ELx.SA)."""
        emit = self.emit
        sp = emit.let(f"load i64, ptr {self._field(CpuState.sp.offset)}")
        aligned = emit.let(f"icmp eq i64 {emit.let(f'and i64 {sp}, 15')}, 0")
        go, ask = self._label("aligned"), self._label("misaligned")
        emit.add(f"br i1 {aligned}, label %{go}, label %{ask}, {LIKELY}")
        emit.add(f"{ask}:")
        if self.careful:
            self._call_system("sp_alignment", [], None)
            emit.add(f"br label %{go}")
        else:
            self._give_up()
        emit.add(f"{go}:")

    # -- the rest --------------------------------------------------------------------------------------------------------
    def _barrier(self, e: fx.Barrier) -> None:
        if e.kind in ("dmb", "dsb"):
            loads_or_stores_only = {1: "acquire", 2: "release"}
            self.emit.add(f"fence {loads_or_stores_only.get(e.option & 3, 'seq_cst')}")
        if e.kind == "dsb":
            self._call_system("dsb", [], None)

    def _system(self, e: fx.System) -> None:
        function = STATE_FUNCTIONS.get(e.name)
        if function is not None:
            widths = [kind.width for kind in function.params[1:] if isinstance(kind, IntType)]
            self._query(fx.Query(function, tuple(a.trunc(width) for a, width in zip(e.args, widths, strict=True)), result=e.result))
            return
        if e.when is None:
            self._call_system(e.name, [self.emit(a) for a in e.args], e.result)
            return
        trap, go = self._label("trap"), self._label("granted")
        args = [self.emit(a) for a in e.args]
        self.emit.add(f"br i1 {self.emit(e.when)}, label %{trap}, label %{go}, {UNLIKELY}")
        self.emit.add(f"{trap}:")
        self._call_system(e.name, args, None)
        self.emit.add(f"br label %{go}")
        self.emit.add(f"{go}:")

    def _call_system(self, name: str, args: list[str], result: Bits | None) -> None:
        """Call the runtime's operation; a status other than 0 means that execution continues elsewhere."""
        emit = self.emit
        symbol = f"trapline_sys_{name}"
        types = ", ".join(["ptr", "ptr"] + ["i64"] * len(args))
        self.externs.add(f"declare i32 @{symbol}({types})")
        values = ", ".join(["ptr %cpu", f"ptr {self.record}"] + [f"i64 {a}" for a in args])
        status = emit.let(f"call i32 @{symbol}({values})")
        same = emit.let(f"icmp eq i32 {status}, 0")
        go, leave = self._label("done"), self._label("leave")
        emit.add(f"br i1 {same}, label %{go}, label %{leave}, {LIKELY}")
        emit.add(f"{leave}:")
        self._tail("trapline_resume")
        emit.add(f"{go}:")
        if result is not None:
            value = self._load_field("result", 64)
            if result.width < 64:
                value = emit.let(f"trunc i64 {value} to i{result.width}")
            elif result.width > 64:
                high = emit.let(f"zext i64 {self._load_field('result_hi', 64)} to i128")
                wide = emit.let(f"shl i128 {high}, 64")
                value = emit.let(f"or i128 {wide}, {emit.let(f'zext i64 {value} to i128')}")
            emit.set(result, value)

    def _query(self, e: fx.Query) -> None:
        emit = self.emit
        fn = e.function
        emit.natives[fn.symbol] = fn
        args = ", ".join(["ptr %cpu"] + [f"i{a.width} {emit(a)}" for a in e.args])
        if fn.ret is None:
            emit.add(f'call void @"{fn.symbol}"({args})')
            return
        assert e.result is not None
        emit.set(e.result, emit.let(f'call i{fn.ret.width} @"{fn.symbol}"({args})'))

    def _raise(self, e: fx.Raise) -> bool:
        kind = RAISE_KINDS.index(e.kind)
        imm = self.emit.let(f"zext i16 {self.emit(e.imm)} to i64")
        self.externs.add("declare void @trapline_raise(ptr, ptr, i64, i64)")
        self.emit.add(f"call void @trapline_raise(ptr %cpu, ptr {self.record}, i64 {kind}, i64 {imm})")
        self._tail("trapline_resume")
        return True


STATE_FUNCTIONS = {f.name: f for f in (pac_add, pac_auth, pac_strip, pac_generic)}
"""System operations that are plain functions of the CPU state: called in place, with no status."""

AFTER = {"mmu": 1, "ttbr": 2, "pstate": 4, "irq": 8, "timer": 16, "fp": 32, "debug": 64}
"""Bits of the argument of `trapline_after`: what a register write may have changed."""

KEEP_GOING = {"irq", "timer"}
"""Changes that leave the address space and the TLBs in use alone."""

RAISE_KINDS = ("undefined", "svc", "hvc", "smc", "brk", "hlt", "dcps1", "dcps2", "dcps3")
"""Exception kinds of `Raise` effects, numbered for the runtime."""

_EMIT = {
    fx.Load: "_load",
    fx.Store: "_store",
    fx.Update: "_update",
    fx.CompareSwap: "_compare_swap",
    fx.LoadExclusive: "_load_exclusive",
    fx.StoreExclusive: "_store_exclusive",
    fx.Barrier: "_barrier",
    fx.System: "_system",
    fx.Query: "_query",
    fx.Raise: "_raise",
}
