"""Exceptions: classes and syndromes, entry, return, and where each kind goes.

Functions marked @native work on `CpuState` and are compiled into the engine. There is no EL3 and no AArch32 state.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from trapline.arm64.debug import debug_target, step_after_return
from trapline.arm64.gic_interface import LINE_FIQ, LINE_IRQ, PHYSICAL, VIRTUAL, signalled_group
from trapline.arm64.regs.el1 import CPACR_EL1, ELR_EL1, ESR_EL1, FAR_EL1, SCTLR_EL1, SPSR_EL1, TCR_EL1, VBAR_EL1
from trapline.arm64.regs.el2 import CPTR_EL2, ELR_EL2, ESR_EL2, FAR_EL2, HCR_EL2, HCRX_EL2, SCTLR_EL2, SPSR_EL2, TCR_EL2, VBAR_EL2
from trapline.arm64.regs.fine_grained import HFGITR_EL2
from trapline.arm64.state import EL2_ABSENT, REGIME_EL1, REGIME_EL2, REGIME_EL2_HOST, CpuState
from trapline.bits.native import Ptr, native, u1, u8, u32, u64
from trapline.registers import Field, Register


class EC(IntEnum):
    """Exception classes, ESR_ELx bits 31:26."""

    UNKNOWN = 0x00
    WFX = 0x01
    CP15_32 = 0x03
    CP15_64 = 0x04
    CP14_32 = 0x05
    CP14_LS = 0x06
    FP_ACCESS = 0x07
    CP10_ID = 0x08
    PAC = 0x09
    LS64 = 0x0A
    CP14_64 = 0x0C
    BTI = 0x0D
    ILLEGAL = 0x0E
    SVC32 = 0x11
    HVC32 = 0x12
    SMC32 = 0x13
    SYSREG128 = 0x14
    SVC64 = 0x15
    HVC64 = 0x16
    SMC64 = 0x17
    SYSREG = 0x18
    SVE = 0x19
    ERET = 0x1A
    FPAC = 0x1C
    SME = 0x1D
    INSN_ABORT_LOWER = 0x20
    INSN_ABORT = 0x21
    PC_ALIGNMENT = 0x22
    DATA_ABORT_LOWER = 0x24
    DATA_ABORT = 0x25
    SP_ALIGNMENT = 0x26
    MOPS = 0x27
    FP32 = 0x28
    FP64 = 0x2C
    GCS = 0x2D
    SERROR = 0x2F
    BREAKPOINT_LOWER = 0x30
    BREAKPOINT = 0x31
    STEP_LOWER = 0x32
    STEP = 0x33
    WATCHPOINT_LOWER = 0x34
    WATCHPOINT = 0x35
    BKPT32 = 0x38
    VECTOR_CATCH = 0x3A
    BRK64 = 0x3C


class Fsc(IntEnum):
    """Fault status codes, bits 5:0 of an abort's syndrome. Those that end in _L0 take a level: `Fsc.PERMISSION_L0 + 3`."""

    ADDRESS_SIZE_L0 = 0x00
    TRANSLATION_L0 = 0x04
    ACCESS_FLAG_L0 = 0x08
    PERMISSION_L0 = 0x0C
    EXTERNAL = 0x10
    TAG_CHECK = 0x11
    EXTERNAL_WALK_L0 = 0x14
    PARITY = 0x18
    PARITY_WALK_L0 = 0x1C
    ALIGNMENT = 0x21
    ADDRESS_SIZE_LM1 = 0x29
    TRANSLATION_LM1 = 0x2B
    TLB_CONFLICT = 0x30
    UNSUPPORTED_UPDATE = 0x31
    UNSUPPORTED_ATOMIC = 0x35


class Vector(IntEnum):
    """Kind of exception, as the offset it adds to the vector of its group."""

    SYNC = 0x000
    IRQ = 0x080
    FIQ = 0x100
    SERROR = 0x180


NO_EXCEPTION: Final = 0xFFFF
"""`pending_virtual_exception`: nothing to take."""

IL: Final = 1 << 25
"""ESR_ELx.IL: the instruction was 32 bits long, as all are in AArch64."""


