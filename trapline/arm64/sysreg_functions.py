"""The functions that register rows name in `read=` and `write=`: registers that are more than storage.

Reads take the PE's state and return 64 bits; writes take the state and the value. The CPU interface's functions (`icv_*`, `ich_*`)
are in arm64/gic_virtual.py.
"""

from __future__ import annotations

from typing import Any

from trapline.arm64.exceptions import HOST, LINE_FIQ, LINE_IRQ, set_mode, virtual_interrupt_lines
from trapline.arm64.features import CACHE_SIZES
from trapline.arm64.gic_interface import PHYSICAL, VIRTUAL, maintenance_pending, signalled_group
from trapline.arm64.gic_virtual import CPU_INTERFACE, ich_eisr_read, ich_elrsr_read, ich_misr_read
from trapline.arm64.regs.debug import DBGCLAIMCLR_EL1, OSLSR_EL1
from trapline.arm64.regs.el1 import SCTLR_EL1
from trapline.arm64.regs.el2 import CNTHCTL_EL2, CNTPOFF_EL2, CNTVOFF_EL2, HCR_EL2, SCTLR_EL2, VMPIDR_EL2, VPIDR_EL2
from trapline.arm64.regs.identification import CSSELR_EL1, DCZID_EL0, MIDR_EL1, MPIDR_EL1
from trapline.arm64.regs.timer import (
    CNTHP_CTL_EL2,
    CNTHP_CVAL_EL2,
    CNTHV_CTL_EL2,
    CNTHV_CVAL_EL2,
    CNTP_CTL_EL0,
    CNTP_CVAL_EL0,
    CNTV_CTL_EL0,
    CNTV_CVAL_EL0,
)
from trapline.arm64.state import EL2_GUEST, REGIME_EL2_HOST, CpuState
from trapline.bits.native import NativeFunction, Ptr, extern, native, s32, s64, u1, u8, u32, u64

system_counter = extern("trapline_system_counter", u64, (Ptr[CpuState],))
"""The system counter as this PE sees it now, in ticks of `regs.timer.COUNTER_HZ`; the engine gives the address."""

random_number = extern("trapline_random", u64, (Ptr[CpuState],))
"""64 random bits for this PE; the engine gives the address."""

# ---- PSTATE -------------------------------------------------------------------------------------------------------------------


@native
def nzcv_read(cpu: Ptr[CpuState]) -> u64:
    """NZCV."""
    return u64(cpu.n) << 31 | u64(cpu.z) << 30 | u64(cpu.c) << 29 | u64(cpu.v_flag) << 28


@native
def nzcv_write(cpu: Ptr[CpuState], value: u64) -> None:
    """NZCV."""
    cpu.n = u8(value >> 31 & 1)
    cpu.z = u8(value >> 30 & 1)
    cpu.c = u8(value >> 29 & 1)
    cpu.v_flag = u8(value >> 28 & 1)


@native
def daif_read(cpu: Ptr[CpuState]) -> u64:
    """DAIF."""
    return u64(cpu.daif) << 6


@native
def daif_write(cpu: Ptr[CpuState], value: u64) -> None:
    """DAIF."""
    cpu.daif = u8(value >> 6 & 15)


@native
def currentel_read(cpu: Ptr[CpuState]) -> u64:
    """CurrentEL."""
    return u64(cpu.el) << 2


@native
def spsel_read(cpu: Ptr[CpuState]) -> u64:
    """SPSel."""
    return u64(cpu.spsel)


@native
def spsel_write(cpu: Ptr[CpuState], value: u64) -> None:
    """SPSel: the other stack pointer becomes the current one."""
    set_mode(cpu, cpu.el, u8(value & 1))


@native
def pan_read(cpu: Ptr[CpuState]) -> u64:
    """PAN."""
    return u64(cpu.pan) << 22


@native
def pan_write(cpu: Ptr[CpuState], value: u64) -> None:
    """PAN."""
    cpu.pan = u8(value >> 22 & 1)


@native
def uao_read(cpu: Ptr[CpuState]) -> u64:
    """UAO."""
    return u64(cpu.uao) << 23


@native
def uao_write(cpu: Ptr[CpuState], value: u64) -> None:
    """UAO."""
    cpu.uao = u8(value >> 23 & 1)


@native
def dit_read(cpu: Ptr[CpuState]) -> u64:
    """DIT."""
    return u64(cpu.dit) << 24


@native
def dit_write(cpu: Ptr[CpuState], value: u64) -> None:
    """DIT."""
    cpu.dit = u8(value >> 24 & 1)


