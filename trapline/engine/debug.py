"""Debugging in the engine, as native functions: when a vCPU has to run one instruction at a time, and how it does.

Predecoded pages are shared by all vCPUs and know nothing of debugging. A vCPU whose debug exceptions are enabled has
`debug_active` set instead, and then `runtime.lookup`, which every path into threaded code passes, looks at each instruction:

- While software step is on (STEPPING), or a breakpoint may match anywhere (ANYWHERE), the vCPU's instruction TLB is one that
  stays empty, so nothing enters shared pages. Each instruction runs from a record of the vCPU's own, decoded as if it lay alone on
  its page: branches leave it, and what follows the record leads back to `lookup`.
- While breakpoints are set on addresses only (IN_PAGES), that is done for the pages that hold such addresses, whose entries in the
  instruction TLB carry a tag that no branch asks for. All other pages run at full speed.

`debug_active` is zero where nothing of this is going on, and that is all that other code needs to ask.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.debug import (
    BVR,
    breakpoint_armed,
    breakpoint_count,
    debug_enabled,
    is_address_breakpoint,
    watchpoints_on,
)
from trapline.arm64.regs.debug import MDSCR_EL1
from trapline.bits.native import Ptr, addressof, load32, load64, native, store64, u1, u32, u64
from trapline.engine.state import GUARDED, ITLB_ENTRIES, PAGE_HEADER, RECORD_SIZE, TLB_INVALID, EngineState, Shared
from trapline.engine.tlb import flush_all, select_regime

STEPPING: Final = 1
IN_PAGES: Final = 2
ANYWHERE: Final = 4
"""Bits of `debug_active`."""

GOING: Final = 1
STEPPED: Final = 2
EXCLUSIVE: Final = 4
"""Bits of `step_state`: an instruction is being stepped; the last one was; it was a load-exclusive."""

STEP_TAG: Final = 1 << 10
"""In an instruction TLB tag: the page has breakpoints."""
STEP_BUFFER = EngineState.step_buffer.offset
DEBUG_ON = MDSCR_EL1.SS.mask | MDSCR_EL1.MDE.mask


@native
def itlb_entry(cpu: Ptr[EngineState], va: u64) -> u64:
    """Address of the entry for `va` in the current instruction TLB."""
    return cpu.itlb + ((va >> 12 & (ITLB_ENTRIES - 1)) << 4)


@native
def breakpoint_reach(cpu: Ptr[EngineState]) -> u32:
    """IN_PAGES or ANYWHERE if breakpoints can match at this exception level; their pages then leave the instruction TLB."""
    reach: u32 = 0
    for n in range(breakpoint_count(cpu)):
        if breakpoint_armed(cpu, n):
            if is_address_breakpoint(cpu, n):
                reach = reach | IN_PAGES
                page = cpu.sysreg[BVR[n]] & ~u64(4095)
                entry = itlb_entry(cpu, page)
                if load64(entry) & ~u64(GUARDED) == page:
                    store64(entry, TLB_INVALID)
            else:
                reach = reach | ANYWHERE
    return reach


@native
def has_breakpoint(cpu: Ptr[EngineState], va: u64) -> u1:
    """Is there an address breakpoint in the page of `va`?"""
    for n in range(breakpoint_count(cpu)):
        if breakpoint_armed(cpu, n) and is_address_breakpoint(cpu, n) and (cpu.sysreg[BVR[n]] ^ va) >> 12 == 0:
            return True
    return False


@native
def look_at_debug(cpu: Ptr[EngineState]) -> None:
    """Find out what debugging is going on in the current state, and select its TLBs."""
    select_regime(cpu)
    active: u32 = 0
    mdscr = cpu.sysreg[MDSCR_EL1.slot]
    if mdscr & DEBUG_ON != 0 and debug_enabled(cpu):
        if mdscr & MDSCR_EL1.SS.mask != 0:
            active = STEPPING
        if mdscr & MDSCR_EL1.MDE.mask != 0:
            active = active | breakpoint_reach(cpu)
    cpu.debug_active = active
    if active & STEPPING == 0:
        cpu.step_state = 0


@native
def may_debug(cpu: Ptr[EngineState]) -> u1:
    """Is anything to be found by `look_at_debug`?"""
    return cpu.sysreg[MDSCR_EL1.slot] & DEBUG_ON != 0 or cpu.debug_active != 0


@native
def debug_changed(cpu: Ptr[EngineState]) -> None:
    """Debug registers were written: pages with watched bytes must not be in the data TLBs, others may again."""
    watching = watchpoints_on(cpu)
    if watching or cpu.watching != 0:
        flush_all(cpu)
    cpu.watching = u32(watching)
    look_at_debug(cpu)


@native
def finish_step(cpu: Ptr[EngineState]) -> None:
    """SSAdvance(): the instruction that was being stepped is complete."""
    if cpu.step_state & GOING != 0:
        cpu.ss = 0
        cpu.step_state = cpu.step_state & EXCLUSIVE | STEPPED


@native
def is_load_exclusive(word: u32) -> u1:
    """LDXR, LDAXR, LDXP and so on (but not CASP, which has their pattern with a small size)."""
    return word & 0x3FC0_0000 == 0x0840_0000 and (word & 1 << 21 == 0 or word >> 31 != 0)


@native
def lone_record(cpu: Ptr[EngineState], records: u64) -> u64:
    """Prepare this vCPU's own record for the instruction at arch.pc, whose page has the given records. Returns the record."""
    shared = Ptr[Shared](cpu.shared)
    header = (addressof(cpu) + STEP_BUFFER + 63) & ~u64(63)
    record = header + PAGE_HEADER
    code = load64(records - PAGE_HEADER)
    store64(header, code)
    store64(record, shared.lone)
    store64(record + RECORD_SIZE, shared.page_end)
    cpu.page_va = cpu.pc
    cpu.records = record
    if cpu.debug_active & (STEPPING | ANYWHERE) != 0:
        cpu.itlb = shared.no_code
    if cpu.debug_active & STEPPING != 0:
        exclusive: u1 = is_load_exclusive(load32(code + (cpu.pc & 4095)))
        cpu.step_state = GOING | (EXCLUSIVE if exclusive else u32(0))
    return record
