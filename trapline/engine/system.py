"""System operations that handlers call by name, as native functions: `trapline_sys_<name>(cpu, record, arguments)`.

Each returns 0 when the instruction is complete and the next one follows, 1 when execution continues at `pc` (an exception, a
return, a new address space) or the run ends. A value goes to `result`.
"""

from __future__ import annotations

from trapline.arm64.exceptions import (
    EC,
    EC_SHIFT,
    FP_ISS,
    IL,
    LINE_FIQ,
    LINE_IRQ,
    V_SYNC,
    current_sctlr,
    exception_return,
    route_sync,
    sysreg_syndrome,
    virtual_interrupt_lines,
    wait_trap,
)
from trapline.arm64.gic_interface import PHYSICAL, signalled_group
from trapline.arm64.pauth import FPACCOMBINE, pac_auth, pac_failed, pac_level
from trapline.arm64.regs import ELR_EL1, ELR_EL2, HCR_EL2, HFGITR_EL2, PAR_EL1, SCTLR_EL1
from trapline.arm64.regs.system import Regime, Tlbi, TlbiBy
from trapline.arm64.state import EL2_OUTSIDE, REGIME_EL2_HOST
from trapline.arm64.sysreg_functions import cntvct_read
from trapline.arm64.traps import OK, access_outcome, take_access_exception, unallocated_outcome
from trapline.arm64.walk import address_translate, address_translate_fault
from trapline.bits.native import Ptr, extern, native, s64, store8, u1, u32, u64
from trapline.engine.alarm import set_alarm
from trapline.engine.codemap import reset_everything, reset_line
from trapline.engine.debug import GOING, STEPPED, debug_changed, may_debug
from trapline.engine.handler import AFTER
from trapline.engine.slow import host_page
from trapline.engine.state import TURN_GIVEN_UP, EngineState, Exit, Shared
from trapline.engine.taking import current_pc, current_word, data_abort, enter_exception, look_for_interrupts, refresh, settle, undefined
from trapline.engine.tlb import (
    ASID,
    ASID_SHIFT,
    EVERYTHING,
    FRAME,
    HOST,
    HOST_EL0,
    LAST_LEVEL,
    PAGES,
    PAGES_OF_ASID,
    SCOPE,
    STAGE1,
    STAGE2,
    broadcast,
    follow_controls,
    invalidate,
    select_regime,
    select_space,
    wait_sync,
)
from trapline.engine.watch import cache_watchpoint

sched_yield = extern("sched_yield", u32, ())

AFTER_MMU, AFTER_TTBR, AFTER_PSTATE, AFTER_FP = AFTER["mmu"], AFTER["ttbr"], AFTER["pstate"], AFTER["fp"]
AFTER_IRQ, AFTER_TIMER, AFTER_DEBUG = AFTER["irq"], AFTER["timer"], AFTER["debug"]
EC_WFX, EC_ERET, EC_PAC = int(EC.WFX), int(EC.ERET), int(EC.PAC)
EC_SP, EC_FPAC = int(EC.SP_ALIGNMENT), int(EC.FPAC)
WFI, WFE, WFIT, WFET = range(4)
"""The values of ISS.TI for exception class 0x01."""
LINE_BYTES = 64
EVENT = EngineState.event.offset


@native
def after(cpu: Ptr[EngineState], what: u32) -> None:
    """A register was written that matters to the engine (bits of `AFTER`)."""
    if what & AFTER_MMU != 0:
        follow_controls(cpu)
    if what & (AFTER_MMU | AFTER_TTBR) != 0:
        select_space(cpu)
        select_regime(cpu)
    if what & (AFTER_MMU | AFTER_PSTATE | AFTER_FP) != 0:
        refresh(cpu)
    if what & AFTER_TIMER != 0:
        cpu.timer_reported = 0
        cpu.poll_timer = 1
        if cpu.el2 != EL2_OUTSIDE or not set_alarm(cpu):
            cpu.exit_code = Exit.TIMER  # leave at once: nothing else may become due before the timer is armed
    if what & AFTER_IRQ != 0:
        look_for_interrupts(cpu)
        if may_debug(cpu):
            cpu.poll_irq = 1  # PSTATE.D may have been cleared
    if what & AFTER_DEBUG != 0:
        debug_changed(cpu)


