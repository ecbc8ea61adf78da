"""Self-hosted debug: when debug exceptions are enabled, what breakpoints and watchpoints match, and software step's state machine.

Names in the docstrings are those of the manual's pseudocode. All of it works on `CpuState`; the engine asks only while
MDSCR_EL1 says that somebody debugs.
"""

from __future__ import annotations

from typing import Final

from trapline.arm64.regs.debug import DBGBCR, DBGBVR, DBGWCR, DBGWVR, MDSCR_EL1, OSLSR_EL1, DebugControl, WatchControl
from trapline.arm64.regs.el1 import CONTEXTIDR_EL1, SPSR_EL1, TCR_EL1
from trapline.arm64.regs.el2 import CONTEXTIDR_EL2, HCR_EL2, MDCR_EL2, TCR_EL2, VTCR_EL2, VTTBR_EL2
from trapline.arm64.regs.identification import ID_AA64DFR0_EL1
from trapline.arm64.state import CpuState
from trapline.bits.native import Ptr, native, u1, u8, u32, u64

HOST = HCR_EL2.E2H.mask | HCR_EL2.TGE.mask
MASK_D: Final = 8
SPSR_D, SPSR_SS = SPSR_EL1.D.lo, SPSR_EL1.SS.lo
SECURE_ONLY: Final = 2
"""SSC that matches in Secure state alone."""
EL2_ONLY: Final = 3

DEBUG_ISS: Final = 0x22
"""Fault status code of breakpoint, watchpoint and software step exceptions."""
STEP_VALID, STEP_EXCLUSIVE = 1 << 24, 1 << 6
"""ISV and EX of a software step's syndrome."""
WATCH_WRITE, WATCH_CACHE = 1 << 6, 1 << 8
"""WnR and CM of a watchpoint's syndrome."""

LOAD, STORE = 1, 2
"""Kinds of access, as bits of DBGWCR_EL1.LSC."""

BCR: tuple[u32, ...] = tuple(reg.slot for reg in DBGBCR)
BVR: tuple[u32, ...] = tuple(reg.slot for reg in DBGBVR)
WCR: tuple[u32, ...] = tuple(reg.slot for reg in DBGWCR)
WVR: tuple[u32, ...] = tuple(reg.slot for reg in DBGWVR)

BT_LINKED: Final = 1
BT_VMID, BT_EL1, BT_EL2 = 0b1000, 0b0010, 0b0100
"""Breakpoint types above 1 compare contexts: with these bits the VMID, CONTEXTIDR_EL1, or with bit 3 too CONTEXTIDR_EL2."""


# ---- enabled or not -----------------------------------------------------------------------------------------------------------


@native
def debug_target(cpu: Ptr[CpuState]) -> u32:
    """DebugTarget(): the exception level that debug exceptions from below it are taken to."""
    to_el2: u1 = cpu.sysreg[MDCR_EL2.slot] & MDCR_EL2.TDE.mask != 0 or cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TGE.mask != 0
    return 2 if to_el2 else 1


@native
def debug_enabled_from(cpu: Ptr[CpuState], el: u32, masked: u1) -> u1:
    """GenerateDebugExceptionsFrom(): are debug exceptions other than BRK enabled at `el`, with PSTATE.D as given?"""
    if cpu.sysreg[OSLSR_EL1.slot] & OSLSR_EL1.OSLK.mask != 0:
        return False
    target: u32 = debug_target(cpu)
    if el == target:
        return cpu.sysreg[MDSCR_EL1.slot] & MDSCR_EL1.KDE.mask != 0 and not masked
    return target > el


@native
def debug_enabled(cpu: Ptr[CpuState]) -> u1:
    """GenerateDebugExceptions(): the same for the current exception level and mask."""
    return debug_enabled_from(cpu, u32(cpu.el), cpu.daif & MASK_D != 0)


@native
def step_after_return(cpu: Ptr[CpuState], spsr: u64, el: u32) -> u8:
    """DebugExceptionReturnSS(): PSTATE.SS after an exception return to `el`.

    SPSR's bit counts only when stepping begins with the return: it is on, cannot happen here and can happen there.
    """
    if cpu.sysreg[MDSCR_EL1.slot] & MDSCR_EL1.SS.mask == 0:
        return 0
    if debug_enabled(cpu) or not debug_enabled_from(cpu, el, spsr >> SPSR_D & 1 != 0):
        return 0
    return u8(spsr >> SPSR_SS & 1)


# ---- what breakpoints and watchpoints have in common --------------------------------------------------------------------------


@native
def breakpoint_count(cpu: Ptr[CpuState]) -> u32:
    """How many breakpoints there are."""
    return u32(cpu.sysreg[ID_AA64DFR0_EL1.slot] >> ID_AA64DFR0_EL1.BRPs.lo & 15) + 1