class SysregSyndrome(Register, width=32):
    """ESR_ELx of a trapped MSR, MRS or system instruction (exception class 0x18)."""

    READ = Field(0)
    CRm = Field(4, 1)
    Rt = Field(9, 5)
    CRn = Field(13, 10)
    Op1 = Field(16, 14)
    Op2 = Field(19, 17)
    Op0 = Field(21, 20)
    IL = Field(25)
    EC = Field(31, 26)

    @property
    def encoding(self) -> int:
        """The register's 16-bit id."""
        return self.Op0 << 14 | self.Op1 << 11 | self.CRn << 7 | self.CRm << 3 | self.Op2


class AbortSyndrome(Register):
    """ESR_ELx of an instruction or data abort (exception classes 0x20, 0x21, 0x24, 0x25)."""

    FSC = Field(5, 0)
    WnR = Field(6)
    S1PTW = Field(7)
    CM = Field(8)
    EA = Field(9)
    FnV = Field(10)
    SET = Field(12, 11)
    VNCR = Field(13)
    AR = Field(14)
    SF = Field(15)
    SRT = Field(20, 16)
    SSE = Field(21)
    SAS = Field(23, 22)
    ISV = Field(24)
    IL = Field(25)
    EC = Field(31, 26)


def esr(ec: int, iss: int = 0) -> int:
    """A syndrome of class `ec` for a 32-bit instruction."""
    return ec << 26 | IL | iss


def esr_sysreg(encoding: int, rt: int, read: bool) -> int:
    """The syndrome of a trapped access to the register (or system instruction) with this 16-bit id."""
    return int(sysreg_syndrome(encoding, rt, read))


def esr_data_abort(fsc: int, *, lower: bool, write: bool = False, cm: bool = False, s1ptw: bool = False, access: int = 0) -> int:
    """The syndrome of a data abort; `access` holds ISV, SAS, SSE, SRT, SF, AR in place (see `access_syndrome`)."""
    return esr(EC.DATA_ABORT_LOWER if lower else EC.DATA_ABORT, fsc | write << 6 | s1ptw << 7 | cm << 8 | access)


def esr_instruction_abort(fsc: int, *, lower: bool, s1ptw: bool = False) -> int:
    """The syndrome of an instruction abort."""
    return esr(EC.INSN_ABORT_LOWER if lower else EC.INSN_ABORT, fsc | s1ptw << 7)


# ---- syndromes, compiled ------------------------------------------------------------------------------------------------------

EC_SHIFT: Final = 26
EC_SYSREG, EC_FP_ACCESS = int(EC.SYSREG), int(EC.FP_ACCESS)
FP_ISS: Final = 0x1E0_0000
"""CV=1, COND=1110: how an FP access trap from AArch64 looks."""


@native
def sysreg_syndrome(encoding: u32, rt: u32, read: u1) -> u64:
    """ESR_ELx of a trapped access; `encoding` is the 16-bit id op0:op1:CRn:CRm:op2."""
    op0: u64 = u64(encoding >> 14 & 3)
    op1: u64 = u64(encoding >> 11 & 7)
    crn: u64 = u64(encoding >> 7 & 15)
    crm: u64 = u64(encoding >> 3 & 15)
    op2: u64 = u64(encoding & 7)
    iss: u64 = op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | u64(rt & 31) << 5 | crm << 1 | u64(read)
    return EC_SYSREG << EC_SHIFT | IL | iss


@native
def access_syndrome(size_log2: u32, sign_extend: u1, rt: u32, wide: u1, acquire_release: u1) -> u64:
    """ISV and what it validates in a stage-2 data abort: size (0 byte to 3 doubleword), SSE, SRT, SF, AR."""
    iss: u64 = u64(1) << 24 | u64(size_log2 & 3) << 22 | u64(sign_extend) << 21 | u64(rt & 31) << 16
    return iss | u64(wide) << 15 | u64(acquire_release) << 14


# ---- PSTATE and SPSR ----------------------------------------------------------------------------------------------------------