@native
def ssbs_read(cpu: Ptr[CpuState]) -> u64:
    """SSBS."""
    return u64(cpu.ssbs) << 12


@native
def ssbs_write(cpu: Ptr[CpuState], value: u64) -> None:
    """SSBS."""
    cpu.ssbs = u8(value >> 12 & 1)


@native
def tco_read(cpu: Ptr[CpuState]) -> u64:
    """TCO."""
    return u64(cpu.tco) << 25


@native
def tco_write(cpu: Ptr[CpuState], value: u64) -> None:
    """TCO."""
    cpu.tco = u8(value >> 25 & 1)


# ---- banked stack pointers ----------------------------------------------------------------------------------------------------


@native
def sp_el0_read(cpu: Ptr[CpuState]) -> u64:
    """SP_EL0, which is `sp` itself while PSTATE.SP is 0."""
    return cpu.sp_el[0] if cpu.spsel != 0 else cpu.sp


@native
def sp_el0_write(cpu: Ptr[CpuState], value: u64) -> None:
    """SP_EL0."""
    cpu.sp_el[0] = value
    if cpu.spsel == 0:
        cpu.sp = value


@native
def sp_el1_read(cpu: Ptr[CpuState]) -> u64:
    """SP_EL1, from EL2."""
    return cpu.sp_el[1]


@native
def sp_el1_write(cpu: Ptr[CpuState], value: u64) -> None:
    """SP_EL1, from EL2."""
    cpu.sp_el[1] = value


@native
def sp_el2_read(cpu: Ptr[CpuState]) -> u64:
    """SP_EL2."""
    return cpu.sp_el[2]


@native
def sp_el2_write(cpu: Ptr[CpuState], value: u64) -> None:
    """SP_EL2."""
    cpu.sp_el[2] = value


# ---- identification -----------------------------------------------------------------------------------------------------------


@native
def midr_read(cpu: Ptr[CpuState]) -> u64:
    """MIDR_EL1: EL1 sees what the hypervisor put into VPIDR_EL2."""
    return cpu.sysreg[VPIDR_EL2.slot] if cpu.el == 1 else cpu.sysreg[MIDR_EL1.slot]


@native
def mpidr_read(cpu: Ptr[CpuState]) -> u64:
    """MPIDR_EL1: EL1 sees what the hypervisor put into VMPIDR_EL2."""
    return cpu.sysreg[VMPIDR_EL2.slot] if cpu.el == 1 else cpu.sysreg[MPIDR_EL1.slot]


@native
def ccsidr_read(cpu: Ptr[CpuState]) -> u64:
    """CCSIDR_EL1 of the cache that CSSELR_EL1 selects; zero for a cache that does not exist."""
    selected: u64 = cpu.sysreg[CSSELR_EL1.slot] & 15
    return CACHE_SIZES[selected] if selected < len(CACHE_SIZES) else u64(0)


@native
def dczid_read(cpu: Ptr[CpuState]) -> u64:
    """DCZID_EL0: DZP says whether DC ZVA would trap here."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    value: u64 = cpu.sysreg[DCZID_EL0.slot]
    if cpu.el == 2:
        return value
    if hcr & HOST == HOST:
        return value if cpu.sysreg[SCTLR_EL2.slot] & SCTLR_EL2.DZE.mask != 0 else value | DCZID_EL0.DZP.mask
    if hcr & HCR_EL2.TDZ.mask != 0 or (cpu.el == 0 and cpu.sysreg[SCTLR_EL1.slot] & SCTLR_EL1.DZE.mask == 0):
        value |= DCZID_EL0.DZP.mask
    return value


@native
def isr_read(cpu: Ptr[CpuState]) -> u64:
    """ISR_EL1: what is pending, masked or not: at EL1 the virtual interrupt where HCR_EL2 makes it so, else the physical one."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    below: u64 = hcr if cpu.el == 1 else u64(0)
    virtual: u32 = virtual_interrupt_lines(cpu)
    physical: u32 = signalled_group(cpu, PHYSICAL)
    pending: u64 = 0
    if (virtual if below & HCR_EL2.IMO.mask != 0 else physical) & LINE_IRQ != 0:
        pending |= 1 << 7
    if (virtual if below & HCR_EL2.FMO.mask != 0 else physical) & LINE_FIQ != 0:
        pending |= 1 << 6
    if below & HCR_EL2.AMO.mask != 0 and hcr & HCR_EL2.VSE.mask != 0:
        pending |= 1 << 8
    return pending


# ---- random numbers -----------------------------------------------------------------------------------------------------------