@native
def mrs(cpu: Ptr[EngineState], rec: u64, number: u64) -> u32:
    """MRS of a register that the machine does not have."""
    return absent(cpu, rec, number | 0x8000, False)


@native
def msr(cpu: Ptr[EngineState], rec: u64, number: u64, value: u64) -> u32:
    """MSR to a register that the machine does not have."""
    return absent(cpu, rec, number | 0x8000, True)


@native
def sys(cpu: Ptr[EngineState], rec: u64, number: u64, value: u64) -> u32:
    """SYS with an operation that the machine does not have."""
    return absent(cpu, rec, number | 0x4000, True)


@native
def sysl(cpu: Ptr[EngineState], rec: u64, number: u64) -> u32:
    """SYSL: no operation with a result exists."""
    return absent(cpu, rec, number | 0x4000, False)


@native
def absent(cpu: Ptr[EngineState], rec: u64, encoding: u64, write: u1) -> u32:
    """An unallocated encoding: UNDEFINED, or trapped from EL1 when it is implementation defined (HCR_EL2.TIDCP)."""
    cpu.pc = current_pc(cpu, rec)
    rt = current_word(cpu) & 31
    take_access_exception(cpu, unallocated_outcome(cpu, u32(encoding)), u32(encoding), rt, not write)
    settle(cpu, Exit.EL2_SYNC)
    return 1


@native
def trap_to_el2(cpu: Ptr[EngineState], encoding: u64, write: u1) -> None:
    """Take a trapped system register access at pc to EL2."""
    esr = sysreg_syndrome(u32(encoding), current_word(cpu) & 31, not write)
    enter_exception(cpu, 2, esr, 0, V_SYNC, cpu.pc)


@native
def trap_el2(cpu: Ptr[EngineState], rec: u64, encoding: u64, write: u64) -> u32:
    """An access whose trap to EL2 is on; it is not for the host's own EL0."""
    if cpu.regime == REGIME_EL2_HOST:
        return sysreg_trap(cpu, rec, encoding, write)
    cpu.pc = current_pc(cpu, rec)
    trap_to_el2(cpu, encoding, write != 0)
    return 1


@native
def sysreg_trap(cpu: Ptr[EngineState], rec: u64, encoding: u64, write: u64) -> u32:
    """An access that may be UNDEFINED here or trapped: take the exception that the register's row asks for, if it does."""
    cpu.pc = current_pc(cpu, rec)
    rt = current_word(cpu) & 31
    outcome = access_outcome(cpu, u32(encoding), write != 0)
    if outcome == OK:
        return 0
    instruction = current_word(cpu) >> 5 & 0xFFFF  # the register's number, except for MSR (immediate)
    take_access_exception(cpu, outcome, instruction, rt, write == 0)
    settle(cpu, Exit.EL2_SYNC)
    return 1


@native
def send_sgi(cpu: Ptr[EngineState], rec: u64, encoding: u64, value: u64) -> u32:
    """ICC_SGI1R_EL1 and its like, when nothing traps it: the machine's distributor is outside; a hypervisor's has none."""
    if cpu.el2 == EL2_OUTSIDE:
        return 0
    cpu.pc = current_pc(cpu, rec) + 4
    cpu.result = value
    cpu.result_hi = encoding
    cpu.exit_code = Exit.SGI
    return 1


@native
def msr_imm(cpu: Ptr[EngineState], rec: u64, number: u64, value: u64) -> u32:
    """MSR (immediate) to a PSTATE field, from EL0: UNDEFINED or trapped."""
    cpu.pc = current_pc(cpu, rec)
    undefined(cpu)
    return 1