SPSR_V, SPSR_C, SPSR_Z, SPSR_N = SPSR_EL1.V.lo, SPSR_EL1.C.lo, SPSR_EL1.Z.lo, SPSR_EL1.N.lo
SPSR_F = SPSR_EL1.F.lo
SPSR_BTYPE, SPSR_SSBS, SPSR_IL, SPSR_SS = SPSR_EL1.BTYPE.lo, SPSR_EL1.SSBS.lo, SPSR_EL1.IL.lo, SPSR_EL1.SS.lo
SPSR_PAN, SPSR_UAO, SPSR_DIT, SPSR_TCO = SPSR_EL1.PAN.lo, SPSR_EL1.UAO.lo, SPSR_EL1.DIT.lo, SPSR_EL1.TCO.lo


@native
def spsr_from_pstate(cpu: Ptr[CpuState]) -> u64:
    """The SPSR value that holds the current PSTATE."""
    mode: u64 = u64(cpu.el) << 2 | u64(cpu.spsel)
    flags: u64 = u64(cpu.n) << SPSR_N | u64(cpu.z) << SPSR_Z | u64(cpu.c) << SPSR_C | u64(cpu.v_flag) << SPSR_V
    control: u64 = u64(cpu.daif) << SPSR_F | u64(cpu.btype) << SPSR_BTYPE | u64(cpu.il) << SPSR_IL | u64(cpu.ss) << SPSR_SS
    access: u64 = u64(cpu.pan) << SPSR_PAN | u64(cpu.uao) << SPSR_UAO | u64(cpu.dit) << SPSR_DIT
    return mode | flags | control | access | u64(cpu.ssbs) << SPSR_SSBS | u64(cpu.tco) << SPSR_TCO


@native
def pstate_flags_from_spsr(cpu: Ptr[CpuState], spsr: u64) -> None:
    """Restore what even an illegal return restores: N Z C V and D A I F, and PAN."""
    cpu.n = u8(spsr >> SPSR_N & 1)
    cpu.z = u8(spsr >> SPSR_Z & 1)
    cpu.c = u8(spsr >> SPSR_C & 1)
    cpu.v_flag = u8(spsr >> SPSR_V & 1)
    cpu.daif = u8(spsr >> SPSR_F & 15)
    cpu.pan = u8(spsr >> SPSR_PAN & 1)


@native
def pstate_from_spsr(cpu: Ptr[CpuState], spsr: u64) -> None:
    """Set PSTATE, exception level and stack pointer included, from a legal SPSR value; SS is `step_after_return`'s."""
    pstate_flags_from_spsr(cpu, spsr)
    cpu.btype = u8(spsr >> SPSR_BTYPE & 3)
    cpu.ssbs = u8(spsr >> SPSR_SSBS & 1)
    cpu.il = u8(spsr >> SPSR_IL & 1)
    cpu.uao = u8(spsr >> SPSR_UAO & 1)
    cpu.dit = u8(spsr >> SPSR_DIT & 1)
    cpu.tco = u8(spsr >> SPSR_TCO & 1)
    set_mode(cpu, u8(spsr >> 2 & 3), u8(spsr & 1))


@native
def selected_sp(el: u8, spsel: u8) -> u32:
    """Which stack pointer bank PSTATE selects."""
    return u32(el) if spsel != 0 else u32(0)


@native
def set_mode(cpu: Ptr[CpuState], el: u8, spsel: u8) -> None:
    """Change exception level and stack pointer selection; `sp` is saved in its bank and reloaded."""
    cpu.sp_el[selected_sp(cpu.el, cpu.spsel)] = cpu.sp
    cpu.el = el
    cpu.spsel = spsel
    cpu.sp = cpu.sp_el[selected_sp(el, spsel)]


@native
def fold_sp(cpu: Ptr[CpuState]) -> None:
    """Bring the selected bank of `sp_el` up to date with `sp`."""
    cpu.sp_el[selected_sp(cpu.el, cpu.spsel)] = cpu.sp


@native
def unfold_sp(cpu: Ptr[CpuState]) -> None:
    """Load `sp` from the selected bank, after somebody changed `sp_el`."""
    cpu.sp = cpu.sp_el[selected_sp(cpu.el, cpu.spsel)]


# ---- entry and return ---------------------------------------------------------------------------------------------------------

