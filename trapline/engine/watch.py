"""Watchpoints in the engine: pages with watched bytes stay out of the data TLBs, and the slow paths ask here."""

from __future__ import annotations

from trapline.arm64.debug import DEBUG_ISS, LOAD, STORE, WATCH_CACHE, WATCH_WRITE, page_is_watched, watchpoint_hit
from trapline.arm64.exceptions import EC, EC_SHIFT, IL, V_SYNC, route_debug
from trapline.bits.native import Ptr, native, u1, u32, u64
from trapline.engine.state import EngineState
from trapline.engine.taking import enter_exception

EC_WATCHPOINT = int(EC.WATCHPOINT_LOWER)


@native
def keep_out(cpu: Ptr[EngineState], va: u64) -> u1:
    """Must the page of `va` stay out of the data TLBs?"""
    return cpu.watching != 0 and page_is_watched(cpu, va)


@native
def watchpoint(cpu: Ptr[EngineState], va: u64, size: u64, write: u1, update: u1, unprivileged: u1) -> u1:
    """Take a watchpoint exception if one matches this access by the instruction at arch.pc; `update` reads, too.

    What both reads and writes is reported as the read if a read alone would match.
    """
    el = u32(0) if unprivileged else u32(cpu.el)
    if update or not write:
        found, at = watchpoint_hit(cpu, va, size, LOAD, el)
        if found:
            take_watchpoint(cpu, at, 0)
            return True
    if write:
        hit, where = watchpoint_hit(cpu, va, size, STORE, el)
        if hit:
            take_watchpoint(cpu, where, WATCH_WRITE)
        return hit
    return False


@native
def cache_watchpoint(cpu: Ptr[EngineState], va: u64, line: u64) -> u1:
    """DC IVAC counts as a store to the line; FAR holds its operand."""
    hit, _ = watchpoint_hit(cpu, va & ~(line - 1), line, STORE, u32(cpu.el))
    if hit:
        take_watchpoint(cpu, va, WATCH_WRITE | WATCH_CACHE)
    return hit


@native
def take_watchpoint(cpu: Ptr[EngineState], va: u64, iss: u64) -> None:
    """The watchpoint exception of the instruction at arch.pc."""
    target = route_debug(cpu)
    same = u64(u32(cpu.el) == target)
    enter_exception(cpu, target, (u64(EC_WATCHPOINT) + same) << EC_SHIFT | IL | DEBUG_ISS | iss, va, V_SYNC, cpu.pc)
