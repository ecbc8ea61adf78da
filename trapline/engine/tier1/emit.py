"""Machine code for a region: one LLVM function, entered like a handler and left like one.

Inside, guest registers are LLVM values: they are loaded at the entry and stored where control leaves, or, where no loop would do it
again and again, as soon as they are known, so that leaving costs no code. Whatever the region cannot
do (a fault, a trap, an instruction that it leaves out) it hands to the interpreter at exactly that instruction, with the state
before it. The function belongs to the words that it was made from and to nothing else: it holds no address, and the pages it is
on are compared with those it was installed for each time it is entered.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping

from trapline.arm64 import effects as fx
from trapline.arm64.fp import IXC
from trapline.arm64.record import Recorder
from trapline.bits import Bits
from trapline.bits.native_host import host_features
from trapline.bits.to_llvm import METADATA, Emitter, leaves, nodes
from trapline.engine.handler import AFTER, CC, PROTOTYPE
from trapline.engine.state import (
    GUARDED,
    ITLB_BITS,
    PAGE_GENERATION,
    PAGE_HEADER,
    RECORD_SHIFT,
    EngineState,
    ItlbEntry,
)
from trapline.engine.tier1.chases import Chase, chases, forget, variables
from trapline.engine.tier1.flags import FLAGS, LateFlags
from trapline.engine.tier1.homes import at_home, needed
from trapline.engine.tier1.line import FP_STATE, FPSR, PROMOTED, RELOAD, RELOADED, Comparison, Line, in_place, page_name
from trapline.engine.tier1.loops import KEPT, REGISTER, around, innermost, live_flags, outline, separate, waits, ways_in
from trapline.engine.tier1.regions import STACK, Block, Instruction, Place, Region
from trapline.engine.tier1.runs import Member, runs
from trapline.engine.tier1.strides import Stride, Strides, begin, hesitate, strides, turn

PRECISION = 1 << 5
"""MXCSR.PE: an SSE instruction has rounded."""
UNSIGNED = {"avx512f", "avx512dq", "avx512vl"}
"""Features of a host that converts unsigned integers, of any size and number, in one instruction."""


def _is_steady(instruction: Instruction) -> bool:
    """Whether an instruction leaves FPCR and FPSR alone, but for exceptions that it adds."""
    writes = [w for w in instruction.recording.writes if w.offset in FP_STATE and w.when is None]
    return all(map(in_place, instruction.recording.effects)) and all(map(_accumulates, writes))


def _keeps_alignment(instruction: Instruction) -> bool:
    """Whether SP is a multiple of 16 after an instruction if it was before."""
    recording = instruction.recording
    quiet = all(map(in_place, recording.effects)) and not recording.after
    return quiet and all(_moves_by_16(w.value) for w in recording.writes if w.offset == STACK)


def _moves_by_16(value: Bits) -> bool:
    if value.op not in ("add", "sub"):
        return value.op == "state" and value.attr == STACK
    inner, distance = value.args
    return distance.op == "const" and distance.attr % 16 == 0 and _moves_by_16(inner)


def _may_track(instructions: Iterable[Instruction]) -> bool:
    """Whether instructions may round, and the host's inexact flag tells exactly whether they did."""
    roots = [w.value for i in instructions for w in i.recording.writes]
    roots += [x for i in instructions for e in i.recording.effects for x in vars(e).values() if isinstance(x, Bits)]
    found = set(map(_rounding, nodes(roots)))
    return "tracked" in found and "spurious" not in found


def _rounding(node: Bits) -> str:
    if node.op == "lasting" and node.attr:
        return "tracked"
    unsigned = node.op == "convert" and node.attr[0] == "uitofp"
    spurious = node.op == "fround" or unsigned and not host_features() >= UNSIGNED  # LLVM makes them of sums that round
    return "spurious" if spurious else ""


def _accumulates(write: fx.Write) -> bool:
    value = write.value
    return isinstance(write.offset, int) and write.offset == FPSR and value.op == "or" and bool(value.args[0].attr == FPSR)