SVC_AT_EL0, SVC_AT_EL1 = HFGITR_EL2.SVC_EL0.mask, HFGITR_EL2.SVC_EL1.mask
HOST = HCR_EL2.E2H.mask | HCR_EL2.TGE.mask
V_SYNC, V_IRQ, V_FIQ, V_SERROR = int(Vector.SYNC), int(Vector.IRQ), int(Vector.FIQ), int(Vector.SERROR)


@native
def far_is_valid(ec: u64) -> u1:
    """Does an exception of this class write FAR_ELx?"""
    return ec in (0x20, 0x21, 0x22, 0x24, 0x25, 0x34, 0x35)


@native
def take_exception(cpu: Ptr[CpuState], target_el: u32, esr: u64, far: u64, kind: u32, return_pc: u64) -> None:
    """Exception entry to EL1 or EL2.

    `kind` is a `Vector` value; ESR and FAR are written for synchronous exceptions and SErrors only. The caller has decided the
    target; `return_pc` is what ELR shall hold. Afterwards `pc` is the vector.
    """
    spsr: u64 = spsr_from_pstate(cpu)
    offset: u64 = u64(kind)
    if u32(cpu.el) < target_el:
        offset += 0x400
    elif cpu.spsel != 0:
        offset += 0x200
    has_syndrome: u1 = kind == V_SYNC or kind == V_SERROR
    sctlr: u64 = 0
    if target_el == 2:
        if has_syndrome:
            cpu.sysreg[ESR_EL2.slot] = esr
            if far_is_valid(esr >> EC_SHIFT & 63):
                cpu.sysreg[FAR_EL2.slot] = far
        cpu.sysreg[SPSR_EL2.slot] = spsr
        cpu.sysreg[ELR_EL2.slot] = return_pc
        sctlr = cpu.sysreg[SCTLR_EL2.slot]
        cpu.pc = (cpu.sysreg[VBAR_EL2.slot] & ~0x7FF) + offset
        if cpu.sysreg[HCR_EL2.slot] & HOST == HOST and sctlr & SCTLR_EL2.SPAN.mask == 0:
            cpu.pan = 1
    else:
        if has_syndrome:
            cpu.sysreg[ESR_EL1.slot] = esr
            if far_is_valid(esr >> EC_SHIFT & 63):
                cpu.sysreg[FAR_EL1.slot] = far
        cpu.sysreg[SPSR_EL1.slot] = spsr
        cpu.sysreg[ELR_EL1.slot] = return_pc
        sctlr = cpu.sysreg[SCTLR_EL1.slot]
        cpu.pc = (cpu.sysreg[VBAR_EL1.slot] & ~0x7FF) + offset
        if sctlr & SCTLR_EL1.SPAN.mask == 0:
            cpu.pan = 1
    set_mode(cpu, u8(target_el), 1)
    cpu.daif = 15
    cpu.uao = 0
    cpu.ssbs = u8(sctlr >> SCTLR_EL1.DSSBS.lo & 1)
    cpu.btype = 0
    cpu.il = 0
    cpu.ss = 0


@native
def is_illegal_return(cpu: Ptr[CpuState], spsr: u64) -> u1:
    """Would an exception return with this SPSR be illegal?

    Reserved or AArch32 modes, EL0 with its own stack pointer selected twice, a higher exception level than the current one, and
    EL1 while HCR_EL2.TGE says that there is none.
    """
    el: u64 = spsr >> 2 & 3
    if spsr & 0x12 != 0 or el > u64(cpu.el) or el == 3:
        return True
    if el == 0 and spsr & 1 != 0:
        return True
    return el == 1 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TGE.mask != 0


@native
def exception_return(cpu: Ptr[CpuState]) -> None:
    """ERET from EL1 or EL2 with that level's SPSR and ELR; an illegal return stays and sets PSTATE.IL."""
    spsr: u64 = 0
    target: u64 = 0
    if cpu.el == 2:
        spsr = cpu.sysreg[SPSR_EL2.slot]
        target = cpu.sysreg[ELR_EL2.slot]
    else:
        spsr = cpu.sysreg[SPSR_EL1.slot]
        target = cpu.sysreg[ELR_EL1.slot]
    cpu.event = 1
    cpu.pc = target
    illegal: u1 = is_illegal_return(cpu, spsr)
    cpu.ss = step_after_return(cpu, spsr, u32(cpu.el) if illegal else u32(spsr >> 2 & 3))
    if illegal:
        pstate_flags_from_spsr(cpu, spsr)
        cpu.il = 1
    else:
        pstate_from_spsr(cpu, spsr)


