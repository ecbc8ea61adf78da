"""PSTATE fields that MRS and MSR reach by name, and the floating-point control registers."""

from __future__ import annotations

from trapline.arm64.regs.el1 import CPACR_EL1, SCTLR_EL1
from trapline.arm64.regs.el2 import CPTR_EL2, HCR_EL2
from trapline.arm64.sysreg import RW, Sysreg
from trapline.registers import Field


class NZCV(Sysreg, enc=(3, 3, 4, 2, 0), read="nzcv_read", write="nzcv_write"):
    """Condition Flags."""

    V = Field(28)
    C = Field(29)
    Z = Field(30)
    N = Field(31)


class DAIF(Sysreg, enc=(3, 3, 4, 2, 1), read="daif_read", write="daif_write", after={"irq"}, traps=(RW @ ~SCTLR_EL1.UMA,)):
    """Interrupt Mask Bits."""

    F = Field(6)
    I = Field(7)
    A = Field(8)
    D = Field(9)


class CurrentEL(Sysreg, enc=(3, 0, 4, 2, 2), access="RO", read="currentel_read"):
    """Current Exception Level."""

    EL = Field(3, 2)


class SPSel(Sysreg, enc=(3, 0, 4, 2, 0), read="spsel_read", write="spsel_write", after={"pstate"}):
    """Stack Pointer Select."""

    SP = Field(0)


class PAN(Sysreg, enc=(3, 0, 4, 2, 3), feature="PAN", read="pan_read", write="pan_write", after={"pstate"}):
    """Privileged Access Never."""

    PAN = Field(22)


class UAO(Sysreg, enc=(3, 0, 4, 2, 4), feature="UAO", read="uao_read", write="uao_write", after={"pstate"}):
    """User Access Override."""

    UAO = Field(23)


class DIT(Sysreg, enc=(3, 3, 4, 2, 5), feature="DIT", read="dit_read", write="dit_write"):
    """Data Independent Timing."""

    DIT = Field(24)


class SSBS(Sysreg, enc=(3, 3, 4, 2, 6), feature="SSBS2", read="ssbs_read", write="ssbs_write"):
    """Speculative Store Bypass Safe."""

    SSBS = Field(12)


class TCO(Sysreg, enc=(3, 3, 4, 2, 7), feature="MTE2", read="tco_read", write="tco_write", after={"pstate"}):
    """Tag Check Override."""

    TCO = Field(25)


FP_ACCESS = 0x07
"""Exception class of a trapped use of floating point."""

FP_TRAPS = tuple(
    trap.with_ec(FP_ACCESS)
    for trap in (
        (RW @ CPACR_EL1.FPEN.equals(0)).only(0, 1),
        (RW @ CPACR_EL1.FPEN.equals(2)).only(0, 1),
        RW @ CPACR_EL1.FPEN.equals(1),
        (RW @ (CPTR_EL2.TFP & ~HCR_EL2.E2H)).only(0, 1, 2),
        (RW @ (CPTR_EL2.FPEN.equals(0) & HCR_EL2.E2H)).only(0, 1, 2),
        (RW @ (CPTR_EL2.FPEN.equals(2) & HCR_EL2.E2H)).only(0, 1, 2),
    )
)
"""Floating-point registers trap as the instructions do."""


class FPCR(Sysreg, enc=(3, 3, 4, 4, 0), reset=0, write_mask=0x07C8_0000, after={"fp"}, traps=FP_TRAPS):
    """Floating-point Control Register. No trapped exceptions, no alternative behaviours."""

    FZ16 = Field(19)
    RMode = Field(23, 22)
    FZ = Field(24)
    DN = Field(25)
    AHP = Field(26)


class FPSR(Sysreg, enc=(3, 3, 4, 4, 1), reset=0, write_mask=0x0800_009F, traps=FP_TRAPS):
    """Floating-point Status Register: cumulative exception bits and saturation."""

    IOC = Field(0)
    DZC = Field(1)
    OFC = Field(2)
    UFC = Field(3)
    IXC = Field(4)
    IDC = Field(7)
    QC = Field(27)


class RNDR(Sysreg, enc=(3, 3, 2, 4, 0), feature="RNG", access="RO", read="rndr_read"):
    """Random Number; a read that yields one clears NZCV, as every read does here."""


class RNDRRS(Sysreg, enc=(3, 3, 2, 4, 1), feature="RNG", access="RO", read="rndr_read"):
    """Reseeded Random Number: the host's generator looks after its own seed."""