class RegionEmitter:
    """The IR of one region."""

    def __init__(self, region: Region, tag: str) -> None:
        self.region, self.tag = region, tag
        self.externs: set[str] = set()
        self.intrinsics: set[str] = set()
        self.natives: dict[str, object] = {}
        self._lasting: list[Bits] | None = [] if all(map(_is_steady, region.instructions)) else None
        """What is tested at the entry and holds from there on; None if conditions must be tested where they count."""
        self._tracks = self._lasting is not None and platform.machine() == "x86_64" and _may_track(region.instructions)
        """Whether the host's sticky flag for inexact results is cleared at the entry, and asked where control leaves."""
        self._eager = at_home(region)
        """Whether registers are in the vCPU's state wherever a block begins or control leaves."""
        self._aligned = any(i.recording.sp_base for i in region.instructions) and all(map(_keeps_alignment, region.instructions))
        """Whether SP's alignment is checked at the entry, once for all."""
        self._lines: list[str] = []
        self._apart = self._kept = False
        self._ways_out: list[str] = []
        self._left: set[Place] = set()
        """Instructions that have a way out."""
        self._again: dict[tuple[Place, Place], str] = {}
        """Where loops with a second copy go round, instead of to their head."""
        self._copy: dict[Place, str] = {}
        """Labels of the copy that is being made."""
        self._waits: dict[Place, str] = {}
        """Variables of loops with a second copy that is not always worth a try."""
        self._chases: list[int] = []
        """Numbers of what loops remember of pages."""
        self._count = 0
        self._late = LateFlags(tag)
        self._dirty = self._dirty_at_entry()
        self._cycles = region.back_edges
        self._landings = {b.body[-1].place: [p for p in b.follows if p in region.blocks] for b in region.blocks.values()}
        self._pages = region.pages
        self._home = region.entries[0][0]
        """The page of the entries."""

    # -- what is modified where ------------------------------------------------------------------------------------------
    def _written(self, instructions: Iterable[Instruction]) -> set[int]:
        """Registers that instructions leave different from memory."""
        return set() if self._eager else self._writes(instructions)

    @staticmethod
    def _writes(instructions: Iterable[Instruction]) -> set[int]:
        return {w.offset for i in instructions for w in i.recording.writes if isinstance(w.offset, int)} & PROMOTED.keys()

    def _dirty_at_entry(self) -> dict[Place, set[int]]:
        """Registers that may differ from memory where each block starts."""
        blocks = self.region.blocks
        dirty: dict[Place, set[int]] = {place: set() for place in blocks}
        work = list(blocks)
        while work:
            block = blocks[work.pop()]
            out = dirty[block.start] | self._written(block.body)
            for place in self.region.destinations(block):
                if place in blocks and not out <= dirty[place]:
                    dirty[place] |= out
                    work.append(place)
        return dirty


    # -- the function ----------------------------------------------------------------------------------------------------
    def text(self) -> str:
        """The module's functions and data.

        `region_<tag>`, and `instance_<tag>`: for each page its generation and records, then for each entry the handler that takes
        over when the region does not apply.
        """
        functions = self._blocks()
        touched = self._writes(self.region.instructions)
        touched |= {leaf.attr for leaf in leaves(self._lasting or ())} & PROMOTED.keys()
        if self._tracks:
            touched.add(FPSR)
        if not self._eager:
            touched |= set(FLAGS)
        touched |= set(map(int, REGISTER.findall("\n".join(self._lines))))
        lines = [*self._entry(sorted(touched)), *self._reloading(sorted(touched & RELOADED)), *self._ways_out]
        body = "\n".join(lines)
        attributes = "strictfp " if self._tracks else ""
        data = f"@instance_{self.tag} = dso_local global [{2 * len(self._pages) + len(self.region.entries)} x i64] zeroinitializer\n"
        late = "" if self._eager else self._late.function()
        return f"{data}{late}{functions}define dso_local {CC} void @region_{self.tag}({PROTOTYPE}) {attributes}{{\nentry:\n{body}\n}}\n"

    def declarations(self) -> list[str]:
        """What the functions need besides."""
        flags = [f"declare void @llvm.x86.sse.{name}mxcsr(ptr)" for name in ("st", "ld")] if self._tracks else []
        return [*sorted(self.externs), *flags, METADATA]

    def _entry(self, touched: list[int]) -> list[str]:
        line = self._line("entry", Recorder(_no_slot), self.region.entries[0])
        emit = line.emit
        for offset in touched:
            emit.add(f"%s{offset} = alloca {PROMOTED[offset]}, align 16")
        if not self._eager:
            self._late.begin(line)
        if self._tracks:
            emit.add("%mxcsr = alloca i32")
        if self._kept:
            emit.add(f"%kept = alloca [{len(KEPT)} x i64]")
        emit.lines += variables(self._chases) + waits(self._waits.values())
        self._find_pages(line)
        if any(i.recording.uses_fp for i in self.region.instructions):
            disabled = line._load_field("fp_disabled", 32)
            self._require(line, emit.let(f"icmp eq i32 {disabled}, 0"))
        self._load(line, sorted(self._needed_at_entry.intersection(touched)) if self._eager else touched)
        if not self._eager:
            self._late.load(line)
        for condition in {node.key: node for node in self._lasting or ()}.values():
            self._require(line, emit(condition))
        if self._aligned:
            sp = emit.let(f"load i64, ptr {line._field(STACK)}")
            self._require(line, emit.let(f"icmp eq i64 {emit.let(f'and i64 {sp}, 15')}, 0"))
        if self._tracks:
            self._clear_inexact(line)
        self._dispatch(emit, self._start)
        emit.add("stale:")
        self._dispatch(emit, lambda entry: f"other{entry[1]}")
        for k, entry in enumerate(self.region.entries):
            emit.add(f"other{entry[1]}:")
            handler = emit.let(f"load ptr, ptr {self._instance(2 * len(self._pages) + k)}")
            emit.add(f"musttail call {CC} void {handler}(ptr %cpu, ptr {self._record(line, entry)}, ptr %tlb, i64 poison)")
            emit.add("ret void")
        return emit.lines

    @property
    def _needed_at_entry(self) -> set[int]:
        """Registers that are looked at before any block starts, and where control leaves."""
        return {*FP_STATE, *(leaf.attr for leaf in leaves(self._lasting or ()))}

    @staticmethod
    def _load(line: Line, registers: Iterable[int]) -> None:
        """Make registers' values what the vCPU's state says."""
        for offset in registers:
            kind = PROMOTED[offset]
            line.emit.add(f"store {kind} {line.emit.let(f'load {kind}, ptr {line._field(offset)}')}, ptr %s{offset}")

    def _dispatch(self, emit: Emitter, label: Callable[[Place], str]) -> None:
        """Go to the label that belongs to the entry."""
        first, *others = self.region.entries
        cases = " ".join(f"i64 {_offset(index)}, label %{label((page, index))}" for page, index in others)
        emit.add(f"switch i64 %offset, label %{label(first)} [{cases}]")

    def _instance(self, word: int) -> str:
        """Where a word of the instance is."""
        return f"getelementptr (i8, ptr @instance_{self.tag}, i64 {8 * word})"

    def _reloading(self, registers: list[int]) -> Iterable[str]:
        """The blocks' lines, with the loads where the runtime may have changed registers."""
        for line in self._lines:
            if line != RELOAD:
                yield line
                continue
            again = self._line("l", Recorder(_no_slot), self.region.entries[0])
            self._load(again, registers)
            if not self._eager:
                self._late.load(again)
            yield from again.emit.lines
            yield from forget(self._chases)

    def _clear_inexact(self, line: Line) -> None:
        """Have the host begin anew to notice inexact results, unless they would be no news."""
        emit = line.emit
        new = emit.let(f"icmp eq i64 {emit.let(f'and i64 {line.read(FPSR)}, {IXC}')}, 0")
        clear, go = line._label("clear"), line._label("begin")
        emit.add(f"br i1 {new}, label %{clear}, label %{go}")
        emit.add(f"{clear}:")
        emit.add("call void @llvm.x86.sse.stmxcsr(ptr %mxcsr)")
        flags = emit.let(f"and i32 {emit.let('load i32, ptr %mxcsr')}, {~PRECISION}")
        emit.add(f"store i32 {flags}, ptr %mxcsr")
        emit.add("call void @llvm.x86.sse.ldmxcsr(ptr %mxcsr)")
        emit.add(f"br label %{go}")
        emit.add(f"{go}:")

    def _note_inexact(self, line: Line) -> None:
        """Add what the host noticed to FPSR."""
        emit = line.emit
        emit.add("call void @llvm.x86.sse.stmxcsr(ptr %mxcsr)")
        noticed = emit.let(f"and i32 {emit.let('load i32, ptr %mxcsr')}, {PRECISION}")
        noticed = emit.let(f"zext i32 {emit.let(f'lshr i32 {noticed}, {PRECISION.bit_length() - IXC.bit_length()}')} to i64")
        fpsr = emit.let(f"or i64 {line.read(FPSR)}, {noticed}")
        emit.add(f"store i64 {fpsr}, ptr {line._field(FPSR)}")

    def _require(self, line: Line, condition: str) -> None:
        go = line._label("checked")
        line.emit.add(f"br i1 {condition}, label %{go}, label %stale, !prof !0")
        line.emit.add(f"{go}:")

    def _find_pages(self, line: Line) -> None:
        """Where the region's pages are now; all must be as they were when it was installed."""
        emit = line.emit
        home = page_name(self._home)
        emit.add(f"%records{home} = load i64, ptr {line._field(EngineState.records.offset)}")
        emit.add(f"%va{home} = load i64, ptr {line._field(EngineState.page_va.offset)}")
        emit.add(f"%offset = sub i64 {emit.let('ptrtoint ptr %rec to i64')}, %records{home}")
        jumping = {i.place[0] for i in self.region.instructions if i.is_jump}
        for k, page in enumerate(self._pages):
            name = page_name(page)
            if page != self._home:
                emit.add(f"%va{name} = add i64 %va{home}, {(page - self._home) << 12}")
            if page != self._home or page in jumping:
                row = emit.let(f"lshr i64 %va{name}, 12")
                row = emit.let(f"and i64 {row}, {(1 << ITLB_BITS) - 1}")
                itlb = emit.let(f"load ptr, ptr {line._field(EngineState.itlb.offset)}")
                entry = emit.let(f"getelementptr [2 x i64], ptr {itlb}, i64 {row}")
                tag = emit.let(f"load i64, ptr {entry}")
                emit.add(f"%unguarded{name} = icmp eq i64 {tag}, %va{name}")
            if page != self._home:
                tag = emit.let(f"and i64 {tag}, {~GUARDED}")
                self._require(line, emit.let(f"icmp eq i64 {tag}, %va{name}"))
                emit.add(f"%records{name} = load i64, ptr {line._field(ItlbEntry.records.offset, entry)}")
            emit.add(f"%at{name} = inttoptr i64 %records{name} to ptr")
            wanted = emit.let(f"load i64, ptr {self._instance(2 * k + 1)}")
            self._require(line, emit.let(f"icmp eq i64 %records{name}, {wanted}"))
            generation = emit.let(f"load i64, ptr {line._field(PAGE_GENERATION - PAGE_HEADER, f'%at{name}')}")
            self._require(line, emit.let(f"icmp eq i64 {generation}, {emit.let(f'load i64, ptr {self._instance(2 * k)}')}"))

    # -- blocks ----------------------------------------------------------------------------------------------------------
    def _blocks(self) -> str:
        """Emit all blocks; the functions of inner loops are returned."""
        region = self.region
        innermost_loops = {} if self._eager else innermost(region)
        loops = {head: loop for head, loop in separate(region, innermost_loops).items() if ways_in(region, loop)}
        inside = set().union(*loops.values())
        outer_loops = {} if self._eager else around(region, innermost_loops.values())
        turns = {head: turn(region, head, loop) for head, loop in {**innermost_loops, **outer_loops}.items()}
        strided = {head: found for head, body in turns.items() if (found := strides(region, body))}
        self._waits = {head: f"wait{number}" for number, head in enumerate(strided) if head in outer_loops}
        self._again = {(region.blocks[p].body[-1].place, head): _again(self._start(head)) for head in strided for p in turns[head]}
        remembered: dict[tuple[Place, int], Chase] = {}
        for loop in innermost_loops.values():
            remembered |= chases([region.blocks[place] for place in sorted(loop)], len(remembered))
        self._chases = sorted({chase.number for chase in remembered.values()})
        pieces: dict[Place, list[str]] = {}
        for place, block in region.blocks.items():
            self._lines, self._apart = [f"{self._start(place)}:"], place in inside
            quiet = {i.place for i in block.body if all(map(in_place, i.recording.effects)) and not i.recording.after}
            self._block(block, {**remembered, **runs(block, quiet)})
            pieces[place] = self._lines
        if self._eager:
            for place, registers in needed(region, pieces, self._needed_at_entry).items():
                line = self._line("h", Recorder(_no_slot), place)
                self._load(line, sorted(registers))
                pieces[place][1:1] = line.emit.lines
        live = live_flags(region, pieces) if loops else {}
        for head, found in strided.items():
            self._lines, self._apart = pieces[head], head in inside
            self._repeat(turns[head], found)
        self._lines = [line for place, lines in pieces.items() if place not in inside for line in lines]
        functions: list[str] = []
        for number, (head, loop) in enumerate(loops.items()):
            after = {p for place in loop for p in region.destinations(region.blocks[place])} & region.blocks.keys() - loop
            flags = live[head], set().union(*(live[p] for p in after))
            lines = {p: pieces[p] for p in pieces if p in loop}
            made = outline(f"loop{number}_{self.tag}", lines, self._start(head), flags, "strictfp " if self._tracks else "")
            functions += made.function
            self._lines += made.call
            if ways_in(region, loop) != {head}:  # the turn that it begins with is run here
                self._lines += [line for place, piece in lines.items() if place != head for line in piece]
                self._lines += [f"{_again(self._start(head))}:", f"br label %{self._start(head)}"] if head in strided else []
        self._kept = bool(loops)
        return "".join(f"{line}\n" for line in functions)

    @property
    def _away(self) -> list[str]:
        """Where to put lines that leave the region: behind the block, or, if that is in a function of its own, apart."""
        if not self._apart:
            return self._lines
        self._count += 1
        self._lines.append(f"br label %away{self._count}")
        self._ways_out.append(f"away{self._count}:")
        return self._ways_out

    @staticmethod
    def _start(place: Place) -> str:
        return f"b{page_name(place[0])}_{place[1]}"

    def _line(self, hint: str, recording: Recorder, place: Place, way_out: str = "") -> Line:
        self._count += 1
        tag, eager, lasting, strict = f"{hint}{self._count}", self._eager, self._lasting, self._tracks
        return Line(tag, recording, place, way_out, eager=eager, lasting=lasting, strict=strict, aligned=self._aligned)

    def _take(self, line: Line) -> None:
        """Collect what a line needs."""
        self.externs |= line.externs
        self.intrinsics |= line.emit.intrinsics
        self.natives |= line.emit.natives

    def _repeat(self, body: list[Place], found: Strides) -> None:
        """A loop once more, for as many turns as its accesses stay where they are known; `body` is what `turn` says of it."""
        head = body[0]
        line = self._line("t", Recorder(_no_slot), head)
        name = f"turn_{self._start(head)}"
        self._lines.append(f"{_again(self._start(head))}:")
        wait = self._waits.get(head)
        if wait:
            hesitate(line, wait, name, otherwise=self._start(head))
        closing = begin(line, found, name, otherwise=self._start(head))
        self._lines += line.emit.lines
        self._copy = {head: f"{name}_more"} | {place: f"{name}_{self._start(place)}" for place in body[1:]}
        for place in body:
            if place != head:
                self._lines.append(f"{self._copy[place]}:")
            self._block(self.region.blocks[place], found)
        self._copy = {}
        self._lines += [*closing, f"br i1 %{name}_lasts, label %{name}, label %{name}_over", f"{name}_over:"]
        self._lines += [f"store i32 0, ptr %{wait}"] if wait else []
        line = self._line("t", Recorder(_no_slot), head)
        self._ask(line, head, self._dirty[head])
        self._lines += [*line.emit.lines, f"br label %{_again(self._start(head))}"]

    def _block(self, block: Block, members: Mapping[tuple[Place, int], Member | Stride | Chase]) -> None:
        dirty = set(self._dirty[block.start])
        compared: Comparison | None = None
        for instruction in block.body:
            way_out = f"out{page_name(instruction.place[0])}_{instruction.place[1]}"
            line = self._line("i", instruction.recording, instruction.place, way_out)
            line.compared = compared
            before = set(dirty)

            def flush(line: Line = line, before: set[int] = before, place: Place = instruction.place) -> None:
                line.record = self._record(line, place)
                self._flush(line, before)

            place = instruction.place
            branch = line.perform(flush, {number: member for (at, number), member in members.items() if at == place})
            compared = line.compared
            if not self._eager and not line.closed:
                self._late.set(line, instruction.recording)
            dirty |= self._written([instruction])
            self._after(line, instruction, dirty)
            self._lines += line.emit.lines
            self._take(line)
            if line.left:
                self._way_out(way_out, instruction.place, before)
            if instruction.ends:
                if not line.closed:
                    way = self._line("e", Recorder(_no_slot), instruction.next)
                    self._leave(way, instruction.next, dirty, poll=False, out=self._away)
                return
            if branch is not None:
                self._branch(line, instruction, branch, dirty)
                return
        if block.stop is not None:
            self._leave(self._line("e", Recorder(_no_slot), block.stop), block.stop, dirty, poll=False, out=self._away)
            return
        self._edge(block.body[-1], block.follows[0], dirty)

    def _after(self, line: Line, here: Instruction, dirty: set[int]) -> None:
        """Look again at whatever an instruction's writes to system registers changed."""
        words = set(here.recording.after) & AFTER.keys()
        if not words:
            return
        emit = line.emit
        if here.ends:
            self._flush(line, dirty)
        line.externs.add("declare void @trapline_after(ptr, i32)")
        emit.add(f"call void @trapline_after(ptr %cpu, i32 {sum(AFTER[w] for w in words)})")
        if here.ends:
            emit.add(f"store i64 {emit.let(f'add i64 {line._pc()}, 4')}, ptr {line._field(EngineState.pc.offset)}")
            line._tail("trapline_resume")
            line.closed = True
        else:
            self._ask(line, here.next, dirty)

    def _branch(self, line: Line, here: Instruction, branch: fx.Branch, dirty: set[int]) -> None:
        if branch.when is not None:
            taken, fall = f"t_{line.name}", f"f_{line.name}"
            self._lines.append(f"br i1 {line.emit(branch.when)}, label %{taken}, label %{fall}")
            self._lines.append(f"{fall}:")
            self._edge(here, here.next, dirty)
            self._lines.append(f"{taken}:")
        target = here.target
        if target is not None:
            self._edge(here, target, dirty)
        else:
            self._indirect(here, line.emit(branch.target), branch.landing, dirty)

    def _edge(self, here: Instruction, target: Place, dirty: set[int]) -> None:
        """Go on at a place inside the region or leave for it; whatever may close a cycle asks whether something waits."""
        page, index = here.place
        line = self._line("g", Recorder(_no_slot), target)
        if target in self._copy:
            self._lines.append(f"br label %{self._copy[target]}")
            return
        if target not in self.region.blocks:
            forward = target[0] == page and target[1] > index
            self._leave(line, target, dirty, poll=not forward, out=self._away)
            return
        if (here.place, target) in self._cycles:
            self._ask(line, target, dirty)
        self._lines += [*line.emit.lines, f"br label %{self._again.get((here.place, target)) or self._start(target)}"]

    def _ask(self, line: Line, target: Place, dirty: set[int]) -> None:
        emit = line.emit
        pending = line._load_field_volatile("poll_kick", 64)
        go, serve = line._label("go"), line._label("serve")
        emit.add(f"br i1 {emit.let(f'icmp eq i64 {pending}, 0')}, label %{go}, label %{serve}, !prof !0")
        emit.add(f"{go}:")
        emit.add('fence syncscope("singlethread") seq_cst')
        way = self._line("p", Recorder(_no_slot), target)
        self._flush(way, dirty)
        record = self._record(way, target)
        way._store_field("in_region", 32, "1")
        way._tail("trapline_poll", record)
        self._ways_out += [f"{serve}:", *way.emit.lines]
        self._take(way)

    def _indirect(self, here: Instruction, target: str, landing: bool, dirty: set[int]) -> None:
        """A computed branch: return to a call of the region if it goes there, else look the address up."""
        if here.is_return:
            for place in self.region.returns:
                line = self._line("r", Recorder(_no_slot), place)
                hit, miss = line._label("back"), line._label("not")
                same = line.emit.let(f"icmp eq i64 {target}, {line._pc()}")
                line.emit.add(f"br i1 {same}, label %{hit}, label %{miss}")
                line.emit.add(f"{hit}:")
                if (here.place, place) in self._cycles:
                    self._ask(line, place, dirty)
                line.emit.add(f"br label %{self._start(place)}")
                line.emit.add(f"{miss}:")
                self._lines += line.emit.lines
        elif here.is_jump:
            self._table(here, target, dirty)
        way = self._line("c", Recorder(_no_slot), here.place)
        self._flush(way, dirty, page=landing)  # a checked landing asks what branched, and from which page
        way._goto(target, landing, self._record(way, here.place) if landing else "%rec")
        self._lines += way.emit.lines
        self._take(way)

    def _table(self, here: Instruction, target: str, dirty: set[int]) -> None:
        """Go where a computed jump was seen to go, if it does and nobody checks how it lands, else on to the next line."""
        line = self._line("j", Recorder(_no_slot), here.place)
        emit, page = line.emit, here.place[0]
        look, miss = line._label("look"), line._label("miss")
        emit.add(f"br i1 %unguarded{page_name(page)}, label %{look}, label %{miss}")
        emit.add(f"{look}:")
        places = {place: f"{look}{place[1]}" for place in self._landings[here.place]}
        cases = " ".join(f"i64 {place[1] << 2}, label %{label}" for place, label in places.items())
        emit.add(f"switch i64 {emit.let(f'sub i64 {target}, %va{page_name(page)}')}, label %{miss} [{cases}]")
        for place, label in places.items():
            emit.add(f"{label}:")
            if (here.place, place) in self._cycles:
                self._ask(line, place, dirty)
            emit.add(f"br label %{self._start(place)}")
        emit.add(f"{miss}:")
        self._lines += emit.lines

    # -- leaving ---------------------------------------------------------------------------------------------------------
    def _flush(self, line: Line, dirty: set[int], page: bool = True) -> None:
        """Store what the region changed, and make its current page the interpreter's."""
        emit = line.emit
        for offset in sorted(dirty.difference(FLAGS)):
            kind = PROMOTED[offset]
            emit.add(f"store {kind} {emit.let(f'load {kind}, ptr %s{offset}')}, ptr {line._field(offset)}")
        if not dirty.isdisjoint(FLAGS):
            self._late.store(line)
        if self._tracks:
            self._note_inexact(line)
        here = line._page
        if page and len(self._pages) > 1:
            line._store_field("page_va", 64, f"%va{page_name(here)}")
            line._store_field("records", 64, f"%records{page_name(here)}")

    def _record(self, line: Line, place: Place) -> str:
        return line.emit.let(f"getelementptr i8, ptr %at{page_name(place[0])}, i64 {_offset(place[1])}")

    def _leave(self, line: Line, place: Place, dirty: set[int], poll: bool, out: list[str]) -> None:
        """Go on in the interpreter at a place."""
        if place[0] in self._pages:
            self._flush(line, dirty)
            record = self._record(line, place)
            if poll:
                line._poll(record)
            line._jump(record)
        else:
            self._flush(line, dirty, page=False)
            distance = (place[0] - self._home << 12) + (place[1] << 2)
            line._goto(line.emit.let(f"add i64 %va{page_name(self._home)}, {distance}"), landing=False)
        out += line.emit.lines
        self._take(line)

    def _way_out(self, label: str, place: Place, dirty: set[int]) -> None:
        """Hand the instruction at `place` to the interpreter, with the state before it."""
        if place in self._left:
            return
        self._left.add(place)
        self._ways_out.append(f"{label}:")
        if place in self.region.entries:
            line = self._line("w", Recorder(_no_slot), place)
            self._flush(line, dirty)
            line.emit.add(f"br label %other{place[1]}")
            self._ways_out += line.emit.lines
            return
        self._leave(self._line("w", Recorder(_no_slot), place), place, dirty, poll=False, out=self._ways_out)


def _again(label: str) -> str:
    """Where a loop whose head has a label goes round, if it has a second copy."""
    return f"again_{label}"


def _offset(index: int) -> int:
    """Bytes from a page's first record to that of an instruction."""
    return index << RECORD_SHIFT + 2


def _no_slot(name: str) -> int:
    raise LookupError(name)