@native
def rndr_read(cpu: Ptr[CpuState]) -> u64:
    """RNDR, RNDRRS."""
    return random_number(cpu)


# ---- timers -------------------------------------------------------------------------------------------------------------------

CTL_ISTATUS = 4


@native
def physical_offset(cpu: Ptr[CpuState]) -> u64:
    """CNTPOFF_EL2 where CNTHCTL_EL2.ECV applies it to EL1's physical counter and timer: not under a host's EL0."""
    applied: u1 = cpu.sysreg[CNTHCTL_EL2.slot] & CNTHCTL_EL2.ECV.mask != 0 and cpu.sysreg[HCR_EL2.slot] & HOST != HOST
    return cpu.sysreg[CNTPOFF_EL2.slot] if applied else u64(0)


@native
def physical_now(cpu: Ptr[CpuState]) -> u64:
    """The physical counter as the current exception level sees it."""
    return system_counter(cpu) if cpu.el == 2 else system_counter(cpu) - physical_offset(cpu)


@native
def cntpct_read(cpu: Ptr[CpuState]) -> u64:
    """CNTPCT_EL0."""
    return physical_now(cpu)


@native
def cntvct_read(cpu: Ptr[CpuState]) -> u64:
    """CNTVCT_EL0; the host at EL2, and its EL0, see no offset."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    if (cpu.el == 2 and hcr & HCR_EL2.E2H.mask != 0) or (cpu.el == 0 and hcr & HOST == HOST):
        return system_counter(cpu)
    return system_counter(cpu) - cpu.sysreg[CNTVOFF_EL2.slot]


@native
def timer_status(ctl: u64, cval: u64, now: u64) -> u64:
    """A timer's control register as it reads: ISTATUS is the condition `now >= cval` while enabled."""
    return ctl & 3 | (CTL_ISTATUS if ctl & 1 != 0 and now >= cval else u64(0))


@native
def timer_asserted(ctl: u64, cval: u64, now: u64) -> u32:
    """1 when a timer's interrupt line is high: enabled, not masked, condition met."""
    return u32(ctl & 3 == 1 and now >= cval)


LINE_VIRTUAL, LINE_PHYSICAL, LINE_HYP_PHYSICAL, LINE_HYP_VIRTUAL, LINE_MAINTENANCE = 1, 2, 4, 8, 16
"""Bits of `private_lines`: the outputs of the PE that are wired to private interrupts."""


@native
def timer_lines(cpu: Ptr[CpuState], now: u64) -> u32:
    """Interrupt lines of EL1's timers at physical count `now`: bit 0 virtual, bit 1 physical."""
    virtual: u64 = now - cpu.sysreg[CNTVOFF_EL2.slot]
    lines: u32 = timer_asserted(cpu.sysreg[CNTV_CTL_EL0.slot], cpu.sysreg[CNTV_CVAL_EL0.slot], virtual)
    physical: u64 = now - physical_offset(cpu)
    return lines | timer_asserted(cpu.sysreg[CNTP_CTL_EL0.slot], cpu.sysreg[CNTP_CVAL_EL0.slot], physical) << 1


@native
def private_lines(cpu: Ptr[CpuState], now: u64) -> u32:
    """`timer_lines`, and where EL2 is guest code its timers and the maintenance interrupt."""
    lines: u32 = timer_lines(cpu, now)
    if cpu.el2 != EL2_GUEST:
        return lines
    lines |= timer_asserted(cpu.sysreg[CNTHP_CTL_EL2.slot], cpu.sysreg[CNTHP_CVAL_EL2.slot], now) << 2
    lines |= timer_asserted(cpu.sysreg[CNTHV_CTL_EL2.slot], cpu.sysreg[CNTHV_CVAL_EL2.slot], now) << 3
    return lines | u32(maintenance_pending(cpu, VIRTUAL)) << 4


NEVER = (1 << 64) - 1


@native
def timer_count(ctl: u64, cval: u64, now: u64, offset: u64) -> u64:
    """The physical count at which a timer's line next goes high: `now` if it is high already, NEVER if it will not.

    The timer compares with the physical count minus `offset`.
    """
    if ctl & 3 != 1:
        return NEVER
    seen: u64 = now - offset
    wait: u64 = cval - seen if cval > seen else u64(0)
    return now + wait if wait < NEVER - now else u64(NEVER)


