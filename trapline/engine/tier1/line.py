"""One instruction of a region, emitted in place: a handler's way with it, with guest registers in values and ways out of the region."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trapline.arm64 import effects as fx
from trapline.arm64.record import FLAG_OFFSETS, Recorder
from trapline.arm64.regs import TABLE
from trapline.bits import Bits
from trapline.bits.to_llvm import Emitter
from trapline.engine.handler import STATE_FUNCTIONS, Handler
from trapline.engine.memory import ATOMIC, MEMORY_EFFECTS, UPDATE
from trapline.engine.state import EngineState, TlbEntry
from trapline.engine.tier1.chases import Chase
from trapline.engine.tier1.regions import REGISTERS, STACK, VECTORS, Place
from trapline.engine.tier1.runs import Member
from trapline.engine.tier1.signed import N, V, subtraction, tests
from trapline.engine.tier1.strides import Stride

SYSREG = EngineState.sysreg.offset
FPCR, FPSR = (SYSREG + 8 * TABLE[name].slot for name in ("FPCR", "FPSR"))
FP_STATE = (FPCR, FPSR)
PROMOTED: dict[int, str] = (
    {offset: "i64" for offset in (*REGISTERS, STACK, *FP_STATE)}
    | {offset: "i8" for offset in FLAG_OFFSETS.values()}
    | {offset: "<2 x i64>" for offset in VECTORS}
)
"""State that a region keeps in values: byte offset in `CpuState` and LLVM type. XZR's sink is not even that: it is dropped."""

RELOADED = PROMOTED.keys() - set(VECTORS)
"""What the runtime's functions may change; none of them writes vector registers."""
RELOAD = "; reload"

PAGE = 4096
SINK = EngineState.xzr_sink.offset

Comparison = tuple[int, str, str]
"""Numbers that were subtracted to set the flags: their width, and their names."""