# ---- regimes -----------------------------------------------------------------------------------------------------------------


@native
def is_el2_host(cpu: Ptr[CpuState]) -> u1:
    """At EL2 with HCR_EL2.E2H: names of EL1 registers mean those of EL2."""
    return cpu.el == 2 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.E2H.mask != 0


@native
def current_regime(cpu: Ptr[CpuState]) -> u8:
    """The translation regime of the current exception level (`CpuState.regime` holds it while the engine runs)."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    if cpu.el == 2:
        return REGIME_EL2_HOST if hcr & HCR_EL2.E2H.mask != 0 else u8(REGIME_EL2)
    return REGIME_EL2_HOST if cpu.el == 0 and hcr & HOST == HOST else u8(REGIME_EL1)


@native
def current_sctlr(cpu: Ptr[CpuState]) -> u64:
    """The SCTLR_ELx that rules the current exception level."""
    return cpu.sysreg[SCTLR_EL1.slot] if cpu.regime == REGIME_EL1 else cpu.sysreg[SCTLR_EL2.slot]


@native
def current_tcr(cpu: Ptr[CpuState]) -> u64:
    """What rules addresses at the current exception level, in the layout of TCR_EL1. EL2 alone has one range: it counts as both."""
    if cpu.regime == REGIME_EL1:
        return cpu.sysreg[TCR_EL1.slot]
    tcr: u64 = cpu.sysreg[TCR_EL2.slot]
    if cpu.regime == REGIME_EL2_HOST:
        return tcr
    size: u64 = tcr & TCR_EL2.T0SZ.ones
    top: u64 = TCR_EL1.TBI0.mask | TCR_EL1.TBI1.mask if tcr & TCR_EL2.TBI.mask != 0 else u64(0)
    data_only: u64 = TCR_EL1.TBID0.mask | TCR_EL1.TBID1.mask if tcr & TCR_EL2.TBID.mask != 0 else u64(0)
    return size << TCR_EL1.T0SZ.lo | size << TCR_EL1.T1SZ.lo | top | data_only


# ---- routing ------------------------------------------------------------------------------------------------------------------


@native
def route_sync(cpu: Ptr[CpuState]) -> u32:
    """Target of a synchronous exception that no trap sends elsewhere: SVC, UNDEFINED, stage-1 aborts, alignment faults."""
    if cpu.el == 2:
        return 2
    if cpu.el == 0 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TGE.mask != 0:
        return 2
    return 1


@native
def route_debug(cpu: Ptr[CpuState]) -> u32:
    """Target of breakpoint, watchpoint, software step and BRK exceptions."""
    return 2 if cpu.el == 2 else debug_target(cpu)


@native
def route_external_abort(cpu: Ptr[CpuState]) -> u32:
    """Target of a synchronous external abort."""
    if cpu.el != 2 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TEA.mask != 0:
        return 2
    return route_sync(cpu)


@native
def svc_is_trapped(cpu: Ptr[CpuState]) -> u1:
    """Is SVC trapped to EL2 before it does anything (HFGITR_EL2)?"""
    traps: u64 = cpu.sysreg[HFGITR_EL2.slot]
    if traps & (SVC_AT_EL0 | SVC_AT_EL1) == 0 or cpu.el == 2:
        return False
    if cpu.el == 1:
        return traps & SVC_AT_EL1 != 0
    return traps & SVC_AT_EL0 != 0 and cpu.sysreg[HCR_EL2.slot] & HOST != HOST


@native
def smc_outcome(cpu: Ptr[CpuState]) -> u32:
    """Where SMC goes: 2 when HCR_EL2.TSC traps it from EL1, else 0 for UNDEFINED, there being no EL3."""
    return 2 if cpu.el == 1 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TSC.mask != 0 else 0


@native
def hvc_outcome(cpu: Ptr[CpuState]) -> u32:
    """Where HVC goes: 2, or 0 for UNDEFINED (from EL0, or disabled by HCR_EL2.HCD)."""
    return 2 if cpu.el != 0 and cpu.sysreg[HCR_EL2.slot] & HCR_EL2.HCD.mask == 0 else 0


@native
def wait_trap(cpu: Ptr[CpuState], is_wfe: u1) -> u32:
    """Exception level that traps WFI or WFE now, 0 for none. The caller has seen that the instruction would really wait."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    if cpu.el == 2:
        return 0
    if cpu.el == 0:
        allowed: u64 = SCTLR_EL1.nTWE.mask if is_wfe else SCTLR_EL1.nTWI.mask  # SCTLR_EL2 has them in the same places
        control: u64 = cpu.sysreg[SCTLR_EL2.slot] if hcr & HOST == HOST else cpu.sysreg[SCTLR_EL1.slot]
        if control & allowed == 0:
            return 2 if hcr & HCR_EL2.TGE.mask != 0 else 1
    trapped: u64 = HCR_EL2.TWE.mask if is_wfe else HCR_EL2.TWI.mask
    return 2 if hcr & trapped != 0 and hcr & HOST != HOST else 0