@native
def next_timer_count(cpu: Ptr[CpuState], now: u64) -> u64:
    """The physical count at which a timer line next goes high; NEVER if none will, `now` if one is high already."""
    best: u64 = timer_count(cpu.sysreg[CNTP_CTL_EL0.slot], cpu.sysreg[CNTP_CVAL_EL0.slot], now, physical_offset(cpu))
    best = min(best, timer_count(cpu.sysreg[CNTV_CTL_EL0.slot], cpu.sysreg[CNTV_CVAL_EL0.slot], now, cpu.sysreg[CNTVOFF_EL2.slot]))
    if cpu.el2 == EL2_GUEST:
        best = min(best, timer_count(cpu.sysreg[CNTHP_CTL_EL2.slot], cpu.sysreg[CNTHP_CVAL_EL2.slot], now, 0))
        best = min(best, timer_count(cpu.sysreg[CNTHV_CTL_EL2.slot], cpu.sysreg[CNTHV_CVAL_EL2.slot], now, 0))
    return best


@native
def tval_from_cval(cval: u64, now: u64) -> u64:
    """TimerValue: the low 32 bits of the distance to CompareValue."""
    return u64(u32(cval - now))


@native
def cval_from_tval(tval: u64, now: u64) -> u64:
    """CompareValue after a write of TimerValue, a signed 32-bit distance from now."""
    return now + u64(s64(s32(u32(tval))))


@native
def virtual_now(cpu: Ptr[CpuState]) -> u64:
    """What EL1's virtual timer compares with."""
    return system_counter(cpu) - cpu.sysreg[CNTVOFF_EL2.slot]


@native
def cntp_ctl_read(cpu: Ptr[CpuState]) -> u64:
    """CNTP_CTL_EL0."""
    now: u64 = system_counter(cpu) - physical_offset(cpu)
    return timer_status(cpu.sysreg[CNTP_CTL_EL0.slot], cpu.sysreg[CNTP_CVAL_EL0.slot], now)


@native
def cntp_tval_read(cpu: Ptr[CpuState]) -> u64:
    """CNTP_TVAL_EL0."""
    return tval_from_cval(cpu.sysreg[CNTP_CVAL_EL0.slot], physical_now(cpu))


@native
def cntp_tval_write(cpu: Ptr[CpuState], value: u64) -> None:
    """CNTP_TVAL_EL0."""
    cpu.sysreg[CNTP_CVAL_EL0.slot] = cval_from_tval(value, physical_now(cpu))


@native
def cntv_ctl_read(cpu: Ptr[CpuState]) -> u64:
    """CNTV_CTL_EL0."""
    return timer_status(cpu.sysreg[CNTV_CTL_EL0.slot], cpu.sysreg[CNTV_CVAL_EL0.slot], virtual_now(cpu))


@native
def cntv_tval_read(cpu: Ptr[CpuState]) -> u64:
    """CNTV_TVAL_EL0."""
    return tval_from_cval(cpu.sysreg[CNTV_CVAL_EL0.slot], virtual_now(cpu))


@native
def cntv_tval_write(cpu: Ptr[CpuState], value: u64) -> None:
    """CNTV_TVAL_EL0."""
    cpu.sysreg[CNTV_CVAL_EL0.slot] = cval_from_tval(value, virtual_now(cpu))


@native
def cnthp_ctl_read(cpu: Ptr[CpuState]) -> u64:
    """CNTHP_CTL_EL2."""
    return timer_status(cpu.sysreg[CNTHP_CTL_EL2.slot], cpu.sysreg[CNTHP_CVAL_EL2.slot], system_counter(cpu))


@native
def cnthp_tval_read(cpu: Ptr[CpuState]) -> u64:
    """CNTHP_TVAL_EL2."""
    return tval_from_cval(cpu.sysreg[CNTHP_CVAL_EL2.slot], system_counter(cpu))


@native
def cnthp_tval_write(cpu: Ptr[CpuState], value: u64) -> None:
    """CNTHP_TVAL_EL2."""
    cpu.sysreg[CNTHP_CVAL_EL2.slot] = cval_from_tval(value, system_counter(cpu))


@native
def cnthv_ctl_read(cpu: Ptr[CpuState]) -> u64:
    """CNTHV_CTL_EL2."""
    return timer_status(cpu.sysreg[CNTHV_CTL_EL2.slot], cpu.sysreg[CNTHV_CVAL_EL2.slot], system_counter(cpu))


@native
def cnthv_tval_read(cpu: Ptr[CpuState]) -> u64:
    """CNTHV_TVAL_EL2."""
    return tval_from_cval(cpu.sysreg[CNTHV_CVAL_EL2.slot], system_counter(cpu))


