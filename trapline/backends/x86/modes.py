"""Putting a vCPU into a mode before its first instruction: real, protected (with or without paging) or 64-bit.

    real_mode(vcpu, ip=0x1000)
    room = long_mode(vcpu, ram, entry=0x10_0000, stack=0x8_0000)
    room.handle(13, address_of_general_protection_handler)
    room.tables.map(0xFFFF_8000_0000_0000, 0x20_0000, 4096)

The tables that a mode needs go into guest memory at `room_at`: a page for the GDT and TSS, one for the IDT, then page tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trapline.abi.x86 import SEGMENTS, Segment
from trapline.backends.x86.vcpu import X86Vcpu
from trapline.errors import BadInput, NotSupported
from trapline.x86_64 import segments
from trapline.x86_64.paging import GIB1, LONG_MODE, MIB2, MIB4, PAGE, PROTECTED_MODE, Layout, PageTables
from trapline.x86_64.registers import RFLAGS_RESET, Cr0, Cr4, Efer

ROOM_AT = 0x1000
TABLE_PAGES = 16
"""Pages for page tables unless said otherwise."""

TSS_OFFSET = 0x800
"""Of the task state segment in the GDT's page."""

TSS_SIZE = 0x68
VECTORS = 256

PROTECTED_CR0 = Cr0(PE=1, MP=1, ET=1, NE=1, WP=1)
DATA_SEGMENTS = ("ds", "es", "fs", "gs", "ss")


@dataclass(slots=True)
class Room:
    """What a mode's set-up left in guest memory."""

    memory: Any
    offset: int  # guest physical address of memory[0]
    gdt: int
    idt: int
    code: int  # selectors
    data: int
    user_code: int
    user_data: int
    long: bool
    tables: PageTables | None = field(default=None)

    def handle(self, vector: int, handler: int, *, trap: bool = False, dpl: int = 0, ist: int = 0) -> None:
        """Let the handler at this address take an interrupt or exception. With `trap` interrupts stay enabled."""
        if not 0 <= vector < VECTORS:
            raise BadInput(f"there is no vector {vector}")
        kind = segments.TYPE_TRAP_GATE if trap else segments.TYPE_INTERRUPT_GATE
        gate = segments.gate64(handler, self.code, kind, dpl, ist) if self.long else segments.gate32(handler, self.code, kind, dpl)
        at = self.idt - self.offset + vector * len(gate)
        self.memory[at : at + len(gate)] = gate

    def stack_for_kernel(self, stack: int, ist: int = 0) -> None:
        """The stack that an exception from user mode gets (`ist` 1 to 7: one that a gate names)."""
        if not self.long:
            raise BadInput("only 64-bit task state segments are filled in here")
        at = self.gdt - self.offset + TSS_OFFSET + (0x24 + 8 * (ist - 1) if ist else 4)
        self.memory[at : at + 8] = stack.to_bytes(8, "little")


def real_mode(vcpu: X86Vcpu, ip: int = 0, segment: int = 0, stack: int = 0) -> None:
    """16-bit real mode at segment:ip, all segments the same, interrupts off, vectors at 0."""
    sregs = vcpu.sregs
    sregs.cr0 = int(Cr0(ET=1))
    sregs.cr3 = sregs.cr4 = sregs.efer = 0
    _load(sregs, "cs", segments.CODE16.at(segment << 4), segment)
    for name in DATA_SEGMENTS:
        _load(sregs, name, segments.DATA16.at(segment << 4), segment)
    sregs.idt.base, sregs.idt.limit = 0, segments.REAL_MODE_LIMIT
    vcpu.sregs = sregs
    vcpu.regs.update(rip=ip, rsp=stack, rflags=RFLAGS_RESET)