class Line(Handler):
    """Emits one instruction of a region, or one way out of it, in place."""

    def __init__(
        self,
        tag: str,
        recording: Recorder,
        place: Place,
        way_out: str,
        *,
        eager: bool,
        lasting: list[Bits] | None = None,
        strict: bool = False,
        aligned: bool = False,
    ) -> None:
        """`eager`: what the instruction writes to registers goes to memory too, at once. `aligned`: SP is known to be."""
        super().__init__(tag, recording, far=False)
        self.careful = False
        self.emit = Emitter(self._leaf, prefix=f"{tag}_", decline=way_out or None, lasting=lasting, strict=strict)
        self._page, self._offset, self._way_out = place[0], place[1] << 2, way_out
        self._eager, self._aligned = eager, aligned
        self._atomic = self._pair = False
        self._member: Member | Stride | Chase | None = None
        self.compared: Comparison | None = None
        """What N and V are about before the instruction, and after it what they are about then."""
        self.left = False
        """Whether the way out is used."""
        self.closed = False
        """Whether control has left already."""

    def _label(self, hint: str) -> str:
        return f"{super()._label(hint)}_{self.name}"

    # -- state -----------------------------------------------------------------------------------------------------------
    def _leaf(self, node: Bits) -> str:
        if node.op == "state" and node.attr in PROMOTED:
            return self.read(node.attr)
        return super()._leaf(node)

    def read(self, offset: int) -> str:
        """The value of a promoted register as an integer."""
        kind = PROMOTED[offset]
        value = self.emit.let(f"load {kind}, ptr %s{offset}")
        return value if kind[0] == "i" else self.emit.let(f"bitcast {kind} {value} to i128")

    def _pc(self) -> str:
        return self.emit.let(f"add i64 %va{page_name(self._page)}, {self._offset}")

    def _commit(self) -> None:
        values = [(w, self.emit(w.value)) for w in self.recording.writes if w.offset != SINK]
        for write, value in values:
            assert isinstance(write.offset, int)
            if write.value.width < write.storage:
                value = self.emit.let(f"zext i{write.value.width} {value} to i{write.storage}")
            kind = PROMOTED.get(write.offset)
            if kind is None:
                pointer = self._field(write.offset)
                self.emit.add(f"store i{write.storage} {value}, ptr {pointer}, align {min(write.storage // 8, 16)}")
                continue
            if kind[0] == "<":
                value = self.emit.let(f"bitcast i128 {value} to {kind}")
            self.emit.add(f"store {kind} {value}, ptr %s{write.offset}")
            if self._eager:
                self.emit.add(f"store {kind} {value}, ptr {self._field(write.offset)}")

    # -- leaving ---------------------------------------------------------------------------------------------------------
    def _give_up(self) -> None:
        self.left = True
        self.emit.add(f"br label %{self._way_out}")

    def _leave_if(self, condition: str) -> None:
        go = self._label("go")
        self.left = True
        self.emit.add(f"br i1 {condition}, label %{self._way_out}, label %{go}, !prof !1")
        self.emit.add(f"{go}:")

    def _check_sp(self) -> None:
        low = self.emit.let(f"and i64 {self.read(STACK)}, 15")
        self._leave_if(self.emit.let(f"icmp ne i64 {low}, 0"))

    def _system(self, e: fx.System) -> None:
        if e.when is not None:
            self._leave_if(self.emit(e.when))
        else:
            super()._system(e)

    def _translate(self, addr: str, size: int, write: bool, access: fx.Access, atomic: int = 0) -> str:
        self._atomic = atomic & (ATOMIC | UPDATE) != 0
        return super()._translate(addr, size, write, access, atomic)

    def _probe(self, addr: str, size: int, write: bool, access: fx.Access) -> tuple[str, str, str]:
        """Ask the runtime to fill the TLB before giving up; what faults is left to the interpreter."""
        if self._atomic:
            return super()._probe(addr, size, write, access)
        if isinstance(self._member, Stride):
            return "true", self._member.pointer(self), "0"
        emit = self.emit
        again, here, slow, join = (self._label(x) for x in ("again", "quick", "fill", "probed"))
        known, chase = "", self._member if isinstance(self._member, Chase) else None
        if chase is not None:
            known = self._try_page(chase, addr, size, again)
        elif isinstance(self._member, Member):
            known = self._try_run(self._member, addr, again)
        hit, fast, meta = super()._probe(addr, size, write, access)
        emit.add(f"br i1 {hit}, label %{here}, label %{slow}, !prof !0")
        emit.add(f"{slow}:")
        self.externs.add("declare i64 @trapline_fill(ptr, i64, i32)")
        found = emit.let(f"call i64 @trapline_fill(ptr %cpu, i64 {addr}, i32 {meta})")
        ok = emit.let(f"icmp ne i64 {found}, 0")
        pointer = emit.let(f"inttoptr i64 {found} to ptr")
        self.left = True
        emit.add(f"br i1 {ok}, label %{join}, label %{self._way_out}")
        if known:
            emit.add(f"{again}:")
            emit.add(f"br label %{join}")
        emit.add(f"{here}:")
        if chase is not None:
            distance = emit.let(f"sub i64 {emit.let(f'ptrtoint ptr {fast} to i64')}, {addr}")
            emit.add(f"store i64 {emit.let(f'and i64 {addr}, {-PAGE}')}, ptr {chase.page}")
            emit.add(f"store i64 {distance}, ptr {chase.distance}")
        emit.add(f"br label %{join}")
        emit.add(f"{join}:")
        more = f", [ {known}, %{again} ]" if known else ""
        return "true", emit.let(f"phi ptr [ {fast}, %{here} ], [ {pointer}, %{slow} ]{more}"), meta

    def _try_page(self, chase: Chase, addr: str, size: int, hit: str) -> str:
        """Go to `hit` with the pointer that is returned if an aligned access is on the page of the last one, else on to the TLB."""
        emit = self.emit
        want = emit.let(f"and i64 {addr}, {-PAGE | size - 1}")
        same = emit.let(f"icmp eq i64 {want}, {emit.let(f'load i64, ptr {chase.page}')}")
        host = emit.let(f"add i64 {addr}, {emit.let(f'load i64, ptr {chase.distance}')}")
        pointer = emit.let(f"inttoptr i64 {host} to ptr")
        other = self._label("other")
        emit.add(f"br i1 {same}, label %{hit}, label %{other}, !prof !0")
        emit.add(f"{other}:")
        return pointer

    def _try_run(self, member: Member, addr: str, hit: str) -> str:
        """Go to `hit` with the pointer that is returned if the page of a run is known, else on to the TLB."""
        emit, run = self.emit, member.run
        if member.first:
            self._look_up(member, addr)
        pointer = emit.let(f"inttoptr i64 {emit.let(f'add i64 {addr}, {run.distance}')} to ptr")
        other = self._label("other")
        emit.add(f"br i1 {run.known}, label %{hit}, label %{other}, !prof !0")
        emit.add(f"{other}:")
        return pointer

    def _look_up(self, member: Member, addr: str) -> None:
        """Find out whether all of a run is on one page that the TLB has."""
        emit, run = self.emit, member.run
        low = emit.let(f"add i64 {addr}, {-member.above}")
        entry = self._tlb_entry(low, "%tlb")
        page = emit.let(f"and i64 {emit.let(f'add i64 {low}, {run.span - 1}')}, {-PAGE}")
        tags = [(TlbEntry.write_tag if store else TlbEntry.read_tag).offset for store in sorted(run.kinds)]
        hits = [emit.let(f"icmp eq i64 {emit.let(f'load i64, ptr {self._field(tag, entry)}')}, {page}") for tag in tags]
        run.known = emit.let(f"and i1 {hits[0]}, {hits[1]}") if len(hits) > 1 else hits[0]
        run.distance = emit.let(f"load i64, ptr {self._field(TlbEntry.addend.offset, entry)}")

    def _load(self, e: fx.Load) -> None:
        self._pair = e.access.parts == 2 and e.width <= 128
        super()._load(e)
        self._pair = False

    def _read_memory(self, pointer: str, width: int, align: int = 1) -> str:
        """The halves of a pair are read one by one: one may just have been stored, and the host waits where a load is more than that."""
        if not self._pair:
            return super()._read_memory(pointer, width, align)
        emit, half = self.emit, width // 2
        high = emit.let(f"getelementptr i8, ptr {pointer}, i64 {half // 8}")
        parts = [super(Line, self)._read_memory(at, half) for at in (pointer, high)]
        first, second = (emit.let(f"zext i{half} {part} to i{width}") for part in parts)
        return emit.let(f"or i{width} {first}, {emit.let(f'shl i{width} {second}, {half}')}")

    # -- an instruction --------------------------------------------------------------------------------------------------
    def perform(self, flush: Callable[[], None], members: Mapping[int, Member | Stride | Chase]) -> fx.Branch | None:
        """Emit effects and writes; a branch is left to the caller, its condition and target already values.

        `flush` stores what differs from memory: the runtime's functions look there. `members` are the effects that are part of a run, or of
        a way that is known.
        """
        recording = self.recording
        if self.compared is not None:
            for node in tests(recording):
                width, a, b = self.compared
                self.emit.set(node, self.emit.let(f"icmp sge i{width} {a}, {b}"))
        if recording.sp_base and not self._aligned and any(isinstance(e, MEMORY_EFFECTS) for e in recording.effects):
            self._check_sp()
        branch = None
        for number, effect in enumerate(recording.effects):
            if isinstance(effect, fx.Branch):
                branch = effect
                if effect.when is not None:
                    self.emit(effect.when)
                if effect.delta is None:
                    self.emit(effect.target)
            elif in_place(effect):
                self._member = members.get(number)
                self.effect(effect)
            else:
                for operand in getattr(effect, "args", ()):
                    self.emit(operand)
                flush()
                if self.effect(effect):
                    self.closed = True
                    return None
                self.emit.add(RELOAD)
                self.compared = None
        if any(w.offset in (N, V) for w in recording.writes):
            numbers = subtraction(recording)
            self.compared = (numbers[0].width, self.emit(numbers[0]), self.emit(numbers[1])) if numbers else None
        self._commit()
        self.left |= self.emit.declined
        return branch


def in_place(effect: fx.Effect) -> bool:
    """Whether an effect neither reads nor writes registers behind the region's back."""
    if isinstance(effect, fx.System):
        return effect.when is not None or effect.name in STATE_FUNCTIONS
    if isinstance(effect, fx.Barrier):
        return effect.kind != "dsb"
    return isinstance(effect, (*MEMORY_EFFECTS, fx.Branch))


def page_name(page: int) -> str:
    """A page number as part of an LLVM name."""
    return f"m{-page}" if page < 0 else str(page)