@native
def watchpoint_count(cpu: Ptr[CpuState]) -> u32:
    """How many watchpoints there are."""
    return u32(cpu.sysreg[ID_AA64DFR0_EL1.slot] >> ID_AA64DFR0_EL1.WRPs.lo & 15) + 1


@native
def is_context_aware(cpu: Ptr[CpuState], n: u32) -> u1:
    """Can breakpoint `n` compare contexts? The last ones can."""
    aware: u32 = u32(cpu.sysreg[ID_AA64DFR0_EL1.slot] >> ID_AA64DFR0_EL1.CTX_CMPs.lo & 15) + 1
    return n + aware >= breakpoint_count(cpu)


@native
def in_host(cpu: Ptr[CpuState]) -> u1:
    """ELIsInHost(): EL2 with E2H, or EL0 as an application of the host there."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    if cpu.el == 2:
        return hcr & HCR_EL2.E2H.mask != 0
    return cpu.el == 0 and hcr & HOST == HOST


@native
def context_match(cpu: Ptr[CpuState], kind: u64, value: u64) -> u1:
    """The comparison of a breakpoint of type `kind` above 1 (a BT field): contexts and VMID, and DBGBVR's `value`."""
    host: u1 = in_host(cpu)
    guest: u1 = cpu.el != 2 and not host
    low: u64 = value & 0xFFFF_FFFF
    base: u64 = kind & ~u64(BT_LINKED)
    if base == BT_EL2:
        return False  # address mismatch: of AArch32 only
    if base == BT_EL1 and host:
        return cpu.sysreg[CONTEXTIDR_EL2.slot] & 0xFFFF_FFFF == low
    if base & BT_EL1 != 0:
        if not guest or cpu.sysreg[CONTEXTIDR_EL1.slot] & 0xFFFF_FFFF != low:
            return False
    if base & (BT_VMID | BT_EL2) == BT_VMID:
        wide: u1 = cpu.sysreg[VTCR_EL2.slot] & VTCR_EL2.VS.mask != 0
        bits: u64 = 0xFFFF if wide else u64(0xFF)
        if not guest or (cpu.sysreg[VTTBR_EL2.slot] >> 48 ^ value >> 32) & bits != 0:
            return False
    if base & (BT_VMID | BT_EL2) == BT_VMID | BT_EL2:
        return cpu.sysreg[CONTEXTIDR_EL2.slot] & 0xFFFF_FFFF == value >> 32
    return True


@native
def linked_match(cpu: Ptr[CpuState], n: u32) -> u1:
    """Does breakpoint `n`, linked to by another one or by a watchpoint, match the current context?"""
    if n >= breakpoint_count(cpu) or not is_context_aware(cpu, n):
        return False
    control: u64 = cpu.sysreg[BCR[n]]
    kind: u64 = control >> DebugControl.BT.lo & 15
    if control & DebugControl.E.mask == 0 or kind & BT_LINKED == 0 or kind == BT_LINKED:
        return False
    return context_match(cpu, kind, cpu.sysreg[BVR[n]])


@native
def state_match(control: u64, el: u32) -> u1:
    """StateMatch() without linking: do HMC, SSC and PMC or PAC of a control register include `el` in Non-secure state?"""
    privilege: u64 = control >> DebugControl.PMC.lo & 3
    security: u64 = control >> DebugControl.SSC.lo & 3
    if security == SECURE_ONLY:
        return False
    if el == 2:
        return control & DebugControl.HMC.mask != 0 or security == EL2_ONLY
    return privilege & (1 if el == 1 else u64(2)) != 0


# ---- breakpoints --------------------------------------------------------------------------------------------------------------


@native
def breakpoint_armed(cpu: Ptr[CpuState], n: u32) -> u1:
    """Can breakpoint `n` match by itself at this exception level, wherever its value points?"""
    control: u64 = cpu.sysreg[BCR[n]]
    if control & DebugControl.E.mask == 0 or not state_match(control, u32(cpu.el)):
        return False
    kind: u64 = control >> DebugControl.BT.lo & 15
    return kind <= BT_LINKED or (kind & BT_LINKED == 0 and is_context_aware(cpu, n))


@native
def is_address_breakpoint(cpu: Ptr[CpuState], n: u32) -> u1:
    """Does breakpoint `n` compare instruction addresses?"""
    return cpu.sysreg[BCR[n]] >> DebugControl.BT.lo & 15 <= BT_LINKED