@native
def sp_alignment(cpu: Ptr[EngineState], rec: u64) -> u32:
    """A memory access is based on a misaligned SP: a fault if this exception level asks for one."""
    check: u64 = SCTLR_EL1.SA0.mask if cpu.el == 0 else SCTLR_EL1.SA.mask  # SCTLR_EL2 has them in the same places
    if current_sctlr(cpu) & check == 0:
        return 0
    cpu.pc = current_pc(cpu, rec)
    enter_exception(cpu, route_sync(cpu), u64(EC_SP) << EC_SHIFT | IL, 0, V_SYNC, cpu.pc)
    return 1


@native
def eret(cpu: Ptr[EngineState], rec: u64) -> u32:
    """Exception return."""
    cpu.pc = current_pc(cpu, rec)
    if cpu.el == 0:
        undefined(cpu)
        return 1
    if cpu.el == 1 and cpu.sysreg[HFGITR_EL2.slot] & HFGITR_EL2.ERET.mask != 0:
        return eret_trap(cpu, 0)
    stepped: u1 = cpu.step_state & GOING != 0
    exception_return(cpu)
    cpu.excl_valid = 0
    cpu.step_state = STEPPED if stepped else u32(0)
    refresh(cpu)
    return 1


@native
def eret_trap(cpu: Ptr[EngineState], iss: u64) -> u32:
    """An exception return of EL1 that EL2 wants to see."""
    enter_exception(cpu, 2, u64(EC_ERET) << EC_SHIFT | IL | iss, 0, V_SYNC, cpu.pc)
    return 1


@native
def eret_auth(cpu: Ptr[EngineState], rec: u64, key: u64, modifier: u64) -> u32:
    """ERETAA, ERETAB: return to the authenticated ELR; the register itself keeps its code."""
    if cpu.el == 0:
        return eret(cpu, rec)
    if cpu.el == 1 and cpu.sysreg[HFGITR_EL2.slot] & HFGITR_EL2.ERET.mask != 0:
        cpu.pc = current_pc(cpu, rec)
        return eret_trap(cpu, 2 | key)
    elr: u64 = ELR_EL2.slot if cpu.el == 2 else u64(ELR_EL1.slot)
    signed_address = cpu.sysreg[elr]
    cpu.sysreg[elr] = pac_auth(cpu, key, signed_address, modifier)
    if pac_level(cpu) == FPACCOMBINE and pac_failed(cpu, key, cpu.sysreg[elr]):
        cpu.sysreg[elr] = signed_address
        return pac_fail(cpu, rec, key)
    status = eret(cpu, rec)
    cpu.sysreg[elr] = signed_address
    return status


@native
def pac_fail(cpu: Ptr[EngineState], rec: u64, key: u64) -> u32:
    """A pointer authentication that failed, with FEAT_FPAC."""
    cpu.pc = current_pc(cpu, rec)
    enter_exception(cpu, route_sync(cpu), u64(EC_FPAC) << EC_SHIFT | IL | key, 0, V_SYNC, cpu.pc)
    return 1


@native
def pac_trap(cpu: Ptr[EngineState], rec: u64) -> u32:
    """Pointer authentication trapped to EL2 (HCR_EL2.API is 0); it is not for the host's own EL0."""
    if cpu.regime == REGIME_EL2_HOST:
        return 0
    cpu.pc = current_pc(cpu, rec)
    enter_exception(cpu, 2, u64(EC_PAC) << EC_SHIFT | IL, 0, V_SYNC, cpu.pc)
    return 1


@native
def interrupt_waits(cpu: Ptr[EngineState]) -> u1:
    """Would an interrupt end WFI now, masked or not?"""
    lines = u32(0) if cpu.el == 2 else virtual_interrupt_lines(cpu)
    if cpu.el2 != EL2_OUTSIDE:
        lines = lines | signalled_group(cpu, PHYSICAL)
    return lines & (LINE_IRQ | LINE_FIQ) != 0


