"""FEAT_MOPS in the engine: copying and setting memory in pieces that do not leave a page, as native functions.

Only the size register changes (`isa/memory_copy.py`). It is written before anything that may leave the instruction, a fault or an
interrupt, so that the instruction goes on where it was when it runs again.
"""

from __future__ import annotations

from trapline.arm64.exceptions import EC, EC_SHIFT, IL, V_SYNC, route_sync
from trapline.arm64.regs.el2 import HCRX_EL2
from trapline.arm64.state import EL2_ABSENT
from trapline.bits.native import Ptr, extern, native, s64, u1, u32, u64
from trapline.engine.memory import UNPRIVILEGED, WRITE
from trapline.engine.runtime import service
from trapline.engine.slow import host_page, is_unprivileged
from trapline.engine.state import TLB_ENTRIES, DataTlb, EngineState
from trapline.engine.taking import current_pc, current_word, enter_exception, undefined
from trapline.engine.watch import watchpoint

move_bytes = extern("memmove", u64, (u64, u64, u64))
fill_bytes = extern("memset", u64, (u64, u32, u64))

EC_MOPS = int(EC.MOPS)
PAGE = 4096
BOTH_WAYS = 16
"""Bit of a copy's options: CPY, not CPYF."""
ISS_SET, ISS_EPILOGUE, ISS_WRONG_OPTION, ISS_OPTION_A = 1 << 24, 1 << 18, 1 << 17, 1 << 16


@native
def disabled(cpu: Ptr[EngineState], rec: u64) -> u32:
    """An instruction that is UNDEFINED here and now."""
    cpu.pc = current_pc(cpu, rec)
    undefined(cpu)
    return 1


@native
def mops_mismatch(cpu: Ptr[EngineState], rec: u64) -> u32:
    """A main or epilogue instruction after a prologue of option B."""
    cpu.pc = current_pc(cpu, rec)
    mops_exception(cpu, ISS_WRONG_OPTION)
    return 1


@native
def mops_exception(cpu: Ptr[EngineState], wrong: u64) -> None:
    """Take the memory copy and memory set exception for the instruction at arch.pc."""
    word = u64(current_word(cpu))
    iss: u64 = wrong | ISS_OPTION_A | (word & 31) << 10 | (word >> 16 & 31) << 5 | word >> 5 & 31
    if word >> 22 & 3 == 3:
        iss |= ISS_SET | (word >> 12 & 3) << 19
        if word >> 14 & 3 == 2:
            iss |= ISS_EPILOGUE
    else:
        iss |= (word >> 12 & 15) << 19
        if word >> 22 & 3 == 2:
            iss |= ISS_EPILOGUE
    target = route_sync(cpu)
    if cpu.el == 1 and cpu.el2 != EL2_ABSENT and cpu.sysreg[HCRX_EL2.slot] & HCRX_EL2.MCE2.mask != 0:
        target = 2
    enter_exception(cpu, target, u64(EC_MOPS) << EC_SHIFT | IL | iss, 0, V_SYNC, cpu.pc)


@native
def bytes_at(cpu: Ptr[EngineState], first: u64, count: u64, last_byte: u1, write: u1, unprivileged: u1) -> u64:
    """Host address of bytes inside a page; 0 after an abort, which names the last of them if `last_byte`, or a watchpoint."""
    meta: u32 = (WRITE if write else u32(0)) | (UNPRIVILEGED if unprivileged else u32(0)) | 1
    named = first + count - 1 if last_byte else first
    table = Ptr[DataTlb](cpu.tlb_user if unprivileged else cpu.tlb)
    entry = table.entries[named >> 12 & (TLB_ENTRIES - 1)]
    host = named + entry.addend
    if (entry.write_tag if write else entry.read_tag) != named & ~u64(PAGE - 1):
        host = host_page(cpu, named, write, meta)
    if host == 0:
        return 0
    if cpu.watching != 0 and watchpoint(cpu, first, count, write, False, is_unprivileged(cpu, meta)):
        return 0
    return host - (named - first)


@native
def must_pause(cpu: Ptr[EngineState]) -> u1:
    """Does something wait for this vCPU?"""
    return cpu.poll_kick != 0 or cpu.poll_irq != 0 or cpu.poll_timer != 0 or cpu.poll_sync != 0


@native
def mops_copy(cpu: Ptr[EngineState], rec: u64, destination: u64, source: u64, left: u64, options: u64) -> u32:
    """CPYM, CPYFM and what follows them: forwards while `left` is negative, backwards while it is positive."""
    cpu.pc = current_pc(cpu, rec)
    register = current_word(cpu) >> 5 & 31
    backward: u1 = s64(left) > 0
    if backward and options & BOTH_WAYS == 0:
        mops_exception(cpu, 0)
        return 1
    while left != 0:
        to = destination + left
        start = source + left
        count = 0 - left
        if backward:
            count = min(left, min(((to - 1) & (PAGE - 1)) + 1, ((start - 1) & (PAGE - 1)) + 1))
            to = to - count
            start = start - count
        else:
            count = min(count, min(PAGE - (to & (PAGE - 1)), PAGE - (start & (PAGE - 1))))
        cpu.x[register] = left
        reads = bytes_at(cpu, start, count, backward, False, options & 2 != 0)
        if reads == 0:
            return 1
        writes = bytes_at(cpu, to, count, backward, True, options & 1 != 0)
        if writes == 0:
            return 1
        move_bytes(writes, reads, count)
        left = left - count if backward else left + count
        if left != 0 and must_pause(cpu):
            cpu.x[register] = left
            service(cpu)
            return 1
    cpu.result = 0
    return 0


@native
def mops_set(cpu: Ptr[EngineState], rec: u64, destination: u64, value: u64, left: u64, options: u64) -> u32:
    """SETM and SETE: `left` is negative until all is done."""
    cpu.pc = current_pc(cpu, rec)
    register = current_word(cpu) >> 5 & 31
    if s64(left) > 0:
        mops_exception(cpu, 0)
        return 1
    while left != 0:
        to = destination + left
        count = min(0 - left, PAGE - (to & (PAGE - 1)))
        cpu.x[register] = left
        writes = bytes_at(cpu, to, count, False, True, options & 1 != 0)
        if writes == 0:
            return 1
        fill_bytes(writes, u32(value & 0xFF), count)
        left = left + count
        if left != 0 and must_pause(cpu):
            cpu.x[register] = left
            service(cpu)
            return 1
    cpu.result = 0
    return 0