@native
def breakpoint_hit(cpu: Ptr[CpuState], va: u64) -> u1:
    """CheckBreakpoint(): does a breakpoint match the instruction at `va`? Whether they are enabled is the caller's to know."""
    for n in range(breakpoint_count(cpu)):
        if breakpoint_armed(cpu, n):
            control: u64 = cpu.sysreg[BCR[n]]
            kind: u64 = control >> DebugControl.BT.lo & 15
            value: u64 = cpu.sysreg[BVR[n]]
            if kind > BT_LINKED:
                if context_match(cpu, kind, value):
                    return True
            elif (va ^ value) >> 2 == 0:
                if kind == 0 or linked_match(cpu, u32(control >> DebugControl.LBN.lo & 15)):
                    return True
    return False


# ---- watchpoints --------------------------------------------------------------------------------------------------------------


@native
def watchpoints_on(cpu: Ptr[CpuState]) -> u1:
    """Is any watchpoint enabled, whatever the exception level and the masks?"""
    if cpu.sysreg[MDSCR_EL1.slot] & MDSCR_EL1.MDE.mask == 0 or cpu.sysreg[OSLSR_EL1.slot] & OSLSR_EL1.OSLK.mask != 0:
        return False
    for n in range(watchpoint_count(cpu)):
        if cpu.sysreg[WCR[n]] & WatchControl.E.mask != 0:
            return True
    return False


@native
def watched_bits(control: u64) -> u64:
    """The address bits that a watchpoint ignores because of its MASK; 0 if it selects bytes by BAS."""
    mask: u64 = control >> WatchControl.MASK.lo & 31
    return (u64(1) << mask) - 1 if mask > 2 else u64(0)


@native
def page_is_watched(cpu: Ptr[CpuState], va: u64) -> u1:
    """Does an enabled watchpoint cover bytes of the 4 KiB page of `va`? Bits that may be a tag are not compared."""
    for n in range(watchpoint_count(cpu)):
        control: u64 = cpu.sysreg[WCR[n]]
        if control & WatchControl.E.mask != 0:
            if ((va ^ cpu.sysreg[WVR[n]]) & ~(watched_bits(control) | 4095)) << 8 == 0:
                return True
    return False


@native
def tag_bits(cpu: Ptr[CpuState], va: u64, el: u32) -> u64:
    """AddrTop() as a mask: the bits of a data address that are a tag."""
    if el == 2 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.E2H.mask == 0:
        return u64(0xFF) << 56 if cpu.sysreg[TCR_EL2.slot] & TCR_EL2.TBI.mask != 0 else u64(0)
    host: u1 = el == 2 or (el == 0 and cpu.sysreg[HCR_EL2.slot] & HOST == HOST)
    tcr: u64 = cpu.sysreg[TCR_EL2.slot] if host else cpu.sysreg[TCR_EL1.slot]
    ignored: u64 = tcr & (TCR_EL1.TBI1.mask if va >> 55 & 1 != 0 else u64(TCR_EL1.TBI0.mask))
    return u64(0xFF) << 56 if ignored != 0 else u64(0)


@native
def bytes_match(control: u64, value: u64, va: u64, size: u64, tag: u64) -> tuple[u1, u64]:
    """WatchpointByteMatch() for `size` bytes at `va`: is one of them watched, and the address of the first such byte."""
    ignored: u64 = watched_bits(control)
    select: u64 = control >> WatchControl.BAS.lo & 0xFF
    low: u64 = 7
    if value & 4 != 0:
        low = 3
    k: u64 = 0
    while k < size:
        at: u64 = va + k
        if ignored != 0:
            if (at ^ value) & ~(tag | ignored) == 0:
                return True, at
        elif (at ^ value) & ~(tag | low) == 0 and select >> (at & low) & 1 != 0:
            return True, at
        k = k + 1
    return False, 0


@native
def watchpoint_hit(cpu: Ptr[CpuState], va: u64, size: u64, kind: u64, el: u32) -> tuple[u1, u64]:
    """CheckWatchpoint(): does a watchpoint match this access (LOAD or STORE) as of `el`, and the first byte of it that the first one
    to match watches."""
    if not debug_enabled(cpu):
        return False, 0
    tag: u64 = tag_bits(cpu, va, el)
    for n in range(watchpoint_count(cpu)):
        control: u64 = cpu.sysreg[WCR[n]]
        wanted: u1 = control & WatchControl.E.mask != 0 and control >> WatchControl.LSC.lo & kind != 0
        if wanted and state_match(control, el):
            hit, at = bytes_match(control, cpu.sysreg[WVR[n]], va, size, tag)
            linked: u1 = control & WatchControl.WT.mask != 0
            if hit and (not linked or linked_match(cpu, u32(control >> WatchControl.LBN.lo & 15))):
                return True, at
    return False, 0