@native
def wfi(cpu: Ptr[EngineState], rec: u64) -> u32:
    """WFI: returns at once if something waits, traps if told to, else gives the host CPU away for a moment."""
    return wait(cpu, rec, WFI, 0)


@native
def wfe(cpu: Ptr[EngineState], rec: u64) -> u32:
    """WFE: as WFI, and an event register that is set ends it."""
    if cpu.event != 0:
        cpu.event = 0
        return 0
    return wait(cpu, rec, WFE, 0)


@native
def wfit(cpu: Ptr[EngineState], rec: u64, deadline: u64) -> u32:
    """WFIT: as WFI, until the virtual counter reaches `deadline`."""
    if cntvct_read(cpu) >= deadline:
        return 0
    return wait(cpu, rec, WFIT, u64(current_word_at(cpu, rec) & 31) << 5 | 4)


@native
def wfet(cpu: Ptr[EngineState], rec: u64, deadline: u64) -> u32:
    """WFET: as WFE, until the virtual counter reaches `deadline`."""
    if cpu.event != 0:
        cpu.event = 0
        return 0
    if cntvct_read(cpu) >= deadline:
        return 0
    return wait(cpu, rec, WFET, u64(current_word_at(cpu, rec) & 31) << 5 | 4)


@native
def current_word_at(cpu: Ptr[EngineState], rec: u64) -> u32:
    """The instruction word of a record."""
    cpu.pc = current_pc(cpu, rec)
    return current_word(cpu)


@native
def wait(cpu: Ptr[EngineState], rec: u64, instruction: u64, register: u64) -> u32:
    """The common part: `instruction` as ISS.TI tells it apart, `register` the fields RN and RV."""
    if interrupt_waits(cpu):
        return 0
    target = wait_trap(cpu, instruction & 1 != 0)
    if target != 0:
        cpu.pc = current_pc(cpu, rec)
        enter_exception(cpu, target, u64(EC_WFX) << EC_SHIFT | IL | FP_ISS | register | instruction, 0, V_SYNC, cpu.pc)
        return 1
    if cpu.el2 != EL2_OUTSIDE and instruction == WFI:
        cpu.pc = current_pc(cpu, rec) + 4
        cpu.exit_code = Exit.WAIT
        return 1
    give_way(cpu)
    return 0


@native
def relax(cpu: Ptr[EngineState], rec: u64) -> u32:
    """YIELD: a loop that waits for another PE. Its thread may need this host CPU, and would get it milliseconds later."""
    give_way(cpu)
    return 0


@native
def give_way(cpu: Ptr[EngineState]) -> None:
    """Let others run: for a moment, or where PEs take turns on one thread, by ending this one's turn."""
    if cpu.turns == 0:
        sched_yield()
    else:
        cpu.turns = TURN_GIVEN_UP
        cpu.stop = cpu.icount


@native
def sev(cpu: Ptr[EngineState], rec: u64) -> u32:
    """SEV: set every PE's event register."""
    shared = Ptr[Shared](cpu.shared)
    for k in range(shared.cpu_count):
        store8(shared.cpus[k] + EVENT, 1)
    return 0


@native
def sevl(cpu: Ptr[EngineState], rec: u64) -> u32:
    """SEVL: set this PE's event register."""
    cpu.event = 1
    return 0


@native
def clrex(cpu: Ptr[EngineState], rec: u64) -> u32:
    """CLREX."""
    cpu.excl_valid = 0
    return 0


@native
def dsb(cpu: Ptr[EngineState], rec: u64) -> u32:
    """DSB: TLB and instruction cache maintenance started before is complete everywhere."""
    if cpu.sync_wait != 0:
        wait_sync(cpu, Ptr[Shared](cpu.shared))
    return 0


SCOPES = {
    TlbiBy.ALL: STAGE1, TlbiBy.VA: PAGES_OF_ASID, TlbiBy.ASID: ASID, TlbiBy.VA_ANY_ASID: PAGES, TlbiBy.IPA: STAGE2, TlbiBy.VM: STAGE2,
}  # fmt: skip
RANGED = 32
"""Beside `invalidate`'s flags: the operand names a range."""