@native
def fp_trapped_by_el1(cpu: Ptr[CpuState]) -> u1:
    """Does CPACR_EL1 trap FP and SIMD instructions now?"""
    if cpu.el == 2 or cpu.sysreg[HCR_EL2.slot] & HOST == HOST:
        return False
    fpen: u64 = cpu.sysreg[CPACR_EL1.slot] >> CPACR_EL1.FPEN.lo & 3
    return fpen & 1 == 0 or (fpen == 1 and cpu.el == 0)


@native
def fp_trap(cpu: Ptr[CpuState]) -> u32:
    """Exception level that FP and SIMD instructions trap to now, 0 when they run."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    cptr: u64 = cpu.sysreg[CPTR_EL2.slot]
    if fp_trapped_by_el1(cpu):
        return 2 if cpu.el == 0 and hcr & HCR_EL2.TGE.mask != 0 else 1
    if hcr & HCR_EL2.E2H.mask == 0:
        return 2 if cptr & CPTR_EL2.TFP.mask != 0 else 0
    fpen2: u64 = cptr >> CPTR_EL2.FPEN.lo & 3
    if fpen2 & 1 == 0:
        return 2
    return 2 if fpen2 == 1 and cpu.el == 0 and hcr & HCR_EL2.TGE.mask != 0 else 0


@native
def fp_syndrome(cpu: Ptr[CpuState]) -> u64:
    """The syndrome of that trap. What CPACR_EL1 traps and HCR_EL2.TGE sends to EL2 has no class there."""
    if cpu.sysreg[HCR_EL2.slot] & HCR_EL2.TGE.mask != 0 and fp_trapped_by_el1(cpu):
        return IL
    return EC_FP_ACCESS << EC_SHIFT | IL | FP_ISS


@native
def mops_disabled(cpu: Ptr[CpuState]) -> u1:
    """Are memory copy and memory set instructions UNDEFINED here (SCTLR_ELx.MSCEn at EL0, HCRX_EL2.MSCEn at EL1 and EL0)?"""
    if cpu.el == 2:
        return False
    host: u1 = cpu.sysreg[HCR_EL2.slot] & HOST == HOST
    if cpu.el == 0:
        sctlr: u64 = cpu.sysreg[SCTLR_EL2.slot] if host else cpu.sysreg[SCTLR_EL1.slot]
        if sctlr & SCTLR_EL1.MSCEn.mask == 0:  # SCTLR_EL2 has it in the same place
            return True
    return cpu.el2 != EL2_ABSENT and not host and cpu.sysreg[HCRX_EL2.slot] & HCRX_EL2.MSCEn.mask == 0


# ---- interrupts ---------------------------------------------------------------------------------------------------------------

MASK_A, MASK_I, MASK_F = 4, 2, 1
SERROR_ESR = int(EC.SERROR) << EC_SHIFT | IL


@native
def pending_physical_exception(cpu: Ptr[CpuState]) -> u32:
    """The `Vector` of an FIQ or IRQ of the physical interrupt interface that the PE takes now; NO_EXCEPTION if there is none."""
    lines: u32 = signalled_group(cpu, PHYSICAL)
    if lines & LINE_FIQ != 0 and physical_is_taken(cpu, HCR_EL2.FMO.mask, MASK_F):
        return V_FIQ
    if lines & LINE_IRQ != 0 and physical_is_taken(cpu, HCR_EL2.IMO.mask, MASK_I):
        return V_IRQ
    return NO_EXCEPTION


@native
def route_interrupt(cpu: Ptr[CpuState], routing: u64) -> u32:
    """Target of a physical interrupt that this bit of HCR_EL2 routes."""
    return 2 if cpu.sysreg[HCR_EL2.slot] & (routing | HCR_EL2.TGE.mask) != 0 else 1


@native
def physical_is_taken(cpu: Ptr[CpuState], routing: u64, mask: u8) -> u1:
    """Is a physical interrupt taken here and now? Never to a lower level; PSTATE masks it, except where a hypervisor wants it."""
    target: u32 = route_interrupt(cpu, routing)
    if u32(cpu.el) > target:
        return False
    if target == 2 and cpu.el != 2 and cpu.sysreg[HCR_EL2.slot] & HOST != HOST:
        return True
    return cpu.daif & mask == 0


@native
def take_physical_exception(cpu: Ptr[CpuState], kind: u32) -> None:
    """Take what `pending_physical_exception` found."""
    routing: u64 = HCR_EL2.IMO.mask if kind == V_IRQ else u64(HCR_EL2.FMO.mask)
    take_exception(cpu, route_interrupt(cpu, routing), 0, 0, kind, cpu.pc)


@native
def pending_virtual_exception(cpu: Ptr[CpuState]) -> u32:
    """The `Vector` of a virtual SError, FIQ or IRQ that the PE takes now to EL1; NO_EXCEPTION if there is none.

    Virtual exceptions exist below EL2, when HCR_EL2 routes the physical kind to EL2 and TGE is 0.
    """
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    if cpu.el == 2 or hcr & HCR_EL2.TGE.mask != 0:
        return NO_EXCEPTION
    if hcr & HCR_EL2.AMO.mask != 0 and hcr & HCR_EL2.VSE.mask != 0 and cpu.daif & MASK_A == 0:
        return V_SERROR
    if cpu.daif & (MASK_I | MASK_F) == MASK_I | MASK_F:
        return NO_EXCEPTION
    lines: u32 = virtual_interrupt_lines(cpu)
    if lines & LINE_FIQ != 0 and cpu.daif & MASK_F == 0:
        return V_FIQ
    if lines & LINE_IRQ != 0 and cpu.daif & MASK_I == 0:
        return V_IRQ
    return NO_EXCEPTION


@native
def virtual_interrupt_lines(cpu: Ptr[CpuState]) -> u32:
    """LINE_IRQ and LINE_FIQ as the list registers and HCR_EL2.VI, VF assert them, masks aside."""
    hcr: u64 = cpu.sysreg[HCR_EL2.slot]
    lines: u32 = signalled_group(cpu, VIRTUAL)
    if hcr & HCR_EL2.VI.mask != 0:
        lines |= LINE_IRQ
    if hcr & HCR_EL2.VF.mask != 0:
        lines |= LINE_FIQ
    if hcr & HCR_EL2.IMO.mask == 0:
        lines &= ~LINE_IRQ
    if hcr & HCR_EL2.FMO.mask == 0:
        lines &= ~LINE_FIQ
    return lines


@native
def take_virtual_exception(cpu: Ptr[CpuState], kind: u32) -> None:
    """Take what `pending_virtual_exception` found; a virtual SError is consumed."""
    if kind == V_SERROR:
        cpu.sysreg[HCR_EL2.slot] &= ~HCR_EL2.VSE.mask
    take_exception(cpu, 1, SERROR_ESR, 0, kind, cpu.pc)