def protected_mode(
    vcpu: X86Vcpu, memory: Any, *, entry: int, stack: int = 0, room_at: int = ROOM_AT, paging: int = 0, offset: int = 0
) -> Room:
    """32-bit protected mode with flat segments; `paging` bytes from 0 are identity-mapped with 4 MiB pages, 0 leaves paging off.

    `memory[0]` is guest physical address `offset`.
    """
    room = _descriptors(memory, room_at, offset, segments.CODE32, long=False)
    sregs = vcpu.sregs
    sregs.cr0, sregs.cr4, sregs.efer = int(PROTECTED_CR0), 0, 0
    if paging:
        room.tables = _tables(memory, room_at, offset, PROTECTED_MODE)
        room.tables.map(0, 0, paging, page=MIB4)
        sregs.cr3, sregs.cr4 = room.tables.root, int(Cr4(PSE=1))
        sregs.cr0 |= Cr0.PG.mask
    _use(sregs, room, segments.CODE32, segments.DATA32, segments.GATE_SIZE // 2)
    vcpu.sregs = sregs
    if paging and not Cr0(vcpu.sregs.cr0).PG:
        raise NotSupported("this host's KVM has no paging outside long mode: it dropped CR0.PG")
    vcpu.regs.update(rip=entry, rsp=stack, rflags=RFLAGS_RESET)
    return room


def long_mode(
    vcpu: X86Vcpu,
    memory: Any,
    *,
    entry: int,
    stack: int = 0,
    room_at: int = ROOM_AT,
    identity: int = GIB1,
    table_pages: int = TABLE_PAGES,
    offset: int = 0,
) -> Room:
    """64-bit mode with flat segments, SSE and no-execute pages; `identity` bytes from 0 are identity-mapped with 2 MiB pages."""
    room = _descriptors(memory, room_at, offset, segments.CODE64, long=True)
    room.tables = _tables(memory, room_at, offset, LONG_MODE, table_pages)
    if identity:
        room.tables.map(0, 0, identity, page=MIB2)
    sregs = vcpu.sregs
    sregs.cr0 = PROTECTED_CR0 | Cr0.PG.mask
    sregs.cr3, sregs.cr4 = room.tables.root, int(Cr4(PAE=1, OSFXSR=1, OSXMMEXCPT=1))
    sregs.efer = int(Efer(LME=1, LMA=1, NXE="nx" in vcpu.vm.system.supported_cpuid))
    _use(sregs, room, segments.CODE64, segments.DATA64, segments.GATE_SIZE)
    vcpu.sregs = sregs
    vcpu.regs.update(rip=entry, rsp=stack, rflags=RFLAGS_RESET)
    return room


def _descriptors(memory: Any, room_at: int, offset: int, code: segments.SegmentKind, *, long: bool) -> Room:
    """The GDT with flat segments for kernel and user, and an empty IDT."""
    table = segments.Table()
    kernel_code, kernel_data = table.add(code.descriptor()), table.add(segments.DATA32.descriptor())
    user_data = table.add(segments.DATA32.for_user().descriptor(), dpl=3)
    user_code = table.add(code.for_user().descriptor(), dpl=3)
    table.add(segments.tss_descriptor(room_at + TSS_OFFSET))
    start = room_at - offset
    memory[start : start + 2 * PAGE] = bytes(table).ljust(2 * PAGE, b"\0")
    return Room(memory, offset, room_at, room_at + PAGE, kernel_code, kernel_data, user_code, user_data, long)


def _tables(memory: Any, room_at: int, offset: int, layout: Layout, pages: int = TABLE_PAGES) -> PageTables:
    return PageTables(memory, room_at + 2 * PAGE, pages * PAGE, layout, offset)


def _use(sregs: Any, room: Room, code: segments.SegmentKind, data: segments.SegmentKind, gate_size: int) -> None:
    """Load the segment registers as the GDT has them."""
    _load(sregs, "cs", code, room.code)
    for name in DATA_SEGMENTS:
        _load(sregs, name, data, room.data)
    tss = segments.SegmentKind(segments.TYPE_TSS_BUSY, TSS_SIZE - 1, room.gdt + TSS_OFFSET, system=True)
    _load(sregs, "tr", tss, room.user_code - 3 + segments.DESCRIPTOR_SIZE)
    sregs.gdt.base, sregs.gdt.limit = room.gdt, TSS_OFFSET - 1
    sregs.idt.base, sregs.idt.limit = room.idt, VECTORS * gate_size - 1


def _load(sregs: Any, name: str, kind: segments.SegmentKind, selector: int) -> None:
    """Set a segment register, hidden part and all."""
    if name not in SEGMENTS:
        raise BadInput(f"no segment register {name!r}")
    segment: Segment = getattr(sregs, name)
    segment.base, segment.limit, segment.selector = kind.base, kind.limit, selector
    segment.type, segment.s, segment.dpl, segment.present = kind.type, not kind.system, kind.dpl, 1
    segment.db, segment.l, segment.g = kind.default_big, kind.long, kind.granular
    segment.avl = segment.unusable = 0