def tlbi_kind(action: Tlbi) -> int:
    """What a TLBI invalidates, as the first argument of `tlbi`."""
    scope = EVERYTHING if action.regime is Regime.ALL_VMIDS else SCOPES[action.by]
    return scope | HOST * (action.regime is Regime.EL2) | LAST_LEVEL * action.last_level | RANGED * action.ranged


@native
def tlbi_frames(cpu: Ptr[EngineState], kind: u64, operand: u64) -> tuple[u64, u64]:
    """First and last frame (VA[55:12]) that the operand of a TLBI by address names."""
    if kind & RANGED == 0:
        return operand & FRAME, operand & FRAME
    granule = operand >> 46 & 3
    if granule == 0:
        return 0, FRAME  # reserved
    shift = 2 * (granule - 1)
    base = u64(s64(operand << 27) >> 27) << shift & FRAME
    pages = ((operand >> 39 & 31) + 1) << (5 * (operand >> 44 & 3) + 1) << shift
    return base, min(base + pages - 1, u64(FRAME))


@native
def tlbi(cpu: Ptr[EngineState], rec: u64, kind: u64, shareable: u64, operand: u64) -> u32:
    """TLBI: `kind` is `tlbi_kind`, `operand` is Xt."""
    first, last = tlbi_frames(cpu, kind, operand)
    hcr = cpu.sysreg[HCR_EL2.slot]
    what = kind & (SCOPE | HOST | LAST_LEVEL) | operand >> 48 << ASID_SHIFT
    if hcr & HOST_EL0 == HOST_EL0 and kind & SCOPE != STAGE2:
        what |= HOST  # the operations of EL1 are those of EL2&0 then
    invalidate(cpu, what, first, last)
    if shareable != 0 or hcr & HCR_EL2.FB.mask != 0:
        broadcast(cpu, Ptr[Shared](cpu.shared), what, first, last)
    cpu.pc = current_pc(cpu, rec) + 4
    return 1


@native
def ic_ivau(cpu: Ptr[EngineState], rec: u64, va: u64) -> u32:
    """IC IVAU: forget the decoded instructions of a line; they are shared by all vCPUs."""
    cpu.pc = current_pc(cpu, rec)
    host = host_page(cpu, va, False, 0)
    if host == 0:
        return 1
    reset_line(Ptr[Shared](cpu.shared), host, LINE_BYTES)
    cpu.sync_wait = 1
    return 0


@native
def dc_ivac(cpu: Ptr[EngineState], rec: u64, va: u64) -> u32:
    """DC IVAC: memory is coherent, but a watchpoint on the line matches."""
    if cpu.watching == 0:
        return 0
    cpu.pc = current_pc(cpu, rec)
    return u32(cache_watchpoint(cpu, va, LINE_BYTES))


@native
def ic_iallu(cpu: Ptr[EngineState], rec: u64) -> u32:
    """IC IALLU, IC IALLUIS."""
    reset_everything(Ptr[Shared](cpu.shared))
    cpu.sync_wait = 1
    return 0


@native
def at(cpu: Ptr[EngineState], rec: u64, stages: u64, el: u64, write: u64, pan: u64, va: u64) -> u32:
    """AT: translate into PAR_EL1; for EL1, a stage-2 fault on the way through stage 1's tables is the hypervisor's."""
    if stages == 1 and cpu.el == 1:
        fault, ipa = address_translate_fault(cpu, va, u32(el), write != 0, pan != 0)
        if fault != 0:
            cpu.pc = current_pc(cpu, rec)
            data_abort(cpu, fault, va, ipa, write != 0)
            return 1
    cpu.sysreg[PAR_EL1.slot] = address_translate(cpu, va, u32(stages), u32(el), write != 0, pan != 0)
    return 0
