"""The generic timer as a PE sees it."""

from __future__ import annotations

from trapline.arm64.regs.el2 import CNTHCTL_EL2, HCR_EL2
from trapline.arm64.sysreg import RW, R, Sysreg
from trapline.registers import Field

COUNTER_HZ = 62_500_000
"""Frequency of the system counter: one tick is 16 ns."""


class CNTKCTL_EL1(Sysreg, enc=(3, 0, 14, 1, 0), at_el2="CNTHCTL_EL2", el12=True, reset=0, after={"timer", "trap"}):
    """Counter-timer Kernel Control Register: what EL0 may use."""

    EL0PCTEN = Field(0)
    EL0VCTEN = Field(1)
    EVNTEN = Field(2)
    EVNTDIR = Field(3)
    EVNTI = Field(7, 4)
    EL0VTEN = Field(8)
    EL0PTEN = Field(9)
    EVNTIS = Field(17)


PHYSICAL_COUNTER = (
    RW @ ~CNTKCTL_EL1.EL0PCTEN,
    RW @ (~CNTHCTL_EL2.EL1PCTEN & ~HCR_EL2.E2H),
    RW @ (~CNTHCTL_EL2.EL1PCTEN_E2H & HCR_EL2.E2H),
)
PHYSICAL_TIMER = (
    RW @ ~CNTKCTL_EL1.EL0PTEN,
    RW @ (~CNTHCTL_EL2.EL1PCEN & ~HCR_EL2.E2H),
    RW @ (~CNTHCTL_EL2.EL1PTEN_E2H & HCR_EL2.E2H),
)
VIRTUAL_COUNTER = (RW @ ~CNTKCTL_EL1.EL0VCTEN, RW @ CNTHCTL_EL2.EL1TVCT)
VIRTUAL_TIMER = (RW @ ~CNTKCTL_EL1.EL0VTEN, RW @ CNTHCTL_EL2.EL1TVT)


class CNTFRQ_EL0(
    Sysreg,
    enc=(3, 3, 14, 0, 0),
    write_el=2,
    reset=COUNTER_HZ,
    traps=(R @ (~CNTKCTL_EL1.EL0PCTEN & ~CNTKCTL_EL1.EL0VCTEN),),
):
    """Counter-timer Frequency Register."""


class CNTPCT_EL0(Sysreg, enc=(3, 3, 14, 0, 1), access="RO", read="cntpct_read", traps=PHYSICAL_COUNTER):
    """Counter-timer Physical Count Register."""


class CNTVCT_EL0(Sysreg, enc=(3, 3, 14, 0, 2), access="RO", read="cntvct_read", traps=VIRTUAL_COUNTER):
    """Counter-timer Virtual Count Register."""


class CNTPCTSS_EL0(Sysreg, enc=(3, 3, 14, 0, 5), feature="ECV", access="RO", read="cntpct_read", traps=PHYSICAL_COUNTER):
    """Counter-timer Self-Synchronized Physical Count Register."""


class CNTVCTSS_EL0(Sysreg, enc=(3, 3, 14, 0, 6), feature="ECV", access="RO", read="cntvct_read", traps=VIRTUAL_COUNTER):
    """Counter-timer Self-Synchronized Virtual Count Register."""


class CNTP_CTL_EL0(
    Sysreg,
    enc=(3, 3, 14, 2, 1),
    vncr=0x180,
    at_el2="CNTHP_CTL_EL2",
    el12=True,
    reset=0,
    write_mask=3,
    read="cntp_ctl_read",
    after={"timer", "irq"},
    traps=PHYSICAL_TIMER,
):
    """Counter-timer Physical Timer Control Register."""

    ENABLE = Field(0)
    IMASK = Field(1)
    ISTATUS = Field(2)


class CNTP_CVAL_EL0(
    Sysreg,
    enc=(3, 3, 14, 2, 2),
    vncr=0x178,
    at_el2="CNTHP_CVAL_EL2",
    el12=True,
    reset=0,
    after={"timer", "irq"},
    traps=PHYSICAL_TIMER,
):
    """Counter-timer Physical Timer CompareValue Register."""


class CNTP_TVAL_EL0(
    Sysreg,
    enc=(3, 3, 14, 2, 0),
    at_el2="CNTHP_TVAL_EL2",
    el12=True,
    alias="CNTP_CVAL_EL0",
    read="cntp_tval_read",
    write="cntp_tval_write",
    after={"timer", "irq"},
    traps=PHYSICAL_TIMER,
):
    """Counter-timer Physical Timer TimerValue Register: CompareValue relative to now."""


class CNTV_CTL_EL0(
    Sysreg,
    enc=(3, 3, 14, 3, 1),
    vncr=0x170,
    at_el2="CNTHV_CTL_EL2",
    el12=True,
    reset=0,
    write_mask=3,
    read="cntv_ctl_read",
    after={"timer", "irq"},
    traps=VIRTUAL_TIMER,
):
    """Counter-timer Virtual Timer Control Register."""

    ENABLE = Field(0)
    IMASK = Field(1)
    ISTATUS = Field(2)


class CNTV_CVAL_EL0(
    Sysreg,
    enc=(3, 3, 14, 3, 2),
    vncr=0x168,
    at_el2="CNTHV_CVAL_EL2",
    el12=True,
    reset=0,
    after={"timer", "irq"},
    traps=VIRTUAL_TIMER,
):
    """Counter-timer Virtual Timer CompareValue Register."""


class CNTV_TVAL_EL0(
    Sysreg,
    enc=(3, 3, 14, 3, 0),
    at_el2="CNTHV_TVAL_EL2",
    el12=True,
    alias="CNTV_CVAL_EL0",
    read="cntv_tval_read",
    write="cntv_tval_write",
    after={"timer", "irq"},
    traps=VIRTUAL_TIMER,
):
    """Counter-timer Virtual Timer TimerValue Register: CompareValue relative to now."""


class CNTHP_CTL_EL2(Sysreg, enc=(3, 4, 14, 2, 1), reset=0, write_mask=3, read="cnthp_ctl_read", after={"timer", "irq"}):
    """Counter-timer Hypervisor Physical Timer Control Register."""


class CNTHP_CVAL_EL2(Sysreg, enc=(3, 4, 14, 2, 2), reset=0, after={"timer", "irq"}):
    """Counter-timer Hypervisor Physical Timer CompareValue Register."""


class CNTHP_TVAL_EL2(
    Sysreg, enc=(3, 4, 14, 2, 0), alias="CNTHP_CVAL_EL2", read="cnthp_tval_read", write="cnthp_tval_write", after={"timer", "irq"}
):
    """Counter-timer Hypervisor Physical Timer TimerValue Register."""


class CNTHV_CTL_EL2(Sysreg, enc=(3, 4, 14, 3, 1), feature="VHE", reset=0, write_mask=3, read="cnthv_ctl_read", after={"timer", "irq"}):
    """Counter-timer Hypervisor Virtual Timer Control Register."""


class CNTHV_CVAL_EL2(Sysreg, enc=(3, 4, 14, 3, 2), feature="VHE", reset=0, after={"timer", "irq"}):
    """Counter-timer Hypervisor Virtual Timer CompareValue Register."""


class CNTHV_TVAL_EL2(
    Sysreg,
    enc=(3, 4, 14, 3, 0),
    feature="VHE",
    alias="CNTHV_CVAL_EL2",
    read="cnthv_tval_read",
    write="cnthv_tval_write",
    after={"timer", "irq"},
):
    """Counter-timer Hypervisor Virtual Timer TimerValue Register."""