@native
def cnthv_tval_write(cpu: Ptr[CpuState], value: u64) -> None:
    """CNTHV_TVAL_EL2."""
    cpu.sysreg[CNTHV_CVAL_EL2.slot] = cval_from_tval(value, system_counter(cpu))


@native
def cntp_ctl_read_here(cpu: Ptr[CpuState]) -> u64:
    """CNTP_CTL_EL0, which for the host at EL2 and its EL0 is EL2's timer."""
    return cnthp_ctl_read(cpu) if cpu.regime == REGIME_EL2_HOST else cntp_ctl_read(cpu)


@native
def cntp_tval_read_here(cpu: Ptr[CpuState]) -> u64:
    """CNTP_TVAL_EL0, which for the host at EL2 and its EL0 is EL2's timer."""
    return cnthp_tval_read(cpu) if cpu.regime == REGIME_EL2_HOST else cntp_tval_read(cpu)


@native
def cntp_tval_write_here(cpu: Ptr[CpuState], value: u64) -> None:
    """CNTP_TVAL_EL0, which for the host at EL2 and its EL0 is EL2's timer."""
    if cpu.regime == REGIME_EL2_HOST:
        cnthp_tval_write(cpu, value)
    else:
        cntp_tval_write(cpu, value)


@native
def cntv_ctl_read_here(cpu: Ptr[CpuState]) -> u64:
    """CNTV_CTL_EL0, which for the host at EL2 and its EL0 is EL2's timer."""
    return cnthv_ctl_read(cpu) if cpu.regime == REGIME_EL2_HOST else cntv_ctl_read(cpu)


@native
def cntv_tval_read_here(cpu: Ptr[CpuState]) -> u64:
    """CNTV_TVAL_EL0, which for the host at EL2 and its EL0 is EL2's timer."""
    return cnthv_tval_read(cpu) if cpu.regime == REGIME_EL2_HOST else cntv_tval_read(cpu)


@native
def cntv_tval_write_here(cpu: Ptr[CpuState], value: u64) -> None:
    """CNTV_TVAL_EL0, which for the host at EL2 and its EL0 is EL2's timer."""
    if cpu.regime == REGIME_EL2_HOST:
        cnthv_tval_write(cpu, value)
    else:
        cntv_tval_write(cpu, value)


REDIRECTED: dict[str, NativeFunction[Any, Any]] = {
    "cntp_ctl_read": cntp_ctl_read_here,
    "cntp_tval_read": cntp_tval_read_here,
    "cntp_tval_write": cntp_tval_write_here,
    "cntv_ctl_read": cntv_ctl_read_here,
    "cntv_tval_read": cntv_tval_read_here,
    "cntv_tval_write": cntv_tval_write_here,
}
"""What serves a register that means another one where HCR_EL2.E2H redirects it, by the function that does not care."""


# ---- debug, interrupts --------------------------------------------------------------------------------------------------------


@native
def oslar_write(cpu: Ptr[CpuState], value: u64) -> None:
    """OSLAR_EL1: bit 0 sets or clears the OS lock, which OSLSR_EL1 shows."""
    locked: u64 = OSLSR_EL1.OSLK.mask if value & 1 != 0 else u64(0)
    cpu.sysreg[OSLSR_EL1.slot] = cpu.sysreg[OSLSR_EL1.slot] & ~OSLSR_EL1.OSLK.mask | locked


@native
def dbgclaimset_write(cpu: Ptr[CpuState], value: u64) -> None:
    """DBGCLAIMSET_EL1: set claim tags."""
    cpu.sysreg[DBGCLAIMCLR_EL1.slot] |= value & 0xFF


@native
def dbgclaimclr_write(cpu: Ptr[CpuState], value: u64) -> None:
    """DBGCLAIMCLR_EL1: clear claim tags."""
    cpu.sysreg[DBGCLAIMCLR_EL1.slot] &= ~(value & 0xFF)


@native
def sgi_write(cpu: Ptr[CpuState], value: u64) -> None:
    """ICC_SGI*R_EL1 when nothing traps it: there is no physical distributor to send through."""


def _collect() -> dict[str, NativeFunction[Any, Any]]:
    here = [value for value in globals().values() if isinstance(value, NativeFunction)]
    interface = [function for row in CPU_INTERFACE.values() for function in (row.read, row.write)]
    found = [*here, ich_eisr_read, ich_elrsr_read, ich_misr_read, *interface]
    return {f.name: f for f in found if isinstance(f, NativeFunction) and f.name.endswith(("_read", "_write"))}


FUNCTIONS: dict[str, NativeFunction[Any, Any]] = _collect()
"""By the names that register rows use."""
